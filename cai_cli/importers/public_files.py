"""Stream the rows of public data: JSON lines, a JSON array, CSV or TSV, each plain or gzipped, parquet, data sets of the Hub.

Unlike `cai_cli.jsonl`, which stops at the first broken line of a file of ours, a line that cannot be read is a Reject here and
reading goes on. What cannot be gone on from (no such file, broken gzip, an array that stops being JSON) is a UserError.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from cai_cli.errors import UserError
from cai_cli.hub import read_hub
from cai_cli.importers.reject import Item, Reject, Row
from cai_cli.jsonl import open_binary, open_text

CHUNK = 1 << 16
LONGEST_CELL = 1 << 27  # csv's own limit of 128 KiB is shorter than some transcripts
PARQUET = b"PAR1"
BOM = b"\xef\xbb\xbf"
# NaN and Infinity are no JSON, and could not be written again; where tools write them, the value is missing.
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
TRUNCATED = (EOFError, gzip.BadGzipFile, zlib.error)


def read_public_rows(path: Path) -> Iterator[Item]:
    """Rows of a JSON-lines file, a JSON array, a CSV or TSV, or parquet, told apart by name and first characters.

    `hf:org/name[:split]` is a data set of the Hub.
    """
    name = path.name.removesuffix(".gz").lower()
    try:
        if str(path).startswith("hf:"):
            yield from enumerate((as_json(row) for _, row in read_hub(str(path))), start=1)
        elif name.endswith((".csv", ".tsv")):
            yield from csv_rows(path, "\t" if name.endswith(".tsv") else ",")
        elif is_parquet(path):
            yield from ((number, as_json(row)) for number, row in parquet_rows(path))
        elif first_character(path) == "[":
            yield from array_rows(path)
        else:
            yield from line_rows(path)
    except TRUNCATED as error:
        raise UserError(f"{path}: broken gzip data: {error}", "download the file again") from None


def is_parquet(path: Path) -> bool:
    with open_binary(path) as stream:
        return stream.read(len(PARQUET)) == PARQUET


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a parquet file with their numbers from 1, read batch by batch. Raises UserError."""
    from datasets import load_dataset  # takes a second to import

    try:
        yield from enumerate(load_dataset("parquet", data_files=str(path), split="train", streaming=True), start=1)
    except (OSError, ValueError, RuntimeError) as error:  # pyarrow's errors derive from these
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable parquet file: {problem}", "download it again") from None


def as_json(row: Row) -> Row:
    """The row with what JSON does not know, such as times, as text."""
    plain: Row = DECODER.decode(json.dumps(row, default=str))
    return plain


def first_character(path: Path) -> str:
    """The first character that is no white space, "" in an empty file. Looks at bytes: the text may be broken further on."""
    with open_text(path) as stream:
        binary = binary_of(stream)
        while (byte := binary.read(1)) and (byte.isspace() or byte in BOM):
            pass
        return byte.decode("ascii", "replace")


def binary_of(stream: IO[str]) -> BinaryIO:
    """The undecoded bytes behind an open text file."""
    return cast(BinaryIO, cast(io.TextIOWrapper, stream).buffer)


def line_rows(path: Path) -> Iterator[Item]:
    """One JSON object a line. Lines are split and decoded one by one, so that a bad byte costs one line only."""
    with open_text(path) as stream:
        for number, line in enumerate(binary_of(stream), start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                yield Reject(number, "not_utf8", line.decode("utf-8", "replace"), f"byte {error.start + 1} of the line")
                continue
            try:
                value = DECODER.decode(text)
            except json.JSONDecodeError as error:
                yield Reject(number, "not_json", text, f"{error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:
                yield Reject(number, "not_json", text, str(error))
            else:
                yield checked(number, value, text)


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
            yield checked(number, value, text)
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
        """Forget what was read and at least double what is left, so that a long item is not scanned again too often."""
        self.text = self.text[self.position :]
        self.position = 0
        try:
            chunk = self.stream.read(max(CHUNK, len(self.text)))
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not UTF-8 text") from None
        self.text += chunk
        self.at_end = not chunk

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self.position < len(self.text):
                if not self.text[self.position].isspace():
                    return self.text[self.position]
                self.position += 1
            if self.at_end:
                return ""
            self.more()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise UserError(f"{self.path}: not a JSON array: expected {character!r}, found {found or 'the end'!r}")
        self.position += 1

    def item(self, number: int) -> tuple[Any, str]:
        """The next value and its text."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # An error far from the end of the buffer is an error; near it, or in an open string, more may mend it.
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if self.at_end or not cut_off:
                    raise UserError(f"{self.path}: item {number} of the array is not valid JSON: {error.msg}") from None
            except RecursionError:
                raise UserError(f"{self.path}: item {number} of the array is nested too deeply") from None
            else:
                # A number at the very end of the buffer may go on in the next chunk.
                if end < len(self.text) or self.at_end:
                    text = self.text[self.position : end]
                    self.position = end
                    return value, text
            self.more()


def checked(number: int, value: Any, text: str) -> Item:
    """An object whose texts can be written as UTF-8, or a Reject."""
    if not isinstance(value, dict):
        return Reject(number, "not_an_object", value)
    if "\\ud" in text or "\\uD" in text:  # only an escape can bring in half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Reject(number, "broken_unicode", text, "half of a surrogate pair")
    return number, value


def csv_rows(path: Path, delimiter: str) -> Iterator[Item]:
    """Rows by the names in the header line; a row with more or fewer cells than it is a Reject."""
    csv.field_size_limit(LONGEST_CELL)
    with open_text(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next_cells(reader, path) or []
            if isinstance(header, Reject) or not any(header) or len(set(header)) != len(header):
                raise UserError(f"{path}:1: expected a header line with a different name for each column")
            while (cells := next_cells(reader, path)) is not None:
                if isinstance(cells, Reject):
                    yield cells
                elif not cells:
                    continue
                elif len(cells) != len(header):
                    detail = f"{len(cells)} cells, {len(header)} columns"
                    yield Reject(reader.line_num, "wrong_number_of_cells", cells, detail)
                else:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except UnicodeDecodeError:
            raise UserError(f"{path}:{reader.line_num + 1}: not UTF-8 text") from None


def next_cells(reader: Any, path: Path) -> list[str] | Reject | None:
    """The cells of the next row, a Reject where its quotes are wrong, None at the end."""
    start = reader.line_num + 1
    try:
        return cast("list[str] | None", next(reader, None))
    except csv.Error as error:
        if "unexpected end" in str(error) or "field larger" in str(error):  # the rest of the file is in one cell
            raise UserError(f"{path}:{start}: not valid CSV: a quote that is opened here is never closed") from None
        return Reject(reader.line_num, "not_csv", None, str(error))


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
                    near = get_close_matches(name, list(item[1]), n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(item[1])}"
                    raise UserError(f"{path}:{item[0]}: no column {name!r}", hint)
        yield item
