"""No code of a model directory is run, and nothing is asked: every `from_pretrained` is told so."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADERS = ("from_pretrained", "from_config")
WITHOUT_CODE = ("PeftConfig", "GenerationConfig")  # take no such argument, and run none


def calls(tree: ast.AST) -> list[ast.Call]:
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return [call for call in found if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS]


def says_no_code(call: ast.Call) -> bool:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    unpacked = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
    return given.get("trust_remote_code") == "False" or "NO_CODE" in unpacked or "settings" in unpacked


def test_every_load_in_the_source_refuses_code() -> None:
    files = [*ROOT.glob("cai_cli/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    found = [(file, call) for file in files for call in calls(ast.parse(file.read_text(encoding="utf-8")))]
    assert len(found) >= 8
    for file, call in found:
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        assert owner in WITHOUT_CODE or says_no_code(call), f"{file}:{call.lineno}"
    # What `_load` passes on under the name of settings holds it too.
    assert '"use_safetensors": True, **NO_CODE}' in (ROOT / "cai_cli/models/load.py").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("asks", ["model", "tokenizer"])
def test_a_directory_that_brings_code_is_one_line(llama: Path, tmp_path: Path, asks: str) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    trace = tmp_path / "ran"
    (model / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\nraise SystemExit('ran')\n")
    name, change = {
        "model": (
            "config.json",
            {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}},
        ),
        "tokenizer": (
            "tokenizer_config.json",
            {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.T", None]}},
        ),
    }[asks]
    (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | change))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How do I bake bread?"}\n')
    words = [
        "sample",
        "--model",
        model,
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--out",
        tmp_path / "out.jsonl",
    ]
    command = [sys.executable, "-m", "cai_cli", *map(str, words)]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert "custom code" in line and "its own code is not run" in line
    assert not trace.exists()
