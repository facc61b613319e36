"""What is computed from logits, a run of tokens at a time: a vocabulary of numbers for each takes most of a
run's memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits held at once: 64 MiB in float32. Beyond, they are made again in the backward pass.
CHUNK_LOGITS = 1 << 24


def in_chunks(
    compute: Callable[[Tensor, Tensor], Tensor], states: Tensor, tokens: Tensor, vocabulary: int
) -> list[Tensor]:
    """`compute(states, tokens)` of runs of the states (N, D) before tokens (N,), each of whose logits are
    held at a time.
    """
    size = max(1, CHUNK_LOGITS // vocabulary)
    if len(states) <= size:
        return [compute(states, tokens)]
    pieces = zip(states.split(size), tokens.split(size), strict=True)
    if not torch.is_grad_enabled():
        return [compute(*piece) for piece in pieces]
    return [checkpoint(compute, *piece, use_reentrant=False) for piece in pieces]
