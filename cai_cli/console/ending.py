"""How a command ends where a signal came: one line, and exit code 128 + the signal's number."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cai_cli.console.messages import fail
from cai_cli.processes.interruption import Signalled, Terminated, ignore, listen
from cai_cli.processes.ranks import is_main


@contextmanager
def one_line(told: bool = True) -> Iterator[None]:
    """Run a command: where a signal ends it, in one line and with exit code 128 + the signal's number.

    A library that calls Python back may turn Terminated into an error of its own, or lose it: what came is
    remembered. `told`: whether to say the line, or leave that to whoever started this process. Within another
    one it adds nothing.
    """
    if Signalled.answered:
        yield
        return
    Signalled.answered = True
    listen()
    continues: bool | None = None
    try:
        yield
    except Terminated as stopped:
        Signalled.came = stopped.number
        continues = stopped.continues
    except Exception:
        if not Signalled.came:
            raise
    if not Signalled.came:
        return
    ignore()  # a second Ctrl-C has nothing left to stop
    if told and is_main():
        word = (
            "interrupted"
            if Signalled.came == signal.SIGINT
            else f"stopped by {signal.Signals(Signalled.came).name}"
        )
        fail(word, "the same command continues from what is done" if continues else None)
    sys.exit(128 + Signalled.came)
