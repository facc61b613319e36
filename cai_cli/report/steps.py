"""What was run, from manifests: a step for each artifact in the order of their starts, with what it was made from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cai_cli.artifacts.ancestry import is_on_hub, source_path
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.report.find import Found
from cai_cli.report.text import counted, duration, named

MOST_STEPS = 200
SETTINGS = (
    *(
        "rounds",
        "num_samples",
        "orders",
        "principles_per_pair",
        "few_shot",
        "temperature",
        "max_new_tokens",
        "engine",
    ),
    *("learning_rate", "num_train_epochs", "steps", "kl_coef", "max_kl", "lora"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """`step`: the number of the step that made it, 0 where that is not here."""

    option: str
    name: str
    step: int


@dataclass(slots=True)
class Step:
    number: int
    stage: str
    name: str
    path: Path
    started: str
    took: str
    seed: str
    rows: str
    machine: str
    unfinished: bool
    sources: list[Source] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class History:
    """`made_elsewhere`: names of files without a manifest, with what they hold."""

    steps: list[Step]
    left_out: int
    made_elsewhere: list[tuple[str, str]]
    told: str


def history(found: Found) -> History:
    held = [
        (item.manifest, item.name, item.path, item.unfinished) for item in found.artifacts if item.manifest
    ]
    held.sort(key=lambda item: (str(item[0].get("started") or "~"), item[1]))
    shown = held[:MOST_STEPS]
    steps = [step_of(number, *item) for number, item in enumerate(shown, start=1)]
    known = {os.path.realpath(step.path): step.number for step in steps}
    for step, (manifest, _, path, _) in zip(steps, shown, strict=True):
        step.sources = sources(manifest, path, found.base, known)
    elsewhere = [(file.name, file.kind) for file in found.rows if not file.manifest]
    elsewhere += [(result.name, "results") for result in found.results if not result.manifest]
    return History(steps, len(held) - len(shown), elsewhere, in_a_line([item[0] for item in held]))


def step_of(number: int, manifest: Manifest, name: str, path: Path, unfinished: bool) -> Step:
    counts = manifest.get("counts") or {}
    rejected = sum((counts.get("rejected") or {}).values())
    rows = "" if "out" not in counts else counted(counts["out"], "row")
    rows = counted(counts["in"], "prompt") if not rows and "in" in counts else rows
    machine = " ".join(str(manifest[key]) for key in ("device", "dtype") if manifest.get(key))
    options = manifest["options"]
    return Step(
        number=number,
        stage=manifest["stage"],
        name=named(name),
        path=path,
        started=date_of(manifest.get("started")),
        took=duration(manifest.get("seconds")) if manifest.get("seconds") is not None else "",
        seed="" if manifest["seed"] is None else str(manifest["seed"]),
        rows=rows + (f", {rejected:,} rejected" if rejected else ""),
        machine=machine,
        unfinished=unfinished,
        settings=[
            (f"--{key.replace('_', '-')}", named(options[key], 40))
            for key in SETTINGS
            if options.get(key) is not None and not isinstance(options[key], dict | list)
        ],
    )


def sources(manifest: Manifest, artifact: Path, base: Path, known: dict[str, int]) -> list[Source]:
    """Models, inputs and the constitution that it was made from."""
    items = [*manifest["models"], *manifest["inputs"]]
    if manifest["constitution"]:
        items.append({**manifest["constitution"], "option": "constitution"})
    found = []
    for item in items:
        option = named(item["option"].replace("_", " "), 30)
        if is_on_hub(item):
            found.append(Source(option, named(item["path"]), 0))
            continue
        path = source_path(artifact, item)
        found.append(Source(option, named(told_from(path, base)), known.get(os.path.realpath(path), 0)))
    return found


def told_from(path: Path, base: Path) -> str:
    """A path from the report's directory; of one elsewhere its last name alone: pages are shown to others."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def date_of(started: Any) -> str:
    """`27 Nov 2026, 00:07`; empty where it is none."""
    when = moment(started)
    return f"{when.day} {when:%b %Y, %H:%M}" if when else ""


def moment(started: Any) -> datetime | None:
    try:
        return datetime.strptime(started, "%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError):
        return None


def end_of(when: datetime, seconds: float) -> datetime:
    try:
        return when + timedelta(seconds=max(0, seconds))
    except OverflowError:  # no command takes so long: somebody wrote the manifest
        return when


def in_a_line(manifests: list[Manifest]) -> str:
    """`11 steps, 27 Nov 2026, 00:07 – 00:32 UTC, seed 0, cai 0.1.0`."""
    if not manifests:
        return ""
    parts = [counted(len(manifests), "step")]
    begun = [(when, manifest) for manifest in manifests if (when := moment(manifest.get("started")))]
    if begun:
        first = min(when for when, _ in begun)
        last = max(end_of(when, manifest.get("seconds") or 0) for when, manifest in begun)
        end = f"{last:%H:%M}" if first.date() == last.date() else f"{last.day} {last:%b %Y, %H:%M}"
        parts.append(f"{first.day} {first:%b %Y, %H:%M} – {end} UTC")
    seeds = sorted({str(manifest["seed"]) for manifest in manifests if manifest["seed"] is not None})
    if seeds:
        parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {named(', '.join(seeds), 40)}")
    versions = sorted({str(manifest["version"]) for manifest in manifests if manifest.get("version")})
    return " · ".join([*parts, *(f"cai {named(version, 20)}" for version in versions[:3])])
