"""JSON Lines: strict reading with file:line in every error, plain or gzipped, and appending that survives a
kill.

Read with the `jsonlines` library. A row is one JSON object on one line, UTF-8, of at most `LONGEST_LINE`
bytes (a gzip of 1 MB can hold a line of 1 GB).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

from cai_cli.errors import RecordError, RunError, UserError
from cai_cli.rows.file_kinds import GZIP, HEAD, refuse_bytes, refuse_first_line
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.seen import Seen
from cai_cli.rows.storage import open_input

Record = TypeVar("Record")
Row = dict[str, Any]

LONGEST_LINE = 16 << 20  # bytes; the longest conversation that a model reads has a few MB
MOST_BLANK_LINES = 100_000  # in a row; a gzip of 1 MB can hold a billion
BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
ENCODING_ADVICE = "text is read as UTF-8: convert it with iconv"


def open_binary(path: Path) -> BinaryIO:
    """Open a file of text, gunzipping by its first two bytes. Raises UserError for what is no text: archives,
    parquet, UTF-16.
    """
    stream = open_any(path)
    try:
        refuse_bytes(stream.peek(HEAD)[:HEAD], path)  # type: ignore[attr-defined]
    except BROKEN_GZIP as error:
        stream.close()
        raise RecordError("", f"broken gzip data: {error}", place=f"{path}:1") from None
    except UserError:
        stream.close()
        raise
    return stream


def open_any(path: Path) -> BinaryIO:
    """Open a file of whatever kind, gunzipping by its first two bytes."""
    stream = open_input(path)
    if not stream.peek(len(GZIP)).startswith(GZIP):
        return stream
    unpacked = gzip.GzipFile(fileobj=stream)
    unpacked.myfileobj = cast(Any, stream)  # closed with it
    return cast(BinaryIO, unpacked)


def open_text(path: Path) -> IO[str]:
    """Open a text file, plain or gzipped. A byte order mark is skipped."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig")


def read_lines(path: Path, unfinished: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without its end). Lines are decoded one by one, so that an error names the
    right one.

    `unfinished`: somebody may be writing the file; a last line that has no end yet is left out.
    """
    number = 0
    with open_binary(path) as stream:
        try:
            for number, line in enumerate(bounded_lines(stream, path), start=1):
                if unfinished and not line.endswith(b"\n"):
                    return
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 text at byte {error.start + 1} of the line"
            raise RecordError("", problem, ENCODING_ADVICE, place=f"{path}:{number}") from None
        except BROKEN_GZIP as error:
            raise RecordError("", f"broken gzip data: {error}", place=f"{path}:{number + 1}") from None


def bounded_lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a stream with their ends. Raises RecordError for one that is too long, having read no more
    than that of it.
    """
    number = blank = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            problem = f"a line of more than {LONGEST_LINE >> 20} MiB"
            raise RecordError(
                "", problem, "a row is one JSON object on a line of its own", place=f"{path}:{number}"
            )
        blank = blank + 1 if len(line) <= 2 and line.isspace() else 0
        if blank > MOST_BLANK_LINES:
            raise RecordError(
                "",
                f"{blank} blank lines one after the other",
                "no file of rows has them",
                place=f"{path}:{number}",
            )
        yield line


def read_whole(path: Path, at_most: int = LONGEST_LINE) -> bytes:
    """The content of a file of text that fits memory, plain or gzipped. Raises UserError."""
    with open_binary(path) as stream:
        try:
            content = stream.read(at_most + 1)
        except BROKEN_GZIP as error:
            raise UserError(f"{path}: broken gzip data: {error}", "download it again") from None
    if len(content) > at_most:
        raise UserError(f"{path}: is larger than {at_most >> 20} MiB", "no file of this kind is")
    return content


