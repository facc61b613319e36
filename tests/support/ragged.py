"""Ragged batches as lists of rows, one number a token, and the same as padded tensors."""

from __future__ import annotations

from random import Random

import torch

Rows = list[list[float]]


def random_rows(rng: Random, lengths: list[int], scale: float = 1.0) -> Rows:
    return [[rng.gauss(0, scale) for _ in range(length)] for length in lengths]


def pad(rows: Rows, width: int, filler: float = 7.0) -> torch.Tensor:
    """Padded with something that would be seen if it counted."""
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    return torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths])
