"""The JSON file of an evaluation, with a manifest beside it: the same command again finds it done, another one stops."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cai_cli.artifact import check_same, move_to_backup
from cai_cli.errors import UserError
from cai_cli.jsonl import write_atomically
from cai_cli.manifest import begin_manifest, manifest_path, read_manifest, write_manifest
from cai_cli.talk import say


class ResultsFile:
    """Usage: results = ResultsFile("evaluate hhh", options); if results.done: return; ...; results.finish({...})."""

    def __init__(self, stage: str, options: Any) -> None:
        self.out: Path = options.out
        self.picture = self.out.with_suffix(".png")
        self.manifest_file = manifest_path(self.out)
        if self.out.suffix != ".json":
            raise UserError(f"--out {self.out}: results are written as .json", "name a .json file")
        self.manifest = begin_manifest(stage, options, self.out.parent)
        self.started = time.monotonic()
        self.done = False
        self._restart = False
        if self.out.exists():
            old = read_manifest(self.manifest_file)
            if old is None:
                raise UserError(f"{self.out} exists and has no manifest", "move it away, or choose another --out")
            self.done = check_same(old, self.manifest, options)
            self._restart = not self.done
        if self.done:
            say(f"{self.out}: already done; nothing to do")

    def start(self) -> None:
        """Make room for the files."""
        if self._restart:
            move_to_backup(self.out, self.manifest_file, self.picture)
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def finish(self, results: dict[str, Any], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest and then the results."""
        self.manifest |= {"counts": counts, "seconds": round(time.monotonic() - self.started, 3), **facts}
        write_manifest(self.manifest_file, self.manifest)
        write_atomically(self.out, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        say(f"{self.out}, {self.picture}")
