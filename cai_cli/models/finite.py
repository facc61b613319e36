"""Numbers that are not finite: told where they arise, in one line that names the model, its dtype and what is
to blame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cai_cli.errors import RunError

LEARNED_TOO_FAST = "lower --learning-rate; checkpoints are kept"


def dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def odd_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first of the weights that holds NaN or infinity. Of one held in parts, this process's
    part is looked at.
    """
    names, ends = [], []
    for name, weight in weights.items():
        part = weight.to_local() if hasattr(weight, "to_local") else weight
        if part.is_floating_point() and part.element_size() > 1 and part.numel():
            low, high = part.detach().aminmax()  # NaN comes through, and nothing of the weight's size is made
            names.append(name)
            ends.append(torch.stack([low, high]).float().cpu())
    found = (~torch.stack(ends).isfinite().all(dim=-1)).nonzero().flatten().tolist() if ends else []
    return names[found[0]] if found else None


def check_weights(weights: Mapping[str, Tensor], what: str, advice: str = LEARNED_TOO_FAST) -> None:
    """Raise RunError where a weight is not finite, so that it is not saved."""
    if (name := odd_weight(weights)) is not None:
        raise RunError(f"{what}: the weight {name} is not finite, nothing is saved of it", advice)


def check_outputs(model: Any, numbers: Iterable[float], what: str) -> None:
    """Raise RunError where one of the numbers that the model gave is not finite."""
    if (odd := next((number for number in numbers if not math.isfinite(number)), None)) is not None:
        raise RunError(f"{model.name_or_path}: {what} is {odd} in {dtype_name(model)}", blame(model))


def blame(model: Any, bf16: bool = False) -> str:
    """What makes a model's outputs not finite that has not been trained here: its weights, or a dtype too
    small for them.
    """
    weights, dtype = dict(model.named_parameters()), dtype_name(model)
    name = odd_weight(weights)
    if name is not None and (dtype != "float16" or weights[name].isnan().any()):
        return f"its weight {name} is not finite: fetch or train the model again"
    if dtype == "float16":  # which the loading of a weight may exceed, too
        return "float16 ends at 65504: compute with --dtype bfloat16 or float32"
    if dtype != "float32" or bf16:
        return "compute in float32: --dtype float32" + (", without --bf16" if bf16 else "")
    return "its weights are finite, but too large to compute with: take another model"


def advice(model: Any, updates: int, bf16: bool = False) -> str:
    """The next step where a loss or gradient is not finite after so many updates of the weights in this run."""
    return LEARNED_TOO_FAST if updates else blame(model, bf16)
