"""The JSON file of an evaluation, with a manifest and a picture beside it."""

from __future__ import annotations

from typing import Any

from cai_cli.artifact import FileArtifact
from cai_cli.errors import UserError
from cai_cli.jsonl import strict_json
from cai_cli.talk import say


class ResultsFile(FileArtifact):
    """Usage: results = ResultsFile("evaluate hhh", options); if results.done: return; ...; results.finish({...}, counts)."""

    def __init__(self, stage: str, options: Any) -> None:
        if options.out.suffix != ".json":
            raise UserError(f"--out {options.out}: results are written as .json", "name a .json file")
        self.picture = options.out.with_suffix(".png")
        super().__init__(stage, options, self.picture)

    def finish(self, results: dict[str, Any], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest and then the results."""
        self.write(strict_json(results, str(self.out), indent=2, ensure_ascii=False) + "\n", counts, **facts)
        say(f"{self.out}, {self.picture}")
