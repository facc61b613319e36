"""Tiny random models of the mixture-of-experts and state-space families, and rows to train them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import CHATML, byte_level_tokenizer

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "jamba": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        **LINEAR,
    },
    "granitemoehybrid": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
        **MAMBA2,
    },
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA2},
    "mamba": {"state_size": 8},
    "llama4_text": {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 64},
}


def make_family(
    folder: Path, family: str, eos: str = "<|im_end|>", pad: str = "<|endoftext|>", **settings: Any
) -> Path:
    """Save a random model of the family and its ChatML tokenizer; returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer(CHATML)
    tokenizer.eos_token, tokenizer.pad_token = eos, pad
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    given = {**COMMON, **FAMILIES[family], **ids, **settings}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **given)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Write other values into a JSON file, which may not be there yet; None takes one out."""
    values = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def write_samples(file: Path, count: int = 24, reply: str = "Mix flour.") -> Path:
    """Rows for `cai sft`; of `reply`, {n} becomes the row's number."""
    rows = [
        {
            "id": f"s{n}",
            "prompt": [turn("user", f"How do I bake {n}?")],
            "completion": [turn("assistant", reply.format(n=n))],
            "finish_reason": "stop",
        }
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_comparisons(file: Path, count: int = 24, probability: float = 0.9) -> Path:
    rows = [
        {
            "id": f"c{n}",
            "prompt": [turn("user", f"How do I bake {n}?")],
            "chosen": [turn("assistant", f"Mix flour {n} and water.")],
            "rejected": [turn("assistant", f"No {n}.")],
            "probability": probability,
            "origin": "human",
        }
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
