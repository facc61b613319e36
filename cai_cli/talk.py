"""What the command says to a person, on stderr: stdout is for data. Model text is escaped, never read as markup.

Of several processes that run a command together, the first one talks; each says its own errors.
rich is loaded where a table or a bar is drawn; a line is written as it is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cai_cli.ranks import is_main

if TYPE_CHECKING:
    from rich.console import Console

YELLOW, RED = "33", "1;31"
PLAIN_SECONDS = 15.0  # Between progress lines in a log file.


def say(text: str) -> None:
    if is_main():
        write_line(text)


def write_line(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def warn(text: str) -> None:
    say(f"{coloured('warning:', YELLOW)} {text}")


def fail(text: str, hint: str | None = None) -> None:
    """One line for the mistake; the next step on the same line, so that logs keep them together."""
    tail = f" — {hint}" if hint else ""
    write_line(f"{coloured('error:', RED)} {' '.join(f'{text}{tail}'.splitlines())}")


def coloured(word: str, colour: str) -> str:
    return f"\033[{colour}m{word}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else word


def printable(text: str) -> str:
    """The text in what the terminal's encoding can show."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    if not is_main():
        return
    from rich.markup import escape
    from rich.table import Table

    view = Table(title=escape(title), title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        view.add_column(escape(column), justify="left" if position == 0 else "right")
    for row in rows:
        view.add_row(*(escape(cell) for cell in row))
    console().print(view)


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(steps, note)`. A bar with rate and ETA on a terminal, a plain line now and then elsewhere."""
    with terminal_bar(name, total, done) if sys.stderr.isatty() and is_main() else plain_lines(name, total, done) as advance:
        yield advance


@contextmanager
def plain_lines(name: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    start, position, last = time.monotonic(), done, time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal position, last
        position += steps
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS or position >= total:
            rate = (position - done) / max(now - start, 1e-9)
            eta = (total - position) / rate if rate else 0
            say(f"{name}: {position}/{total}, {rate:.3g}/s, {eta:.0f} s left{', ' + note if note else ''}")
            last = now

    yield advance


@contextmanager
def terminal_bar(name: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start, position = time.monotonic(), done
    with Progress(*columns, console=console()) as bars:
        task = bars.add_task(escape(name), total=total, completed=done, rate="", note="")

        def advance(steps: int, note: str = "") -> None:
            nonlocal position
            position += steps
            rate = (position - done) / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=steps, rate=f"{rate:.3g}/s", note=escape(note))

        yield advance
