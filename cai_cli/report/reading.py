"""What sections share while they read: how many examples, by which seed, and what they have to warn of.

A file that cannot be read, or is not of the shape that its name or manifest promises, is a line among the warnings;
the rest of the page stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from cai_cli.errors import UserError
from cai_cli.report.blocks import Warned
from cai_cli.report.find import ModelFolder, Result, RowFile, told_of
from cai_cli.report.text import named

Item = TypeVar("Item", RowFile, ModelFolder, Result)
Made = TypeVar("Made")
MISSHAPEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError)
LONGEST = 300  # characters of what is wrong


@dataclass(slots=True)
class Reading:
    """`examples`: rows of a file that are shown, drawn by `seed`."""

    examples: int
    seed: int
    warned: list[Warned] = field(default_factory=list)

    def warn(self, where: str, lines: Iterable[str]) -> None:
        self.warned += [Warned(where, line) for line in lines]

    def each(self, items: Iterable[Item], make: Callable[[Item], Made]) -> list[Made]:
        """What `make` makes of each item that can be read."""
        made = []
        for item in items:
            try:
                made.append(make(item))
            except (UserError, OSError) as error:
                told = told_of(error, item.path)
                self.warned.append(Warned(item.name, f"cannot be read: {named(told, LONGEST)}", grave=True))
            except MISSHAPEN as error:
                told = named(f"{type(error).__name__}: {error}", LONGEST)
                self.warned.append(
                    Warned(
                        item.name, f"cannot be read: it has not the shape of its kind ({told})", grave=True
                    )
                )
        return made
