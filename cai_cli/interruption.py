"""Being told to stop by SIGTERM (Slurm, `timeout`, Kubernetes): at once, or after the step under way.

A stage that writes rows stops where it is: what is done is on disk, and the same command continues. A trainer wraps its loop in
`after_the_step()`; there the signal is only noted, and the loop looks at `asked_to_stop()` between steps, writes a checkpoint
and raises `Terminated` itself.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM has come. No `Exception`: nothing that mends errors on the way may take it for one."""


class _Signal:
    """What has come so far, and whether it waits for the end of a step."""

    waits = False
    came = False


def listen() -> None:
    """From here on SIGTERM raises Terminated in the main thread, or is noted within `after_the_step`."""
    signal.signal(signal.SIGTERM, _handle)


def _handle(signum: int, frame: Any) -> None:
    _Signal.came = True
    if not _Signal.waits:
        raise Terminated


@contextmanager
def after_the_step() -> Iterator[None]:
    """Within, SIGTERM is noted instead of raised; one that nobody answered is raised at the end."""
    _Signal.waits = True
    try:
        yield
    finally:
        _Signal.waits = False
    if _Signal.came:
        raise Terminated


def asked_to_stop() -> bool:
    """Whether SIGTERM has come to this process."""
    return _Signal.came
