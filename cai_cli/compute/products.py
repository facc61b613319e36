"""Matrix products of float32 by oneDNN, on CPUs on which torch's own library for them (MKL) leaves half of the speed:
those that Intel did not make. Both are in torch, and differ in rounding alone.

What is not recorded for gradients goes through it: sampling, scores. Nothing of the model is changed for longer than
a context lasts.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cai_cli.compute.shortcuts import difference, shortcuts_of, trial_rows

NAME = "products by oneDNN"
INTEL = "GenuineIntel"
LARGE = 1 << 18  # weights; below, the call costs what the product gains


def product(layer: nn.Linear, states: Tensor) -> Tensor:
    """(..., K) -> (..., N), as `layer` makes it of them."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")
    return result


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Within, the model's linear layers use oneDNN where `gains` and the trial allow it; no gradients there."""
    if not gains(model) or not allowed(model):
        yield
        return
    with by_one_dnn(model):
        yield


@contextmanager
def by_one_dnn(model: Any) -> Iterator[None]:
    layers = large_layers(model)
    for layer in layers:
        layer.forward = partial(product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def large_layers(model: Any) -> list[nn.Linear]:
    """Those in which the product itself takes longer than the call."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)  # a launcher's, such as for weights that are elsewhere
        and type(module.weight.data) is Tensor
        and module.weight.numel() >= LARGE
    ]


def gains(model: Any) -> bool:
    """Whether it is faster here: large layers of float32 on a CPU that is not Intel's, as of now (autocast has types of
    its own).
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return torch.backends.mkldnn.is_available() and not_intel() and bool(large_layers(model))


def not_intel() -> bool:
    """Whether this is an x86 CPU of another maker."""
    cpus = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpus.exists() and INTEL not in cpus.read_text()


def allowed(model: Any) -> bool:
    def attempt() -> tuple[Tensor, Tensor]:
        ids = torch.tensor(trial_rows(model, [9, 9]), device=model.device)
        with by_one_dnn(model):
            got: Tensor = model(input_ids=ids, use_cache=False).logits
        return got, model(input_ids=ids, use_cache=False).logits

    return shortcuts_of(model).allows(NAME, lambda: difference(model, attempt))
