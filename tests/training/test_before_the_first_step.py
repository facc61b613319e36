"""Whatever only saving would find is found before a step is paid for: one line, no metrics, no weights; in
every trainer.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mistake
from families import edit_json, make_family, write_comparisons, write_samples
from ppo_setup import make_pm
from stack_exchange_dumps import dump, site_rows
from transformers import GenerationConfig

from cai_cli.console.groups import build
from cai_cli.console.options import AdapterOptions
from cai_cli.errors import CaiError, RunError, UserError
from cai_cli.models.adapters import add_lora
from cai_cli.models.load import load_lm
from cai_cli.models.saved_configs import settle_configs
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.stages import pmp, ppo, sft, train_pm
from cai_cli.training.rehearsal import needed_bytes, rehearse_saving

STAGES = ["sft", "pmp", "train-pm", "ppo"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_family(tmp_path / "base", "llama")


def options(stage: str, base: Path, **more: Any) -> Any:
    """A small run of the stage on the model, into `base/../out`."""
    folder = base.parent
    common = {"model": str(base), "out": folder / "out", "device": "cpu", **more}
    if stage == "sft":
        return build(sft.Options, data=[str(write_samples(folder / "s.jsonl", 8))], **common)
    if stage == "pmp":
        return build(
            pmp.Options, posts=[str(dump(folder / "beer.Posts.xml", site_rows()))], held_out=0.0, **common
        )
    if stage == "train-pm":
        return build(
            train_pm.Options,
            comparisons=[str(write_comparisons(folder / "c.jsonl", 8))],
            held_out=0.0,
            **common,
        )
    pm = (
        folder / "pm"
        if (folder / "pm").exists()
        else make_pm(make_family(folder / "whole", "llama"), folder / "pm")
    )
    run = {"steps": 1, "rollout_batch_size": 4, "max_new_tokens": 4}
    return build(
        ppo.Options, pm=str(pm), prompts=[str(write_samples(folder / "s.jsonl", 4))], **run, **common
    )


def run(stage: str, base: Path, **more: Any) -> None:
    {"sft": sft, "pmp": pmp, "train-pm": train_pm, "ppo": ppo}[stage].run(options(stage, base, **more))


def assert_nothing_was_paid(out: Path) -> None:
    metrics = out / "metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == ""
    assert not (out / "cai.json").exists() and not list(out.rglob("*.safetensors"))


def saved_generation(out: Path) -> dict[str, Any]:
    return json.loads((out / "generation_config.json").read_text())


# Generation settings that transformers ignores, and then refuses to save


@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),
        ({"typical_p": 0.5, "early_stopping": True, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"do_sample": True, "top_k": 5, "length_penalty": 2.0}, {"do_sample": True, "top_k": 5}),
        ({"output_scores": True, "max_length": 99}, {"max_length": 99}),
    ],
    ids=["llama-2", "beams", "half", "outputs"],
)
def test_settings_without_effect_are_dropped_and_told(stage, given, kept, base, capsys):
    edit_json(base / "generation_config.json", **given)
    run(stage, base)
    found = saved_generation(base.parent / "out")
    assert {name: found[name] for name in given if found.get(name) is not None} == kept
    told = [line for line in capsys.readouterr().err.splitlines() if "generation settings" in line]
    assert len(told) == 1 and all(
        (f"{name} {value}" in told[0]) == (name not in kept) for name, value in given.items()
    )
    GenerationConfig.from_pretrained(base.parent / "out").validate(strict=True)


@pytest.mark.parametrize("stage", ["sft", "train-pm"])
def test_generation_settings_in_an_old_config_are_no_obstacle(stage, base):
    edit_json(base / "config.json", temperature=0.9, do_sample=True)
    edit_json(base / "generation_config.json", eos_token_id=2)
    run(stage, base)
    assert (base.parent / "out/cai.json").exists()
    assert "temperature" not in json.loads((base.parent / "out/config.json").read_text())


# The disk


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_without_room_is_found_first(stage, base, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 20, (1 << 20) - 1000, 1000))
    with pytest.raises(RunError, match=r"GB are free; checkpoints and the trained model need"):
        run(stage, base)
    assert_nothing_was_paid(base.parent / "out")


def test_the_room_that_is_needed():
    """3 checkpoints, at most two at once; one of them beside the model; none where the run is too short to
    keep one.
    """
    assert needed_bytes(12, 4, 3) == 36
    assert needed_bytes(12, 20, 3) == 44
    assert needed_bytes(12, 4, 2) == 28
    assert needed_bytes(12, 4, 1) == 16
    assert needed_bytes(12, 4, 0) == 4


@pytest.mark.parametrize("largest", [4_000, 200_000], ids=["model", "checkpoint"])
def test_a_file_system_that_takes_no_such_file_is_found_first(largest, base):
    """The model has 130 kB, what a checkpoint holds of it 390 kB."""
    settings = options("sft", base)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))  # noqa: E731
    words = [
        "sft",
        "--model",
        base,
        "--data",
        settings.data[0],
        "--out",
        settings.output.out,
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "cai_cli", *map(str, words)]
    result = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode in (1, 2) and "File too large" in result.stderr.splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr
    assert_nothing_was_paid(settings.output.out)


def test_a_name_too_long_is_one_line(cai, base):
    settings = options("sft", base)
    out = base.parent / ("x" * 300)
    result = cai("sft", "--model", base, "--data", settings.data[0], "--out", out, "--device", "cpu")
    assert result.returncode and "Traceback" not in result.stderr
    assert "File name too long" in result.stderr.splitlines()[-1]


# The model


def rehearse(model: Any, tokenizer: Any, folder: Path) -> None:
    rehearse_saving(model, tokenizer, folder, folder / "checkpoints", 1, 1000)


def test_weights_that_share_memory_undeclared_are_found_first(base, tmp_path):
    model, tokenizer = load_lm(str(base), "cpu"), load_tokenizer(str(base))
    settle_configs(model, tokenizer)
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(UserError, match="cannot be saved"):
        rehearse(model, tokenizer, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_tied_weights_that_are_declared_are_no_obstacle(tmp_path):
    base = make_family(tmp_path / "base", "llama", tie_word_embeddings=True)
    run("sft", base)
    assert load_lm(str(tmp_path / "out"), "cpu").config.tie_word_embeddings


@pytest.mark.parametrize("lora", [False, True])
def test_a_rehearsal_leaves_folder_and_model_as_they_were(lora, base, tmp_path):
    model, tokenizer = load_lm(str(base), "cpu"), load_tokenizer(str(base))
    settle_configs(model, tokenizer)
    model.config.use_cache = False
    if lora:
        model = add_lora(model, AdapterOptions(lora=True), "CAUSAL_LM", 0)
    before, config = {name: weight.clone() for name, weight in model.state_dict().items()}, model.config
    rehearse(model, tokenizer, tmp_path)
    assert model.config is config and config.use_cache is False
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_base_with_weights_that_are_not_finite_is_found_first(stage, base):
    model = load_lm(str(base), "cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("inf")
    model.save_pretrained(base)
    with pytest.raises(UserError, match=r"base: its weight model.layers.1.mlp.up_proj.weight is not finite"):
        run(stage, base)
    assert_nothing_was_paid(base.parent / "out")


@pytest.mark.parametrize("stage", STAGES)
def test_float16_is_refused_for_training(stage, base):
    with pytest.raises(CaiError, match="--dtype float16"):
        run(stage, base, dtype="float16")
    assert not (base.parent / "out").exists()


def test_float16_is_refused_in_one_line(cai, base):
    settings = options("sft", base)
    words = ("sft", "--model", base, "--data", settings.data[0], "--out", settings.output.out)
    mistake(cai(*words, "--dtype", "float16"), "--dtype float16", "float32")


# The model's context


@pytest.mark.parametrize("stage", ["sft", "pmp", "train-pm"])
def test_a_row_is_never_longer_than_the_context(stage, base):
    """--max-length is 2048; beyond its positions a model fails, or learns what nothing else lets it read."""
    edit_json(base / "config.json", max_position_embeddings=12)
    with pytest.raises(RunError, match=r"too_long.*a longer context"):
        run(stage, base)
    assert_nothing_was_paid(base.parent / "out")
