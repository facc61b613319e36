"""Checkpoints: a directory each, sealed last with a list of checksums. The two newest are kept, in case one
is damaged later.

    step-<n>/          of our own loops: state.pt, and what `also` writes, or a file of each process (training/parts.py)
    checkpoint-<n>/    of a Hugging Face Trainer
    .../complete       the list: SHA-256 and size of every file. Without it a kill has left the checkpoint half-written.

Nothing of a checkpoint is read before its files have been held against the list. State is tensors, numbers,
strings, lists and dictionaries, so that it loads with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cai_cli.artifacts.fingerprints import hash_file
from cai_cli.console.messages import warn
from cai_cli.errors import RunError, UserError
from cai_cli.processes.collective import everywhere, of_the_first
from cai_cli.processes.ranks import is_main, main_first
from cai_cli.rows.jsonl import write_atomically

MARK, STATE = "complete", "state.pt"
KEPT = 2
READERS = 4  # files hashed at the same time


def step_folder(folder: Path, step: int, name: str = "step") -> Path:
    return folder / f"{name}-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(folder: Path, *names: str) -> list[Path]:
    """All `<name>-<step>` in the folder, whole or not, the newest first."""
    found = [
        path
        for name in names
        for path in folder.glob(f"{name}-*")
        if path.name.removeprefix(f"{name}-").isdigit()
    ]
    return sorted(found, key=step_of, reverse=True)


# Writing


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], also: Callable[[Path], None] | None = None
) -> None:
    """Write `folder/step-<n>`, then drop the older ones but one. `also` writes more into that directory."""
    save_weights(step_folder(folder, step), state, also)
    drop_old(folder)


def save_weights(target: Path, state: dict[str, Any], also: Callable[[Path], None] | None = None) -> None:
    """Write one state into the directory `target`, sealed last. What fails on the way leaves no half of it."""
    begin(target)
    try:
        write_state(target / STATE, state)
        if also is not None:
            also(target)
        seal(target)
    except Exception:
        drop([target])
        raise


def save_in_parts(target: Path, state: dict[str, Any], part_file: str, part: dict[str, Any]) -> None:
    """`save_weights` by all processes together: each writes its own `part` as `part_file`, the first the state, and
    the seal once all are there. What fails on one of them leaves no half of it, and ends them all.
    """

    def write() -> None:
        write_state(target / part_file, part)
        if is_main():
            write_state(target / STATE, state)

    main_first(lambda: begin(target))
    try:
        everywhere(write)
    except BaseException:
        if is_main():
            drop([target])
        raise
    main_first(lambda: seal(target))


def begin(target: Path) -> None:
    """Make the directory anew."""
    drop([target])
    target.parent.mkdir(exist_ok=True)  # its own parent is there, or was removed under the run
    target.mkdir()


def drop_old(folder: Path) -> None:
    """Of the checkpoints keep the newest ones."""
    drop(checkpoints(folder, "step")[KEPT:])


def seal_hf_checkpoint(folder: Path, step: int) -> None:
    """Seal what a Hugging Face Trainer saved at `step`, then drop the older ones but one."""
    seal(folder / f"checkpoint-{step}")
    drop(checkpoints(folder, "checkpoint")[KEPT:])


def seal(target: Path) -> None:
    """Close a directory with the list of its files, once all of them are on the disk."""
    names = sorted(
        path.relative_to(target).as_posix()
        for path in target.rglob("*")
        if path.is_file() and path.name != MARK
    )
    for name in names:
        with (target / name).open("rb") as stream:
            os.fsync(stream.fileno())
    listed = dict(zip(names, measured([target / name for name in names]), strict=True))
    write_atomically(target / MARK, json.dumps(listed, indent=1) + "\n")


def measured(files: list[Path]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(READERS) as pool:
        sums = pool.map(hash_file, files)
        return [
            {"bytes": file.stat().st_size, "sha256": found} for file, found in zip(files, sums, strict=True)
        ]


def drop(targets: list[Path]) -> None:
    """Remove directories, the seal first: a kill on the way leaves no checkpoint that looks damaged."""
    for target in targets:
        (target / MARK).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


def drop_half_written(folder: Path, *names: str) -> None:
    """Remove the `<name>-<step>` that are not sealed."""
    drop([path for path in checkpoints(folder, *names) if not (path / MARK).exists()])


def write_state(file: Path, state: dict[str, Any]) -> None:
    with file.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


# Reading


def damage(target: Path) -> str | None:
    """The first file that is not what was written, and how; None where all are."""
    try:
        listed = {
            name: (entry["bytes"], entry["sha256"])
            for name, entry in json.loads((target / MARK).read_bytes()).items()
        }
    except OSError:
        return f"{target / MARK}: cannot be read"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{target / MARK}: is damaged"
    for name, (size, _) in listed.items():
        file = target / name
        if not file.is_file():
            return f"{file}: is missing"
        if (now := file.stat().st_size) != size:
            return f"{file}: is damaged: {now} bytes, {size} were written"
    for (name, (_, written)), now in zip(
        listed.items(), measured([target / name for name in listed]), strict=True
    ):
        if now["sha256"] != written:
            return f"{target / name}: is damaged: not the bytes that were written"
    return None


def newest_whole(folder: Path, *names: str, look: Callable[[Path], str | None] = damage) -> Path | None:
    """The newest `<name>-<step>` in which `look` finds no damage, the same on every process; None where there
    is none at all.

    The first process looks: it removes what a kill left half-written, and names and removes what is damaged
    once it has found a whole one before it. Raises RunError where none is whole.
    """
    whole, damaged = None, list[tuple[Path, str]]()
    if is_main():
        drop_half_written(folder, *names)
    for path in checkpoints(folder, *names) if is_main() else []:
        if told := None if whole else look(path):
            damaged.append((path, told))
        else:
            whole = whole or path
    whole, damaged = of_the_first((whole, damaged))
    if damaged and whole is None:
        hint = f"remove {folder}, and the same command starts afresh"
        raise RunError(f"{damaged[0][1]}; no checkpoint before it is whole", hint)
    for told in dict.fromkeys(told for _, told in damaged):  # Two may refer to the same thing.
        warn(f"{told}; going on from {whole}, the checkpoint before")
    if is_main():
        drop([path for path, _ in damaged])
    return whole


def load_checkpoint(
    folder: Path, *names: str, look: Callable[[Path], str | None] = damage
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state, or None; see `newest_whole`."""
    found = newest_whole(folder, *(names or ("step",)), look=look)
    return None if found is None else (found, read_state(found / STATE))


def check_pace(kept: int, now: int) -> None:
    """Raise UserError where a step of the run that left a checkpoint took another number of batches than now: each
    process counts, and its --gradient-accumulation-steps.
    """
    if kept == now:
        return
    hint = f"so many processes times --gradient-accumulation-steps have to make {kept}"
    raise UserError(f"a step of this run took {kept} batches, and would take {now} now", hint)


def load_weights(target: Path) -> dict[str, Any]:
    """What `save_weights` wrote. Raises RunError where it is damaged."""
    if told := damage(target):
        raise RunError(
            told,
            "run the same command again: it goes on from the checkpoint before, or says that there is none",
        )
    return read_state(target / STATE)


def read_state(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state
