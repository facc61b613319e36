"""Artifacts that survive being killed: the same command again carries on, another command on the same --out stops.

One process at a time: each is held (see `locks`) from before it is looked at until it is done. A step that cannot be undone at
once comes last, so that a kill between any two steps leaves what the same command can go on from.

Rows     see `row_artifact`.
Files    `FileArtifact`: written at once, with a manifest beside it.
Models   `ModelArtifact`: a directory that is complete when its `cai.json` is there.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.errors import RunError, UserError
from cai_cli.hygiene import advice
from cai_cli.jsonl import Row, write_atomically
from cai_cli.locks import give_back, hold, is_lock_file
from cai_cli.manifest import (
    MODEL_MANIFEST,
    Manifest,
    begin_manifest,
    differences,
    manifest_path,
    noted_changes,
    parts_of,
    read_manifest,
    write_manifest,
)
from cai_cli.options import FLAG, Part, flag_name
from cai_cli.ranks import barrier, check_sharding, is_main, main_first
from cai_cli.storage import MAKE_ROOM, check_writable, is_input
from cai_cli.talk import say, warn

PARTIAL_MODEL_MANIFEST = "cai.partial.json"
RESTART = "then --if-changed restart starts afresh, and moves what there is to .bak"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not accepted: why, and enough to look at it."""

    id: str
    reason: str
    detail: str = ""
    row: Row | None = None

    def to_row(self) -> Row:
        return {"id": self.id, "reason": self.reason, "detail": self.detail, "row": self.row}


def move_to_backup(*paths: Path) -> None:
    """Rename each existing path to `<name>.bak`, replacing an older backup."""
    for path in paths:
        if path.exists():
            backup = path.with_name(path.name + ".bak")
            if backup.is_dir():
                shutil.rmtree(backup)
            path.replace(backup)


def copy_to_backup(*paths: Path) -> None:
    """Copy each existing manifest to `<name>.bak`; its place is overwritten when the new one is written.

    Until all else has moved it tells a restart that was killed from a new start.
    """
    for path in paths:
        if path.exists():
            write_atomically(path.with_name(path.name + ".bak"), path.read_text(encoding="utf-8"))


def check_same(old: Manifest, new: Manifest, options: Any) -> bool:
    """True where `old` is the same artifact as `new`; False where it is to be restarted; else an error that names why.

    Nothing is moved here: what is on disk stays until the new work starts, so a mistake found before then costs nothing.
    """
    found = differences(old, new, type(options))
    if not found:
        for change in noted_changes(old, new, type(options)):
            warn(f"{options.out}: {change}; rows made before keep what they have")
        return True
    if options.if_changed == "restart":
        say(f"{options.out}: {'; '.join(found)}: the old one goes to .bak, starting afresh")
        return False
    hint = "choose another --out, or pass --if-changed restart to move it to .bak and start afresh"
    raise UserError(f"{options.out} was made differently: {'; '.join(found)}", hint)


def with_restart(hint: str | None, options: Any) -> str | None:
    """The hint of a run that failed, so that it can be followed: where `--out` is begun, flags that would make another artifact
    need --if-changed restart.
    """
    if hint is None or "--if-changed" in hint or not hasattr(options, "if_changed") or not is_begun(options.out):
        return hint
    parts = {flag_name(name): part for name, part in parts_of(options).items()}
    free = (Part.RUNTIME, Part.LIMIT, Part.NOTED)
    if not any(name in parts and parts[name] not in free for name in FLAG.findall(hint)):
        return hint
    return f"{hint}; {RESTART}"


def is_begun(out: Path | None) -> bool:
    """Whether a manifest says of what lies at `out`, finished or not, how it was made."""
    if out is None or str(out) == "-":
        return False
    own = [manifest_path(out), out / "split.manifest.json"]
    return any(is_input(path) or is_input(path.with_suffix(".partial.json")) for path in own)


def why_none(rejected: Iterable[Rejected], options: Any) -> str:
    """Why none of the rows is left, and the next step for the commonest reason; nothing where none was rejected."""
    reasons = Counter(item.reason for item in rejected)
    step = advice(reasons.most_common(1)[0][0], map(flag_name, parts_of(options))) if reasons else ""
    return "; ".join(filter(None, (reasons_text(reasons), step)))


