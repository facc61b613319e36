"""What fits on 24, 80 and 8 x 80 GB, as a table in Markdown: the one in the README.

python scripts/what_fits.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from cai_cli.console.groups import build
from cai_cli.training.memory.forecast import Forecast, Launch, of_pairwise, of_ppo, of_sft
from cai_cli.training.memory.shape import Shape, shape_from
from cai_cli.training.ppo.settings import Options as PPO
from cai_cli.training.preference.settings import PairwiseOptions
from cai_cli.training.sft.settings import Options as SFT

# Of Llama's models: hidden, inner, layers, heads, heads of keys and values, vocabulary, tied
MODELS = {
    "1B": (2048, 8192, 16, 32, 8, 128_256, True),
    "3B": (3072, 8192, 28, 24, 8, 128_256, True),
    "8B": (4096, 14_336, 32, 32, 8, 128_256, False),
    "13B": (5120, 13_824, 40, 40, 40, 32_000, False),
    "70B": (8192, 28_672, 80, 64, 8, 128_256, False),
}
WAYS: dict[str, dict[str, object]] = {
    "full": {},
    "LoRA": {"lora": True, "lora_r": 64},
    "QLoRA": {"lora": True, "lora_r": 64, "quantize": "4bit"},
}
COMMON = {"model": "", "out": Path(), "device": "cuda", "bf16": True, "gradient_checkpointing": True}
ROW, ROWS = 2048, 4
PROMPT, REPLY = 256, 256
GB = 1e9
CUDA_KEEPS = 0.05  # of a GPU's memory, for itself and for what lies between tensors


@cache
def shape(size: str, scores: bool) -> Shape:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    hidden, inner, layers, heads, keys, words, tied = MODELS[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        tie_word_embeddings=tied,
        num_labels=1,
    )
    with torch.device("meta"):
        return shape_from((LlamaForSequenceClassification if scores else LlamaForCausalLM)(config))


def sft(size: str, way: dict[str, object], launch: Launch) -> Forecast:
    options = build(SFT, data=[], per_device_train_batch_size=ROWS, **COMMON, **way)
    return of_sft(options, shape(size, False), [ROW] * ROWS, launch)


def train_pm(size: str, way: dict[str, object], launch: Launch) -> Forecast:
    own = {name: value for name, value in COMMON.items() if name not in ("model", "out")}
    fit = build(PairwiseOptions, per_device_train_batch_size=ROWS // 2, **own, **way)
    return of_pairwise(fit, shape(size, True), [(ROW, ROW)] * ROWS, launch)


def ppo(size: str, way: dict[str, object], launch: Launch) -> Forecast:
    more = {"prompts": [], "pm": "", "per_device_train_batch_size": 8, "max_new_tokens": REPLY}
    options = build(PPO, rollout_batch_size=128 * launch.processes, **more, **COMMON, **way)
    return of_ppo(options, shape(size, False), shape(size, True), [PROMPT], launch)[0]


TRAINERS: dict[str, Callable[[str, dict[str, object], Launch], Forecast]] = {
    "`sft`": sft,
    "`pmp`, `train-pm`": train_pm,
    "`ppo`": ppo,
}


def cell(trainer: Callable[[str, dict[str, object], Launch], Forecast], size: str, way: str) -> str:
    """The smallest machine that it fits on, and how much it needs of a GPU."""
    one = trainer(size, WAYS[way], Launch()).needed / GB
    for room in (24, 80):
        if one <= room * (1 - CUDA_KEEPS):
            return f"{room} ({one:.0f})"
    parts = way != "QLoRA"  # which FSDP cannot hold in parts
    each = trainer(size, WAYS[way], Launch(processes=8, sharded=True)).needed / GB if parts else one
    return f"8 x 80 ({each:.0f})" if parts and each <= 80 * (1 - CUDA_KEEPS) else f"no ({each:.0f})"


def table() -> str:
    heads = [f"{name} {way}" for name in TRAINERS for way in WAYS]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for size in MODELS:
        cells = [cell(trainer, size, way) for trainer in TRAINERS.values() for way in WAYS]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
