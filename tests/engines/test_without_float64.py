"""MPS has no float64. There is none to try on: shapes, types and devices alone are followed, by torch's fake
tensors, and a float64 that is made there is an error as it would be on one.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cai_cli.engines.sampling import inverse_cdf, uniforms
from cai_cli.training.preference import losses

MPS = torch.device("mps:0")


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                assert tensor.device.type != "mps", f"{function}: MPS has no float64"
        return out


class Unlinked(TorchFunctionMode):
    """`Tensor.to(device)` asks this build for an MPS that it has not; the operation behind it does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and len(args) == 2 and isinstance(args[1], torch.device):
            return torch.ops.aten._to_copy(args[0], device=args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0, 0.5, 1])
def test_draws(temperature: float) -> None:
    drawn = uniforms([1, 2], 3, MPS)
    assert drawn.device.type == "cpu" and drawn.dtype == torch.float64
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64(), Unlinked():
        token, logprob = inverse_cdf(torch.empty(2, 5, device=MPS), drawn[:, 0], temperature)
    assert (token.device, token.dtype) == (MPS, torch.int64)
    assert (logprob.device, logprob.dtype) == (MPS, torch.float32)


def test_sums_of_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []

    def total(value: torch.Tensor) -> SimpleNamespace:
        found.append(value)
        return SimpleNamespace(tolist=lambda: [0.0, 0.0, 0.0])

    monkeypatch.setattr(losses, "total", total)
    monkeypatch.setattr(losses, "autocast", lambda *_: nullcontext())
    pair = SimpleNamespace(chosen=[1, 2])
    training = SimpleNamespace(bf16=False)
    fit = SimpleNamespace(training=training, center_rewards_coefficient=0.0, lm_coef=0.0)
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64(), Unlinked():
        parts = [torch.empty((), device=MPS) for _ in range(3)]
        parallel = SimpleNamespace(
            model=SimpleNamespace(device=MPS),
            learning=lambda own, first: [([pair], 1)],
            one_pass=lambda last: nullcontext(),
            run=lambda *_: parts,
            backward=lambda loss: None,
        )
        losses.backward([[pair]], parallel, fit, 0, None)
    assert [(value.device.type, value.dtype) for value in found] == [("cpu", torch.float64)]
