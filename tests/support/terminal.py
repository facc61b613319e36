"""A command at a terminal of its own, and a person who types: reads what is on it, types, waits for words."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
import time
from pathlib import Path

import forks

PATIENCE = 240.0  # seconds, on a busy machine
CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")
CTRL_C, CTRL_D = "\x03", "\x04"
# Seconds between a prompt and Ctrl-C: Python's readline sees a signal once it waits for a key, and one that comes
# between the prompt and the waiting only at the next Enter.
PAUSE = 0.5


class Terminal:
    """`with Terminal("chat", "--model", path, columns=160) as screen: ...`. `text` is all that was on it so far, without
    colours and cursor moves.
    """

    def __init__(self, *words: object, columns: int, cwd: Path | None = None) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        self.text, self.seen, self.raw = "", 0, b""
        typed = list(map(str, words))
        self.command = forks.Forked(typed, cwd, theirs)
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.command.kill()
        self.command.wait()
        os.close(self.ours)

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self.ours, (50, columns))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def interrupt_prompt(self, text: str = "") -> None:
        """Ctrl-C at a prompt, behind some text."""
        self.type(text)
        self.until(text)
        time.sleep(PAUSE)
        self.type(CTRL_C)

    def say(self, line: str, *expected: str) -> str:
        """Type a line; what came up to its end, with all that is expected in it, and the next prompt."""
        self.type(f"{line}\r")
        found = ""
        for text in (line, *expected):
            found += self.until(text)
        return found + self.until("\n> ")

    def until(self, expected: str) -> str:
        """What came since the last look, up to the end of these words."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.text.find(expected, self.seen)) < 0:
            assert time.monotonic() < deadline and self.read(1.0), f"no {expected!r} in {self.text!r}"
        found = self.text[self.seen : at + len(expected)]
        self.seen = at + len(expected)
        return found

    def read(self, seconds: float) -> bool:
        """Take what comes within so many seconds; False where the terminal is closed."""
        if select.select([self.ours], [], [], seconds)[0]:
            try:
                block = os.read(self.ours, 1 << 16)
            except OSError:  # the command has ended
                return False
            self.raw += block
            self.text = CONTROL.sub("", self.raw.decode(errors="ignore")).replace("\r", "")
        return True

    def end(self) -> int:
        """The exit code, when all that was written is read."""
        while self.read(PATIENCE):
            pass
        return self.command.wait(PATIENCE)
