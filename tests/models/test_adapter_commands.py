"""An adapter directory gives every command what the merged model beside it gives: the same texts, scores,
labels and weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cai_cli.cli import app
from cai_cli.microworld import checkpoint, constitutions

SHORT = ["--max-new-tokens", "24", "--on-truncated", "keep"]
TRAIN = ["--learning-rate", "1e-2", "--num-train-epochs", "1"]
COMMANDS = {  # by the role of the model in them; {} is the model
    "revise": [
        "revise",
        "--model",
        "{lm}",
        "--prompts",
        "prompts.jsonl",
        "--constitution",
        str(constitutions()["kind"]),
        "--rounds",
        "1",
    ],
    "sample": ["sample", "--model", "{lm}", "--prompts", "prompts.jsonl"],
    "label judge": ["label", "--pairs", "pairs.jsonl", "--feedback-model", "{lm}", "--min-mass", "0"],
    "constitution test": ["constitution", "test", "--feedback-model", "{lm}", "--pairs", "pairs.jsonl"],
    "evaluate hhh": ["evaluate", "hhh", "items.jsonl", "--model", "{lm}"],
    "evaluate hhh pm": ["evaluate", "hhh", "items.jsonl", "--pm", "{pm}"],
    "score": ["score", "samples.jsonl", "--pm", "{pm}"],
    "evaluate pm": ["evaluate", "pm", "--pm", "{pm}", "--comparisons", "pairs.jsonl"],
    "sft": ["sft", "--model", "{lm}", "--data", "samples.jsonl", *TRAIN],
    "train-pm": ["train-pm", "--model", "{pm}", "--comparisons", "pairs.jsonl", *TRAIN],
    "train-pm from a language model": ["train-pm", "--model", "{lm}", "--comparisons", "pairs.jsonl", *TRAIN],
    "ppo": [
        "ppo",
        "--model",
        "lm",
        "--pm",
        "{pm}",
        "--gold-pm",
        "{pm}",
        "--prompts",
        "prompts.jsonl",
        "--steps",
        "1",
    ],
}
MORE = {
    "revise": [*SHORT, "--few-shot", "none", "--max-reject-rate", "1"],
    "sample": SHORT,
    "ppo": ["--rollout-batch-size", "4", "--max-new-tokens", "6"],
}


def here(*args: object) -> None:
    """`cai ARGS` in this process."""
    app([str(arg) for arg in args], prog_name="cai", standalone_mode=False)


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro-world's helpful-only model and a preference model of it, each trained with --lora
    --save-adapter, and rows.
    """
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(checkpoint("helpful-only"), folder / "base")
    pairs = [
        json.loads(line)
        for line in (world / "human-helpfulness.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    samples = [
        {"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"], "finish_reason": "stop"}
        for row in pairs
    ]
    write_rows(folder / "samples.jsonl", samples)
    write_rows(folder / "prompts.jsonl", [{"id": row["id"], "prompt": row["prompt"]} for row in pairs[:4]])
    write_rows(folder / "items.jsonl", [item_of(row) for row in pairs[:6]])
    adapters = ["--lora", "--lora-r", "4", "--save-adapter", *TRAIN]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        here("sft", "--model", "base", "--data", "samples.jsonl", *adapters, "--out", "lm")
        here("train-pm", "--model", "base", "--comparisons", "pairs.jsonl", *adapters, "--out", "pm")
    return folder


def item_of(row: dict) -> dict:
    """A multiple-choice item in the paper's format."""
    asked = f"\n\nHuman: {row['prompt'][-1]['content']}\n\nAssistant:"
    right, wrong = (f" {row[side][0]['content']}" for side in ("chosen", "rejected"))
    question = f"Which reply is better?{asked}\n\nOptions:\n (A){right}\n (B){wrong}\n\nThe answer is:"
    texts = {"text_correct": asked + right, "text_incorrect": asked + wrong}
    return {"prompt": question, "corrects": [" (A)"], "incorrects": [" (B)"], **texts}


def result(path: Path) -> list:
    """What a command made: the weights of a model, the rows of a file, the measurements but for the model's
    name.
    """
    if path.is_dir():
        return [(path / "model.safetensors").read_bytes()]
    if path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        named = ("model", "pm", "feedback_model", "overlap", "manifest")
        return [{key: value for key, value in found.items() if key not in named}]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_adapter_does_what_the_merged_model_does(
    folder: Path, tmp_path: Path, monkeypatch, command: str
) -> None:
    monkeypatch.chdir(folder)
    words = COMMANDS[command]
    suffix = {"evaluate": ".json", "constitution": ".json", "sft": "", "train-pm": "", "ppo": ""}.get(
        words[0], ".jsonl"
    )
    found = []
    for kind in ("", "/adapter"):
        out = tmp_path / f"out{kind.replace('/', '-')}{suffix}"
        here(
            *(word.format(lm=f"lm{kind}", pm=f"pm{kind}") for word in words),
            *MORE.get(command, []),
            "--out",
            out,
        )
        found.append(result(out))
    assert found[0] == found[1] and found[0]
