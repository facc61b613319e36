"""Sizes of a model from its configuration alone, of architectures that put them otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Cai
from families import edit_json
from tiny import make_model
from transformers import CLIPTextConfig, Gemma3nForCausalLM, Gemma3nTextConfig

from cai_cli.errors import UserError
from cai_cli.training.memory.shape import shape_from, shape_of


def test_an_mlp_of_another_width_in_each_layer() -> None:
    config = Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=[64, 96],
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=None,
        layer_types=["sliding_attention", "full_attention"],
    )
    with torch.device("meta"):
        model = Gemma3nForCausalLM(config)
    shape = shape_from(model)
    assert (shape.inner, shape.layers, shape.queries, shape.gated) == (96, 2, 32, True)


def test_a_configuration_of_which_no_model_can_be_made(cai: Cai, tmp_path: Path) -> None:
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(
        UserError, match=r"clip: cannot be loaded: Unrecognized configuration class"
    ) as raised:
        shape_of(str(tmp_path / "clip"), "CAUSAL_LM")
    assert raised.value.hint == "take a model of an architecture that has such a class"
    model = make_model(tmp_path / "lm")
    edit_json(model / "config.json", hidden_act="none of them")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"id": "a", "prompt": [{"role": "user", "content": "Bread?"}],'
        ' "completion": [{"role": "assistant", "content": "Mix it."}]}\n'
    )
    words = ("sft", "--model", model, "--data", rows, "--out", tmp_path / "out", "--dry-run")
    told = cai(*words).stderr.splitlines()[-1]
    assert told.startswith(f"error: --model {model}: cannot be loaded: ") and "none of them" in told
