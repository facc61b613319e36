"""What the command says to a person, on stderr: stdout is for data, or for text that was asked for
(`show_text`).

Whatever is in a name or in a model's text, it cannot steer the terminal: `visible` spells out what would. It
is never read as markup. Nobody has to listen: where stderr is closed the work goes on. Of several processes
that run a command together, the first one talks; each says its own errors. rich is loaded where a table or a
bar is drawn; a line is written as it is.
"""

from __future__ import annotations

import logging
import os
import re
import select
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from cai_cli.processes.ranks import is_main

if TYPE_CHECKING:
    from rich.console import Console

YELLOW, RED = "33", "1;31"
PLAIN_SECONDS = 15.0  # Between progress lines in a log file.
# The environment variable with which a command that runs others keeps them from naming the next
NEXT_STEPS = "CAI_NEXT_STEPS"
LONGEST = 500  # characters of an error or a warning
# Control characters, halves of surrogate pairs, and the invisible ones that turn, hide or break what a reader
# sees. The joiners of Persian and of emoji (U+200C, U+200D) are none of them.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible(text: str, keep: str = "") -> str:
    r"""The text with what would steer a terminal spelled out: `\x1b`, `\n`, `\u202e`. The characters of
    `keep` stay.
    """
    return UNSEEN.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )


def say(text: str) -> None:
    """A line."""
    if is_main():
        write_line(visible(text))


def tell_next(command: str, *words: object) -> None:
    """The command that comes next in the chain, to be typed as it stands but for words in capitals; not
    within a demo.
    """
    if os.environ.get(NEXT_STEPS) != "0":
        say(f"next: {command} {shlex.join(map(str, words))}")


def warn(text: str) -> None:
    """A line with the word in front, cut in its middle where it is too long."""
    if is_main():
        write_line(f"{coloured('warning:', YELLOW)} {shortened(visible(text), LONGEST - len('warning: '))}")


class Spoken(logging.Handler):
    """What rooms below log, which know nothing of the terminal, as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def speak_for_the_rooms_below() -> None:
    """From here on what our modules log is said."""
    logger = logging.getLogger("cai_cli")
    if not logger.handlers:
        logger.addHandler(Spoken(logging.WARNING))
        logger.propagate = False


def warn_all(texts: list[str]) -> list[str]:
    """Say each of them; returns them, for the manifest."""
    for text in texts:
        warn(text)
    return texts


def tell_dropped(dropped: Counter[str]) -> None:
    """What was left out of rows that were taken, by its name in the plural."""
    for name, count in dropped.items():
        say(f"dropped {count} {name}")


def fail(text: str, hint: str | None = None) -> None:
    """One line for the mistake; the next step on the same line, so that logs keep them together.

    Where it is too long, the mistake is cut in its middle rather than the step.
    """
    room = LONGEST - len("error: ")
    tail = printable(f" — {shortened(visible(hint), room // 2)}") if hint else ""
    write_line(f"{coloured('error:', RED)} {shortened(visible(text), room - len(tail))}{tail}")


def shortened(text: str, room: int) -> str:
    """The text in what the terminal can show, with `…` in its middle where it is longer than `room`."""
    text, mark = printable(text), printable("…")
    if len(text) <= room:
        return text
    end = (room - len(mark)) // 2
    return text[: room - len(mark) - end] + mark + text[-end:]


def write_line(text: str) -> None:
    try:
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody listens, or the log's disk is full: no reason to stop the work
        discard(sys.stderr)


def show_text(text: str, end: str = "\n") -> None:
    """Text for a person, on stdout because it was asked for: a dry run's prompt, a tree. Its lines and tabs
    stay.
    """
    print(printable(visible(text, keep="\n\t"), sys.stdout), end=end, flush=True)  # noqa: T201


def coloured(word: str, colour: str) -> str:
    return f"\033[{colour}m{word}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else word


def printable(text: str, stream: TextIO | None = None) -> str:
    """The text in what the terminal's encoding can show."""
    encoding = getattr(stream or sys.stderr, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# The streams themselves


def open_closed_streams() -> None:
    """Put /dev/null where the command was started without stdin, stdout or stderr.

    Else print would do what it likes, and the next file that is opened would be taken for one of them by
    libraries.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_unwritten() -> None:
    """Drop what could not be written to stdout and stderr, which Python would try again at its end, and
    complain.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def discard(stream: TextIO) -> None:
    """Let what goes to a standard stream go nowhere from here on."""
    number = 1 if stream is sys.stdout else 2
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    if not is_main():
        return
    from rich.markup import escape
    from rich.table import Table

    view = Table(title=escape(visible(title)), title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        view.add_column(escape(visible(column, keep="\n")), justify="left" if position == 0 else "right")
    for row in rows:
        view.add_row(*(escape(visible(cell)) for cell in row))
    screen = console()
    with screen.capture() as drawn:
        screen.print(view)
    write_line(drawn.get().removesuffix("\n"))


@contextmanager
def progress(name: str, total: int, done: int = 0, unit: str = "") -> Iterator[Callable[[float, str], None]]:
    """Yield `advance(steps, note)`, of whole units or parts of them. A bar with rate and ETA on a terminal,
    elsewhere a plain line now and then: `revise: 120/400 rows, 3.1 rows/s, 90 s left`.
    """
    shown = terminal_bar if sys.stderr.isatty() and is_main() else plain_lines
    with shown(name, total, done, unit) as advance:
        yield advance


@contextmanager
def plain_lines(name: str, total: int, done: int, unit: str) -> Iterator[Callable[[float, str], None]]:
    start, position, last = time.monotonic(), float(done), time.monotonic()

    def advance(steps: float, note: str = "") -> None:
        nonlocal position, last
        position = round(position + steps, 9)
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS or position >= total:
            rate = (position - done) / max(now - start, 1e-9)
            eta = max(0.0, (total - position) / rate) if rate else 0
            told = f"{int(position)}/{total} {unit}".rstrip()
            say(
                f"{name}: {told}, {rate:.3g} {unit}/s, {eta:.0f} s left{', ' + note if note else ''}".replace(
                    " /s", "/s"
                )
            )
            last = now

    yield advance


@contextmanager
def terminal_bar(name: str, total: int, done: int, unit: str) -> Iterator[Callable[[float, str], None]]:
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start, position = time.monotonic(), float(done)
    with Progress(*columns, console=console()) as bars:
        task = bars.add_task(
            escape(visible(name)),
            total=total,
            completed=done,
            count=f"{done}/{total} {unit}",
            rate="",
            note="",
        )

        def advance(steps: float, note: str = "") -> None:
            nonlocal position
            position = round(position + steps, 9)
            told = f"{(position - done) / max(time.monotonic() - start, 1e-9):.3g} {unit}/s".replace(
                " /s", "/s"
            )
            count = f"{int(position)}/{total} {unit}"
            bars.update(task, completed=position, count=count, rate=told, note=escape(visible(note)))

        yield advance
