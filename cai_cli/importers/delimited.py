"""Rows of CSV and TSV files by the names in their header line.

CSV is read by the rules of RFC 4180. A quote that breaks them leaves open where its cell ends, so that every
later line up to the last one with a quote in it may be text of that cell: those are rejects too. In a TSV
quotes are text, unless they are round a whole cell; such a cell may span lines, as long as none of them is a
row by itself.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from cai_cli.errors import RecordError, UserError
from cai_cli.importers.reject import Item, Reject
from cai_cli.rows.conversation import unix_lines
from cai_cli.rows.file_kinds import separator_of
from cai_cli.rows.jsonl import ENCODING_ADVICE, LONGEST_LINE, bounded_lines, open_binary

MOST_LINES = 1000  # that a quoted cell of a TSV may span
UNCERTAIN = "after_broken_quote"
QUOTED = re.compile(r'"[^"]*"')
Line = tuple[int, str]


def csv_rows(path: Path) -> Iterator[Item]:
    """A row with more or fewer cells than the header line is a Reject, as is one whose quotes are wrong."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in text_lines(path)), strict=True)
    _, first = next(text_lines(path), (1, ""))
    check_separator(QUOTED.sub("", first.rstrip("\n")), path, ",")
    try:
        header = checked_header(next(reader, []), path)
    except csv.Error as error:
        raise UserError(f"{path}:1: the header line is not valid CSV: {error}", "correct it there") from None
    broken, last_quote = 0, 0  # the first line with a wrong quote, and the last one with any
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            check_goes_on(error, f"{path}:{start}")
            if not broken:
                broken = reader.line_num
                last_quote = max((number for number, line in text_lines(path) if '"' in line), default=0)
            yield Reject(reader.line_num, "not_csv", None, str(error))
            continue
        if cells is None:
            return
        if cells and start <= last_quote:
            yield Reject(
                reader.line_num,
                UNCERTAIN,
                cells,
                f"may be text of the cell whose quotes are wrong on line {broken}",
            )
        elif cells:
            yield named(reader.line_num, cells, header)


def check_goes_on(error: csv.Error, place: str) -> None:
    """Raise UserError where what follows the error cannot be read."""
    if "unexpected end" in str(error):  # the rest of the file is in one cell
        raise UserError(
            f"{place}: not valid CSV: a quote that is opened here is never closed", "close it there"
        ) from None
    if "field larger" in str(error):
        raise UserError(
            f"{place}: a cell of more than {LONGEST_LINE >> 20} MiB", "is a quote opened here and not closed?"
        ) from None


def tsv_rows(path: Path) -> Iterator[Item]:
    """A row with more or fewer cells than the header line is a Reject, as is one with a quote that is opened
    and not closed.
    """
    csv.field_size_limit(LONGEST_LINE)
    source = text_lines(path)
    ahead: deque[Line] = deque()

    def take() -> Line | None:
        return ahead.popleft() if ahead else next(source, None)

    first = (take() or (1, ""))[1].rstrip("\n")
    check_separator(QUOTED.sub("", first), path, "\t")
    header = checked_header(quoted_cells(iter([first])) or first.split("\t"), path)
    while (line := take()) is not None:
        number, text = line
        cells = cells_of_line(text, len(header))
        if opens_quote(text):
            following = take()
            ahead.extendleft([following] if following else [])
            alone = cells is not None and (
                following is None or cells_of_line(following[1], len(header)) is not None
            )
            if not alone or len(header) == 1:
                taken, joined = join_quoted(line, take, len(header))
                if joined is not None and cells is not None and len(header) == 1:
                    problem = (
                        f"a quote that is opened here is closed on line {taken[-1][0]}: one cell, or several?"
                    )
                    raise UserError(
                        f"{path}:{number}: {problem}",
                        "write the file as CSV, or prompts as a .txt of one a line",
                    )
                ahead.extendleft(reversed(taken[1:]) if joined is None else ())
                number, cells = (number, cells) if joined is None else (taken[-1][0], joined)
                if joined is None and len(header) > 1:
                    yield Reject(
                        number,
                        "open_quote",
                        text.rstrip("\n"),
                        "a quoted cell that is not closed before the next row",
                    )
                    continue
        if text.strip("\n"):
            yield named(number, cells if cells is not None else text.rstrip("\n").split("\t"), header)


def join_quoted(
    first: Line, take: Callable[[], Line | None], columns: int
) -> tuple[list[Line], list[str] | None]:
    """The lines of a row whose quoted cell goes on below, and its cells; None for them where the lines do not
    make one row.
    """
    taken = [first]

    def feed() -> Iterator[str]:
        yield first[1]
        while len(taken) < MOST_LINES and (line := take()) is not None:
            taken.append(line)
            yield line[1]

    cells = quoted_cells(feed())
    inside = taken[1:-1] if columns > 1 else []
    whole = (
        cells is not None
        and len(cells) == columns
        and not any(cells_of_line(text, columns) for _, text in inside)
    )
    return taken, cells if whole else None


def cells_of_line(text: str, columns: int) -> list[str] | None:
    """The cells of a line that is a row by itself: with its quotes as quotes, else as text. None: neither
    gives a row.
    """
    for cells in (quoted_cells(iter([text])), text.rstrip("\n").split("\t")):
        if cells is not None and len(cells) == columns:
            return cells
    return None


def quoted_cells(lines: Iterator[str]) -> list[str] | None:
    """The cells of the first row of `lines`, quotes read as such; None where they are not round whole cells."""
    try:
        return next(csv.reader(lines, delimiter="\t", strict=True), None)
    except csv.Error:
        return None


def opens_quote(text: str) -> bool:
    try:
        list(csv.reader([text], delimiter="\t", strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def named(number: int, cells: list[str], header: list[str]) -> Item:
    if len(cells) != len(header):
        return Reject(number, "wrong_number_of_cells", cells, f"{len(cells)} cells, {len(header)} columns")
    return number, dict(zip(header, cells, strict=True))


def check_separator(header: str, path: Path, separator: str) -> None:
    """Raise UserError where the header line, what is in quotes left out, shows that another separator is
    meant.
    """
    if separator not in header and (other := separator_of(header)):
        names = {"\t": "tabs", ",": "commas"}
        found, wanted = names.get(other, f"`{other}`"), names[separator]
        advice = {"\t": "name it .tsv", ",": "name it .csv"}.get(
            other, "write it with commas, or with tabs as .tsv"
        )
        raise UserError(f"{path}:1: its columns are separated by {found}, not by {wanted}", advice)


def checked_header(header: list[str], path: Path) -> list[str]:
    """The names of the columns. Raises UserError."""
    if not any(header) or len(set(header)) != len(header):
        raise UserError(
            f"{path}:1: expected a header line with a different name for each column",
            "give every column a name",
        )
    return header


def text_lines(path: Path) -> Iterator[Line]:
    """The lines of a file with their numbers and ends, whatever system wrote them. Raises UserError."""
    number = 0
    with open_binary(path) as stream:
        try:
            for line in bounded_lines(stream, path):
                text = unix_lines(line.decode("utf-8-sig" if number == 0 else "utf-8"))
                for piece in io.StringIO(text, newline="\n"):
                    number += 1
                    yield number, piece
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 text at byte {error.start + 1} of the line"
            raise RecordError("", problem, ENCODING_ADVICE, place=f"{path}:{number + 1}") from None
