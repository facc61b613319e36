"""What the command says to a person, on stderr: stdout is for data. Model text is escaped, never read as markup."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(stderr=True, highlight=False, soft_wrap=True)

PLAIN_SECONDS = 15.0  # Between progress lines in a log file.


def say(text: str) -> None:
    console.print(escape(text))


def warn(text: str) -> None:
    console.print(f"[yellow]warning:[/yellow] {escape(text)}")


def fail(text: str, hint: str | None = None) -> None:
    """One line for the mistake; the next step on the same line, so that logs keep them together."""
    tail = f" — {escape(hint)}" if hint else ""
    console.print(f"[bold red]error:[/bold red] {escape(text)}{tail}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    view = Table(title=escape(title), title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        view.add_column(escape(column), justify="left" if position == 0 else "right")
    for row in rows:
        view.add_row(*(escape(cell) for cell in row))
    console.print(view)


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(steps, note)`. A bar with rate and ETA on a terminal, a plain line now and then elsewhere."""
    if sys.stderr.isatty():
        with terminal_bar(name, total, done) as advance:
            yield advance
        return
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
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(escape(name), total=total, completed=done, rate="", note="")

        def advance(steps: int, note: str = "") -> None:
            nonlocal position
            position += steps
            rate = (position - done) / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=steps, rate=f"{rate:.3g}/s", note=escape(note))

        yield advance
