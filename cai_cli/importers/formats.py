"""What an importer module says of itself to `cai import`: each ends in FORMATS, name -> Format (`registry`
lists the modules).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be imported, and how.

    `kind`: of the prompts, as given or as the path tells; `given`: kind and source where they were given,
    over the format's own; `columns`: NAME=COLUMN,... for formats whose columns have any names; `dropped`:
    counts what is left out of rows.
    """

    path: Path
    kind: str | None
    given: Mapping[str, str]
    every_turn: bool
    columns: str | None
    dropped: Counter[str]

    @property
    def source(self) -> dict[str, str]:
        """The name of the data set, where it was given."""
        return {name: value for name, value in self.given.items() if name == "source"}


Make = Callable[[Asked], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Format:
    """`about`: for --help; `makes`: record kind -> what reads the rows, the first one by default;
    `every_turn`: whether its prompts can be one for each human turn; `any_columns`: whether --columns is for
    it.
    """

    about: str
    makes: Mapping[str, Make]
    every_turn: bool = False
    any_columns: bool = False
