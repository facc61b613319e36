"""Artifacts that survive being killed: the same command again carries on, another command on the same --out stops.

Rows     `RowArtifact`: appended to `<out>.partial`, flushed per batch, renamed last, after the manifest. What was rejected
         lies in `<stem>.rejects.jsonl` with its reason.
Models   `ModelArtifact`: a directory that is complete when its `cai.json` is there.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.errors import RunError, UserError
from cai_cli.jsonl import Row, dump_row, read_rows, repair_tail
from cai_cli.manifest import (
    MODEL_MANIFEST,
    Manifest,
    begin_manifest,
    differences,
    manifest_path,
    noted_changes,
    read_manifest,
    write_manifest,
)
from cai_cli.ranks import barrier, is_main
from cai_cli.talk import say, warn

PARTIAL_MODEL_MANIFEST = "cai.partial.json"


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


class RowArtifact:
    """A JSONL file in the making.

    Usage:
        artifact = RowArtifact("revise", options)
        if artifact.done: return
        for chunk of work not in artifact.finished_ids:
            artifact.accept(row) or artifact.reject(Rejected(...))
            artifact.flush()
        artifact.finish(seen=number of rows in)
    """

    def __init__(self, stage: str, options: Any, limit: int | None = None) -> None:
        self.options = options
        self.out: Path = options.out
        self.limit = limit
        self.streaming = str(self.out) == "-"
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.manifest_file = manifest_path(self.out)
        self.partial_manifest_file = self.manifest_file.with_suffix(".partial.json")
        stem = self.manifest_file.name.removesuffix(".manifest.json")
        self.rejects = self.out.with_name(f"{stem}.rejects.jsonl")
        if not self.streaming and self.out.suffix not in (".jsonl", ".json"):
            raise UserError(f"--out {self.out}: rows are written as .jsonl", "name a .jsonl file, or - for stdout")
        self.manifest = begin_manifest(stage, options, self.out.parent)
        self.accepted_ids: set[str] = set()
        self.rejected_ids: set[str] = set()
        self.reject_reasons: Counter[str] = Counter()
        self.tokens = 0
        self.started = time.monotonic()
        self.done = False
        self._restart = False  # the old one is moved to .bak when the first row is written
        self._rows: Any = None
        self._rejects: Any = None
        if not self.streaming:
            self._resume()

    @property
    def finished_ids(self) -> set[str]:
        """Ids that need no more work: accepted or rejected."""
        return self.accepted_ids | self.rejected_ids

    def _resume(self) -> None:
        """Find out whether the artifact is done, can be continued, or is to be started."""
        begun = next((path for path in (self.out, self.partial) if path.exists()), None)
        if begun is None:
            return
        old = (read_manifest(self.partial_manifest_file) if begun == self.partial else None) or read_manifest(self.manifest_file)
        if old is None:
            raise UserError(f"{begun} exists and has no manifest", "move it away, or choose another --out")
        if not check_same(old, self.manifest, self.options):
            self._restart = True
            return
        if self.out.exists() and not self._limit_raised(old):
            self.done = True
            say(f"{self.out}: already done ({old['counts']['out']} rows); nothing to do")
            return
        for path in (self.partial, self.rejects):
            repair_tail(path)
        self._read_finished_ids(begun)

    def _limit_raised(self, old: Manifest) -> bool:
        before = old["options"].get("limit")
        return before is not None and (self.limit is None or self.limit > before)

    def _read_finished_ids(self, rows: Path) -> None:
        self.accepted_ids = {row["id"] for _, row in read_rows(rows)}
        if self.rejects.exists():
            for _, row in read_rows(self.rejects):
                if row["id"] not in self.rejected_ids:
                    self.rejected_ids.add(row["id"])
                    self.reject_reasons[row["reason"]] += 1
        if self.finished_ids:
            say(f"{self.out}: continuing after {len(self.finished_ids)} rows")

    def _open(self) -> None:
        if self._rows is not None:
            return
        if self.streaming:
            self._rows = sys.stdout
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self._restart:
            move_to_backup(self.out, self.partial, self.manifest_file, self.partial_manifest_file, self.rejects)
        elif self.out.exists():  # a raised --limit goes on from the finished rows
            self.out.replace(self.partial)
        write_manifest(self.partial_manifest_file, self.manifest)
        fresh = not self.partial.exists()
        self._rows = self.partial.open("a", encoding="utf-8")
        if fresh and self.rejects.exists():
            self.rejects.unlink()
        self._rejects = self.rejects.open("a", encoding="utf-8")

    def accept(self, row: Row) -> None:
        self._open()
        self._rows.write(dump_row(row) + "\n")
        self.accepted_ids.add(row["id"])

    def reject(self, rejected: Rejected) -> None:
        self._open()
        if self._rejects is not None:
            self._rejects.write(dump_row(rejected.to_row()) + "\n")
        self.rejected_ids.add(rejected.id)
        self.reject_reasons[rejected.reason] += 1

    def flush(self) -> None:
        """Hand what was accepted and rejected so far to the operating system."""
        for stream in (self._rows, self._rejects):
            if stream is not None:
                stream.flush()

    def finish(self, seen: int, **facts: Any) -> None:
        """Check the reject rate, write the manifest, rename the rows into place."""
        self._open()
        self.flush()
        self._check_rejects()
        if self.streaming:
            return
        for stream in (self._rows, self._rejects):
            stream.close()
        if not self.rejected_ids:
            self.rejects.unlink(missing_ok=True)
        rejected = dict(sorted(self.reject_reasons.items()))
        self.manifest["counts"] = {"in": seen, "out": len(self.accepted_ids), "rejected": rejected}
        self.manifest |= {"tokens": self.tokens, "seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        self.partial.replace(self.out)
        self.partial_manifest_file.unlink(missing_ok=True)
        told = f", {sum(rejected.values())} rejected ({reasons_text(self.reject_reasons)})" if rejected else ""
        say(f"{self.out}: {len(self.accepted_ids)} rows{told}")

    def _check_rejects(self) -> None:
        accepted, rejected = len(self.accepted_ids), len(self.rejected_ids)
        total = accepted + rejected
        rate = self.options.max_reject_rate
        if total == 0:
            raise RunError(f"{self.out}: there was nothing to work on", "the inputs hold no rows")
        if accepted == 0 or rejected / total > rate:
            why = reasons_text(self.reject_reasons)
            look = "" if self.streaming else f"look at {self.rejects}; what is done is kept, "
            hint = f"{look}--max-reject-rate raises the bar (now {rate:g})"
            raise RunError(f"{self.out}: {rejected} of {total} rows were rejected ({why})", hint)


def reasons_text(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


class ModelArtifact:
    """A model directory in the making. `folder` holds checkpoints while training; `finish` saves and marks it complete."""

    def __init__(self, stage: str, options: Any) -> None:
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
        self._restart = False  # the old one is moved to .bak by `start`
        finished = read_manifest(self.manifest_file)
        old = finished or read_manifest(self.partial_manifest_file)
        if old is None and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"--out {self.folder}: is not empty and not ours", "choose another --out")
        if old is not None and not check_same(old, self.manifest, options):
            self._restart = True
        elif finished is not None:
            self.done = True
            say(f"{self.folder}: already done; nothing to do")

    def start(self) -> None:
        """Mark the directory as one in the making. Of several processes the first one does, after all have looked at it."""
        barrier()
        if is_main():
            if self._restart:
                move_to_backup(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.partial_manifest_file, self.manifest)
        self._restart = False
        barrier()

    def finish(self, save: Callable[[Path], None], **facts: Any) -> None:
        """Save the model through `save(folder)`, write cai.json last, and drop the checkpoints; the first process does."""
        if not is_main():
            return
        save(self.folder)
        self.manifest |= {"seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        self.partial_manifest_file.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        say(f"{self.folder}: done in {self.manifest['seconds']:.0f} s")
