"""Files and disks that fail, as one line: what cannot be read is a UserError, what cannot be written a
RunError.

A file that is given is read through `open_input` and `read_input`, which raise UserError themselves, also for
a read that fails on the way. All other errors are sorted by `storage_error`: by their number, by what
libraries write for it (torch, safetensors, sqlite, lxml, datasets ..., none of which is imported here), and
by whether the path is the run's own output.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from cai_cli.errors import CaiError, RunError, UserError, first_line

BLOCK = 1 << 16
MISSING = "check the path; a stage's output exists once the stage has finished"
MAKE_ROOM = "make room, or choose a place that can be written to"
# Only writing meets these; the others say that a path or its device is no good, for reading as for writing.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
OF_PATHS = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
    errno.EEXIST,
}
FULL_TABLE = {errno.EMFILE, errno.ENFILE}
GO_ON = "once that is mended, the same command goes on with what is done"
NETWORK = (ConnectionError, TimeoutError)

# What libraries say where they do not hand on the system's number, or hide it in their text.
NUMBER = re.compile(r"(?:os error |[Ee]rrno:? )(\d{1,3})\b|\bIO_(E[A-Z]+)\b")
FULL = re.compile(
    r"no space left|disk is full|not enough (free )?(disk )?space|quota exceeded|file too large",
    re.IGNORECASE,
)
WRITING = re.compile(
    r"PytorchStreamWriter|inline_container\.cc|iostream error|file write failed|Parent directory .* does not exist"
    r"|\bserializing|readonly database|\d+ requested and \d+ written|IO_(WRITE|FLUSH)|temporary (file|director)",
)
READING = re.compile(r"PytorchStreamReader|deserializing")
SQLITE = re.compile(r"disk I/O error|unable to open database file")
FIRST_LINE = 200
# Names of files that some command reads
ROWS = re.compile(r"\.(jsonl?|txt|csv|tsv|parquet|xml|7z|ya?ml)(\.gz)?$")
NO_ROWS = re.compile(
    r"^\.|\.(manifest|rejects)\.|^metrics\.jsonl$|^(cai|.*config.*|tokenizer|.*index|.*_map|.*tokens|vocab)\.json$"
)
LONGEST_ENDING = len(".manifest.partial.json.bak.tmp")  # of what is made beside a file
NAMED = 4  # of the files in a directory
STDIN = Path("<stdin>")  # what is piped in, as if it were a file


# Reading


def what_is_wrong(path: Path) -> str | None:
    """Why there is no file to be read at the path; None where there is one."""
    if path == STDIN:
        return None
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        return f"is not a path: {error}"
    if stat.S_ISDIR(mode):
        return "is a directory"
    return None if stat.S_ISREG(mode) else "is not a file but a pipe, a socket or a device"


def is_input(path: Path) -> bool:
    """Whether there is a file at the path; False, too, for what can be no path."""
    return what_is_wrong(path) is None


def check_input(path: Path, hint: str = MISSING) -> None:
    """Raise UserError where there is no file to be read at the path; `hint` is for one that is not there."""
    problem = what_is_wrong(path)
    if problem is not None:
        hints = {"is a directory": name_a_file(path), "no such file": hint}
        raise UserError(
            f"{path}: {problem}",
            hints.get(problem, "name a file that can be read; prompts come over a pipe as -"),
        )


def unreadable(path: Path | str, error: OSError) -> UserError:
    """What is said of a file that cannot be opened, or breaks off while it is read."""
    hint = "look at the disk it lies on, or take a copy of it"
    if error.errno in OF_PATHS:
        hint = "check its permissions" if error.errno in (errno.EACCES, errno.EPERM) else "check the path"
    elif error.errno in FULL_TABLE:
        hint = "allow more open files (`ulimit -n`)"
    return UserError(f"{path}: cannot be read: {error.strerror or error}", hint)


def name_a_file(folder: Path) -> str:
    """What to name in place of a directory: by what lies in it."""
    with suppress(OSError):
        files, below = (
            sorted(str(path.relative_to(folder)) for path in folder.glob(depth) if holds_rows(path))
            for depth in ("*", "*/*")
        )
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        if files:
            return f"name a file in it: {', '.join(files[:NAMED])}{more}"
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return "it holds a model: rows are in files, models go to --model, --pm and their like"
        if below:
            return f"name a file below it, such as {below[0]}"
    return "name a file: there is none of rows in it"


def holds_rows(path: Path) -> bool:
    """Whether a file's name is one of those that some command reads."""
    return ROWS.search(path.name) is not None and not NO_ROWS.search(path.name) and path.is_file()


