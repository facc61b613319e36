"""What this machine has for `cai`, for a report of a fault: versions, devices, memory, disk, caches, settings
of launchers.

    cai env            lines of NAME: VALUE
    cai env --json     the same as one JSON object

Nothing secret is in it: of the environment only the variables in `SETTINGS` are told, and the home directory
is written ~.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cai_cli import __version__
from cai_cli.artifacts.manifest import LIBRARIES, library_versions
from cai_cli.console.messages import show_text
from cai_cli.console.options import flag
from cai_cli.rows.jsonl import strict_json

NAMED = (*LIBRARIES, "vllm", "flash-attn", "typer")
# Variables that change what a run does. None of them holds a secret; an address is told without what logs in
# to it.
SETTINGS = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
)
OF_ACCELERATE = re.compile(r"(ACCELERATE|FSDP)_\w+")
LOGIN = re.compile(r"(?<=//)[^/@]*@")
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Options:
    json: Annotated[bool, flag("Output", "One JSON object instead of lines.", "--json")] = False


def run(options: Options) -> None:
    """Show versions, devices, memory and settings, for reports of faults.

    Example: cai env --json
    """
    found = {
        **machine(),
        "libraries": dict.fromkeys(NAMED, "not installed") | library_versions(NAMED),
        "devices": devices(),
        "settings": settings(),
    }
    if options.json:
        show_text(strict_json(found, "env", indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            lines = [f"  {key}: {item}" for key, item in value.items()] or ["  none"]
        elif isinstance(value, list):
            lines = [f"  {item}" for item in value]
        else:
            show_text(f"{name}: {value}")
            continue
        show_text("\n".join([f"{name}:", *lines]))


def machine() -> dict[str, Any]:
    """The program, the system, its cores, memory and disk."""
    return {
        "cai_cli": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory(),
        "disk": disk(Path()),
        "cache": cache_folder(),
    }


def memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    names = {"SC_PHYS_PAGES": "in all", "SC_AVPHYS_PAGES": "free"}
    return ", ".join(
        f"{os.sysconf(name) * page / GB:.1f} GB {told}"
        for name, told in names.items()
        if name in os.sysconf_names
    )


def disk(folder: Path) -> str:
    try:
        found = shutil.disk_usage(folder)
    except OSError as error:
        return f"cannot be told: {error.strerror}"
    return f"{found.free / GB:.1f} GB free here, of {found.total / GB:.1f} GB"


def cache_folder() -> str:
    """Where models and data sets of the Hub are kept."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return f"{at_home(str(folder))} ({disk(folder) if folder.is_dir() else 'not there'})"


def devices() -> list[str]:
    """What torch computes on, with its memory."""
    try:
        import torch
    except Exception as error:  # a broken install is what a report may be about
        return [f"torch cannot be imported: {' '.join(str(error).split())[:200]}"]
    found = [f"cpu: {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append(
            f"cuda:{number}: {name}, {total / GB:.1f} GB, {free / GB:.1f} GB of it free, CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def settings() -> dict[str, str]:
    """The variables that are set, of those that matter."""
    names = [name for name in os.environ if name in SETTINGS or OF_ACCELERATE.fullmatch(name)]
    return {name: at_home(LOGIN.sub("", os.environ[name])) for name in sorted(names)}


def at_home(text: str) -> str:
    """The text without the name of the user's home."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
