"""RMS norms and rotary positions with their derivatives written out: on a CPU autograd makes twice the passes
over memory.

Within `written_out` a model's own are replaced, in float32 and where `find` saw that they compute the same.
What is added in the forward pass is the model's own arithmetic, up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cai_cli.compute.shortcuts import says_cannot, shortcuts_of, switched_off

NORMS, ROTATIONS = "norms written out", "rotary positions written out"  # as shortcuts
ROTARY = "apply_rotary_pos_emb"  # What transformers calls it, in the file of each architecture that has it.


@dataclass(frozen=True, slots=True)
class Parts:
    """What can be replaced in a model: its norms, and the Python modules whose rotary function it calls."""

    norms: list[Any]
    rotary: list[Any]


FOUND: WeakKeyDictionary[Any, Parts] = WeakKeyDictionary()


class RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x²) + ε) over the last dimension of x (..., D), w (D,)."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normal, scale = normalised(values, epsilon)
        context.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normal, scale, weight = context.saved_tensors
        along = gradient * normal
        # dL/dx = s (w g - n mean(w g n)), where n = s x.
        mean = (along @ weight).unsqueeze(-1).div_(weight.numel())
        for_values = torch.addcmul(gradient * weight, normal, mean, value=-1).mul_(scale)
        return for_values, along.flatten(0, -2).sum(0) if context.needs_input_grad[1] else None, None


def normalised(values: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x s, and s = 1 / sqrt(mean(x²) + ε) of x (..., D): (..., D) and (..., 1)."""
    mean = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(values.size(-1))
    scale = mean.add_(epsilon).rsqrt_()
    return values * scale, scale


class Rotary(torch.autograd.Function):
    """Each pair (x_i, x_{i + D/2}) of x (..., D) turned by its angle; the derivative turns back."""

    @staticmethod
    def forward(context: Any, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        context.save_for_backward(cos, sin)
        return turned(values, cos, sin)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = context.saved_tensors
        return turned(gradient, cos, sin, -1), None, None


def turned(values: Tensor, cos: Tensor, sin: Tensor, way: int = 1) -> Tensor:
    """x cos + way * (-x₂, x₁) sin, where x₁ and x₂ are the halves of x (..., D); angles are the same in both
    halves.
    """
    half = values.size(-1) // 2
    result = values * cos
    result[..., :half].addcmul_(values[..., half:], sin[..., :half], value=-way)
    result[..., half:].addcmul_(values[..., :half], sin[..., half:], value=way)
    return result


def rms_norm(module: Any, own: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The module's norm; `own` computes it in other dtypes than float32."""
    weight, epsilon = module.weight, module.variance_epsilon
    if not values.dtype == weight.dtype == torch.float32:
        return own(values)
    if torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad):
        return RMSNorm.apply(values, weight, epsilon)
    return normalised(values, epsilon)[0].mul_(weight)


def rotary(
    own: Callable[..., Any], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **settings: Any
) -> Any:
    """Queries and keys (B, H, T, D) turned by cos and sin (B, T, D); `own` does what is asked otherwise, or
    in other dtypes.
    """
    same = query.size(-1) == cos.size(-1) and query.dtype == key.dtype == cos.dtype == torch.float32
    if more or settings or not same:
        return own(query, key, cos, sin, *more, **settings)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turn = Rotary.apply if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad) else turned
    return turn(query, cos, sin), turn(key, cos, sin)


@torch.no_grad()
def find(model: Any) -> Parts:
    """Norms and rotary functions of the model that compute what ours do; none on other devices than a CPU."""
    found = shortcuts_of(model)
    if model.device.type != "cpu":
        found.reasons |= dict.fromkeys((NORMS, ROTATIONS), f"on {model.device.type} its own are as fast")
        return Parts([], [])
    files = [sys.modules[name] for name in sorted({type(module).__module__ for module in model.modules()})]
    with_rotary = [file for file in files if hasattr(file, ROTARY)]
    norms = [] if switched_off(NORMS) else list(filter(is_same_norm, model.modules()))
    rotary = [] if switched_off(ROTATIONS) else list(filter(is_same_rotary, with_rotary))
    found.reasons[NORMS] = switched_off(NORMS) or ("" if norms else "none is a plain RMS norm in float32")
    found.reasons[ROTATIONS] = switched_off(ROTATIONS) or ("" if rotary else "none turns halves as ours does")
    return Parts(norms, rotary)


def is_same_norm(module: Any) -> bool:
    """Whether it is a norm that we know, by its attributes and by what it makes of random values."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if (
        not isinstance(weight, Tensor)
        or not isinstance(epsilon, float)
        or weight.dim() != 1
        or weight.dtype != torch.float32
    ):
        return False
    if len(signature(module.forward).parameters) != 1:  # one that takes a gate besides
        return False
    values = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
    return torch.allclose(module(values), normalised(values, epsilon)[0] * weight, atol=1e-5)


def is_same_rotary(file: Any) -> bool:
    """Whether the rotary function in this Python module turns random queries and keys as ours does."""
    generator = torch.Generator().manual_seed(0)
    query, key, angle = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 4))
    )
    cos, sin = angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)
    own = getattr(file, ROTARY)
    try:
        pairs = list(zip(own(query, key, cos, sin), rotary(own, query, key, cos, sin), strict=True))
        return all(torch.allclose(theirs, ours, atol=1e-5) for theirs, ours in pairs)
    except Exception as error:
        if not says_cannot(error):  # one that takes or gives something else, or other shapes
            raise
        return False


@contextmanager
def written_out(model: Any) -> Iterator[None]:
    """Within, the model's parts, found out once, are computed as above. Around the backward pass too, where
    activations are made again.
    """
    if model not in FOUND:
        FOUND[model] = find(model)
    parts = FOUND[model]
    with ExitStack() as stack:
        for norm in parts.norms:
            stack.enter_context(replaced(norm, "forward", partial(rms_norm, norm, norm.forward)))
        for file in parts.rotary:
            stack.enter_context(replaced(file, ROTARY, partial(rotary, getattr(file, ROTARY))))
        yield


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """Within, `owner` has another attribute of this name, of its own; afterwards it has what it had, or its
    class's again.
    """
    before = vars(owner).get(name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
