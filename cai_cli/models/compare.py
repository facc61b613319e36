"""Whether two loaded models are the same one: by their weights, however they were stored."""

from __future__ import annotations

from typing import Any

# Share of a tensor's numbers that are the same in bfloat16. A copy in float16 loses 6 to 7 % to rounding
# twice; training that moves the numbers by a thousandth of their size changes more than 15 %.
SAME = 0.9


def same_weights(first: Any, second: Any) -> bool:
    """Whether every tensor is the same but for rounding: copies, other shards or types, merged or unmerged
    adapters.

    Stops at the first tensor that differs, so that different models are told apart at once.
    """
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    if ours.keys() != theirs.keys():
        return False
    # The last layers first: training changes them most.
    return all(same_tensor(tensor, theirs[name]) for name, tensor in reversed(ours.items()))


def same_tensor(first: Any, second: Any) -> bool:
    # A pad token may have been added to one
    rows = min(first.shape[0], second.shape[0]) if first.dim() == 2 else None
    if first.shape[1:] != second.shape[1:] or (rows is None and first.shape != second.shape):
        return False
    a, b = first[:rows].bfloat16(), second[:rows].to(first.device).bfloat16()
    return bool((a == b).float().mean() >= SAME)
