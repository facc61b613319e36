"""Files of Stack Exchange posts -> questions and answers: what a file is shows from its first bytes.

Read as streams: Posts.xml, plain, in .gz or in .7z; rows of preferences as JSONL (or .gz of it) or parquet;
data sets of the Hub.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from cai_cli.errors import UserError
from cai_cli.importers.posts import site_of_file
from cai_cli.importers.posts_xml import Item, read_posts
from cai_cli.importers.preference_rows import read_hub_rows, read_jsonl_rows, read_parquet_rows
from cai_cli.importers.seven_zip import open_posts
from cai_cli.rows.file_kinds import GZIP, PARQUET, refuse_bytes
from cai_cli.rows.jsonl import BROKEN_GZIP
from cai_cli.rows.storage import open_input, unreadable

SEVEN_ZIP, ZIP = b"7z\xbc\xaf\x27\x1c", b"PK\x03\x04"
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
TOLD = 5000  # items between two words on progress
Advance = Callable[[int], None]


def no_progress(count: int) -> None:
    pass


def read_source(source: Path | str, advance: Advance = no_progress) -> Iterator[Item]:
    """The posts of a file, or of a data set on the Hub."""
    if isinstance(source, str) and source.startswith("hf:"):
        return read_hub_rows(source)
    return read_file(Path(source), advance)


def read_file(path: Path, advance: Advance = no_progress) -> Iterator[Item]:
    """The posts of one file. What it is shows from its first bytes: Posts.xml (or in .7z), JSONL, in gzip, or
    parquet.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(open_input(path))
            items = items_of(raw, path, stack)
            last = 0
            for number, item in enumerate(items, 1):
                if number % TOLD == 0 and not raw.closed:
                    position = raw.tell()
                    advance(position - last)
                    last = position
                yield item
            advance(path.stat().st_size - last)
        except BROKEN_GZIP as error:
            raise UserError(f"{path}: damaged gzip: {error}", "download it again") from None
        except OSError as error:
            raise unreadable(path, error) from None


def items_of(raw: BufferedReader, path: Path, stack: ExitStack) -> Iterator[Item]:
    """The posts of an open file, by its kind; what else is opened goes on `stack`."""
    head = raw.peek(8)[:8]
    if head.startswith(ZIP):
        raise UserError(
            f"{path} is a zip archive, which is not read", f"unpack it first: unzip {path.name} Posts.xml"
        )
    if head.startswith(PARQUET):
        return read_parquet_rows(path, site_of_file(path))
    if head.startswith(SEVEN_ZIP):
        return read_stream(stack.enter_context(open_posts(path)), path)
    if head.startswith(GZIP):
        return read_stream(cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw))), path)
    return read_stream(raw, path)


def read_stream(stream: BinaryIO, path: Path) -> Iterator[Item]:
    """Posts from an open, unpacked file."""
    start = stream.peek(256)[:256] if hasattr(stream, "peek") else b""
    shown = start
    for mark in BYTE_ORDER_MARKS:
        shown = shown.removeprefix(mark)
    shown = shown.lstrip(b"\0 \t\r\n")
    site = site_of_file(path)
    if shown.startswith(b"<"):
        yield from read_posts(stream, path, site)
    elif shown.startswith(b"{"):
        refuse_bytes(start, path)
        yield from read_jsonl_rows(stream, path, site)
    else:
        refuse_bytes(start, path)
        problem = "is empty" if not start else "is neither a Posts.xml nor JSONL rows"
        raise UserError(f"{path} {problem}", "give Posts.xml of a dump or stack-exchange-preferences rows")
