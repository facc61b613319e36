"""Stream the rows of public data: JSON lines, a JSON array, CSV or TSV, each plain or gzipped, parquet, data
sets of the Hub.

Unlike `rows.jsonl`, which stops at the first broken line of a file of ours, a line that cannot be read is a
Reject here and reading goes on. What cannot be gone on from (no such file, broken gzip, an array that stops
being JSON, a file of another kind) is a UserError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cai_cli.errors import UserError
from cai_cli.importers.delimited import csv_rows, tsv_rows
from cai_cli.importers.reject import Item, Reject, Row
from cai_cli.rows.file_kinds import PARQUET, refuse_first_line
from cai_cli.rows.hub import read_hub
from cai_cli.rows.json_text import JsonError, check_value, decoder, load_json, missing, too_deep
from cai_cli.rows.jsonl import (
    BROKEN_GZIP,
    ENCODING_ADVICE,
    LONGEST_LINE,
    bounded_lines,
    open_any,
    open_binary,
    open_text,
)
from cai_cli.rows.row_kinds import kind_of

CHUNK = 1 << 16
BOM = b"\xef\xbb\xbf"
BLANKS = re.compile(r"\s*")


def read_public_rows(path: Path) -> Iterator[Item]:
    """Rows of a JSON-lines file, a JSON array, a CSV or TSV, or parquet, told apart by name and first
    characters.

    `hf:org/name[:split]` is a data set of the Hub.
    """
    name = path.name.removesuffix(".gz").lower()
    try:
        if str(path).startswith("hf:"):
            yield from (as_json(number, row) for number, (_, row) in enumerate(read_hub(str(path)), start=1))
        elif name.endswith((".csv", ".tsv")):
            yield from csv_rows(path) if name.endswith(".csv") else tsv_rows(path)
        elif is_parquet(path):
            yield from (as_json(number, row) for number, row in parquet_rows(path))
        elif first_character(path) == "[":
            yield from array_rows(path)
        else:
            yield from line_rows(path)
    except BROKEN_GZIP as error:
        raise UserError(f"{path}: broken gzip data: {error}", "download the file again") from None


def is_parquet(path: Path) -> bool:
    with open_any(path) as stream:
        return stream.read(len(PARQUET)) == PARQUET


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a parquet file with their numbers from 1, read batch by batch. Raises UserError."""
    from datasets import load_dataset  # takes a second to import

    try:
        yield from enumerate(
            load_dataset("parquet", data_files=str(path), split="train", streaming=True), start=1
        )
    except Exception as error:  # of pyarrow and datasets, of many types
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a readable parquet file: {problem}", "write its rows as JSON lines"
        ) from None


def as_json(number: int, row: Row) -> Item:
    """The row with what JSON does not know, such as times, as text; a Reject where it cannot be written so."""
    try:
        return number, load_json(json.dumps(row, default=plain_text), missing)
    except (JsonError, TypeError, ValueError) as error:  # bytes that are no text, keys that are none
        return Reject(number, "not_json", repr(row)[:1000], str(error))


