"""A JSON file of measurements with its manifest beside it: the same command again leaves it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_cli.artifact import check_same, move_to_backup
from cai_cli.errors import UserError
from cai_cli.jsonl import write_atomically
from cai_cli.manifest import begin_manifest, manifest_path, read_manifest, write_manifest
from cai_cli.talk import say


class ResultFile:
    """`options.out` is where the measurements go, or None: then they are only shown.

    Usage:
        result = ResultFile("evaluate-pm", options)
        if result.done: return
        result.write({...})
    """

    def __init__(self, stage: str, options: Any) -> None:
        self.out: Path | None = options.out
        self.done = False
        self._restart = False
        self.manifest = begin_manifest(stage, options, self.out.parent if self.out else Path())
        if self.out is None:
            return
        if self.out.suffix != ".json" or self.out.is_dir():
            raise UserError(f"--out {self.out}: measurements are written as one .json file", "name a .json file")
        if self.out.exists():
            old = read_manifest(manifest_path(self.out))
            if old is None:
                raise UserError(f"{self.out} exists and has no manifest", "move it away, or choose another --out")
            if check_same(old, self.manifest, options):
                self.done = True
                say(f"{self.out}: already done; nothing to do")
            else:
                self._restart = True

    def beside(self, suffix: str) -> Path | None:
        """Where a file that belongs to the measurements goes: the same name with another suffix."""
        return self.out.with_suffix(suffix) if self.out else None

    def write(self, result: dict[str, Any], **facts: Any) -> None:
        """Write the measurements, and the manifest with `facts` before them."""
        if self.out is None:
            return
        if self._restart:
            move_to_backup(self.out, manifest_path(self.out))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest_path(self.out), {**self.manifest, **facts})
        write_atomically(self.out, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        say(f"measurements in {self.out}")
