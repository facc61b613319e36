"""What several processes compute or agree on together: sums, lists, gradients, when to stop. With one process
each is what it was given.

Work is dealt out like cards: of W processes, process r has every W-th item from the r-th on (`own_part`);
`gathered` puts such parts together again, in the order of the whole, on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from cai_cli.processes.interruption import asked_to_stop
from cai_cli.processes.ranks import join_group, rank, world_size

Item = TypeVar("Item")
BUCKET = 1 << 23  # Numbers sent in one message when gradients are summed: 32 MiB in float32.


def own_part(items: list[Item]) -> list[Item]:
    """This process's share of what all of them work on."""
    return items[rank() :: world_size()]


def gathered(part: list[Item]) -> list[Item]:
    """The whole list of which each process has its `own_part`."""
    if world_size() == 1:
        return part
    import torch.distributed as dist

    join_group()
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, part)
    whole: list[Any] = [None] * sum(map(len, parts))
    for n, items in enumerate(parts):
        whole[n :: world_size()] = items
    return whole


def of_the_first(value: Item) -> Item:
    """What the first process has, on every one of them."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    join_group()
    sent: list[Any] = [value]
    dist.broadcast_object_list(sent)
    return sent[0]


def everywhere(work: Callable[[], None]) -> None:
    """Do something on every process. Where it fails on one, that one says why, and all of them end."""
    failed: Exception | None = None
    try:
        work()
    except Exception as error:
        failed = error
    if any(gathered([failed is not None])):
        raise failed or SystemExit(1)


def told_to_stop(device: torch.device) -> bool:
    """Whether SIGTERM has come to any of the processes: all get the same answer, so that they stop after the
    same step.
    """
    if world_size() == 1:
        return asked_to_stop()
    return bool(total(torch.tensor(float(asked_to_stop()), device=device)) > 0)


def total(value: Tensor) -> Tensor:
    """The sum over all processes, as a new tensor."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    join_group()
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; one that had nothing to do counts as zero."""
    if world_size() == 1:
        return
    weights = [weight for weight in parameters if weight.requires_grad]
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    bucket: list[Tensor] = []
    for number, weight in enumerate(weights):
        bucket.append(weight.grad)  # type: ignore[arg-type]
        alike = number + 1 < len(weights) and weights[number + 1].dtype == weight.dtype
        if not alike or sum(gradient.numel() for gradient in bucket) >= BUCKET:
            sent = total(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, summed in zip(bucket, sent.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
            bucket = []
