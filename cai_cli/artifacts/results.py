"""Files that are written at once, with a manifest beside them; the JSON file of an evaluation has a picture
too, and rejected rows where there are any.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cai_cli.artifacts.claims import Claim, claim
from cai_cli.artifacts.locks import give_back, hold
from cai_cli.artifacts.manifest import begin_manifest, read_manifest, write_manifest
from cai_cli.artifacts.places import copy_to_backup, manifest_path, move_to_backup, rejects_path
from cai_cli.console.messages import say
from cai_cli.errors import UserError
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.jsonl import strict_json, write_atomically
from cai_cli.rows.storage import check_writable


class FileArtifact:
    """A file that is written at once.

    Usage: file = FileArtifact("export", options); if file.done: return; ...; file.start(); file.write(text,
    counts)
    """

    def __init__(self, stage: str, options: Any, *beside: Path, shared: bool = False) -> None:
        """`beside`: files that are written with it, and move to .bak with it; `shared`: several processes do the work,
        and the first of them writes.
        """
        if not shared:
            check_one_process(f"`cai {stage}` is done")
        self.out: Path = options.output.out
        self.manifest_file = manifest_path(self.out)
        self.beside = beside
        self.manifest = begin_manifest(stage, options, self.out.parent)
        self.started = time.monotonic()
        hold(self.out, options.output.dry_run)
        there = self.out if self.out.exists() else None
        old = read_manifest(self.manifest_file) if there else None
        self.done = claim(options, self.manifest, old, there, finished=lambda _: True) == Claim.DONE
        if not self.done and not options.output.dry_run:
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
        give_back(self.out)


class ResultsFile(FileArtifact):
    """Usage: results = ResultsFile("evaluate hhh", options); if results.done: return; ...;
    results.finish({...}, counts).
    """

    def __init__(self, stage: str, options: Any, shared: bool = False) -> None:
        out: Path = options.output.out
        if out.suffix != ".json":
            raise UserError(f"--out {out}: results are written as .json", "name a .json file")
        self.picture = out.with_suffix(".png")
        super().__init__(stage, options, self.picture, rejects_path(out), shared=shared)

    def finish(self, results: dict[str, Any], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest and then the results."""
        self.write(strict_json(results, str(self.out), indent=2, ensure_ascii=False) + "\n", counts, **facts)
        say(f"{self.out}, {self.picture}")
