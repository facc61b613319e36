"""What a file is where JSON lines are expected, seen from its first bytes or its first line, and what to do
with it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from cai_cli.errors import UserError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
HEAD = 512  # bytes that are looked at
TAR_MARK = 257  # where a tar archive says so
IMPORT_TABLE = "`cai import table {path} --to prompts` (or samples, comparisons) reads it"


class FileKind(NamedTuple):
    start: bytes
    name: str
    advice: str


UTF_16 = "convert it: iconv -f UTF-16 -t UTF-8 {path}"
UTF_32 = "convert it: iconv -f UTF-32 -t UTF-8 {path}"
KINDS = (
    FileKind(
        b"version https://git-lfs", "a pointer of Git LFS, not the data", "fetch it with `git lfs pull`"
    ),
    FileKind(PARQUET, "a parquet file", IMPORT_TABLE),
    FileKind(b"PK\x03\x04", "a zip archive", "unpack it first: unzip {path}"),
    FileKind(b"\xfd7zXZ\0", "xz-compressed", "unpack it first: xz -d {path}"),
    FileKind(b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first: zstd -d {path}"),
    FileKind(b"BZh", "bzip2-compressed", "unpack it first: bzip2 -d {path}"),
    FileKind(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x {path}"),
    FileKind(GZIP, "gzip in gzip", "unpack it once: gunzip {path}"),
    FileKind(b"ARROW1", "an Arrow file", "write it as parquet or JSON lines"),
    FileKind(b"Obj\x01", "an Avro file", "write it as parquet or JSON lines"),
    FileKind(b"SQLite format 3\0", "an SQLite database", "write the table as CSV or JSON lines"),
    FileKind(b"%PDF", "a PDF", "write its text as JSON lines"),
    FileKind(b"\xff\xfe\0\0", "UTF-32 text", UTF_32),
    FileKind(b"\0\0\xfe\xff", "UTF-32 text", UTF_32),
    FileKind(b"\xff\xfe", "UTF-16 text", UTF_16),
    FileKind(b"\xfe\xff", "UTF-16 text", UTF_16),
)


def refuse_bytes(start: bytes, path: Path) -> None:
    """Raise UserError where the first bytes are those of no text in UTF-8: archives, tables, other encodings."""
    for kind in KINDS:
        if start.startswith(kind.start):
            raise UserError(f"{path}: is {kind.name}", kind.advice.format(path=path))
    if start[TAR_MARK:].startswith(b"ustar"):
        raise UserError(f"{path}: is a tar archive", f"unpack it first: tar xf {path}")
    if b"\0" in start:
        raise UserError(
            f"{path}: is {null_bytes_mean(start)}", "text is read as UTF-8: convert it with iconv"
        )


def null_bytes_mean(start: bytes) -> str:
    """Text in UTF-16 without a mark has a NUL in nearly every second place, as far as it is English."""
    half = len(start) // 2
    if (
        max(start[0::2].count(0), start[1::2].count(0)) > 0.9 * half
        and min(start[0::2].count(0), start[1::2].count(0)) == 0
    ):
        return f"UTF-16{'BE' if start[:1] == bytes(1) else 'LE'} text without a byte order mark"
    return (
        "UTF-32 text without a byte order mark"
        if start.count(0) > 1.2 * half
        else "no text: it holds NUL bytes"
    )


def refuse_first_line(line: str, path: Path) -> None:
    """Raise UserError where the first line, which is no JSON object, tells what the file is instead."""
    text = line.strip()
    for looks, name, advice in TEXTS:
        if re.match(looks, text):
            raise UserError(f"{path}: is {name}, not one JSON object a line", advice.format(path=path))
    if text[:1] not in ("{", '"') and (separator := separator_of(text)):
        name = "a tab" if separator == "\t" else f"`{separator}`"
        advice = "`cai import table` reads CSV, and TSV that is named .tsv"
        raise UserError(
            f"{path}: is a table with columns separated by {name}, not one JSON object a line", advice
        )
    if text[:1].isalpha() and " " in text:
        raise UserError(
            f"{path}: is plain text, not one JSON object a line", "as prompts, a line each: name it .txt"
        )


TEXTS = (
    (r"\[\s*($|[{\"\[\]])", "a JSON array", IMPORT_TABLE),
    (r"\{($|.*[\[{,:]$)", "one JSON document over several lines", "write it as one line: jq -c . {path}"),
    (r"<", "XML or HTML", "Posts.xml of Stack Exchange goes to `cai pmp --posts`"),
    (r"(---|%YAML|[A-Za-z_-]+:(\s|$))", "YAML", "constitutions and configurations are YAML; rows are not"),
)


def separator_of(line: str) -> str | None:
    """The separator of a table that its header line shows; None where it shows none."""
    counts = {separator: line.count(separator) for separator in "\t;|,"}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else None
