"""Texts of several authors on a terminal: in columns where there is room, else one below the other.

Whatever stands in them cannot steer the terminal, nor is it read as markup.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from cai_cli.console.messages import console, printable, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

COLUMN = 44  # characters that a text needs to be read with pleasure
NAME, ASIDE, FAULT = "bold cyan", "dim", "yellow"


@dataclass(frozen=True, slots=True)
class Shown:
    """A text with its author's `name`; `before` and `note` stand around it, set apart; `fault`: why there is none."""

    name: str
    text: str = ""
    before: str = ""
    note: str = ""
    fault: str = ""


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many before it as tell them apart: a/sl-cai, b/sl-cai."""
    parts = [[part for part in PurePath(path).parts if part not in ("/", "..")] or [path] for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len({*names}) == len(names):
            return names
    return list(paths)


def show_side_by_side(texts: Sequence[Shown]) -> None:
    """On stdout, a blank line in front and behind. A single text needs no name."""
    from rich.console import Console

    screen = Console(highlight=False, emoji=False)
    screen.print()
    if len(texts) == 1:
        screen.print(body(texts[0]))
    elif screen.width >= COLUMN * len(texts):
        show_columns(screen, texts)
    else:
        show_stacked(screen, texts)
    screen.print()


def show_columns(screen: Console, texts: Sequence[Shown]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.MINIMAL,
        show_edge=False,
        expand=True,
        pad_edge=False,
        border_style=ASIDE,
        header_style=NAME,
    )
    for shown in texts:
        table.add_column(piece(shown.name), ratio=1, overflow="fold")
    table.add_row(*map(body, texts))
    screen.print(table)


def show_stacked(screen: Console, texts: Sequence[Shown]) -> None:
    from rich.padding import Padding

    for number, shown in enumerate(texts):
        if number:
            screen.print()
        screen.print(piece(shown.name, NAME))
        screen.print(Padding(body(shown), (0, 0, 0, 2)))


def body(shown: Shown) -> Text:
    from rich.text import Text

    parts = [(shown.before, ASIDE), (shown.text, ""), (shown.fault, FAULT), (shown.note, ASIDE)]
    return Text("\n", overflow="fold").join(piece(text, style) for text, style in parts if text)


def piece(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(visible(text, keep="\n\t"), sys.stdout), style, overflow="fold")


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Yield `doing(what)`: on a terminal a line that says for how long, and is gone at the end; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what: bars.reset(task, description=visible(what))
