"""What a study is: measured seed by seed, each seed's JSON kept; told with one table, one picture, its claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Place
from estimates import Claim

from cai_cli.rows.jsonl import strict_json, write_atomically

Found = dict[str, Any]  # what was measured with one seed


@dataclass(frozen=True)
class Report:
    """`table`: the heads, then rows of cells; `notes`: what a reader has to know, in Markdown."""

    table: Sequence[Sequence[str]]
    claims: Sequence[Claim]
    notes: str = ""


@dataclass(frozen=True)
class Study:
    """`measure(place)` runs commands and returns numbers; `report(seeds, picture)` draws and tells."""

    name: str
    title: str
    asks: str
    measure: Callable[[Place], Found]
    report: Callable[[Sequence[Found], Path], Report]


def result_file(place: Place, study: Study) -> Path:
    return place / f"{study.name}.json"


def carry_out(study: Study, place: Place) -> None:
    """Measure, unless that is there already."""
    file = result_file(place, study)
    if not file.exists():
        found = study.measure(place)
        write_atomically(file, strict_json({"prompts": place.prompts, **found}, file.name) + "\n")
    print(f"[seed {place.seed}] {study.name}: {file}", flush=True)


def results(study: Study, out: Path) -> dict[int, Found]:
    """Seed -> what was measured with it, of the seeds that are through."""
    files = out.glob(f"seed-*/{study.name}.json")
    found = {
        int(file.parent.name.removeprefix("seed-")): json.loads(file.read_text("utf-8")) for file in files
    }
    return dict(sorted(found.items()))
