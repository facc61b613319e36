"""How a model computes while it is trained: without dropout, in mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def disable_dropout(model: Any) -> None:
    """Set every dropout probability of the model to zero: modules, and the numbers that attention layers
    keep.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def autocast(device_type: str, bf16: bool) -> torch.autocast:
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16)
