"""What several processes compute or agree on together: sums, lists, when to stop. With one process
each is what it was given.

Work is dealt out like cards: of W processes, process r has every W-th item from the r-th on (`own_part`);
`gathered` puts such parts together again, in the order of the whole, on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from cai_cli.processes.interruption import asked_to_stop
from cai_cli.processes.ranks import join_group, rank, world_size

Item = TypeVar("Item")
Items = TypeVar("Items", bound=Sequence)


def own_part(items: Items) -> Items:
    """This process's share of what all of them work on."""
    return items[rank() :: world_size()]  # type: ignore[return-value]  # a slice is of the same kind


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
