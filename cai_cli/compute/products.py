"""Matrix products of float32 by oneDNN, on CPUs on which torch's own library for them (MKL) leaves half of the speed:
those that Intel did not make. Both are in torch, and differ in rounding alone.

Nothing of a model is changed for longer than a context lasts. Two rows (2, 3) through a layer of four outputs (4, 3):
forward (2, 3) x (3, 4); backward, of gradients (2, 4), the states' are (2, 4) x (4, 3) and the weight's are
(4, 2) x (2, 3): three products of the same kind.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cai_cli.compute.shortcuts import difference, shortcuts_of, trial_rows

NAME = "matrix products by oneDNN"
INTEL = "GenuineIntel"
# Weights of a layer, or multiplications of a product, below which the call costs what it gains
LARGE_LAYER, LARGE_PRODUCT = 1 << 18, 1 << 22
# oneDNN and what torch has around it keep a compiled product for each shape, by default 1,024, and every step of a
# training has new ones: hundreds of megabytes. Read by both at their first product.
for kept in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(kept, "24")


def one_dnn(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., K), (N, K) -> (..., N)."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return result


class Product(torch.autograd.Function):
    """The same, and its derivatives."""

    @staticmethod
    def forward(context: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(states, weight)
        return one_dnn(states, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = context.saved_tensors
        of_states, of_weight, of_bias = context.needs_input_grad
        rows = gradients[0].flatten(0, -2)  # (M, N)
        return (
            one_dnn(rows, weight.t()).view_as(states) if of_states else None,
            one_dnn(rows.t(), states.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def product(layer: nn.Linear, states: Tensor) -> Tensor:
    """(..., K) -> (..., N), as `layer` makes it of them."""
    weight = layer.weight
    large = weight.numel() >= LARGE_LAYER or states.numel() * weight.size(0) >= LARGE_PRODUCT
    if not large or states.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return linear(states, weight, layer.bias)
    if torch.is_grad_enabled():
        found: Tensor = Product.apply(states, weight, layer.bias)
        return found
    return one_dnn(states, weight, layer.bias)


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Within, the model's linear layers use oneDNN where it is faster and the trial allows it."""
    model = getattr(model, "get_base_model", lambda: model)()  # peft's own around it has no layers
    if not gains(model) or not allowed(model):
        yield
        return
    with by_one_dnn(model):
        yield


@contextmanager
def by_one_dnn(model: Any) -> Iterator[None]:
    layers = plain_layers(model)
    for layer in layers:
        layer.forward = partial(product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def plain_layers(model: Any) -> list[nn.Linear]:
    """Linear layers that compute what their class says, with weights that are here."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)  # a launcher's, or inside it already
        and type(module.weight.data) is Tensor
    ]


def gains(model: Any) -> bool:
    """Whether it is faster here: float32 on a CPU that is not Intel's."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    first = next(model.parameters())
    if hasattr(first, "to_local") or hasattr(first, "ds_id"):  # in parts: whole only inside its own forward
        return False
    return torch.backends.mkldnn.is_available() and not_intel()


@cache
def not_intel() -> bool:
    """Whether this is an x86 CPU of another maker."""
    cpus = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpus.exists() and INTEL not in cpus.read_text()


def allowed(model: Any) -> bool:
    """Whether a trial gives the model's own numbers."""

    def attempt() -> tuple[Tensor, Tensor]:
        ids = torch.tensor(trial_rows(model, [9, 9]), device=model.device)
        with by_one_dnn(model):
            got: Tensor = model(input_ids=ids, use_cache=False).logits
        return got, model(input_ids=ids, use_cache=False).logits

    return shortcuts_of(model).allows(NAME, lambda: difference(model, attempt))
