"""Work in runs of rows that are on the disk after each, and progress that moves within a run as its segments
are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Told = Callable[[int], None]
SAMPLED = 0.999  # of a chunk's rows, when all is sampled


def chunks(items: list[Item], size: int, first: int = 0) -> Iterator[list[Item]]:
    """The items in runs of `size`, the last one shorter; after one of `first`, where that is not 0."""
    if items[:first]:
        yield items[:first]
    for start in range(first, len(items), size):
        yield items[start : start + size]


class ChunkProgress:
    """Progress over a chunk of rows, each of so many segments: by segment as they are sampled, and the rest
    when the rows are on the disk. Usage: `told` for `sample_segment`, then `through(note)`.
    """

    def __init__(self, advance: Callable[[float, str], None], rows: int, segments: int) -> None:
        self.advance = advance
        self.rows = rows
        self.segments = segments
        self.reported = 0.0

    def told(self, count: int) -> None:
        step = min(count / self.segments, self.rows * SAMPLED - self.reported)
        self.reported += step
        self.advance(step, "")

    def through(self, note: str) -> None:
        self.advance(self.rows - self.reported, note)