def reasons_text(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


def is_foreign(file: Path, beside: str | None) -> bool:
    """Whether a file in a folder without a manifest is none that a command of ours leaves there, killed or not."""
    if file.name == "checkpoints" and file.is_dir():  # of a rehearsal that was killed, before anything was claimed
        return any(path.name != "rehearsal" for path in file.iterdir())
    name = file.name.removeprefix(".").removesuffix(".tmp")
    ours = is_lock_file(file) or name == PARTIAL_MODEL_MANIFEST or (beside is not None and name.startswith(beside))
    return not ours


class FileArtifact:
    """A file that is written at once.

    Usage: file = FileArtifact("export", options); if file.done: return; ...; file.start(); file.write(text, counts)
    """

    def __init__(self, stage: str, options: Any, *beside: Path) -> None:
        """`beside`: files that are written with it, and move to .bak with it."""
        self.out: Path = options.out
        self.manifest_file = manifest_path(self.out)
        self.beside = beside
        self.manifest = begin_manifest(stage, options, self.out.parent)
        self.started = time.monotonic()
        self.done = False
        hold(options)
        if self.out.exists():
            old = read_manifest(self.manifest_file)
            if old is None:
                raise UserError(f"{self.out} exists and has no manifest", "move it away, or choose another --out")
            self.done = check_same(old, self.manifest, options)
        self.options = options
        if self.done:
            give_back(options)
            say(f"{self.out}: already done; nothing to do")
        elif not getattr(options, "dry_run", False):
            check_writable(self.out, self.out.parent, self.out.stem)

    def start(self) -> None:
        """Make room: an old one, which is to be restarted, goes to .bak, the file itself last."""
        if self.out.exists():
            copy_to_backup(self.manifest_file)
            move_to_backup(*self.beside, self.out)
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def write(self, text: str, counts: dict[str, Any], **facts: Any) -> None:
        """The manifest, and then the file."""
        self.manifest |= {"counts": counts, "seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        write_atomically(self.out, text)
        give_back(self.options)


class ModelArtifact:
    """A model directory in the making. `folder` holds checkpoints while training; `finish` saves and marks it complete."""

    def __init__(self, stage: str, options: Any, beside: str | None = None, fsdp: bool = False) -> None:
        """`beside`: how the names of files begin that may lie there before a model is begun; `fsdp`: see `check_sharding`."""
        check_sharding(fsdp)
        self.options = options
        self.folder: Path = options.out
        if self.folder.is_file():
            raise UserError(f"--out {self.folder}: is a file", "name a directory")
        self.manifest = begin_manifest(stage, options, self.folder)
        self.manifest_file = self.folder / MODEL_MANIFEST
        self.partial_manifest_file = self.folder / PARTIAL_MODEL_MANIFEST
        self.checkpoints = self.folder / "checkpoints"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.started = time.monotonic()
        self.done = False
        self._restart = False  # the old one is moved to .bak by `make_room`
        hold(options)
        main_first(lambda: self._look(beside))
        if not is_main():
            self._look(beside)

    def _look(self, beside: str | None) -> None:
        """Find out whether the model is done, can be continued, or is to be started."""
        finished = read_manifest(self.manifest_file)
        old = finished or read_manifest(self.partial_manifest_file)
        if old is None and self.folder.exists() and any(is_foreign(file, beside) for file in self.folder.iterdir()):
            raise UserError(f"--out {self.folder}: is not empty and not ours", "choose another --out")
        if old is not None and not check_same(old, self.manifest, self.options):
            self._restart = True
        elif finished is not None:
            self.done = True
            if is_main() and not self.options.dry_run:
                self._clean_up()  # a kill may have come before it
            give_back(self.options)
            say(f"{self.folder}: already done; nothing to do")
        if is_main() and not self.done and not self.options.dry_run:
            check_writable(self.folder, self.folder, PARTIAL_MODEL_MANIFEST)

    @property
    def begun(self) -> bool:
        """Whether an earlier run of the same command has claimed the directory."""
        return not self._restart and self.partial_manifest_file.exists()

    def make_room(self) -> None:
        """Move an old one, which is to be restarted, to .bak. Of several processes the first one does, after all have looked."""
        barrier()
        if is_main() and self._restart:
            move_to_backup(self.folder)
        self._restart = False
        barrier()

    def start(self) -> None:
        """Claim the directory, which from here on is another command's only after --if-changed restart.

        To be called when all that can be found out before the first step has been: a mistake then costs no more than a new
        command.
        """
        self.make_room()
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.partial_manifest_file, self.manifest)
        barrier()

    def finish(self, save: Callable[[Path], None], **facts: Any) -> None:
        """Save the model through `save(folder)`, write cai.json last, and drop the checkpoints; the first process does."""
        if not is_main():
            return
        if not self.partial_manifest_file.exists():  # libraries would make the folder anew, with nothing else in it
            raise RunError(f"{self.folder}: was removed while the run was under way", f"{MAKE_ROOM}, and start again")
        save(self.folder)
        self.manifest |= {"seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        self._clean_up()
        give_back(self.options)
        say(f"{self.folder}: done in {self.manifest['seconds']:.0f} s")

    def _clean_up(self) -> None:
        """Remove what only a directory in the making needs."""
        self.partial_manifest_file.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
