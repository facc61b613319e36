"""`--lora --bf16`: the frozen base is held in bfloat16, what learns in float32, and what is saved is not rounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_runs import finish, make_world

from cai_cli.console.options import AdapterOptions
from cai_cli.models.adapters import add_lora, save_trained, trainable_state
from cai_cli.models.devices import training_dtype
from cai_cli.models.load import load_pm
from cai_cli.models.tokenizers import load_tokenizer

SHORT = {
    "sft": "--num-train-epochs 0.1 --gradient-accumulation-steps 1",
    "train-pm": "--num-train-epochs 0.1",
    "ppo": "--steps 2",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("bf16"))


@pytest.mark.parametrize("stage", SHORT)
def test_only_the_frozen_base_of_adapters_is_held_in_16_bits(world, stage):
    flags = [*SHORT[stage].split(), "--device", "cpu", "--bf16"]
    finish(stage, f"{stage}-lora", world, *flags, "--lora", "--gradient-checkpointing")
    assert json.loads((world / f"{stage}-lora/cai.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(world / f"{stage}-lora/model.safetensors")
    base = load_file(world / "lm/model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}  # as the base is
    alike = [name for name in saved if name in base and torch.equal(saved[name], base[name])]
    assert any("embed" in name for name in alike) and sum("norm" in name for name in alike) == 5
    assert not torch.equal(*(state["model.layers.0.mlp.up_proj.weight"] for state in (saved, base)))

    finish(stage, f"{stage}-full", world, *flags)
    assert json.loads((world / f"{stage}-full/cai.json").read_text())["dtype"] == "float32"


def test_adapters_and_a_score_head_learn_in_float32(world, tmp_path):
    pm = add_lora(load_pm(str(world / "pm"), "cpu", "bfloat16"), AdapterOptions(lora=True), "SEQ_CLS", 0)
    assert {weight.dtype for weight in trainable_state(pm).values()} == {torch.float32}
    assert pm.dtype == torch.bfloat16

    tokenizer = load_tokenizer(str(world / "pm"))
    half = load_pm(str(world / "pm"), "cpu", "bfloat16", tokenizer=tokenizer)
    half.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    save_trained(
        pm, tokenizer, tmp_path / "out", AdapterOptions(lora=True), str(tmp_path / "half"), "SEQ_CLS"
    )
    saved = load_file(tmp_path / "out/model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {
        torch.bfloat16
    }  # a base of 16 bits is merged as it is


def test_a_base_of_16_bits_that_is_held_in_float32_is_saved_so(world, tmp_path):
    tokenizer = load_tokenizer(str(world / "pm"))
    half = tmp_path / "half"
    load_pm(str(world / "pm"), "cpu", "bfloat16", tokenizer=tokenizer).save_pretrained(half)
    tokenizer.save_pretrained(half)
    options = AdapterOptions(lora=True)
    pm = add_lora(load_pm(str(half), "cpu", training_dtype("auto", False, True)), options, "SEQ_CLS", 0)
    save_trained(pm, tokenizer, tmp_path / "out", options, str(half), "SEQ_CLS")
    saved = load_file(tmp_path / "out/model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


def test_a_dtype_that_is_given_holds():
    assert training_dtype("auto", bf16=True, lora=True) == "bfloat16"
    assert training_dtype("auto", bf16=True, lora=False) == training_dtype("auto", False, True) == "float32"
    assert training_dtype("float32", bf16=True, lora=True) == "float32"
