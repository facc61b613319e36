"""What a training keeps of its weights and its optimiser, also where each process has a part of them: files of
tensors, put together again for any number of processes.

Of weights in copies the first process keeps the whole. Under FSDP each process writes its own slices, `part-<r>.pt`,
and reads those of all: FSDP 2 cuts a weight along its first axis, in the order of the processes. Files are mapped
into memory, and one weight at a time is put together. They are read with `weights_only`; torch.distributed.checkpoint
does as much, but its metadata is a pickle that may hold anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cai_cli.errors import RunError
from cai_cli.models.adapters import trainable_state
from cai_cli.processes.ranks import is_main

Kept = dict[str, Any]  # {"model": {name: slice}, "optimizer": {name: {"exp_avg": slice, ...}}}
AFRESH = "move the output directory away and start afresh"


def kept_state(model: Any, optimizer: torch.optim.Optimizer) -> Kept:
    """This process's slices of all that learns, and of what the optimiser remembers of it."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    moments = {
        name: {key: own_slice(value) for key, value in optimizer.state[weight].items()}
        for name, weight in named.items()
        if weight in optimizer.state
    }
    return {
        "model": {name: own_slice(weight) for name, weight in trainable_state(model).items()},
        "optimizer": moments,
        "rates": [group["lr"] for group in optimizer.param_groups],
    }


def put_back(model: Any, optimizer: torch.optim.Optimizer, parts: list[Kept]) -> None:
    """Set weights and optimiser to what so many processes kept, in their order."""
    put_weights(model, [part["model"] for part in parts])
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            optimizer.state[weight] = {
                key: rebuilt(weight, [part["optimizer"][name][key] for part in parts])
                for key in parts[0]["optimizer"].get(name, {})
            }
    for group, rate in zip(optimizer.param_groups, parts[0]["rates"], strict=True):
        group["lr"] = rate


def put_weights(model: Any, parts: list[dict[str, Tensor]]) -> None:
    """Set the weights that learn. Raises RunError where the model does not have the same ones."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    check_names(named, parts[0])
    with torch.no_grad():
        for name, weight in named.items():
            fill(weight, [part[name] for part in parts])


def check_names(named: dict[str, Any], kept: dict[str, Tensor]) -> None:
    """Raise RunError where the weights that learn have other names than those kept."""
    if odd := sorted(named.keys() ^ kept.keys()):
        raise RunError(f"the checkpoint is of another model: {odd[0]}", AFRESH)


def read_parts(checkpoint: Path, name: str, kept: dict[str, Any]) -> list[Kept]:
    """What each process kept under a name; `kept`: in how many `parts`, or for none the `whole`."""
    if not kept["parts"]:
        return [kept["whole"]]
    files = [checkpoint / part_name(number) for number in range(kept["parts"])]
    return [torch.load(file, map_location="cpu", weights_only=True, mmap=True)[name] for file in files]


def part_name(number: int) -> str:
    return f"part-{number:05d}.pt"


def own_slice(value: Tensor) -> Tensor:
    found: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return found.detach()


def rebuilt(weight: Tensor, slices: list[Tensor]) -> Tensor:
    """What the optimiser has of a weight: a number for all of it, or one for each of its own."""
    if slices[0].dim() == 0:  # a fused optimiser counts its steps on the weight's device
        return slices[0].to(own_slice(weight).device, copy=True)
    moment = torch.empty_like(weight)
    fill(moment, slices)
    return moment


def put_together(slices: list[Tensor], shape: torch.Size) -> Tensor:
    """The whole of what so many processes kept: slices along the first axis, or ZeRO's stretches of all its numbers laid
    out flat, with zeros behind the last ones.
    """
    whole = torch.cat(slices) if len(slices) > 1 else slices[0]
    if slices[0].dim() == 1 and 0 <= whole.numel() - shape.numel() < len(slices):
        return whole[: shape.numel()].view(shape)
    if whole.shape != shape:
        raise RunError(f"the checkpoint is of another model: a weight of {tuple(whole.shape)}", AFRESH)
    return whole


def fill(target: Any, slices: list[Tensor]) -> None:
    """Copy what so many processes kept, in place; into this process's own slice where `target` is in parts."""
    whole = put_together(slices, target.shape)
    if not hasattr(target, "to_local"):
        target.copy_(whole)
        return
    own = target.to_local()
    each = -(
        -len(whole) // target.device_mesh.size()
    )  # as torch.chunk cuts: the last ones may be shorter, or empty
    begin = min(target.device_mesh.get_local_rank() * each, len(whole))
    own.copy_(whole[begin : begin + len(own)])


def whole_weights(model: Any, learned: bool = False) -> dict[str, Tensor] | None:
    """Name -> tensor on the CPU of a model in parts, on the first process; None where each process has it whole.
    Every process takes part, and one weight at a time is whole on its device. `learned`: of what learns alone.
    """
    if not any(hasattr(weight, mark) for weight in model.parameters() for mark in ("full_tensor", "ds_id")):
        return None
    learns = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {}
    for name, value in (learns if learned else model.state_dict(keep_vars=True)).items():
        whole = whole_of(value)
        if is_main():
            found[name] = whole.detach().cpu()
    return found


def whole_of(value: Any) -> Tensor:
    """All of a weight that FSDP or ZeRO holds in parts, or of one that is whole."""
    if hasattr(value, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([value]):
            return value.detach().clone()
    return value.full_tensor() if hasattr(value, "full_tensor") else value
