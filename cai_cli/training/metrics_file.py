"""metrics.jsonl of a training run, and the trackers that get the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_cli.console.messages import warn
from cai_cli.processes.ranks import is_main
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import strict_json, write_atomically


class MetricsFile:
    """A file of what is measured, a line a step; what is written goes to the trackers too.

    Lines after `step`, left by a run that was killed later, are cut at the start.

    A line that cannot be read is left out and named: a kill may have torn the last one, anything else is
    damage. Of several processes the first one writes.
    """

    def __init__(self, path: Path, step: int, trackers: list[Any] | None = None) -> None:
        self.stream: Any = None
        self.trackers = trackers or []
        if not is_main():
            return
        kept = []
        if path.exists() and step > 0:
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                try:
                    if load_json(line.decode(), constant=float)["step"] <= step:
                        kept.append(line.decode() + "\n")
                except (ValueError, TypeError, KeyError):
                    warn(f"{path}: line {number} cannot be read and is left out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(kept))
        self.stream = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        if self.stream is not None:
            self.stream.write(strict_json(row, self.stream.name) + "\n")
            self.stream.flush()
        for tracker in self.trackers:
            tracker.log({name: value for name, value in numbers_of(row) if name != "step"}, step=row["step"])

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.trackers:
            tracker.finish()
        if self.stream is not None:
            self.stream.close()


def numbers_of(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """What of a row a curve can be drawn of, by name: `evaluation/ai/accuracy`, and of a held-out loss
    `held_out_loss/<kind>`.
    """
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (
                f"{prefix}{name}" + (f"/{row['held_out']}" if "held_out" in row and name != "step" else ""),
                value,
            )
