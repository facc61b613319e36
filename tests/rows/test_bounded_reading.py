"""What reads all rows of a file holds none of them: four times the rows take no more memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from cai_cli.artifacts.shards import put_in_order
from cai_cli.console.groups import build
from cai_cli.errors import RecordError
from cai_cli.rows.jsonl import check_new, read_own_rows, read_records
from cai_cli.rows.records import Prompt
from cai_cli.rows.seen import Seen
from cai_cli.stages import split
from cai_cli.stages.merge import Shard, check_overlap
from cai_cli.training.sft.data import read_targets

SIZES = (2000, 8000)


def put_rows(folder: Path, count: int) -> Path:
    folder.mkdir()
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for n in range(count):
            row = {"id": f"p{n}", "prompt": [{"role": "user", "content": f"{'Tell me of bread. ' * 20}{n}"}]}
            sample = {"completion": [{"role": "assistant", "content": "Mix it."}], "finish_reason": "stop"}
            stream.write(json.dumps(row | sample) + "\n")
    return file


def run_split(file: Path) -> None:
    split.run(build(split.Options, prompts=[str(file)], parts="a=0.7,b=0.3", out=file.parent / "out"))


def join(file: Path) -> None:
    names = (f"p{n}" for n in range(10**6))
    put_in_order(file.parent / "joined.jsonl", [file], Ordered(names, sum(1 for _ in file.open())))


class Ordered:
    """The ids in their order, none of them held here."""

    def __init__(self, names, count: int) -> None:
        self.names, self.count = names, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return (next(self.names) for _ in range(self.count))


READERS: dict[str, Callable[[Path], object]] = {
    "split": run_split,
    "join": join,
    "overlap": lambda file: check_overlap([Shard(file, {}, 0, 1)]),
    "own rows": lambda file: sum(1 for _ in read_own_rows(file)),
    "targets": lambda file: sum(1 for _ in read_targets(f"{file}:2", "final", 0)),
    "records": lambda file: sum(1 for _ in read_records(file, Prompt.from_row)),
}


@pytest.mark.parametrize("reader", READERS)
def test_four_times_the_rows_take_no_more_memory(reader, tmp_path):
    READERS[reader](put_rows(tmp_path / "first", 10))  # what is made once
    peaks = []
    for count in SIZES:
        file = put_rows(tmp_path / str(count), count)
        tracemalloc.start()
        READERS[reader](file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 16 * SIZES[1], peaks  # a number or two of each row may be held


def test_names_are_kept_apart_beyond_what_is_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("cai_cli.rows.seen.CACHE_KIB", 64)
    seen, names = Seen(), [f"{'x' * 40}{n}" for n in range(20_000)]
    assert all(seen.first(name, n) == n for n, name in enumerate(names))
    assert all(seen.first(name, -1) == n for n, name in enumerate(names))
    assert [Seen().first("\ud800", "place"), seen.first("x", "place"), seen.first("x", "other")] == [
        "place"
    ] * 3
    counter = Seen()
    assert [counter.count(name) for name in "abacaba"] == [0, 0, 1, 0, 2, 1, 3]


def test_the_line_of_the_first_one_is_named(tmp_path):
    seen = Seen()
    for line, name in enumerate("abc", start=7):
        check_new(seen, name, tmp_path, line)
    with pytest.raises(RecordError, match="'b' is on line 8 too"):
        check_new(seen, "b", tmp_path, 99)


def test_rows_of_ids_that_nobody_asked_for_come_last_in_their_order(tmp_path):
    """And of an id in two files the later one's row is taken, at the place of the first."""
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text("".join(f'{{"id": "{name}", "of": 1}}\n' for name in "zcy"))
    two.write_text("".join(f'{{"id": "{name}", "of": 2}}\r\n\n' for name in "azxc"))
    target = tmp_path / "t.jsonl"
    put_in_order(target, [one, tmp_path / "none.jsonl", two], "abc")
    found = [(row["id"], row["of"]) for row in map(json.loads, target.read_text().splitlines())]
    assert found == [("a", 2), ("c", 2), ("z", 2), ("y", 1), ("x", 2)]


def test_a_malformed_row_leaves_what_lies_at_out(tmp_path):
    """It is found before the old parts are moved away, however late it comes."""
    file = put_rows(tmp_path / "rows", 50)
    run_split(file)
    out = file.parent / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with file.open("a") as stream:
        stream.write('{"id": "p1", "prompt": "another"}\n')
    settings = {"prompts": [str(file)], "parts": "a=0.7,b=0.3", "out": out, "if_changed": "restart"}
    with pytest.raises(RecordError, match="'p1' is used for two prompts"):
        split.run(build(split.Options, **settings))
    assert {
        path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".lock")
    } == before
    assert not out.with_name("out.bak").exists()
