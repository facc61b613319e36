"""JSON Lines: file:line of every mistake, gzip, byte order marks, tails that a kill left."""

from __future__ import annotations

import gzip
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from cai_cli.errors import RecordError, RunError, UserError
from cai_cli.rows.jsonl import (
    dump_row,
    open_text,
    read_records,
    read_rows,
    repair_tail,
    write_atomically,
    write_rows,
)


@dataclass
class Item:
    id: str


def parse(row: dict) -> Item:
    if "id" not in row:
        raise RecordError("id", "missing")
    return Item(row["id"])


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(RecordError) as error:
        list(read_rows(path))
    return str(error.value)


def test_rows_with_line_numbers_and_empty_lines_between(tmp_path):
    path = put(tmp_path / "x.jsonl", '{"a": 1}\n\n   \r\n{"a": "ü"}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": "ü"})]


def test_byte_order_mark_and_gzip_by_content(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'
    for path in (
        put(tmp_path / "plain.jsonl", content),
        put(tmp_path / "zipped.jsonl", gzip.compress(content)),
    ):
        assert [row for _, row in read_rows(path)] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "not a JSON object: Expecting ',' delimiter at column 8"),
        ("[1]", "not a JSON object: not an object"),
        ("null", "not a JSON object: not an object"),
        ("3", "not a JSON object: not an object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, problem):
    path = put(tmp_path / "x.jsonl", f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n')
    assert error_of(path) == f"{path}:3: {problem}"


def test_a_bad_byte_names_its_own_line_and_rows_before_it_come_out(tmp_path):
    path = put(tmp_path / "x.jsonl", b'{"a": 1}\n' * 40 + b'{"a": "\xff"}\n' + b'{"a": 1}\n' * 40)
    assert (
        error_of(path)
        == f"{path}:41: not UTF-8 text at byte 8 of the line (text is read as UTF-8: convert it with iconv)"
    )
    rows = read_rows(path)
    assert [next(rows)[0] for _ in range(40)] == list(range(1, 41))


@pytest.mark.parametrize("damage", ["cut", "flipped", "crc"])
def test_broken_gzip(tmp_path, damage):
    content = gzip.compress(b'{"a": 1}\n' * 20_000)
    broken = {
        "cut": content[: len(content) // 2],
        "flipped": content[:10]
        + b"\xff" * 40
        + content[50:],  # the header is whole, what follows is no deflate data
        "crc": content[:-8] + bytes(4) + content[-4:],
    }[damage]
    assert "broken gzip data" in error_of(put(tmp_path / "x.jsonl.gz", broken))


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"nix\.jsonl: no such file"):
        list(read_rows(tmp_path / "nix.jsonl"))
    with pytest.raises(UserError, match="is a directory"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_closed(tmp_path, zipped):
    path = put(tmp_path / "x", gzip.compress(b"{}\n") if zipped else b"{}\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        with open_text(path) as stream:
            stream.read()
            raw = stream.buffer.fileobj if zipped else stream.buffer
        assert raw is None or raw.closed
        list(read_rows(path))
    assert not told


def test_records_name_line_and_field_and_repeated_ids(tmp_path):
    path = put(tmp_path / "x.jsonl", '{"id": "a"}\n{"di": "b"}\n')
    with pytest.raises(RecordError) as error:
        list(read_records(path, parse))
    assert str(error.value) == f"{path}:2: field `id`: missing"
    path = put(tmp_path / "x.jsonl", '{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n')
    with pytest.raises(RecordError) as error:
        list(read_records(path, parse))
    assert str(error.value) == f"{path}:3: field `id`: 'a' is on line 1 too (ids are unique in a file)"


def test_rows_are_written_as_one_line_of_readable_utf8():
    assert dump_row({"text": "grün\n\u2028"}) == '{"text": "grün\\n\u2028"}'
    with pytest.raises(RunError, match=r"^row r1: `x\[1\].y` would be inf \(JSON has no such number"):
        dump_row({"id": "r1", "x": [0.5, {"y": float("inf")}]})


def test_line_separators_of_unicode_do_not_end_a_row(tmp_path):
    rows = [{"text": f"a{mark}b"} for mark in "\u2028\u2029\x85\x0b\x0c\r"]
    path = tmp_path / "x.jsonl"
    assert write_rows(path, rows) == len(rows)
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize("size", [1, 1 << 16, (1 << 16) - 3, 200_000])
def test_a_cut_last_line_is_removed_whatever_its_length(tmp_path, size):
    whole = '{"a": 1}\n{"a": 2}\n'
    path = put(tmp_path / "x", whole + "y" * size)
    repair_tail(path)
    assert path.read_text() == whole


def test_repair_leaves_whole_files_and_empties_half_lines(tmp_path):
    for content, left in (("", ""), ("{}\n", "{}\n"), ("{", "")):
        path = put(tmp_path / "x", content)
        repair_tail(path)
        assert path.read_text() == left
    repair_tail(tmp_path / "nix")
    assert not (tmp_path / "nix").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_rows(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_rows(path, [{"a": 2}, {"a": object()}])
    assert json.loads(path.read_text()) == {"a": 1}
    write_atomically(path, "new")
    assert path.read_text() == "new"
