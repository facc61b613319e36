"""Where a model is computed and in what type: devices, dtypes, attention, and the memory that a CPU's passes
keep.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

from cai_cli.errors import UserError
from cai_cli.processes.ranks import local_rank, local_world_size

if TYPE_CHECKING:
    import torch


OWN = "own"  # a dtype: that of the files, which are then mapped into memory and not copied
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
KEPT_FREED = 256 << 20


def pick_device(device: str, flag: str = "--device") -> torch.device:
    import torch

    if device == "auto":
        count, processes = torch.cuda.device_count(), local_world_size()
        if 0 < count < processes:
            told = f"{flag} auto: {processes} processes run here, and there are {count} CUDA devices"
            raise UserError(told, f"start at most {count} a machine, or use {flag} cpu")
        return torch.device(f"cuda:{local_rank()}" if count else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"{flag} {device}: unknown", "auto, cpu, cuda, cuda:1 or mps")
    if chosen.index is not None and (processes := local_world_size()) > 1:
        raise UserError(
            f"{flag} {device}: {processes} processes run here, each on a device of its own", f"{flag} auto"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{flag} {device}: no MPS device here", f"use {flag} cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{flag} {device}: no CUDA device here", f"use {flag} cpu")
    if chosen.type == "cuda" and 0 < (count := torch.cuda.device_count()) <= (chosen.index or 0):
        raise UserError(
            f"{flag} {device}: there are {count} CUDA devices here", f"cuda:0 to cuda:{count - 1}"
        )
    return chosen


def check_device(device: str, dry_run: bool) -> None:
    """Raise UserError where there is no such device here, before anything is read for it; a dry run needs
    none.
    """
    if device not in ("auto", "cpu") and not dry_run:
        pick_device(device)


def check_attention(attention: str, dry_run: bool) -> None:
    """Raise UserError where flash attention is asked for and cannot be had, before a model is loaded; a dry
    run needs none.
    """
    if attention != "flash_attention_2" or dry_run:
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        told = "--attn-implementation flash_attention_2: needs the package flash-attn and a GPU that it knows"
        raise UserError(told, "leave it at auto, or install what it needs")


def exact_place(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: MPS has none. No Mac runs the tests: they see that no float64 goes
    there, not that all else works.
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """float32 on a CPU; on a GPU "auto" keeps the checkpoint's own type, OWN everywhere."""
    import torch

    if dtype == OWN:
        return "auto"
    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def training_dtype(dtype: str, bf16: bool, lora: bool) -> str:
    """Weights that are trained are kept in float32 unless told otherwise: a small step vanishes in 16 bits.

    The frozen base of adapters takes no steps. Under `bf16` a pass would round it to bfloat16 anyway, and copy it for
    that: it is held so from the start. The adapters are float32 in any case.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if bf16 and lora else "float32"


def leave_out_cudnn_attention() -> None:
    """Of torch's attentions on a GPU, take another than cuDNN's: it builds a plan for each new shape, and here every
    token that is drawn makes one.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB that tensors have freed, and take blocks up to 64 MiB from there.

    Left alone, glibc hands the activations of a pass back to the system and gets them again, page by page, in
    the next one: a sixth of the time of a small model's pass over 2,000 tokens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((M_TRIM_THRESHOLD, KEPT_FREED), (M_MMAP_THRESHOLD, 64 << 20)):
            libc.mallopt(parameter, value)
