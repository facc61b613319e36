"""Which evaluation wrote a JSON file: by the manifest beside it, else by the fields it has."""

from __future__ import annotations

from typing import Any

from cai_cli.artifacts.manifest_shape import Manifest

PM, HHH, LABELS, ELO, RESPONSES = (
    "evaluate pm",
    "evaluate hhh",
    "evaluate labels",
    "evaluate elo",
    "evaluate responses",
)
CONSTITUTION, DEMO = "constitution test", "demo"
# Fields that are there in each, and in none above it
SHAPES = {
    CONSTITUTION: ("feedback_model", "principles", "reworded"),
    PM: ("groups", "length_matched", "reliability"),
    HHH: ("all", "files", "items"),
    LABELS: ("all", "by_confidence", "by_kind"),
    ELO: ("anchor", "models", "win_rates"),
    DEMO: ("models", "differences", "asked"),
    RESPONSES: ("models", "judge", "rubric"),
}


def stage_of(manifest: Manifest | None, content: dict[str, Any]) -> str | None:
    """The command that writes such a file; None where none of ours does."""
    if manifest is not None:
        return manifest["stage"] if manifest["stage"] in SHAPES else None
    return next((stage for stage, fields in SHAPES.items() if content.keys() >= set(fields)), None)
