"""What a person says to a command, a line at a time: typed at a terminal, or piped in.

At a terminal lines are edited and called back by readline, in memory alone. What is pasted stays one text, its line
breaks included. Ctrl-D ends it; Ctrl-C drops the line, and twice in a row ends the command with 130.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress

from cai_cli.console.messages import say
from cai_cli.errors import UserError
from cai_cli.processes.interruption import Terminated

BOLD, PLAIN = "\001\033[1;36m\002", "\001\033[0m\002"  # between marks by which readline counts no width


def at_a_terminal() -> bool:
    """Whether a person sits at both ends: what is read and what is written."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def typed_lines(leaving: str) -> Iterator[str]:
    """Lines typed behind a prompt, until Ctrl-D. `leaving`: what to say at a Ctrl-C about how to leave."""
    with suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    prompt = "> " if plain else f"{BOLD}>{PLAIN} "
    asked = False  # to leave, by the key before
    while True:
        try:
            line = input(prompt)
            line.encode()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            if asked:
                raise Terminated(signal.SIGINT, continues=False) from None
            say(leaving)
            asked = True
        except UnicodeError:
            say("that is no text in this terminal's encoding, and was not sent")
        else:
            asked = False
            yield line


def piped_lines() -> Iterator[str]:
    """The lines of stdin. Raises UserError for one that is not UTF-8."""
    for number, line in enumerate(iter(sys.stdin.buffer.readline, b""), start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(
                f"stdin:{number}: not UTF-8 text", "text is read as UTF-8: convert it with iconv"
            ) from None
