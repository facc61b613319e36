"""Whether two loaded models are the same one: by their weights, however they were stored."""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-3  # Of a tensor's norm: above the rounding of bfloat16 twice over, below what any useful training changes.


def same_weights(first: Any, second: Any) -> bool:
    """Whether every tensor is the same but for rounding: copies, other shards or types, merged or unmerged adapters.

    Stops at the first tensor that differs, so that different models are told apart at once.
    """
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    if ours.keys() != theirs.keys():
        return False
    # The last layers first: training changes them most.
    return all(same_tensor(tensor, theirs[name]) for name, tensor in reversed(ours.items()))


def same_tensor(first: Any, second: Any) -> bool:
    rows = min(first.shape[0], second.shape[0]) if first.dim() == 2 else None  # a pad token may have been added to one
    if first.shape[1:] != second.shape[1:] or (rows is None and first.shape != second.shape):
        return False
    a, b = first[:rows].float(), second[:rows].to(first.device).float()
    return bool((a - b).norm() <= TOLERANCE * a.norm())
