"""Ways into the command: prompts over stdin, folders named for files, shares of a split, the machine,
completion.
"""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cai, mistake
from tiny import make_model

PYTHON = (sys.executable, "-m", "cai_cli")
LINES = "How do I bake?\n\nHow do I cook?\n"


def piped(content: bytes | str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command with something over stdin."""
    content = content.encode() if isinstance(content, str) else content
    done = subprocess.run(
        [*PYTHON, *map(str, words)],
        input=content,
        capture_output=True,
        check=False,
        env={**os.environ, **variables},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Prompts over stdin


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        '{"prompt": "How do I bake?"}\n{"prompt": "How do I cook?"}\n',
        gzip.compress(LINES.encode()),
        "\ufeff" + LINES.replace("\n", "\r\n"),
    ],
    ids=["lines", "rows", "gzip", "crlf"],
)
def test_prompts_come_over_stdin_as_from_a_file(tmp_path, content):
    done = piped(content, "split", "-", "--parts", "all=1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["prompt"][0]["content"] for row in rows(tmp_path / "all.jsonl")] == [
        "How do I bake?",
        "How do I cook?",
    ]


def test_what_came_over_stdin_is_known_by_its_content(cai: Cai, llama, tmp_path):
    out = tmp_path / "s.jsonl"
    words = (
        "sample",
        "--model",
        llama,
        "--prompts",
        "-",
        "-n",
        1,
        "--max-new-tokens",
        3,
        "--on-truncated",
        "keep",
        "--out",
        out,
    )
    assert piped(LINES, *words).returncode == 0
    file = tmp_path / "p.txt"
    file.write_text(LINES)
    same = [file if word == "-" else out.with_name("f.jsonl") if word == out else word for word in words]
    assert cai(*same).returncode == 0
    assert out.read_bytes() == (tmp_path / "f.jsonl").read_bytes()
    assert "already done (2 rows)" in piped(LINES, *words).stderr
    mistake(piped("Something else?\n", *words), "--prompts has other content")
    shown = cai("lineage", out)
    assert "prompts -" in shown.stdout and "missing" not in shown.stdout + shown.stderr


def test_a_broken_row_over_stdin_is_named_by_its_line():
    mistake(
        piped('{"prompt": "a"}\n{"prmpt": "b"}\n', "split", "-", "--parts", "a=1", "--out", "x"),
        "<stdin>:2: field `prompt`",
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "sample --model ./lm --prompts - --prompts - --out x.jsonl",
            "--prompts -: stdin is there once, and named 2 times",
        ),
        (
            "ppo --model ./lm --pm ./pm --prompts -:2 --eval-prompts - --out x",
            "--eval-prompts -: stdin is there once",
        ),
        ("sft --model ./lm --data - --out x", "--data -: only prompts are read from stdin"),
        ("score --pm ./pm - --out x.jsonl", "--file -: only prompts are read from stdin"),
        ("split - --parts a=1 --out x", "stdin is empty"),
    ],
)
def test_stdin_that_cannot_be_had_is_told(cai: Cai, tmp_path, words, told):
    mistake(cai(*words.split(), cwd=tmp_path), told)


def test_several_processes_share_no_stdin():
    done = piped(LINES, "split", "-", "--parts", "a=1", "--out", "x", WORLD_SIZE="2", RANK="0")
    mistake(done, "--prompts -: several processes cannot share stdin", "write the prompts to a file")


def test_a_terminal_is_nothing_piped_in(tmp_path):
    ours, theirs = pty.openpty()
    command = [*PYTHON, "split", "-", "--parts", "a=1", "--out", str(tmp_path / "x")]
    try:
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False, timeout=60)
    finally:
        os.close(ours), os.close(theirs)
    mistake(done, "stdin is a terminal", "cat FILE |")


# Folders named for files, and files for folders


def test_a_folder_in_place_of_a_file_says_what_is_in_it(cai: Cai, tmp_path):
    make_model(tmp_path / "lm")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "p.parquet").write_text("")
    (tmp_path / "none").mkdir()
    for name in (
        "a.jsonl",
        "b.txt",
        "c.jsonl.gz",
        "a.rejects.jsonl",
        "a.manifest.json",
        "metrics.jsonl",
        "x.png",
    ):
        (tmp_path / "lm" / name).write_text("")
    for folder, told in (
        ("lm", "name a file in it: a.jsonl, b.txt, c.jsonl.gz"),
        ("data", "name a file below it, such as deep/p.parquet"),
        ("none", "there is none of rows in it"),
    ):
        line = mistake(
            cai("split", folder, "--parts", "a=1", "--out", "x", cwd=tmp_path),
            f"{folder}: is a directory",
            told,
        )
        assert "manifest" not in line and "tokenizer" not in line
    for name in ("a.jsonl", "b.txt", "c.jsonl.gz"):
        (tmp_path / "lm" / name).unlink()
    mistake(cai("split", "lm", "--parts", "a=1", "--out", "x", cwd=tmp_path), "it holds a model", "--model")
    line = mistake(
        cai(*["sample", "--model", ".", "--prompts", "x", "--out", "y.jsonl"], cwd=tmp_path),
        "no config.json in it",
    )
    assert "name a model below it, such as lm" in line


# Splits


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("sft=0.5,rl=0.4", ["the parts add up to 0.9, neither 1 nor 100", "sft 55.6%, rl 44.4%"]),
        ("sft=80,rl=15", ["add up to 95"]),
        ("sft=1,rl=0", ["no prompt of 40 fell into rl=0"]),
        ("sft=0.999,rl=0.001", ["no prompt of 40 fell into rl=0.001", "or more prompts"]),
        ("sft=0.5,rl=0.5", []),
        ("sft=1,rl=1", []),
        ("sft=80,rl=20", []),
    ],
)
def test_shares_that_do_not_add_up_and_empty_parts_are_told(cai: Cai, tmp_path, parts, told):
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(40)))
    done = cai("split", prompts, "--parts", parts, "--out", tmp_path / "out")
    assert done.returncode == 0
    warnings = json.loads((tmp_path / "out" / "split.manifest.json").read_text())["warnings"]
    assert len(warnings) == done.stderr.count("warning: ") == bool(told)
    for words in told:
        assert words in warnings[0] and words in done.stderr
    tried = cai("split", prompts, "--parts", parts, "--dry-run", "--out", tmp_path / "out2")
    assert tried.stderr.count("warning: ") == bool(told)


# The machine


def test_env_tells_the_machine_and_no_secrets(cai: Cai, monkeypatch):
    from cai_cli import __version__

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("HF_HOME", str(Path.home() / "cache"))
    lines = cai("env")
    found = json.loads(cai("env", "--json").stdout)
    assert lines.returncode == 0 and lines.stderr == ""
    assert "secret" not in lines.stdout + json.dumps(found) and str(Path.home()) not in lines.stdout
    assert found["cai_cli"] == __version__ and found["cores"] >= 1
    assert found["libraries"]["torch"][0].isdigit() and found["devices"][0].startswith("cpu")
    assert found["settings"]["HF_ENDPOINT"] == "https://hub.example"
    assert (
        found["settings"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
        and found["settings"]["HF_HUB_OFFLINE"] == "1"
    )
    for name in ("memory", "disk", "cache", "libraries", "devices", "settings"):
        assert f"\n{name}:" in lines.stdout


def test_the_version_by_its_letter(cai: Cai):
    assert cai("-V").stdout == cai("--version").stdout != ""


# Completion

COMPLETE = """
import sys
from cai_cli.__main__ import main
sys.argv = ["cai", *sys.argv[1:]]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cai sa", "sample"),
        ("cai sft --lo", "--lora-r"),
        ("cai evaluate ", "hhh"),
        ("cai sft --quantize ", "4bit"),
    ],
)
def test_completion_offers_commands_flags_and_values(typed, offered):
    variables = {
        "_CAI_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    assert offered in done.stdout.split() and done.stderr == ""


def test_completion_is_installed_for_the_shell(cai: Cai, tmp_path):
    assert "--install-completion" in cai("--help").stdout and "--show-completion" in cai("--help").stdout
    command = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", COMPLETE]
    home = {**os.environ, "HOME": str(tmp_path)}
    shown = subprocess.run(
        [*command, "--show-completion"], capture_output=True, text=True, check=True, env=home
    ).stdout
    subprocess.run([*command, "--install-completion"], capture_output=True, check=True, env=home)
    assert "_CAI_COMPLETE=complete_bash" in shown
    assert (tmp_path / ".bash_completions" / "cai.sh").read_text().strip() == shown.strip()