def plain_text(value: Any) -> str:
    """Times and decimals as they are printed; bytes only where they are text, never as Python shows them."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def first_character(path: Path) -> str:
    """The first character that is no white space, "" in an empty file. Looks at bytes: the text may be broken
    further on.
    """
    with open_binary(path) as stream:
        while chunk := stream.read(CHUNK):
            if start := chunk.removeprefix(BOM).lstrip()[:1]:
                return start.decode("ascii", "replace")
    return ""


def line_rows(path: Path) -> Iterator[Item]:
    """One JSON object a line. Lines are split and decoded one by one, so that a bad byte costs one line only."""
    seen = False  # a line that was not blank
    with open_binary(path) as stream:
        for number, line in enumerate(bounded_lines(stream, path), start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                yield Reject(
                    number, "not_utf8", line.decode("utf-8", "replace"), f"byte {error.start + 1} of the line"
                )
                continue
            try:
                value = load_json(text, missing)
            except JsonError as error:
                if not seen:
                    refuse_first_line(text, path)
                yield Reject(number, error.reason, text, error.message)
            else:
                yield checked(number, value)
            seen = True


def array_rows(path: Path) -> Iterator[Item]:
    """The items of one JSON array, decoded one at a time from a buffer that holds little more than one item."""
    with open_text(path) as stream:
        buffer = ArrayBuffer(path, stream)
        buffer.expect("[")
        number = 0
        while buffer.peek() != "]":
            number += 1
            if number > 1:
                buffer.expect(",")
            value, text = buffer.item(number)
            try:
                check_value(value, text)
            except JsonError as error:
                yield Reject(number, error.reason, text, error.message)
            else:
                yield checked(number, value)
        buffer.expect("]")
        if buffer.peek():
            raise UserError(f"{path}: text after the end of the JSON array")


class ArrayBuffer:
    """A window on a stream of JSON text."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path = path
        self.stream = stream
        self.text = ""
        self.position = 0
        self.at_end = False

    def more(self) -> None:
        """Forget what was read and at least double what is left, so that a long item is not scanned again too
        often.
        """
        self.text = self.text[self.position :]
        self.position = 0
        if len(self.text) > LONGEST_LINE:
            raise UserError(
                f"{self.path}: an item of more than {LONGEST_LINE >> 20} MiB in the array",
                "no row is so long",
            )
        try:
            chunk = self.stream.read(max(CHUNK, len(self.text)))
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not UTF-8 text", ENCODING_ADVICE) from None
        self.text += chunk
        self.at_end = not chunk

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self.position = BLANKS.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or self.at_end:
                return self.text[self.position : self.position + 1]
            self.more()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise UserError(
                f"{self.path}: not a JSON array: expected {character!r}, found {found or 'the end'!r}"
            )
        self.position += 1

    def item(self, number: int) -> tuple[Any, str]:
        """The next value, and its text."""
        self.peek()
        place = f"{self.path}: item {number} of the array"
        while True:
            try:
                value, end = decoder(missing).raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # An error far from the end of the buffer is an error; near it, or in an open string, more may
                # mend it.
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if self.at_end or not cut_off:
                    raise UserError(f"{place} is not valid JSON: {error.msg}", "correct it there") from None
            except JsonError as error:
                raise error.at(place) from None
            except RecursionError:
                raise too_deep().at(place) from None
            else:
                # A number at the very end of the buffer may go on in the next chunk.
                if end < len(self.text) or self.at_end:
                    text = self.text[self.position : end]
                    self.position = end
                    return value, text
            self.more()


def checked(number: int, value: Any) -> Item:
    return (number, value) if isinstance(value, dict) else Reject(number, "not_an_object", value)


def check_columns(path: Path, items: Iterable[Item], names: Iterable[str]) -> Iterator[Item]:
    """The same items; a UserError before the first one where its row lacks one of the named fields.

    A misspelt column name would otherwise reject every row of a file, one by one.
    """
    checked_first = False
    for item in items:
        if not checked_first and not isinstance(item, Reject):
            checked_first = True
            for name in names:
                if name not in item[1]:
                    near, kind = get_close_matches(name, list(item[1]), n=1), kind_of(item[1])
                    hint = (
                        f"did you mean {near[0]!r}?"
                        if near
                        else f"the file has {', '.join(item[1]) or 'none'}: say which, as in --columns {name}=COLUMN"
                    )
                    if kind and not near:
                        hint = f"{hint}, as rows of {kind.name}; {kind.advice}"
                    raise UserError(f"{path}:{item[0]}: no column {name!r}", hint)
        yield item


def expect_fields(path: Path, items: Iterable[Item], *names: str) -> Iterator[Item]:
    """The same items; a UserError before the first row where it has none of the fields and is known to be of
    another kind.

    A file of another kind would otherwise be rejected row by row.
    """
    checked_first = False
    for item in items:
        if not checked_first and not isinstance(item, Reject):
            checked_first = True
            kind = kind_of(item[1])
            if kind and not item[1].keys() & set(names):
                wanted = f"rows with `{'` and `'.join(names)}`"
                raise UserError(
                    f"{path}:{item[0]}: is a row of {kind.name}, and {wanted} are read here", kind.advice
                )
        yield item
