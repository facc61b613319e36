"""`cai lineage PATH`: the tree of data, models and constitution that an artifact came from, and what is stale.

Stale: an input has another content now than when the artifact was made. Missing: it is gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli.errors import UserError
from cai_cli.manifest import Manifest, fingerprint_file, fingerprint_model, hash_file, manifest_path, read_manifest
from cai_cli.talk import say

STALE, MISSING = "stale", "missing"


@dataclass(frozen=True, kw_only=True)
class Options:
    artifact: Annotated[Path, typer.Argument(help="A file or model directory that a stage wrote.")]


def run(options: Options) -> None:
    """Show what an artifact was made from, and what is stale.

    Example: cai lineage runs/demo/rl-cai
    """
    manifest = read_manifest(manifest_path(options.artifact))
    if manifest is None:
        problem = "has no manifest" if options.artifact.exists() else "no such file or directory"
        hint = f"a stage writes {manifest_path(options.artifact).name} with its output"
        raise UserError(f"{options.artifact}: {problem}", hint)
    states: Counter[str] = Counter()
    print(label(shown(options.artifact), manifest))  # noqa: T201
    for line in branches(options.artifact, manifest, states):
        print(line)  # noqa: T201
    if states:
        say(", ".join(f"{count} {state}" for state, count in sorted(states.items())))


def branches(artifact: Path, manifest: Manifest, states: Counter[str], indent: str = "") -> Iterator[str]:
    """A line for each thing the artifact was made from, its own sources below it. What is stale or missing is counted."""
    folder = manifest_path(artifact).parent
    items = manifest["inputs"] + manifest["models"]
    if constitution := manifest.get("constitution"):
        items = [*items, {**constitution, "option": "constitution"}]
    for number, item in enumerate(items, start=1):
        corner, below = ("└── ", "    ") if number == len(items) else ("├── ", "│   ")
        if on_hub(item):
            yield indent + corner + label(item["path"], None, item["option"])
            continue
        path = folder / item["path"]
        state = state_of(path, item)
        states.update([state] if state else [])
        parent = read_manifest(manifest_path(path)) if path.exists() else None
        yield indent + corner + label(shown(path), parent, item["option"], state)
        if parent is not None:
            yield from branches(path, parent, states, indent + below)


def on_hub(item: dict[str, Any]) -> bool:
    """Data sets and models on the Hub have no content here: the first no hash, the second the hash of its name."""
    if "fingerprint" in item:
        return item["fingerprint"] == hashlib.sha256(item["path"].encode()).hexdigest()
    return item["sha256"] is None


def state_of(path: Path, item: dict[str, Any]) -> str | None:
    if "fingerprint" in item:
        if not path.is_dir():
            return MISSING
        return None if fingerprint_model(str(path)) == item["fingerprint"] else STALE
    if not path.is_file():
        return MISSING
    # A constitution is hashed whole, an input by samples where it is large.
    now = hash_file(path) if item["option"] == "constitution" else fingerprint_file(path)
    return None if now == item["sha256"] else STALE


def shown(path: Path) -> str:
    """The path from here, where it is below here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def label(name: str, manifest: Manifest | None, option: str = "", state: str | None = None) -> str:
    text = f"{option.replace('_', '-')} {name}".lstrip()
    if manifest:
        counts = manifest.get("counts") or {}
        rows = f", {counts['out']} rows" if "out" in counts else ""
        text += f"  cai {manifest['stage']}, seed {manifest['seed']}{rows}"
    return f"{text}  {state}" if state else text
