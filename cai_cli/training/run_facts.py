"""What a trained model's cai.json keeps besides its manifest, and what its run needed."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.manifest import device_facts
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.models.chat import vocabulary_hash
from cai_cli.models.score import transformer
from cai_cli.models.templates import template_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_facts(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Device, dtype and threads; the chat template's and the vocabulary's hashes, by which models are
    matched; shortcuts taken.

    Of a model with adapters, also the matrices that none of them reaches.
    """
    left = getattr(model, "cai_unreached", None)
    return {
        **device_facts(str(model.device), str(model.dtype).removeprefix("torch.")),
        "chat_template": template_hash(tokenizer),
        "vocabulary": vocabulary_hash(tokenizer),
        **({} if left is None else {"without_adapter": left}),
        "shortcuts": shortcuts_of(transformer(model)).facts(),
    }


def peak_memory(device: Any) -> float:
    """Peak memory of this process in MiB: on its GPU where it computes on one."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
