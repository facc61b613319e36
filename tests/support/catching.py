"""A command caught at a moment: signalled as soon as something is seen of it, and started again if it was
over before that.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forks import Command

TRIES = 6  # on a busy machine a whole run may pass between two looks of the test


def catch(
    start: Callable[[], Command],
    out: Path,
    seen: Callable[[], object],
    number: int = signal.SIGKILL,
    send: Callable[[Command], object] | None = None,
) -> tuple[Command, str]:
    """Start, signal when `seen`, and wait for the end: the command and what it said. `send` is for more than
    a signal.

    Where the command came through all the same (exit 0), what is at `out` is put back as it was, and it is
    started again.
    """
    with tempfile.TemporaryDirectory() as kept:
        before = [copy(path, Path(kept) / path.name) for path in files_of(out)]
        for _ in range(TRIES):
            process = start()
            wait_for(process, seen)
            if process.poll() is None:
                send(process) if send else process.send_signal(number)
            said = process.communicate(timeout=200)[1]
            if process.returncode:
                return process, said
            for path in files_of(out):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in before:
                copy(path, out.parent / path.name)
    raise AssertionError(f"over {TRIES} times before it could be caught: {said}")


def wait_for(process: Command, seen: Callable[[], object]) -> None:
    """Until something is seen or the command has come through; an end of another kind is a failure."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if seen():
                return
        except FileNotFoundError:
            pass  # it was renamed or removed under the look
        time.sleep(0.005)
    assert process.poll() == 0, (
        process.communicate()[1] if process.poll() else "nothing was to be seen for two minutes"
    )


def files_of(out: Path) -> list[Path]:
    """`out` and what stands beside it under its name: what is being written, a manifest, rejects."""
    return sorted(path for path in out.parent.glob(f"{out.stem}*") if path.name.split(".")[0] == out.stem)


def copy(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to, symlinks=True) if path.is_dir() else shutil.copy2(path, to))
