"""Which process of a `torchrun` or `accelerate launch` this is, from the environment. No torch before a
barrier is asked for.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from cai_cli.errors import RunError, UserError

Item = TypeVar("Item")

# What `accelerate launch` sets where a model is to be held in parts.
SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_FSDP": "FSDP",
}
DATA_PARALLEL = "launch it with torchrun, or with accelerate's --multi_gpu"

# How long processes wait for each other: one with nothing left to do for another's last long texts. A process that has
# died is noticed at once, by its connections and by torchrun.
PATIENCE = timedelta(hours=12)
POLL_SECONDS = 0.2
ONE_A_NODE = "start one torchrun a node (scripts/slurm), or give each task --shard $SLURM_PROCID/$SLURM_NTASKS and its own --out"


def rank() -> int:
    """This process among all, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of this machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes of the command run on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """How many processes run the command together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def join_group() -> None:
    """Connect to the other processes: nccl where each has a GPU of its own, else gloo. Nothing to do for one
    process.
    """
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        has_gpu = local_world_size() <= torch.cuda.device_count()
        if has_gpu:
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=PATIENCE)


def leave_group() -> None:
    """Take leave of the other processes, where there are any.

    gloo's threads let go of Python objects: one that does so while the interpreter shuts down ends the
    process by SIGABRT, and a run whose work is done and saved would count as failed.
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # of the models in parts, each of which holds its group
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        import torch.distributed as dist

        join_group()
        dist.barrier()


def main_first(work: Callable[[], None]) -> None:
    """Let the first process do something while the others wait. Where it fails there all of them end, the
    others in silence.
    """
    error: Exception | None = None
    if is_main():
        try:
            work()
        except Exception as found:
            error = found
    if world_size() > 1:
        import torch.distributed as dist

        join_group()
        exit_code = [None if error is None else getattr(error, "exit_code", 1)]
        dist.broadcast_object_list(exit_code, src=0)
        if not is_main() and exit_code[0] is not None:
            raise SystemExit(exit_code[0])
    if error is not None:
        raise error


def wait_for(ready: Callable[[], Item | None], what: str) -> Item:
    """What another process leaves behind, as soon as `ready` finds it; looked for on the disk, where a collective would
    give up sooner. A launcher ends this one where that one fails; without a launcher it gives up by itself: RunError.
    """
    end = time.monotonic() + PATIENCE.total_seconds()
    while (found := ready()) is None:
        if time.monotonic() > end:
            told = f"{what}: another process was to make it, and has not within {PATIENCE.total_seconds() / 3600:g} hours"
            raise RunError(told, "look whether that one still runs; start them by torchrun")
        time.sleep(POLL_SECONDS)
    return found


def check_one_process(work: str, step: str = "start it without a launcher") -> None:
    """Raise UserError where a launcher has started several, and `work` ("models are rated") is not shared out: each
    would do all of it and write the same files.
    """
    if world_size() > 1:
        raise UserError(f"{world_size()} processes were started, and {work} by one", step)


def check_launch(trains: bool = False, apart: bool = False, by_zero: bool = False) -> None:
    """Raise UserError where the launcher asks for a model in parts and the stage would hold a copy in each
    process, or where srun has started several tasks that know nothing of each other.

    `trains`: trainers can do it by FSDP version 2; `by_zero`: some by DeepSpeed too. `apart`: each task has rows of its
    own, by --shard.
    """
    asked = next((name for variable, name in SHARDING.items() if is_set(variable)), None)
    if asked == "FSDP" and trains:
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP: only version 2 is supported", "launch it with --fsdp_version 2")
        # Every process reads the model's files, and may map them: transformers would read them in the first alone, and
        # give the others memory of the same size to receive them in.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    elif asked == "DeepSpeed" and by_zero:
        check_deepspeed()
    elif asked:
        hint = "launch it with --use_fsdp --fsdp_version 2 (scripts/accelerate)" if trains else DATA_PARALLEL
        raise UserError(f"the launcher asks for {asked}, which this stage cannot do", hint)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # of srun's step alone; a batch script has none
    if tasks != "1" and "WORLD_SIZE" not in os.environ and not apart:
        raise UserError(f"srun starts {tasks} tasks, and each would do all of this", ONE_A_NODE)


def check_quantize(quantize: str | None) -> None:
    """Raise UserError where weights in few bits would have to be taken apart."""
    if quantize and (by_fsdp() or by_deepspeed()):
        name = "FSDP" if by_fsdp() else "DeepSpeed"
        raise UserError(f"--quantize {quantize}: {name} cannot hold it in parts", "leave one of them out")


def by_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return is_set("ACCELERATE_USE_FSDP")


def by_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return is_set("ACCELERATE_USE_DEEPSPEED")


def in_zero_parts() -> bool:
    """Whether it asks for weights in parts, too, beside gradients and optimiser."""
    return zero_stage() == 3


def zero_stage() -> int:
    """2 or 3 (`check_deepspeed`); 0 without DeepSpeed."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if by_deepspeed() else 0


def check_deepspeed() -> None:
    """Raise UserError for what a launch file asks of DeepSpeed and would not get, or not right."""
    asked = os.environ.get
    if asked("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise UserError(
            "DeepSpeed: a file of its own is not read", "say it in accelerate's (scripts/accelerate)"
        )
    if asked("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") not in ("2", "3"):
        raise UserError(
            "DeepSpeed: ZeRO 2 and 3 are supported",
            "take stage 2 or 3, as scripts/accelerate/zero3.yaml does",
        )
    if any(
        asked(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") != "none"
        for what in ("OPTIMIZER", "PARAM")
    ):
        raise UserError(
            "the launch file asks DeepSpeed to hold parts on the CPU", "leave it out: use more processes"
        )


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
