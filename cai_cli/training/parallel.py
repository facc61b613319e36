"""A model that learns on as many processes as the launcher has started: alone, in copies that share their gradients
(DDP), or in parts (FSDP 2). accelerate makes of the launch which it is.

Wrappers of both kinds act on their root's forward: so everything is computed inside that of `Entered`, which is
handed what to compute. A process that comes to fewer passes than another would leave that one waiting for ever:
`even` and `learning` fill up with passes that count for nothing.

    parallel = Parallel(model, make_optimizer)
    for batch, counts in parallel.learning(batches, filler):
        with parallel.one_pass(last=...):
            loss = parallel.run(lambda model, batch: ..., batch)     # this process's part of a sum over all
            parallel.backward(loss if counts else loss * 0)
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
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule

from cai_cli.compute.shortcuts import ANY_LENGTH, right_padding, shortcuts_of
from cai_cli.errors import UserError
from cai_cli.models.devices import OWN, pick_device
from cai_cli.models.score import transformer
from cai_cli.processes.collective import gathered
from cai_cli.processes.ranks import by_fsdp, in_zero_parts, join_group, world_size
from cai_cli.training.parts import Kept, kept_state, put_back, put_weights

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


class Passes:
    """How all processes go through a model: each through its own copy, or, under FSDP, through all of it together."""

    def __init__(self, model: Any, device: str = "auto", dtype: str | None = None) -> None:
        """A frozen model. `device`, `dtype`: what the parts are held in of one that FSDP takes apart; it was loaded as
        `to_load` says. Raises UserError where it cannot be taken apart.
        """
        self.model = model
        self.in_parts = by_fsdp() and world_size() > 1
        self.root: Any = Entered(model)
        if self.in_parts:
            self.root = taken_apart(self.root, device, dtype)

    def run(self, compute: Callable[..., Any], *given: Any) -> Any:
        """`compute(model, *given)`. Whatever has to do with weights goes through here."""
        if not self.in_parts:
            return compute(self.model, *given)
        found = self.root(compute, *given)
        if not torch.is_grad_enabled():
            self.reshard()
        return found

    def reshard(self) -> None:
        """Give back what was gathered, which FSDP does of its root after a backward pass alone, and of layers as the
        launch file says: a checkpoint keeps slices.
        """
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def even(self, own: list[Item], filler: Item) -> list[tuple[Item, bool]]:
        """This process's items, each with whether it counts: filled up to as many as any other process has, where
        passes of one wait for those of the others.
        """
        if not self.in_parts:
            return [(item, True) for item in own]
        return filled(own, filler)

    def no_grad(self) -> Any:
        """For passes without gradients. What inference mode makes of gathered weights no later pass could train on."""
        return torch.no_grad() if self.in_parts else torch.inference_mode()

    def whole(self, compute: Callable[..., Item], *given: Any) -> Item:
        """`compute(model, *given)` with all weights gathered on each process, for work of different length on each:
        sampling.
        """
        if not self.in_parts:
            return compute(self.model, *given)
        modules = [module for module in self.root.modules() if isinstance(module, FSDPModule)]
        with torch.no_grad():
            for module in modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
            try:
                return self.root(compute, *given)
            finally:
                for module in modules:
                    module.set_reshard_after_forward(module is not self.root, recurse=False)
                self.reshard()


class Parallel(Passes):
    """A model that learns, and the optimiser of its weights."""

    def __init__(
        self,
        model: Any,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        device: str = "auto",
        dtype: str | None = None,
    ) -> None:
        """See `Passes`; copies are made alike, and share their gradients. `make_optimizer` is given what learns."""
        super().__init__(model, device, dtype)
        if world_size() > 1 and not self.in_parts:
            join_group()
            accelerator = launched(model.device.type == "cpu")
            accelerator.ddp_handler.find_unused_parameters = has_idle_weights(model)
            self.root = accelerator.prepare(self.root)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(self.weights)

    def run(self, compute: Callable[..., Any], *given: Any) -> Any:
        """See `Passes`; a pass with gradients goes through what shares them."""
        if world_size() > 1 and not self.in_parts and torch.is_grad_enabled():
            return self.root(compute, *given)
        return super().run(compute, *given)

    def learning(self, own: list[Item], filler: Item) -> list[tuple[Item, bool]]:
        """`even` for passes with gradients: copies wait for each other in them too."""
        return filled(own, filler)

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

    def step(self) -> None:
        """Learn from the gradients, and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def kept(self) -> Kept:
        """See `kept_state`."""
        return kept_state(self.model, self.optimizer)

    def put_back(self, parts: list[Kept]) -> None:
        """See `parts.put_back`."""
        put_back(self.model, self.optimizer, parts)

    def put_weights(self, parts: list[dict[str, Tensor]]) -> None:
        """See `parts.put_weights`."""
        put_weights(self.model, parts)


