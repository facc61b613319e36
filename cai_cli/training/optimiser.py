"""The one door to the optimiser: AdamW in one pass over a device's weights, without copies of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

BETAS = (0.9, 0.95)
FUSED = (
    "cpu",
    "cuda",
)  # devices that torch has the one pass for; elsewhere it goes through the weights one by one


def make_optimizer(
    weights: Iterable[torch.nn.Parameter], learning_rate: float, eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW without weight decay. `eps`: PyTorch adds it after the bias correction."""
    learned = list(weights)
    return torch.optim.AdamW(
        learned,
        lr=learning_rate,
        betas=BETAS,
        eps=eps,
        weight_decay=0.0,
        fused=all(weight.device.type in FUSED for weight in learned),
    )
