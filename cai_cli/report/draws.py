"""Which rows of a file stand on the page: drawn by key, so that a seed gives the same ones in whatever order they lie.

A file is read line by line; what is held are the lines drawn, however long it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cai_cli.errors import RecordError
from cai_cli.keys import key
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.jsonl import Row, read_lines

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Drawn(Generic[Record]):
    """Records of a file, and how many rows it has."""

    records: list[Record]
    rows: int


def draw(
    path: Path, parse: Callable[[Row], Record], count: int, seed: int, unfinished: bool = False
) -> Drawn[Record]:
    """`count` of a file's rows, parsed. Raises UserError for a file, RecordError for a row drawn, that cannot be read."""
    # A heap: the largest key, which goes first, is the least of their negatives
    held: list[tuple[int, int, str]] = []
    rows = 0
    for number, line in read_lines(path, unfinished):
        if not line.strip():
            continue
        rows += 1
        item = (-key(seed, "report", line), number, line)
        if len(held) < count:
            heapq.heappush(held, item)
        elif count and item > held[0]:
            heapq.heapreplace(held, item)
    records = []
    for _, number, line in sorted(held, reverse=True):
        try:
            records.append(parse(load_json(line)))
        except JsonError as error:
            raise RecordError("", f"not a JSON object: {error.problem}", place=f"{path}:{number}") from None
        except RecordError as error:
            raise error.at(f"{path}:{number}") from None
    return Drawn(records, rows)
