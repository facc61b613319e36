"""The one door to the optimiser: AdamW in one pass over a device's weights, without copies of them; and how its
learning rate goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

BETAS = (0.9, 0.95)
FUSED = ("cpu", "cuda")  # devices with that one pass; elsewhere torch goes through the weights one by one


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


def make_schedule(kind: str, optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """The learning rate: in a line up to the optimiser's over `warmup_steps`, then "constant", or down to 0 at `steps`
    in a line ("linear") or half a wave ("cosine").

    These are transformers' own; its `get_scheduler` brings peft and bitsandbytes, two fifths of the start of a trainer
    that needs neither.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if kind == "constant":
            return 1.0
        falling = max(1, steps - warmup_steps)
        if kind == "linear":
            return max(0.0, (steps - step) / falling)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / falling)))

    return LambdaLR(optimizer, share)
