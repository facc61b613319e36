"""What sections are made of, as the templates take it: plots, tables, chains, cards. No HTML here but drawn plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from cai_cli.console.options import FLAG

Cell = str | Markup


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot; `legend`: names of its series in the order of their colours."""

    title: str
    plot: Markup
    note: str = ""
    legend: Sequence[str] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """A column's name, and over how many cells it stands: two where a bar has its number beside it."""

    name: str
    span: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """`columns`: a name for each cell; "" behind one that the cell before and this one share."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def drawn(self) -> set[int]:
        """The places of cells that hold a bar."""
        return {place - 1 for place, name in enumerate(self.columns) if place and not name}

    @property
    def heads(self) -> list[Head]:
        return [
            Head(name, 2 if place in self.drawn else 1)
            for place, name in enumerate(self.columns)
            if place - 1 not in self.drawn
        ]


@dataclass(slots=True)
class Group:
    """What is told of one file: facts as (name, value), plots side by side, tables."""

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""

    def draw(
        self,
        title: str,
        plot: Markup | None,
        note: str = "",
        legend: Sequence[str] = (),
        wide: bool = False,
    ) -> None:
        """Add a plot, where there is one."""
        if plot is not None:
            self.figures.append(Figure(title, plot, note, legend, wide))

    @property
    def empty(self) -> bool:
        return not (self.facts or self.figures or self.tables)


@dataclass(slots=True)
class Section:
    """`form`: the template that shows `items`; `key`: what links lead to; `left_out`: files that it says nothing of."""

    key: str
    title: str
    lead: str
    items: list[Any]
    form: str = "groups"
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Warned:
    """`where`: what it is about; `grave`: nothing is to be believed before it is looked at."""

    where: str
    text: str
    grave: bool = False

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The text, with flags apart: (part, whether it is one)."""
        ends = [0, *(end for found in FLAG.finditer(self.text) for end in found.span()), len(self.text)]
        return [
            (self.text[low:high], place % 2 == 1)
            for place, (low, high) in enumerate(pairwise(ends))
            if high > low
        ]
