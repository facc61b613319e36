"""One process at a time writes an artifact: a lock file beside it, held until the artifact is done or the
process ends.

    runs/x.jsonl    runs/.x.manifest.lock   all files of one manifest are one artifact: x.json and x.png too
    runs/pm/        runs/.pm.lock           beside the folder, which may move to .bak while it is held

The lock is the operating system's (flock, through `filelock`): one whose holder was killed holds nobody up.
The file only says who holds it, and is removed when the lock is given back. A process may hold an artifact
more than once; its children inherit nothing.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cai_cli.console.messages import warn
from cai_cli.errors import RunError, UserError
from cai_cli.processes.ranks import main_first

if TYPE_CHECKING:
    from filelock import BaseFileLock

PATIENCE = 0.5  # Seconds until a lock counts as held: its holder may be about to end, or about to sign.
ATTEMPTS = 100  # where holders that end keep removing the file, or its folder, just before it is locked
OLDER_OR_UNFINISHED = re.compile(r"(\.(bak|partial))+$")
WITH_A_MANIFEST_BESIDE = re.compile(r"\.(jsonl?|ya?ml)(\.gz)?$")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Held:
    """A lock of this process: the file it is, as found on disk, and the folders that were made for it."""

    lock: BaseFileLock
    file: os.stat_result
    process: int
    made: list[Path]


HELD: dict[Path, Held] = {}


def hold(out: Path, dry_run: bool = False) -> None:
    """Hold `out` from here on. Raises UserError where another process does, naming it.

    To be called before looking at what is on disk. The ranks of one launch are one holder: the first one
    holds it for all. A dry run writes nothing and `--out -` is no file: they hold nothing.
    """
    if str(out) != "-" and not dry_run:
        main_first(lambda: take(out))


def take(out: Path) -> None:
    """The artifact's locks for this process."""
    for place in places_of(out):
        if place in HELD and HELD[place].process == os.getpid():
            continue
        made = [folder for folder in place.parents if not folder.exists()]
        try:
            lock = locked(out, place)
            HELD[place] = Held(lock, place.stat(), os.getpid(), made)
        except OSError as error:
            if error.errno in NO_LOCKS:
                with suppress(OSError):
                    place.unlink()
                warn(
                    f"{out}: its file system has no locks ({error.strerror}): nothing keeps a second command off it"
                )
            elif not place.parent.is_dir() or os.access(place.parent, os.W_OK):
                # A file that stands where a folder has to be is found as one that exists.
                problem = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
                raise RunError(
                    f"{place}: cannot be locked: {problem}", "make room, or choose another --out"
                ) from None
            # Else nothing can be written there, by this command either: what is done may still be found done.


def locked(out: Path, place: Path) -> BaseFileLock:
    """The lock file, locked and signed."""
    from filelock import FileLock, Timeout

    def sign(descriptor: int) -> None:
        # Whoever held it may have removed it between its being opened and locked here.
        if not os.path.samestat(os.fstat(descriptor), place.stat()):
            raise FileNotFoundError(errno.ENOENT, "was replaced", str(place))
        with suppress(OSError):  # whoever may write in the folder may find out whether the holder is there
            os.fchmod(descriptor, 0o666)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())

    waited = False
    for attempt in range(ATTEMPTS):
        lock = FileLock(place, PATIENCE, thread_local=False, fallback_to_soft=False, on_acquired=sign)
        try:
            if waited:  # Where it cannot be made `acquire` waits as for a holder; this says why.
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            lock.acquire()
            break
        # A folder that goes while it is made "exists", too. What stands in the way for good is there to the end.
        except (FileNotFoundError, FileExistsError):
            if attempt == ATTEMPTS - 1:
                raise
        except Timeout:
            if place.exists():
                hint = "wait for it or stop it, or choose another --out"
                raise UserError(f"{out}: {holder_of(place)} is writing it", hint) from None
            waited = True  # for nobody, or for one who gave it back just now
        except NotImplementedError:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    return lock


def give_back(out: Path) -> None:
    """Let others have `out` again."""
    for place in places_of(out):
        if place in HELD:
            release(place)


def give_all_back() -> None:
    """At the end of the command, however it ends."""
    for place in list(HELD):
        release(place)


def release(place: Path) -> None:
    """Remove the lock file and then unlock, so that nobody locks a file that is about to go; with it, folders
    made in vain.
    """
    held = HELD.pop(place)
    if held.process != os.getpid():  # a fork's copy: the parent holds it
        return
    with suppress(OSError):  # gone, with its folder perhaps
        if os.path.samestat(place.stat(), held.file):
            place.unlink()
    held.lock.release()
    for folder in held.made:
        with suppress(OSError):
            folder.rmdir()


def holder_of(place: Path) -> str:
    """Who signed the lock file."""
    with suppress(OSError, ValueError):
        process, host = place.read_text(encoding="utf-8").split()
        return f"process {process} on {host}"
    return "another process"


def places_of(out: Path) -> list[Path]:
    """The lock files of an artifact, the same for each way to spell its path; two where it is a symbolic
    link.
    """
    target = Path(os.path.realpath(out))
    named = Path(os.path.realpath(out.parent), out.name) if out.name not in ("", "..") else target
    return [lock_file(path) for path in dict.fromkeys((named, target))]


def lock_file(path: Path) -> Path:
    """The lock file of an absolute path; inside a folder that lies where nothing can be made or moved, such
    as a mount.
    """
    name = WITH_A_MANIFEST_BESIDE.sub(".manifest", OLDER_OR_UNFINISHED.sub("", path.name))
    if path.is_dir() and not (path.name and os.access(path.parent, os.W_OK)):
        return path / ".lock"
    return path.with_name(f".{name}.lock")


def is_lock_file(file: Path) -> bool:
    """Whether it is a lock file, which a process that was killed may have left."""
    return file.name.startswith(".") and file.name.endswith(".lock")