def read_rows(path: Path, unfinished: bool = False) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row). Raises RecordError with `file:line` for anything that is not a JSON object.

    Where the first line shows that the file is of another kind, a UserError says which.

    Of any file; in one of ours no id may be there twice (`check_new`). `unfinished`: see `read_lines`.
    """
    import jsonlines

    line = rows = 0

    def texts() -> Iterator[str]:
        nonlocal line
        for number, text in read_lines(path, unfinished):
            line = number
            yield text

    try:
        for row in jsonlines.Reader(texts(), loads=load_row).iter(type=dict, skip_empty=True):
            rows += 1
            yield line, row
    except jsonlines.InvalidLineError as error:
        if rows == 0:
            refuse_first_line(str(error.line), path)
        cause = error.__cause__
        if isinstance(cause, JsonError) and cause.field:
            raise cause.at(f"{path}:{line}") from None
        detail = cause.problem if isinstance(cause, JsonError) else "not an object"
        raise RecordError("", f"not a JSON object: {detail}", place=f"{path}:{line}") from None


def read_own_rows(path: Path, unfinished: bool = False) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of a file of ours, where no id is on two lines: RecordError names both. A row
    may have no id.
    """
    seen = Seen()
    for line, row in read_rows(path, unfinished):
        if isinstance(row.get("id"), str):
            check_new(seen, row["id"], path, line)
        yield line, row


def check_new(seen: Seen, name: str, path: Path, line: int) -> None:
    """Note the line of an id. Raises RecordError where it has one already: two commands wrote the file, or
    two were joined.
    """
    if (before := seen.first(name, line)) != line:
        problem = f"{name!r} is on line {before} too"
        raise RecordError("id", problem, "ids are unique in a file", place=f"{path}:{line}")


def load_row(text: str | bytes) -> Any:
    """`load_json` in the shape that jsonlines asks for."""
    return load_json(text if isinstance(text, str) else text.decode())


def read_records(path: Path, parse: Callable[[Row], Record]) -> Iterator[Record]:
    """Yield parsed records; a row that `parse` refuses stops with file:line and field. Ids must not repeat."""
    seen = Seen()
    for line, row in read_rows(path):
        try:
            record = parse(row)
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        if (name := getattr(record, "id", None)) is not None:
            check_new(seen, name, path, line)
        yield record


def strict_json(value: Any, name: str, **settings: Any) -> str:
    """The value as JSON, which knows neither NaN nor infinity: RunError says where in `name` one of them
    stands.
    """
    try:
        return json.dumps(value, allow_nan=False, **settings)
    except ValueError:
        if (found := odd_number(value)) is None:
            raise
        place, number = found
        hint = "JSON has no such number: mend the input, or the model that gave it"
        raise RunError(f"{name}: `{place}` would be {number}", hint) from None


def odd_number(value: Any, place: str = "") -> tuple[str, float] | None:
    """Path and value of the first number in a JSON-like value that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, value
    if isinstance(value, dict):
        parts = [(f"{place}.{key}".lstrip("."), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{place}[{n}]", item) for n, item in enumerate(value)]
    else:
        return None
    return next((found for where, item in parts if (found := odd_number(item, where)) is not None), None)


def dump_row(row: Row) -> str:
    return strict_json(row, f"row {row.get('id', '')}".rstrip(), ensure_ascii=False)


def repair_tail(path: Path) -> None:
    """Cut off a last line that a kill left without its newline."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            step = min(1 << 16, position)
            stream.seek(position - step)
            newline = stream.read(step).rfind(b"\n")
            if newline >= 0:
                stream.truncate(position - step + newline + 1)
                return
            position -= step
        stream.truncate(0)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a kill leaves the old file or the new one."""
    with replacing(path) as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


class Appended:
    """A file that whole lines are added to. Where the disk takes no more, it ends with the last one that it
    took.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = path.open("a", encoding="utf-8")

    def write(self, lines: str) -> None:
        with self._whole_lines():
            self.stream.write(lines)

    def flush(self) -> None:
        with self._whole_lines():
            self.stream.flush()

    def close(self) -> None:
        with self._whole_lines():
            self.stream.close()

    @contextmanager
    def _whole_lines(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self.stream.closed:  # what is still in memory goes nowhere, or it would come after the cut
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), self.stream.fileno())
            with suppress(OSError):
                repair_tail(self.path)
            raise


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A file to write that takes the place of `path` in one step at the end; what fails on the way leaves no
    trace.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            yield stream
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write a whole file atomically; returns the number of rows."""
    return write_lines(path, map(dump_row, rows))


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write a whole file of lines atomically; returns their number."""
    count = 0
    with replacing(path) as stream:
        for line in lines:
            stream.write(line + "\n")
            count += 1
    return count
