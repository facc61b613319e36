"""Work in runs of rows that are on the disk after each, and progress that moves within a run as its segments
are sampled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import TypeVar

from cai_cli.processes.workers import Workers

Item = TypeVar("Item")
Made = TypeVar("Made")
Told = Callable[[int], None]
Advance = Callable[[float, str], None]
AHEAD = 4  # rows handed out for each thread, so that none waits
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

    def __init__(self, advance: Advance, rows: int, segments: int) -> None:
        self.advance = advance
        self.rows = rows
        self.segments = segments
        self.reported = 0.0
        self.lock = threading.Lock()  # a server's answers are heard of from several threads

    def told(self, count: int) -> None:
        with self.lock:
            step = min(count / self.segments, self.rows * SAMPLED - self.reported)
            self.reported += step
            self.advance(step, "")

    def through(self, note: str) -> None:
        self.advance(self.rows - self.reported, note)


def worked(
    items: list[Item],
    size: int,
    do: Callable[[list[Item], Told], Made],
    advance: Advance,
    segments: int = 1,
    first: int = 0,
    at_once: int = 1,
) -> Iterator[tuple[Made, ChunkProgress]]:
    """What `do(chunk, told)` makes of each chunk, with its progress: one after the other; or, where `at_once` is
    above 1, each item by itself, so many in threads, as they end. A chunk of `first` is worked on alone.
    """
    lock = threading.Lock()

    def guarded(steps: float, note: str) -> None:
        with lock:
            advance(steps, note)

    alone = items if at_once == 1 else items[:first]
    for chunk in chunks(alone, size, first):
        done = ChunkProgress(guarded, len(chunk), segments)
        yield do(chunk, done.told), done
    workers, left = Workers(at_once), iter(items[len(alone) :])
    begun: dict[Future[Made], ChunkProgress] = {}
    try:
        while True:
            for item in islice(left, AHEAD * at_once - len(begun)):
                done = ChunkProgress(guarded, 1, segments)
                begun[workers.submit(do, [item], done.told)] = done
            if not begun:
                return
            ended = wait(begun, return_when=FIRST_COMPLETED).done
            for future in sorted(ended, key=lambda one: one.exception() is not None):  # what is made, first
                done = begun.pop(future)
                yield future.result(), done
    finally:
        for future in begun:
            future.cancel()
