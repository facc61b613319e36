"""Checkpoints of our own loops: a directory each, marked complete last; unmarked ones are removed at start.

State is tensors, numbers, strings, lists and dictionaries, so that it loads with `weights_only=True`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cai_cli.ranks import barrier, is_main

MARK, STATE = "complete", "state.pt"


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], also: Callable[[Path], None] | None = None) -> None:
    """Write `folder/step-<n>` atomically, then drop the older ones. `also` writes more into that directory."""
    target = step_folder(folder, step)
    save_weights(target, state, also)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def save_weights(target: Path, state: dict[str, Any], also: Callable[[Path], None] | None = None) -> None:
    """Write one state into the directory `target`, marked complete last. What fails on the way leaves no half of it."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)  # its own parent is there, or was removed under the run
    target.mkdir()
    try:
        write_state(target / STATE, state)
        if also is not None:
            also(target)
        (target / MARK).touch()
    except Exception:
        shutil.rmtree(target, ignore_errors=True)
        raise


def load_weights(target: Path) -> dict[str, Any]:
    """What `save_weights` wrote."""
    return read_state(target / STATE)


def write_state(file: Path, state: dict[str, Any]) -> None:
    with file.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def read_state(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def marked(folder: Path, pattern: str) -> list[Path]:
    """The complete checkpoints of that name. The first process removes the others, and all wait for it."""
    if is_main():
        drop_half_written(folder, pattern)
    barrier()
    return list(folder.glob(pattern))


def drop_half_written(folder: Path, pattern: str) -> None:
    """Remove the checkpoints of that name that are not marked complete."""
    for path in folder.glob(pattern):
        if not (path / MARK).exists():
            shutil.rmtree(path)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The last complete checkpoint as (step, state), or None. The first process removes what a kill left half-written."""
    found = max(marked(folder, "step-*"), default=None)
    if found is None:
        return None
    return int(found.name.removeprefix("step-")), load_weights(found)


def mark_hf_checkpoint(folder: Path, step: int) -> None:
    """Mark what a Hugging Face Trainer saved at `step` as complete, then drop the older ones."""
    target = folder / f"checkpoint-{step}"
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    (target / MARK).touch()
    for other in folder.glob("checkpoint-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def drop_unmarked_hf_checkpoints(folder: Path) -> Path | None:
    """The newest marked checkpoint of a Hugging Face Trainer. The first process removes half-written ones."""
    return max(marked(folder, "checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
