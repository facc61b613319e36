"""The weights that another engine is sent: those that would be saved, from a model that stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model

from cai_cli.models.load import load_lm
from cai_cli.models.merging import whole_weights


def adapted(folder: Path, kind: str):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_lm(str(make_model(folder, kind)), "cpu"), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("shell", [True, False])
def test_adapters_are_added_and_the_model_stays(kind, shell, tmp_path):
    model = adapted(tmp_path / kind, kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = {
        name: weight.clone() for name, weight in whole_weights(model if shell else model.get_base_model())
    }
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    merged = model.merge_and_unload().state_dict()
    assert found.keys() == merged.keys()
    for name, weight in merged.items():
        assert torch.allclose(found[name], weight, atol=1e-6), name
        assert not found[name].requires_grad
    plain = [
        before.get(f"base_model.model.{name}".replace(".weight", ".base_layer.weight")) for name in merged
    ]
    moved = [
        weight
        for weight, old in zip(merged.values(), plain, strict=True)
        if old is not None and not weight.equal(old)
    ]
    assert len(moved) >= 8


def test_a_model_without_adapters_is_itself(llama):
    model = load_lm(str(llama), "cpu")
    found = dict(whole_weights(model))
    assert found.keys() == model.state_dict().keys()


def test_names_are_those_of_a_checkpoint(tmp_path):
    """A mixture of experts, whose weights are put together in memory and lie apart in files."""
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    MixtralForCausalLM(
        MixtralConfig(vocab_size=64, num_hidden_layers=2, num_local_experts=2, **sizes)
    ).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    found = dict(whole_weights(MixtralForCausalLM.from_pretrained(tmp_path)))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], weight) for name, weight in saved.items())
