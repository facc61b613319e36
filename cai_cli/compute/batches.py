"""Rows of like length in one forward pass, padded on the left or on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cai_cli.compute.shortcuts import ANY_LENGTH

# Rows times length of one forward pass: attention's memory grows with rows times length squared.
BATCH_TOKENS = 1 << 15
# Where a pass is no step of a generation: enough for a CPU, and its caches hold what they can.
CPU_PREFILL_TOKENS = 1 << 11


def prefill_tokens(device: torch.device) -> int:
    """Most tokens of a pass over prompts."""
    return CPU_PREFILL_TOKENS if device.type == "cpu" else BATCH_TOKENS


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices of rows; those of one length in their order."""
    return sorted(range(len(lengths)), key=lambda n: -lengths[n])


def like_length(
    lengths: Sequence[int],
    batch_size: int,
    before: int = 0,
    most_tokens: int = BATCH_TOKENS,
    even: int = ANY_LENGTH,
) -> Iterator[list[int]]:
    """Batches of indices, the longest first: little padding, and memory runs out at once or never.

    At most `batch_size` rows, fewer where rows are long: `most_tokens` with padding. `before`: tokens in
    front of all rows, in a cache. Rows of more than `even` tokens are only with rows as long as they are.
    """
    batch: list[int] = []
    for n in longest_first(lengths):
        longest = lengths[batch[0]] if batch else 0
        full = len(batch) == batch_size or (len(batch) + 1) * (before + longest) > most_tokens
        if batch and (full or (longest > even and lengths[n] != longest)):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def like_size(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """As few batches as can be of at most `batch_size` rows, none more than one row larger than another."""
    order = torch.tensor(longest_first(lengths))
    parts = order.tensor_split(-(-len(order) // batch_size)) if len(order) else ()
    return [part.tolist() for part in parts]


def left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, padded on the left so that every row ends at the same place."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def right_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