def filled(own: list[Item], filler: Item) -> list[tuple[Item, bool]]:
    most = max(gathered([len(own)])) if world_size() > 1 else len(own)
    return [(item, True) for item in own] + [(filler, False)] * (most - len(own))


def on_cpu(device: str) -> bool:
    return pick_device(device).type == "cpu"


def to_load(device: str, dtype: str) -> tuple[str, str]:
    """How a model is loaded that `Passes` or `Parallel` are made of, to be held on this device in this dtype. For FSDP
    no GPU ever holds it whole, and the machine holds one: its files, mapped into the memory of all processes.
    """
    in_parts = (by_fsdp() or in_zero_parts()) and world_size() > 1
    return ("cpu", OWN) if in_parts else (device, dtype)


def taken_apart(root: Entered, device: str, dtype: str | None) -> Any:
    """The same by FSDP 2: this process's part of it on its device, in the dtype."""
    from accelerate.utils import fsdp2_prepare_model

    check_parts(root.model)
    join_group()
    accelerator = launched(on_cpu(device))
    check_plugin(accelerator.state.fsdp_plugin)
    parted = fsdp2_prepare_model(accelerator, root)
    if dtype is not None:
        hold_in(parted, getattr(torch, dtype))
    return parted


def hold_in(parted: nn.Module, dtype: torch.dtype) -> None:
    """Hold this process's slices in the dtype; adapters, which learn on a frozen base, stay as they are."""
    frozen = [weight for weight in parted.parameters() if not weight.requires_grad]
    changed = {id(weight) for weight in frozen or parted.parameters() if weight.is_floating_point()}
    held: dict[int, nn.Parameter] = {}  # a weight that two layers share stays one
    for module in parted.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(weight) in changed and weight.dtype != dtype:
                if id(weight) not in held:
                    held[id(weight)] = nn.Parameter(weight.detach().to(dtype), weight.requires_grad)
                setattr(module, name, held[id(weight)])


@cache
def launched(cpu: bool) -> Any:
    """accelerate's view of the launch: DDP or FSDP 2, on the CPU or on a GPU a process. It places nothing: the models
    are where they are to be. Mixed precision is that of --bf16, not the launch file's.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    copies = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(cpu=cpu, device_placement=False, mixed_precision="no", kwargs_handlers=[copies])


def has_idle_weights(model: Any) -> bool:
    """Whether there may be weights that learn and that a text does not reach: other senses' towers."""
    config = transformer(model).config
    return any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config"))


def check_plugin(plugin: Any) -> None:
    """Raise UserError for what a launch file asks of FSDP and would not get, or not right."""
    if plugin.activation_checkpointing:
        raise UserError(
            "the launch file asks for FSDP's activation checkpointing", "use --gradient-checkpointing"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "the launch file asks FSDP to hold weights on the CPU", "leave it out: use more processes"
        )


def check_parts(model: Any) -> None:
    """Raise UserError for a model that FSDP would take apart wrongly, or whose passes processes could not keep in
    step.
    """
    name = type(transformer(model)).__name__
    if not transformer(model)._no_split_modules:
        raise UserError(f"FSDP: transformers names no layers of {name}", "launch it without FSDP")
    pads = right_padding(transformer(model), True) and right_padding(transformer(model), False)
    if not pads or shortcuts_of(transformer(model)).even < ANY_LENGTH:
        told = f"FSDP: rows of {name} cannot share a pass, and processes would wait for each other for ever"
        raise UserError(told, "launch it without FSDP")