@cache
def piped_in() -> bytes:
    """All that comes over stdin, read once. Raises UserError where nothing does."""
    if sys.stdin.isatty():
        raise UserError(
            "-: stdin is a terminal: nothing is piped in", "put `cat FILE |` in front, or name the file"
        )
    with reading(STDIN):
        content = sys.stdin.buffer.read()
    if not content.strip():
        raise UserError("-: stdin is empty", "look at the command in front of the pipe, or name a file")
    return content


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Within, what the system has against reading `path` is a UserError."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from None


class InputFile(io.FileIO):
    """The bytes of a file that is given: a read that fails on the way is a UserError, too."""

    def readinto(self, buffer: Any) -> int | None:
        with reading(str(self.name)):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with reading(str(self.name)):
            return super().readall()


def open_input(path: Path, hint: str = MISSING) -> io.BufferedReader:
    """Open a file that is given, to read its bytes. Raises UserError, here and where reading it fails later."""
    if path == STDIN:
        return io.BufferedReader(cast(io.RawIOBase, io.BytesIO(piped_in())))
    check_input(path, hint)
    with reading(path):
        return io.BufferedReader(InputFile(path), BLOCK)


def read_input(path: Path, hint: str = MISSING) -> bytes:
    """The bytes of a small file that is given. Raises UserError."""
    with open_input(path, hint) as stream:
        return stream.read()


# Writing


def check_writable(out: Path, folder: Path, name: str) -> None:
    """Raise RunError where nothing of such a name can be made in the folder of `out`, before a model is
    loaded for it.

    A folder that is not there is made, and removed again.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    # As long as the longest name that is made beside it; named as a lock is, which nobody takes for foreign.
    probe = folder / f".{name}{'x' * (LONGEST_ENDING - len('.lock'))}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"--out {out}: {error.strerror}", MAKE_ROOM) from None
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()


# Whatever is left


def storage_error(error: BaseException, out: Path | None = None) -> CaiError | None:
    """The line for an error of files or disks, or None where it is of another kind.

    `out`: what the command writes, by which a path that fails is told from one that is read.
    """
    text = first_line(error)[:FIRST_LINE]
    number, name = number_of(error)
    full = number in NO_ROOM or FULL.search(text) is not None
    by_words = WRITING.search(text) is not None or (
        SQLITE.search(text) is not None and "sqlite3" in kinds_of(error)
    )
    if (
        number is None
        and not full
        and not by_words
        and not READING.search(text)
        and not isinstance(error, OSError)
    ):
        return None
    if number is not None:
        text = os.strerror(number)
    mine = str(out) if out is not None and str(out) != "-" else None
    if full or (by_words and not READING.search(text)) or (name and out is not None and is_output(name, out)):
        return RunError(f"{name or mine or 'writing'}: {text}", MAKE_ROOM)
    if number in FULL_TABLE:
        return RunError(f"{name or mine or 'files'}: {text}", "make room for more open files (`ulimit -n`)")
    if name and number in OF_PATHS:
        return UserError(f"{name}: {text}", "check the path and its permissions")
    if isinstance(error, NETWORK):
        return RunError(f"the connection failed: {text}", GO_ON)
    return RunError(f"{name or 'a file'}: {text}" if number is not None else text, GO_ON)


def number_of(error: BaseException) -> tuple[int | None, str | None]:
    """(the system's error number, the path it is about) of an error or of what led to it; None where they are
    not known.

    What led to it counts where a library wrapped it: a plain error that merely came while another was handled
    is not its like.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, OSError) and link.errno is not None:
            name = link.filename
            return link.errno, os.fsdecode(name) if isinstance(name, str | bytes) else None
        if match := NUMBER.search(str(link)):
            return (int(match[1]) if match[1] else getattr(errno, match[2], None)), None
        # Torch's own words while it closes what could not be written
        hidden = WRITING.search(str(link)) is not None
        link = link.__cause__ or (link.__context__ if hidden else None)
    return None, None


def kinds_of(error: BaseException) -> set[str]:
    """The packages that define the error's classes."""
    return {kind.__module__.partition(".")[0] for kind in type(error).__mro__}


def is_output(name: str, out: Path) -> bool:
    """Whether a path is the run's output, lies in it, or is made beside it or on the way to it."""
    path, out = Path(os.path.abspath(name)), Path(os.path.abspath(out))  # noqa: PTH100 - not resolved: links may be what is wrong
    beside = path.parent == out.parent and path.name.lstrip(".").startswith(out.name.split(".")[0])
    return path == out or out in path.parents or path in out.parents or beside
