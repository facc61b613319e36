"""Adapters on mixtures of experts and state-space models: where they go, and that it is said where they do
not.
"""

from __future__ import annotations

import json

import pytest
import torch
from families import make_family, write_comparisons, write_samples
from torch import nn

from cai_cli.console.groups import build
from cai_cli.console.options import AdapterOptions
from cai_cli.errors import UserError
from cai_cli.models.adapters import add_lora
from cai_cli.models.load import load_lm
from cai_cli.stages import ppo, sft, train_pm

LEFT_OUT = {
    "llama": [],
    "qwen3_moe": [],
    "gpt_oss": [
        "mlp.router",
        "experts.gate_up_proj",
        "experts.gate_up_proj_bias",
        "experts.down_proj",
        "experts.down_proj_bias",
    ],
    "jamba": ["mamba.A_log", "mamba.conv1d", "mamba.dt_proj", "experts.gate_up_proj", "experts.down_proj"],
    "granitemoehybrid": [
        "block_sparse_moe.router",
        "experts.gate_up_proj",
        "experts.down_proj",
        "mamba.conv1d",
    ],
    "falcon_h1": ["mamba.conv1d", "mamba.out_proj"],
    "mamba": ["mixer.A_log", "mixer.conv1d", "mixer.dt_proj", "mixer.out_proj"],
}


@pytest.mark.parametrize("family", LEFT_OUT)
def test_what_adapters_do_not_reach_is_said_and_kept(family, tmp_path, capsys):
    """Checked against the weights that are saved: what is named is the base's, bit for bit, and all other
    matrices changed.
    """
    base, data = make_family(tmp_path / "base", family), write_samples(tmp_path / "s.jsonl", 8)
    out = tmp_path / "out"
    sft.run(
        build(
            sft.Options,
            model=str(base),
            data=[str(data)],
            out=out,
            device="cpu",
            lora=True,
            lora_r=2,
            learning_rate=1e-2,
        )
    )
    left = LEFT_OUT[family]
    told = [line for line in capsys.readouterr().err.splitlines() if "adapters do not reach" in line]
    assert len(told) == bool(left) and all(name in line for line in told for name in left)
    assert json.loads((out / "cai.json").read_text())["without_adapter"] == left
    before, after = (dict(load_lm(str(folder), "cpu").named_parameters()) for folder in (base, out))
    for name, weight in after.items():
        if weight.dim() > 1 and "embed" not in name and "lm_head" not in name:
            frozen = any(name.removesuffix(".weight").endswith(part) for part in left)
            assert torch.equal(weight, before[name]) == frozen, name


def test_pairwise_stages_and_ppo_train_a_hybrid_by_adapters(tmp_path):
    base, data = make_family(tmp_path / "base", "jamba"), write_comparisons(tmp_path / "c.jsonl", 8)
    lora = {"lora": True, "lora_r": 2, "device": "cpu"}
    train_pm.run(
        build(train_pm.Options, model=str(base), comparisons=[str(data)], out=tmp_path / "pm", **lora)
    )
    prompts, small = (
        write_samples(tmp_path / "p.jsonl", 4),
        {"steps": 1, "rollout_batch_size": 4, "max_new_tokens": 4},
    )
    ppo.run(
        build(
            ppo.Options,
            model=str(base),
            pm=str(tmp_path / "pm"),
            prompts=[str(prompts)],
            out=tmp_path / "rl",
            **small,
            **lora,
        )
    )
    for name in ("pm", "rl"):
        assert json.loads((tmp_path / name / "cai.json").read_text())["without_adapter"] == LEFT_OUT["jamba"]


def test_a_model_without_a_layer_for_adapters_is_one_line(tmp_path):
    """Every linear layer in it is the output layer."""
    model = load_lm(str(make_family(tmp_path / "base", "llama")), "cpu")
    model.model.layers = nn.ModuleList()
    with pytest.raises(
        UserError, match="--lora: LlamaForCausalLM has no layer that an adapter can be put on"
    ):
        add_lora(model, AdapterOptions(lora=True), "CAUSAL_LM", 0)
