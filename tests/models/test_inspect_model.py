"""`cai inspect DIR`: what a model directory holds, and what a directory that is no model seems to be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cai, mistake
from ppo_setup import make_pm
from torch_free import PROGRAM

from cai_cli.models.templates import template_hash
from cai_cli.models.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def trained(cai: Cai, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    row = {"prompt": "How do I bake bread?", "completion": "Mix the flour."}
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "prompt": f"{row['prompt']} {n}"}) + "\n" for n in range(12))
    )
    words = ("--lora", "--save-adapter", "--held-out", 0.3, "--out", "sl-cai")
    done = cai("sft", "--model", llama, "--data", "rows.jsonl:2", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_trained_model_without_torch(trained: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, "inspect", str(trained / "sl-cai")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines() if line[:1].strip())
    found = {name: value.strip() for name, value in facts.items()}
    assert found["state"] == "finished" and found["role"] == "language model"
    assert found["architecture"] == "LlamaForCausalLM (llama)" and found["dtype"] == "F32"
    assert found["context length"] == "4,096 tokens"
    assert template_hash(load_tokenizer(str(trained / "sl-cai"))) in found["chat template"]
    assert "{% for message in messages %}" in done.stdout
    assert found["made by"].startswith("cai sft ") and "seed 0, begun " in found["made by"]
    assert (
        found["data"].endswith("rows.jsonl, weight 2")
        and "held-out loss, other" in found
        and "train loss" in found
    )


def test_parameters_are_counted_by_their_type(llama: Path, cai: Cai, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    shown = cai("inspect", llama).stdout
    assert f"{sum(weight.numel() for weight in model.parameters()):,} (" in shown
    model.bfloat16().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards/model.safetensors.index.json").exists()
    again = cai("inspect", tmp_path / "shards").stdout
    assert "BF16" in again and "no tokenizer in it" in again and "not by cai" in again


def test_adapters_preference_models_and_models_in_the_making(
    cai: Cai, trained: Path, llama: Path, tmp_path: Path
) -> None:
    shown = cai("inspect", trained / "sl-cai/adapter").stdout
    assert (
        "adapter, of a language model" in shown
        and "LORA, rank 16, alpha 32" in shown
        and "base model" in shown
    )
    assert "preference model" in cai("inspect", make_pm(llama, tmp_path / "pm")).stdout
    half = tmp_path / "half"
    shutil.copytree(trained / "sl-cai", half)
    (half / "cai.json").rename(half / "cai.partial.json")
    for name in ("step-00000020/complete", "step-00000040/state.pt"):
        (half / "checkpoints" / name).parent.mkdir(parents=True)
        (half / "checkpoints" / name).write_text("{}")
    shown = cai("inspect", half).stdout
    assert "in the making" in shown and "step-00000020" in shown and "step-00000040 (half-written)" in shown
    for file in half.glob("*.*"):
        if file.name != "cai.partial.json":
            file.unlink()
    assert "in the making" in cai("inspect", half).stdout


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "it is empty"),
        (["model.safetensors"], "weights without a config.json"),
        (["tokenizer.json"], "a tokenizer without a model"),
        (["a.jsonl", "b.jsonl"], "it holds rows, each a file to inspect: a.jsonl, b.jsonl"),
        (["pm/config.json", "x.txt"], "models are in it: pm"),
        (["snapshots/1/config.json"], "the Hub's cache"),
        (["complete", "state.pt"], "a checkpoint of a run in the making"),
        ([f"{n}.txt" for n in range(7)], "it holds 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more"),
    ],
)
def test_a_directory_that_is_no_model(cai: Cai, tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    mistake(cai("inspect", tmp_path), "is no model directory", told)


def test_a_damaged_model_is_shown_as_far_as_it_goes(cai: Cai, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "lm")
    (tmp_path / "lm/tokenizer.json").write_text('{"model": {"vocab": 3}}')
    shown = cai("inspect", tmp_path / "lm")
    assert shown.returncode == 0 and "tokenizer.json does not say which tokens" in shown.stdout
    mistake(cai("inspect", tmp_path / "lm", "--limit", 3), "--limit choose rows")
    with (tmp_path / "lm/model.safetensors").open("r+b") as stream:
        stream.truncate(2000)
    mistake(cai("inspect", tmp_path / "lm"), "model.safetensors: ", "cut short")
