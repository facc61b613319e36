"""Advice can be followed: the flags that hints name exist, and the command with them is not refused as
another artifact.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cai

import cai_cli
from cai_cli.artifacts.rejects import is_begun, why_none, with_restart
from cai_cli.console.groups import build, flags_of, flags_read
from cai_cli.console.options import FLAG, flag_name
from cai_cli.prompting.hygiene import ADVICE, advice
from cai_cli.rows.conversation import message
from cai_cli.stages import demo, imports, label, ppo, revise, sample, sft, train_pm

FLAGS = {
    line.split()[-1] for line in Path(__file__).parents[1].joinpath("flags.txt").read_text().splitlines()
}
# Flags of other programs that hints name: launchers, `hf`, `jq` and the like.
OTHERS = {
    "--use-fsdp",
    "--fsdp-version",
    "--multi",
    "--nproc-per-node",
    "--repo-type",
    "--use",
    "--fsdp",
    "--help",
}
RESTART = "--if-changed restart"


def hints() -> list[tuple[str, str]]:
    """(place, text) of every text in the code that stands in an error, or in a table of advice."""
    found = []
    for path in sorted(Path(cai_cli.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "id", None), getattr(getattr(node, "func", None), "id", None)}
            told = isinstance(node, ast.Call) and names & {
                "UserError",
                "RunError",
                "RecordError",
                "RowKind",
                "FileKind",
            }
            hint = isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name)
                and target.id.lower() in {"hint", "hints", "advice", "learned_too_fast"}
                for target in node.targets
            )
            if told or hint:
                texts = [
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                found += [(f"{path.name}:{node.lineno}", text) for text in texts if "--" in text]
    return found


def test_every_flag_that_an_error_names_exists():
    named = hints() + [(reason, step) for reason, steps in ADVICE.items() for step in steps]
    assert len(named) > 80
    unknown = {
        (place, name) for place, text in named for name in FLAG.findall(text) if name not in FLAGS | OTHERS
    }
    assert unknown == set()


STAGES = {
    "revise": revise,
    "sample": sample,
    "label": label,
    "sft": sft,
    "train-pm": train_pm,
    "ppo": ppo,
    "import": imports,
}


@pytest.mark.parametrize("stage", STAGES)
def test_advice_names_flags_that_the_command_has(stage):
    flags = [flag_name(name) for name in flags_of(STAGES[stage].Options)]
    for reason in ADVICE:
        told = advice(reason, flags)
        assert {name.replace("--no-", "--") for name in FLAG.findall(told)} <= {*flags}
    assert ("--rationale-tokens" in advice("truncated", flags)) == (stage == "label")
    assert ("--few-shot" in advice("prompt_too_long", flags)) == (stage in ("revise", "label"))


def test_none_of_the_rows_names_the_commonest_reason(tmp_path):
    options = build(sft.Options, model="lm", data=["x"], out=tmp_path)
    assert (
        why_none(Counter(["too_long", "too_long", "empty_reply"]), options)
        == "too_long 2, empty_reply 1; raise --max-length, or take a model with a longer context"
    )
    assert why_none(Counter(), options) == ""


def test_only_flags_that_make_another_artifact_restart_it(tmp_path):
    """Of an artifact that is begun; where and how fast it is made is free to change."""
    out = tmp_path / "x.jsonl"
    options = build(sample.Options, model="lm", prompts=["x"], out=out)
    assert not is_begun(out) and with_restart("raise --max-new-tokens", options) == "raise --max-new-tokens"
    (tmp_path / "x.manifest.partial.json").write_text("{}")
    assert is_begun(out) and RESTART in str(with_restart("raise --max-new-tokens", options))
    for free in (
        "--device cpu",
        "--dtype float32",
        "--max-reject-rate 1",
        "raise --limit",
        "see --config",
        "cai x --few-shot",
    ):
        assert with_restart(free, options) == free
    assert with_restart(None, options) is None
    assert (
        with_restart("--if-changed restart, and --attempts", options)
        == "--if-changed restart, and --attempts"
    )
    for name in ("cai.json", "cai.partial.json", "split.manifest.json", "split.manifest.partial.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        assert not is_begun(folder)
        (folder / name).write_text("{}")
        assert is_begun(folder)
    assert not is_begun(None) and not is_begun(Path("-"))
    assert with_restart("--seed", build(demo.Options, out=tmp_path / "cai-json")) == "--seed"
    assert flags_of(sample.Options)["max_new_tokens"].part.value == "content"


# What is said, followed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("advice")
    asked = [[message("user", f"How do I bake {n}?")] for n in range(8)]
    reply, other = [message("assistant", "Mix it.")], [message("assistant", "No.")]
    pair = {"chosen": reply, "rejected": other, "probability": 0.9, "origin": "human"}
    for name, rows in {
        "prompts": [{"prompt": turns} for turns in asked],
        "samples": [{"id": f"{n}/0", "prompt": turns, "completion": reply} for n, turns in enumerate(asked)],
        "comparisons": [{"id": f"{n}", "prompt": turns, **pair} for n, turns in enumerate(asked)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


RUNS = {
    "sample": ("sample --prompts {data}/prompts.jsonl -n 1 --max-new-tokens 2", "--on-truncated keep"),
    "sft": ("sft --data {data}/samples.jsonl --num-train-epochs 9 --learning-rate 1e30", "--learning-rate"),
    "train-pm": (
        "train-pm --comparisons {data}/comparisons.jsonl --num-train-epochs 9 --learning-rate 1e30",
        "--learning-rate",
    ),
}


@pytest.mark.parametrize("stage", RUNS)
def test_a_failed_run_with_what_it_advises_is_not_refused(cai: Cai, data, llama, tmp_path, stage):
    words, advised = RUNS[stage]
    out = tmp_path / ("x.jsonl" if stage == "sample" else "x")
    typed = [*words.format(data=data).split(), "--model", str(llama), "--device", "cpu", "--out", str(out)]
    failed = cai(*typed)
    line = failed.stderr.splitlines()[-1]
    assert failed.returncode == 1 and line.startswith("error: ") and advised in line and RESTART in line, (
        failed.stderr
    )
    followed = advised.split() if stage == "sample" else [advised, "1e-5"]
    again = cai(*typed, *followed, *RESTART.split())
    assert again.returncode == 0 and out.exists(), again.stderr


def test_advice_leaves_out_what_nothing_reads(tmp_path):
    """Rationales are written with --cot alone, and replies to --prompts."""
    given = {"feedback_model": "judge", "out": tmp_path / "x.jsonl"}
    plain = build(label.Options, prompts=["x"], model="lm", **given)
    told = {
        name: advice("truncated", flags_read(options))
        for name, options in (
            ("plain", plain),
            ("cot", replace(plain, cot=True)),
            ("pairs", build(label.Options, pairs=["x"], cot=True, **given)),
        )
    }
    assert told == {
        "plain": "raise --max-new-tokens, or pass --on-truncated keep",
        "cot": "raise --max-new-tokens, or raise --rationale-tokens, or pass --on-truncated keep",
        "pairs": "raise --rationale-tokens, or pass --on-truncated keep",
    }
