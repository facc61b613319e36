"""`--dry-run` of a trainer tells what its processes will hold, and whether that is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psutil

from cai_cli.console.groups import values_of
from cai_cli.console.memory_hints import what_helps
from cai_cli.console.messages import say, table
from cai_cli.errors import UserError
from cai_cli.models.devices import KEPT_FREED, pick_device
from cai_cli.processes.ranks import by_fsdp, local_rank, world_size, zero_stage
from cai_cli.training.memory.forecast import Forecast, Launch, of_pairwise, of_ppo, of_sft
from cai_cli.training.memory.shape import shape_of

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import Options as PPO
    from cai_cli.training.preference.settings import PairwiseOptions
    from cai_cli.training.sft.settings import Options as SFT

GB = 1e9
NAMES = ("weights", "gradients", "optimiser", "activations", "cache", "total")


def tell_sft(options: SFT, lengths: list[int]) -> None:
    """`lengths`: tokens of each row to train on."""
    device = options.hardware.device
    found = of_sft(options, shape_of(options.model, "CAUSAL_LM"), lengths, launch(device))
    tell(options, [(found, device)])


def tell_pairwise(options: Any, fit: PairwiseOptions, model: str, lengths: list[tuple[int, int]]) -> None:
    """`lengths`: tokens of the chosen and the rejected text of each pair; where none are known yet, --max-length."""
    device, longest = fit.hardware.device, fit.training.max_length
    lengths = lengths or [(longest, longest)] * fit.training.per_device_train_batch_size
    tell(options, [(of_pairwise(fit, shape_of(model, "SEQ_CLS"), lengths, launch(device)), device)])


def tell_ppo(options: PPO, lengths: list[int]) -> None:
    """`lengths`: tokens of each prompt."""
    models = options.models
    shapes = shape_of(options.model, "CAUSAL_LM"), shape_of(options.pm, "SEQ_CLS", "--pm")
    found, critic = of_ppo(options, *shapes, lengths, launch(models.hardware.device))
    columns = [(found, models.hardware.device)]
    if critic is not None:
        columns.append((critic, str(models.value_device)))
    tell(options, columns)


def launch(device: str) -> Launch:
    """How this command was started, and whether it will compute on a GPU; a dry run need not have the one it names."""
    on_gpu = place(device).startswith("cuda")
    return Launch(processes=world_size(), sharded=by_fsdp(), zero=zero_stage(), gpu=on_gpu)


def place(device: str) -> str:
    """A device by its whole name, whether it is here or not."""
    if device == "auto":
        return str(pick_device("auto"))
    return f"cuda:{local_rank()}" if device == "cuda" else device


def tell(options: Any, columns: list[tuple[Forecast, str]]) -> None:
    """The table, and for each device whether it has so much free."""
    used = [name for name in NAMES if any(getattr(found, name) for found, _ in columns)]
    heads = ["process" if len(columns) == 1 else f"process on {place(device)}" for _, device in columns]
    rows = [[name, *(f"{getattr(found, name) / GB:.2f}" for found, _ in columns)] for name in used]
    table("memory of each process in GB, at its most", ["", *heads], rows)
    needed: dict[str, float] = {}
    for found, device in columns:
        name = place(device)
        # On a CPU the C library keeps some of what a pass has freed (`keep_freed_memory`)
        kept = min(KEPT_FREED, found.activations) if name == "cpu" else 0.0
        needed[name] = needed.get(name, 0.0) + found.needed + kept
    for name, size in needed.items():
        say(verdict(options, name, size))


def taken_by_vllm(values: dict[str, Any]) -> float:
    """The share of a GPU that a sampler of its own takes."""
    return float(values["gpu_memory_utilization"]) if values.get("engine") == "vllm" else 0.0


def verdict(options: Any, device: str, size: float) -> str:
    """Whether a device has so many bytes free; of a machine's memory, for all processes on it."""
    if device.startswith("cuda"):
        import torch

        try:
            left, total = torch.cuda.mem_get_info(pick_device(device))
        except (UserError, ValueError, RuntimeError):
            return f"{size / GB:.1f} GB; there is no {device} here to compare that with"
        free, name = left - total * taken_by_vllm(values_of(options)), device
    else:
        size *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        free, name = float(psutil.virtual_memory().available), "this machine's memory"
    told = f"{size / GB:.1f} GB, with {free / GB:.1f} GB free of {name}"
    if size <= free:
        return f"fits: {told}"
    return f"does NOT fit: {told}; {what_helps(values_of(options)).partition('; --dry-run')[0]}"
