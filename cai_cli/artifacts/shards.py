"""Rows shared out: `--shard I/N` for job arrays, ranks under torchrun, and how their files become one again.

A shard is a run of neighbouring items, so the shards' files one after the other are the rows of an unsharded
run, in its order. Within a shard each rank takes every n-th item into files of its own
(`<file>.rank<r>.partial`), which are put in order and removed when all are through; a run that was cut off
may be continued by any number of processes.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TypeVar

from cai_cli.errors import UserError
from cai_cli.processes.ranks import wait_for
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import check_new, read_lines, write_lines
from cai_cli.rows.seen import Seen, bytes_of, scratch_table

Item = TypeVar("Item")
SHARD = re.compile(r"(\d+)/(\d+)")


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (2, 8): the third of eight parts; None is the whole, (0, 1). Raises UserError."""
    match = SHARD.fullmatch(text or "0/1")
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not index < count:
        raise UserError(
            f"--shard {text}: expected I/N with I from 0 to N-1", "the first of eight is 0/8, the last 7/8"
        )
    return index, count


def block(items: Sequence[Item], index: int, count: int) -> Sequence[Item]:
    """Part `index` of `count`: neighbours, of sizes that differ by one at most."""
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def rank_file(path: Path, rank: int) -> Path:
    """Where one of several processes writes its part of the rows of `path`."""
    return path.with_name(f"{path.name}.rank{rank}.partial")


def rank_files(path: Path) -> list[Path]:
    """The files that processes of this run, or of one that was cut off, have written."""
    return sorted(
        file
        for file in path.parent.glob("*.partial")
        if re.fullmatch(re.escape(path.name) + r"\.rank\d+", file.stem)
    )


def put_in_order(target: Path, files: Iterable[Path], order: Sequence[str]) -> None:
    """Write the rows of all the files into `target`, each id once, in the order of the ids; a row of another id comes
    behind them. Of an id in two files the later one's row is taken. Lines stay as they are; neither they nor
    where they lie are held in memory.
    """
    there = [file for file in files if file.exists()]
    lies = scratch_table("lies (name BLOB PRIMARY KEY, place, file, begin, end) WITHOUT ROWID")
    numbered = ((bytes_of(name), number) for number, name in enumerate(order))
    lies.executemany("INSERT INTO lies (name, place) VALUES (?, ?)", numbered)
    behind = count(len(order))
    for number, file in enumerate(there):
        for name, span in spans_by_id(file):
            found = (number, *span, bytes_of(name))
            if not lies.execute(
                "UPDATE lies SET file = ?, begin = ?, end = ? WHERE name = ?", found
            ).rowcount:
                lies.execute(
                    "INSERT INTO lies (file, begin, end, name, place) VALUES (?, ?, ?, ?, ?)",
                    (*found, next(behind)),
                )
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in there]

        def lines() -> Iterator[str]:
            wanted = "SELECT file, begin, end FROM lies WHERE file IS NOT NULL ORDER BY place"
            for number, begin, end in lies.execute(wanted):
                opened[number].seek(begin)
                yield opened[number].read(end - begin).decode()

        write_lines(target, lines())


def spans_by_id(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(id, its line's first byte and the one behind its last) of each row of a file of ours, where no id is on two
    lines.
    """
    seen = Seen()
    begin = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.rstrip(b"\r\n")
            if line.strip():
                name = load_json(line.decode())["id"]
                check_new(seen, name, path, number)
                yield name, (begin, begin + len(line))
            begin += len(raw)


def lines_by_id(path: Path) -> Iterator[tuple[str, str]]:
    """(id, line) of each row of a file of ours, where no id is on two lines; nothing where it does not exist."""
    seen = Seen()
    for number, line in read_lines(path) if path.exists() else ():
        if line:
            name = load_json(line)["id"]
            check_new(seen, name, path, number)
            yield name, line


def through_file(path: Path, rank: int) -> Path:
    """What a rank leaves when it is through: how many tokens it sampled."""
    return path.with_name(f"{path.name}.rank{rank}.through")


def await_ranks(path: Path, count: int) -> int:
    """Wait until all ranks are through. Returns how many tokens they sampled."""
    files = [through_file(path, rank) for rank in range(count)]
    wait_for(lambda: all(file.exists() for file in files) or None, str(path))
    return sum(int(file.read_text()) for file in files)


def drop_through_files(path: Path) -> None:
    for file in path.parent.glob(f"{glob.escape(path.name)}.rank*.through"):
        file.unlink()
