"""Being told to stop: Ctrl-C, SIGTERM (Slurm, `timeout`, Kubernetes), SIGHUP (a terminal that was closed).

Each raises `Terminated` where the program is, and the command ends with one line and exit code 128 + the
signal's number: what is done is on disk, and the same command continues. A trainer wraps its loop in
`after_the_step()`: there SIGTERM and SIGHUP are only noted, and the loop looks at `asked_to_stop()` between
steps, writes a checkpoint and raises `Terminated` itself.

A process that works for another one (a stage of the demo, PPO's critic) ends with it: see `end_with_parent`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN = 1.0  # Seconds after which a signal is raised once more.
LOOK = 0.2  # Seconds between two looks for the parent.


class Terminated(BaseException):
    """A signal has come. No `Exception`: nothing that mends errors on the way may take it for one.

    `number`: the signal's, that which has come where none is named. `continues`: whether the same command
    goes on from what is done; None where nobody has said.
    """

    def __init__(self, number: int = 0, continues: bool | None = None) -> None:
        super().__init__(number)
        self.number = number or Signalled.came or signal.SIGTERM
        self.continues = continues


class Signalled:
    """What has come so far, and whether it waits for the end of a step."""

    came = 0
    raised = -math.inf  # when, on the monotonic clock
    waits = False
    answered = False  # by a `one_line` that is under way


def listen() -> None:
    """From here on a signal raises Terminated in the main thread, or is noted within `after_the_step`.

    One that whoever started the command wants ignored, as `nohup` does, is. One that was held back until now
    comes now.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """From here on signals are somebody else's business."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: Any) -> None:
    Signalled.came = number
    if Signalled.waits and number != signal.SIGINT:
        return
    now = time.monotonic()
    # The same one may come twice, to this process and to its group. Later ones count: what was raised may
    # have been lost, since Python ignores what is raised in a destructor.
    if now - Signalled.raised > AGAIN:
        Signalled.raised = now
        raise Terminated(number)


@contextmanager
def after_the_step() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are noted instead of raised; one that nobody answered is raised at the end."""
    Signalled.waits = True
    try:
        yield
    finally:
        Signalled.waits = False
    if Signalled.came:
        raise Terminated


@contextmanager
def ctrl_c_comes_back() -> Iterator[None]:
    """Within, Ctrl-C is a KeyboardInterrupt, as often as it comes, and nothing that ends the command: for one that
    asks its user what comes next.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def asked_to_stop() -> bool:
    """Whether a signal has come to this process."""
    return bool(Signalled.came)


@contextmanager
def held_back() -> Iterator[None]:
    """Within, signals wait; for the processes of `multiprocessing` that are started within, until they
    `listen`.
    """
    resource_tracker.ensure_running()  # which would end the waiting
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent() -> None:
    """From here on this process, a child of `multiprocessing`, ends when its parent does, even if that is
    killed.

    The parent is the process that asked for it, also where a fork server made it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a child process"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def while_parent_lives() -> Iterator[None]:
    """Within, this process ends when its parent does. For a fork server, which sees that only once its
    imports are through.
    """
    parent = os.getppid()

    def look(number: int, frame: Any) -> None:
        if os.getppid() != parent:
            os._exit(1)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
