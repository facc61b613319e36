"""The files of a split: `<folder>/<part>.jsonl`, a manifest for each, and `split.manifest.json`, written
last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cai_cli.artifacts.claims import Claim, check_alone, claim
from cai_cli.artifacts.locks import give_back, hold
from cai_cli.artifacts.manifest import read_manifest, write_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import move_to_backup
from cai_cli.console.messages import say, warn_all
from cai_cli.errors import UserError
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.jsonl import replacing
from cai_cli.rows.splits import assign_prompt, parse_parts, split_cautions
from cai_cli.rows.storage import check_writable

SPLIT_MANIFEST = "split.manifest.json"
PARTIAL_SPLIT_MANIFEST = "split.manifest.partial.json"


class SplitFolder:
    """The parts in the making, all at once: a run that was killed writes them again.

    Usage: folder = SplitFolder(options, spec, manifest); if folder.done(): return; ...; folder.write(rows,
    manifest)
    """

    def __init__(self, options: Any, spec: str, manifest: Manifest) -> None:
        """`spec`: names and proportions; `manifest`: as it is known before the work."""
        check_one_process("a split is written")
        self.options = options
        self.folder: Path = options.output.out
        self.parts = parse_parts(spec)
        self.manifest_file = self.folder / SPLIT_MANIFEST
        self.partial_manifest_file = self.folder / PARTIAL_SPLIT_MANIFEST
        if self.folder.is_file():
            raise UserError(f"--out {self.folder}: is a file", "name a directory")
        hold(self.folder, options.output.dry_run)
        self.finished = read_manifest(self.manifest_file)
        self.old = self.finished or read_manifest(self.partial_manifest_file)
        self.check_parts()
        there = None if self.old is None else self.folder
        if claim(options, manifest, self.old, there, finished=lambda _: False) != Claim.RESTART:
            self.old = None  # nothing to move away

    def check_parts(self) -> None:
        """Raise UserError where a part would overwrite what is not of the split that is there."""
        before = parts_of(self.old, self.parts) if self.old else {}
        for name in self.parts:
            file = self.folder / f"{name}.jsonl"
            if name not in before and file.exists():
                raise UserError(f"{file}: exists and is not from a split", "choose another --out")
            check_alone(file, file if file.exists() else None)

    def done(self, rows: int | None = None) -> bool:
        """Whether all is there; `rows`: of so many, where that is known."""
        whole = (
            self.old is None
            and self.finished is not None
            and all(map(Path.exists, part_files(self.folder, self.parts)))
        )
        done = whole and rows in (None, ((self.finished or {}).get("counts") or {}).get("out"))
        if done:
            if not self.options.output.dry_run:
                self._end()
            say(f"{self.folder}: already done; nothing to do")
        elif not self.options.output.dry_run:
            check_writable(self.folder, self.folder, PARTIAL_SPLIT_MANIFEST)
        return done

    def write(self, rows: Iterable[tuple[Conversation, str]], manifest: Manifest) -> None:
        """Write the parts of (prompt, line) pairs, the manifest of each, and last `split.manifest.json`."""
        if self.old is not None:
            before = parts_of(self.old, self.parts)
            for name in before:
                temporary(self.folder / f"{name}.jsonl").unlink(missing_ok=True)
            move_to_backup(*part_files(self.folder, before), self.partial_manifest_file, self.manifest_file)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_manifest(self.partial_manifest_file, manifest)
        counts = write_parts(self.folder, rows, self.parts, self.options.output.seed)
        total = sum(counts.values())
        for name, count in counts.items():
            part = {**manifest, "counts": {"in": total, "out": count, "rejected": {}}}
            write_manifest(self.folder / f"{name}.manifest.json", part)
        cautions = {"warnings": warn_all(split_cautions(self.parts, counts))}
        write_manifest(
            self.manifest_file,
            {**manifest, "counts": {"in": total, "out": total, "rejected": {}}, **cautions},
        )
        self._end()
        say(f"{self.folder}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))

    def _end(self) -> None:
        self.partial_manifest_file.unlink(missing_ok=True)
        give_back(self.folder)


def parts_of(manifest: Manifest, default: Mapping[str, float]) -> Mapping[str, float]:
    """The parts of the split that the manifest is of; `default`: where it does not say."""
    spec = manifest["options"].get("parts") or manifest["options"].get("split")
    return parse_parts(spec) if spec else default


def part_files(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    """The files of each part: its rows and their manifest."""
    for name in parts:
        yield folder / f"{name}.jsonl"
        yield folder / f"{name}.manifest.json"


def temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def write_parts(
    folder: Path, rows: Iterable[tuple[Conversation, str]], parts: Mapping[str, float], seed: int
) -> dict[str, int]:
    """Write `folder/<part>.jsonl` from (prompt, line) pairs, each file atomically; returns their numbers of
    rows.
    """
    files = {name: folder / f"{name}.jsonl" for name in parts}
    counts = dict.fromkeys(parts, 0)
    with ExitStack() as stack:
        streams = {name: stack.enter_context(replacing(path)) for name, path in files.items()}
        for prompt, line in rows:
            part = assign_prompt(prompt, parts, seed)
            streams[part].write(line + "\n")
            counts[part] += 1
    return counts
