"""Which process of a `torchrun` or `accelerate launch` this is, from the environment. No torch before a barrier is asked for."""

from __future__ import annotations

import os


def rank() -> int:
    """This process among all, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of this machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes run the command together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def join_group() -> None:
    """Connect to the other processes: nccl where each has a GPU, else gloo. Nothing to do for one process."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        import torch.distributed as dist

        join_group()
        dist.barrier()
