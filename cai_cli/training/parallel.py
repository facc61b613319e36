"""A model that learns on as many processes as the launcher has started: alone, in copies that share their gradients
(DDP), or in parts (FSDP 2). accelerate makes of the launch which it is.

Wrappers of both kinds act on their root's forward: so everything is computed inside that of `Entered`, which is
handed what to compute. A process that comes to fewer passes than another would leave that one waiting for ever:
`even` fills up with passes that count for nothing.

    parallel = Parallel(model, optimizer)
    with parallel.one_pass(last=True):
        loss = parallel.run(lambda model, ids: ..., ids)     # this process's part of a sum over all
        parallel.backward(loss)
    norm = parallel.clip(1.0)
    parallel.optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cai_cli.compute.shortcuts import right_padding, shortcuts_of
from cai_cli.errors import UserError
from cai_cli.models.devices import pick_device
from cai_cli.models.score import transformer
from cai_cli.processes.collective import gathered, of_the_first
from cai_cli.processes.ranks import by_fsdp, is_main, join_group, world_size

Item = TypeVar("Item")


class Entered(nn.Module):
    """What a wrapper is put around: `compute(model, *given)` inside its forward, where the weights are whole."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # By accelerate each of these layers becomes a part of its own, and what is left another one.
        self._no_split_modules = sorted(transformer(model)._no_split_modules or ())

    def forward(self, compute: Callable[..., Any], *given: Any) -> Any:
        return compute(self.model, *given)

    def tie_weights(self) -> None:
        self.model.tie_weights()


class Parallel:
    """A model and the optimiser of its weights; `optimizer` is to be used from here on in place of the one given.

    Under FSDP the model's weights are in parts outside of `run`. Raises UserError where it cannot be taken apart.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, device: str = "auto") -> None:
        """`device`: where the parts go of a model that FSDP takes apart, which comes on the CPU (`place_to_load`)."""
        self.model, self.optimizer = model, optimizer
        self.in_parts = by_fsdp() and world_size() > 1
        self.root: Any = Entered(model)
        if world_size() > 1:
            place = model.device
            if self.in_parts:
                place = pick_device(device)
                check_parts(model)
            join_group()
            self.root, prepared = launched(place.type == "cpu").prepare(self.root, optimizer)
            self.optimizer = prepared.optimizer
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]

    def run(self, compute: Callable[..., Any], *given: Any) -> Any:
        """`compute(model, *given)`. Whatever has to do with weights goes through here."""
        return self.root(compute, *given)

    def one_pass(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: copies share their gradients after the `last` of a step."""
        return nullcontext() if last or self.in_parts or world_size() == 1 else self.root.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the loss, which is a sum over all of them: wrappers take the
        mean.
        """
        (loss if world_size() == 1 else loss * world_size()).backward()

    def clip(self, most: float) -> float:
        """The norm of all gradients before they are clipped to `most`; 0 clips nothing."""
        norm = torch.nn.utils.clip_grad_norm_(self.weights, most or math.inf)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def even(self, own: list[Item], filler: Item) -> list[tuple[Item, bool]]:
        """This process's items, each with whether it counts: filled up to as many as any other process has, where
        passes of one wait for those of the others.
        """
        most = max(gathered([len(own)])) if world_size() > 1 else len(own)
        return [(item, True) for item in own] + [(filler, False)] * (most - len(own))


def place_to_load(device: str) -> str:
    """Where a model is put that a `Parallel` is made of: for FSDP no GPU ever holds it whole."""
    return "cpu" if by_fsdp() and world_size() > 1 else device


@cache
def launched(on_cpu: bool) -> Any:
    """accelerate's view of the launch: DDP or FSDP 2, on the CPU or on a GPU a process. It places nothing: the models
    are where they are to be. Mixed precision is that of --bf16, not the launch file's.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    copies = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[copies])


def share_weights(module: nn.Module) -> None:
    """Give a module that is no part of a `Parallel` the first process's weights: under FSDP transformers reads a file
    there alone, and leaves the others' weights as memory had them.
    """
    if by_fsdp() and world_size() > 1:
        import torch.distributed as dist

        join_group()
        for weight in module.parameters():
            dist.broadcast(weight.data, src=0)


def check_parts(model: Any) -> None:
    """Raise UserError for a model that FSDP would take apart wrongly, or whose passes processes could not keep in
    step. What the first process finds out of it holds for all: the others have none of its weights yet.
    """
    name = type(transformer(model)).__name__
    if getattr(transformer(model), "is_quantized", False):
        raise UserError(
            "--quantize: FSDP cannot take 4 and 8 bits apart", "leave it out, or launch without FSDP"
        )
    if not transformer(model)._no_split_modules:
        raise UserError(f"FSDP: transformers names no layers of {name}", "launch it without FSDP")
    found = shortcuts_of(transformer(model))
    if is_main():
        right_padding(transformer(model), True)
    found.reasons = of_the_first(found.reasons)
    if not right_padding(transformer(model), True):
        told = f"FSDP: rows of {name} cannot share a pass, and processes would wait for each other for ever"
        raise UserError(told, "launch it without FSDP")
