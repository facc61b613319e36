"""JSONL files in the making: the same command again carries on where it was cut off, by one process or by
several.

Rows are appended to `<out>.partial`, flushed per batch, and renamed last, after the manifest. What was
rejected lies in `<stem>.rejects.jsonl` with its reason.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cai_cli.artifacts.chunks import Told, worked
from cai_cli.artifacts.claims import Claim, claim
from cai_cli.artifacts.locks import give_back, hold
from cai_cli.artifacts.manifest import begin_manifest, read_manifest, write_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import copy_to_backup, manifest_path, move_to_backup, rejects_path, unfinished
from cai_cli.artifacts.rejects import Rejected, check_rejects, reasons_text
from cai_cli.artifacts.shards import (
    await_ranks,
    block,
    drop_through_files,
    parse_shard,
    put_in_order,
    rank_file,
    rank_files,
    through_file,
)
from cai_cli.console.messages import progress, say, tell_next, warn_all
from cai_cli.errors import RecordError, UserError
from cai_cli.processes.ranks import barrier, check_launch, is_main, main_first, rank, world_size
from cai_cli.rows.jsonl import Appended, Row, dump_row, read_own_rows, repair_tail, write_atomically
from cai_cli.rows.storage import check_writable

Summary = Callable[[Path, Path], dict[str, Any]]
Cautions = Callable[[Path], list[str]]
Settled = tuple[Row | Rejected, int]  # what an item ends as, and how many tokens were sampled for it


class HasId(Protocol):
    """An item of work, known by its id."""

    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=HasId)


class RowArtifact:
    """A JSONL file in the making, by one process or by all ranks of a torchrun (see `shards`).

    Usage:
        if (artifact := RowArtifact("revise", options, options.generation.shard)).done: return
        artifact.work(artifact.remaining(items), 256, lambda chunk, told: [(row or Rejected(...), tokens), ...])
        if artifact.finish(): show a summary of options.out
    """

    def __init__(self, stage: str, options: Any, shard: str | None = None) -> None:
        """`shard`: the part of the rows to work on, as --shard has it."""
        check_launch(apart=shard is not None)
        self.options = options
        self.out: Path = options.output.out
        self.limit: int | None = options.rows.limit
        self.shard = parse_shard(shard)
        self.streaming = str(self.out) == "-"
        self.partial = unfinished(self.out)
        self.manifest_file = manifest_path(self.out)
        self.partial_manifest_file = self.manifest_file.with_suffix(".partial.json")
        self.rejects = rejects_path(self.out)
        if not self.streaming and self.out.suffix not in (".jsonl", ".json"):
            raise UserError(
                f"--out {self.out}: rows are written as .jsonl", "name a .jsonl file, or - for stdout"
            )
        if self.streaming and world_size() > 1:
            raise UserError("--out -: several processes cannot share stdout", "name a .jsonl file")
        self.manifest = begin_manifest(stage, options, self.out.parent)
        self.accepted_ids: dict[str, None] = {}  # in the order of the file
        self.rejected_ids: set[str] = set()
        self.reject_reasons: Counter[str] = Counter()
        # Ids of the items of this shard; None where the stage does not know them before
        self.order: list[str] | None = None
        self.share = 0  # how many of them are this process's
        self.tokens = 0
        self.unordered = False
        self.started = time.monotonic()
        # Where it is RESTART, the old one is moved to .bak when the first row is written
        self.claim = Claim.NEW
        self._dry_run = options.output.dry_run  # may look on while another command writes
        self._rows: Any = None
        self._rejects: Any = None
        if not self.streaming:
            hold(self.out, self._dry_run)
            main_first(self._resume)  # mends what a kill left; the others look at it only then
            if not is_main():
                self._resume()

    @property
    def done(self) -> bool:
        return self.claim == Claim.DONE

    @property
    def finished_ids(self) -> set[str]:
        """Those that need no more work."""
        return self.accepted_ids.keys() | self.rejected_ids

    def remaining(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of the items (each with an `id`) that is still to be worked on."""
        mine = block(items, *self.shard)
        self.order = [item.id for item in mine]
        share = mine[rank() :: world_size()]
        self.share = len(share)
        finished = self.finished_ids
        todo = [item for item in share if item.id not in finished]
        # Rows of a run that was cut off may lie as they ended, and those to come behind them
        places = {name: place for place, name in enumerate(self.order)}
        lie = [places.get(name, len(places)) for name in (*self.accepted_ids, *(item.id for item in todo))]
        self.unordered = lie != sorted(lie)
        return todo

    def _resume(self) -> None:
        """Find out whether the artifact is done, can be continued, or is to be started."""
        self._look()
        if is_main() and not self.done and not self._dry_run:
            check_writable(self.out, self.out.parent, self.out.stem)

    def _look(self) -> None:
        begun = next(
            (path for path in (self.out, self.partial, *rank_files(self.out)) if path.exists()), None
        )
        old = None
        if begun is not None:
            old = (None if begun == self.out else read_manifest(self.partial_manifest_file)) or read_manifest(
                self.manifest_file
            )
        tidy = lambda: self.partial_manifest_file.unlink(missing_ok=True)  # noqa: E731
        self.claim = claim(self.options, self.manifest, old, begun, self._is_whole, tidy)
        if self.claim != Claim.CONTINUE:
            return
        if is_main() and not self._dry_run:
            for path in (self.partial, self.rejects, *rank_files(self.out), *rank_files(self.rejects)):
                repair_tail(path)
        self._read_finished_ids()
        if self.finished_ids:
            say(f"{self.out}: continuing after {len(self.finished_ids)} rows")

    def _is_whole(self, old: Manifest) -> bool:
        self._check_shard(old)
        return self.out.exists() and not self._limit_raised(old)

    def _check_shard(self, old: Manifest) -> None:
        """Another shard's file is not this one's; a shard whose --limit grows would be another part of the
        items.
        """
        before, (index, count) = old["options"].get("shard"), self.shard
        if parse_shard(before) != self.shard:
            raise UserError(
                f"{self.out} holds shard {before or '0/1'}, not {index}/{count}",
                "give each shard its own --out",
            )
        if self.shard[1] > 1 and old["options"].get("limit") != self.limit:
            raise UserError(
                f"--limit: a shard keeps the one it was begun with ({old['options'].get('limit')})",
                "merge first",
            )

    def _limit_raised(self, old: Manifest) -> bool:
        before = old["options"].get("limit")
        return before is not None and (self.limit is None or self.limit > before)

    def _read_finished_ids(self) -> None:
        """Take up what this run, or one that was cut off, has accepted and rejected, in whichever process."""
        self.accepted_ids, self.rejected_ids = {}, set()
        self.reject_reasons = Counter()
        for path in (self.out, self.partial, *rank_files(self.out)):
            self.accepted_ids |= dict.fromkeys(row["id"] for row in self._rows_of(path))
        for path in (self.rejects, *rank_files(self.rejects)):
            for row in self._rows_of(path):
                if row["id"] not in self.rejected_ids:
                    self.rejected_ids.add(row["id"])
                    self.reject_reasons[row["reason"]] += 1

    def _rows_of(self, path: Path) -> Iterator[Row]:
        """The rows of a file of this artifact's, if it is there."""
        try:
            for _, row in read_own_rows(path, unfinished=self._dry_run) if path.exists() else ():
                yield row
        except RecordError as error:
            raise UserError(
                error.message, "remove that line, or move the file away and start afresh"
            ) from None

    def _open(self) -> None:
        if self._rows is not None:
            return
        if self.streaming:
            self._rows = sys.stdout
            return
        if is_main():
            self._prepare()
        barrier()
        rows, rejects = self.partial, self.rejects
        if world_size() > 1:
            rows, rejects = rank_file(self.out, rank()), rank_file(self.rejects, rank())
        self._rows, self._rejects = Appended(rows), Appended(rejects)

    def _prepare(self) -> None:
        """Make room: move what is restarted away, reopen what is continued, and say what is in the making."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        drop_through_files(self.out)
        ranks = [*rank_files(self.out), *rank_files(self.rejects)]
        if self.claim == Claim.RESTART:
            copy_to_backup(self.manifest_file, self.partial_manifest_file)
            for path in ranks:
                path.unlink()
            move_to_backup(self.rejects, self.partial, self.out)
        elif self.out.exists():  # a raised --limit goes on from the finished rows
            self.out.replace(self.partial)
        elif not self.partial.exists() and not ranks:
            self.rejects.unlink(missing_ok=True)
        write_manifest(self.partial_manifest_file, self.manifest)

    def work(
        self,
        todo: list[Item],
        size: int,
        do: Callable[[list[Item], Told], Iterable[Settled]],
        unit: str = "rows",
        segments: int = 1,
        first: int = 0,
        at_once: int = 1,
    ) -> None:
        """Do all in runs of `size`, after one of `first`, or item by item with `at_once` under way; what is made of
        a run is then on the disk. `do(items, told)` gives for each item the row it ends as, or why it is none, and
        how many tokens were sampled; `told(count)` hears of segments as they end, of which each item has so many.
        """
        at_once = 1 if self.streaming else at_once  # stdout keeps its order
        self.unordered |= at_once > 1
        with progress(self.manifest["stage"], self.share, self.share - len(todo), unit) as advance:
            for made, done in worked(todo, size, do, advance, segments, first, at_once):
                for outcome, tokens in made:
                    self.settle(outcome, tokens)
                self.flush()
                done.through(f"{len(self.rejected_ids)} rejected")

    def settle(self, outcome: Row | Rejected, tokens: int = 0) -> None:
        """An item's end: the row that it gives or why it gives none, and how many tokens were sampled for it."""
        self.tokens += tokens
        if isinstance(outcome, Rejected):
            self.reject(outcome)
        else:
            self.accept(outcome)

    def accept(self, row: Row) -> None:
        self._open()
        self._rows.write(dump_row(row) + "\n")
        self.accepted_ids[row["id"]] = None

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

    def finish(
        self,
        seen: int | None = None,
        summary: Summary | None = None,
        cautions: Cautions | None = None,
        **facts: Any,
    ) -> bool:
        """Check the reject rate, write the manifest, rename the rows into place; the first process does it
        for all.

        `seen`: rows in, where `remaining` does not know them. `summary(rows, rejects)` makes the manifest's
        `summary`, and `cautions(rows)` after it its `warnings`, which are said too. Returns whether this
        process wrote the artifact.
        """
        self._open()
        self.flush()
        if self.streaming:
            self._check_rejects()
            return False
        for stream in (self._rows, self._rejects):
            stream.close()
        if world_size() > 1:
            write_atomically(through_file(self.out, rank()), str(self.tokens))
            if not is_main():
                return False
            self.tokens = await_ranks(self.out, world_size())
        self._gather()
        self._check_rejects()
        if summary is not None and self.accepted_ids:
            self.manifest["summary"] = summary(self.partial, self.rejects)
        if cautions is not None and self.accepted_ids:
            self.manifest["warnings"] = warn_all(cautions(self.partial))
        if not self.rejected_ids:
            self.rejects.unlink(missing_ok=True)
        rejected = dict(sorted(self.reject_reasons.items()))
        seen = len(self.order or ()) if seen is None else seen
        self.manifest["counts"] = {"in": seen, "out": len(self.accepted_ids), "rejected": rejected}
        seconds = round(time.monotonic() - self.started, 3)
        self.manifest |= {"tokens": self.tokens, "seconds": seconds, **facts}
        write_manifest(self.manifest_file, self.manifest)
        self.partial.replace(self.out)
        self.partial_manifest_file.unlink(missing_ok=True)
        give_back(self.out)
        reasons = reasons_text(self.reject_reasons)
        told = f", {sum(rejected.values())} rejected ({reasons})" if rejected else ""
        say(f"{self.out}: {len(self.accepted_ids)} rows{told}")
        return True

    def tell_next(self, command: str, *words: object) -> None:
        """Name the command that comes next (see `messages`); a shard is joined with the others first. Nothing
        comes of a file without rows.
        """
        if self.shard[1] > 1:
            whole = self.out.with_name(f"whole-{self.out.name}")
            tell_next("cai merge", self.out, "OTHER-SHARDS", "--out", whole)
        elif self.accepted_ids:
            tell_next(command, *words)

    def _gather(self) -> None:
        """The rows that ranks have written, put into the artifact's own files in the order of the items."""
        for path in (self.partial, self.rejects):
            files = rank_files(self.out if path == self.partial else path)
            if files or (self.unordered and path.exists()):
                put_in_order(path, [path, *files], self.order or [])
            for file in files:
                file.unlink()
        if world_size() > 1:
            self._read_finished_ids()
        drop_through_files(self.out)

    def _check_rejects(self) -> None:
        file = None if self.streaming else self.rejects
        check_rejects(self.options, self.out, len(self.accepted_ids), self.reject_reasons, file)
