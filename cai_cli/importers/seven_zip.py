"""Posts.xml inside a .7z archive, as the dumps are published -> its bytes as a stream. Nothing is unpacked to
the disk.

py7zr pushes what it unpacks, readers pull: a thread unpacks into a pipe, which holds it back whenever the
reader is slower.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cai_cli.errors import UserError
from cai_cli.rows.storage import open_input

POSTS = "posts.xml"


@contextmanager
def open_posts(path: Path) -> Iterator[BinaryIO]:
    """The one Posts.xml of the archive, to be read from start to end. Raises UserError where there is none,
    or it is damaged.
    """
    import py7zr

    with open_input(path) as file:  # of a file object, py7zr unpacks one member after the other in one thread
        try:
            archive = py7zr.SevenZipFile(file)
            names = [name for name in archive.getnames() if is_posts(name)]
            locked = archive.needs_password()
        except (
            Exception
        ) as error:  # of many types: headers of a damaged archive make the library stumble anywhere
            raise damaged(path, error) from None
        if locked:
            raise UserError(f"{path} is encrypted", "unpack it first")
        if len(names) != 1:
            found = "several" if names else "no"
            raise UserError(f"{path} holds {found} Posts.xml", "unpack it and name each Posts.xml")
        source, sink = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        failures: list[Exception] = []
        thread = threading.Thread(target=unpack, args=(archive, names[0], sink, failures), daemon=True)
        thread.start()
        try:
            yield io.BufferedReader(_Piped(source, thread, failures, path))
        finally:
            source.close()  # an unpacker that is not through stops at its next write
            thread.join()


def is_posts(name: str) -> bool:
    """`Posts.xml`, `beer/Posts.xml` and `beer.Posts.xml` are."""
    last = PurePosixPath(name).name.lower()
    return last == POSTS or last.endswith((f".{POSTS}", f"-{POSTS}", f"_{POSTS}"))


def unpack(archive: Any, name: str, sink: Any, failures: list[Exception]) -> None:
    """Write one member into `sink` and close it; what goes wrong is put into `failures`."""
    from py7zr.io import Py7zIO, WriterFactory

    class Writer(Py7zIO):
        def write(self, s: bytes | bytearray) -> int:
            rest = memoryview(s)
            while rest:
                rest = rest[sink.write(rest) :]
            return len(s)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            pass

        def size(self) -> int:
            return 0

    class Factory(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            return Writer()

    try:
        archive.extract(targets=[name], factory=Factory())
    except BrokenPipeError:  # nobody reads any more
        pass
    except Exception as error:
        failures.append(error)
    finally:
        with suppress(OSError):
            sink.close()


class _Piped(io.RawIOBase):
    """The reading end of the pipe. Its end is an error where the unpacking ended in one."""

    def __init__(self, source: Any, thread: threading.Thread, failures: list[Exception], path: Path) -> None:
        self.source, self.thread, self.failures, self.path = source, thread, failures, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.source.readinto(buffer))
        if count == 0:
            self.thread.join()
            if self.failures:
                raise damaged(self.path, self.failures[0])
        return count


def damaged(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):  # it could not be read to its end
        return error
    problem = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: damaged 7z archive: {problem}", "download it again")
