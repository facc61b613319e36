"""`cai lineage PATH`: the tree of data, models and constitution that an artifact came from, and what is
stale.

Stale: an input has another content now than when the artifact was made. Missing: it is gone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli.artifacts.ancestry import is_on_hub, source_path, unnested
from cai_cli.artifacts.fingerprints import file_changes, fingerprint_file, hash_file, model_files
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.messages import say, show_text
from cai_cli.errors import UserError
from cai_cli.rows.sources import PIPED
from cai_cli.rows.storage import is_input

STALE, MISSING = "stale", "missing"
INPUT, MODEL, CONSTITUTION = "input", "model", "constitution"
# A constitution is hashed whole, an input by samples where it is large.
HASHES: dict[str, Callable[[Path], Any]] = {
    INPUT: fingerprint_file,
    MODEL: lambda path: model_files(str(path)),
    CONSTITUTION: hash_file,
}
WIDEST = 200  # characters of an indent: of a chain of thousands the last levels are drawn


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
    tree = Tree()
    show_text(label(shown(options.artifact), manifest))
    for line in unnested(tree.branches(options.artifact, manifest)):
        show_text(line)
    if tree.states:
        say(", ".join(f"{count} {state}" for state, count in sorted(tree.states.items())))


class Tree:
    """The lines of a tree, and how many things in it are stale or missing.

    What an artifact was made from stands below it where it is met first; a manifest that leads back to itself
    ends there.
    """

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.met: set[str] = set()
        self.hashes: dict[tuple[str, Path], Any] = {}

    def branches(self, artifact: Path, manifest: Manifest, indent: str = "") -> Iterator[str | Iterator[Any]]:
        """A line for each thing the artifact was made from, the walk over its own sources after it (see
        `unnested`).
        """
        self.met.add(os.path.realpath(artifact))
        items = [(INPUT, item) for item in manifest["inputs"]] + [
            (MODEL, item) for item in manifest["models"]
        ]
        if constitution := manifest["constitution"]:
            items.append((CONSTITUTION, {**constitution, "option": "constitution"}))
        for number, (kind, item) in enumerate(items, start=1):
            corner, below = ("└── ", "    ") if number == len(items) else ("├── ", "│   ")
            if no_file(item):
                yield indent + corner + label(item["path"], None, item["option"])
                continue
            path = source_path(artifact, item)
            state = self.state_of(kind, path, item)
            parent = None if state == MISSING else read_manifest(manifest_path(path))
            again = parent is not None and os.path.realpath(path) in self.met
            yield (
                indent
                + corner
                + label(shown(path), parent, item["option"], state)
                + ("  (above)" if again else "")
            )
            if parent is not None and not again:
                yield self.branches(path, parent, (indent + below)[-WIDEST:])

    def state_of(self, kind: str, path: Path, item: dict[str, Any]) -> str | None:
        """Whether a thing is missing or stale, a model with the files that changed; it is counted."""
        there = os.path.isdir(path) if kind == MODEL else is_input(path)  # noqa: PTH112 - False for what can be no path
        state = None if there else MISSING
        if there and (now := self.hash_of(kind, path)) != (
            written := item["files" if kind == MODEL else "sha256"]
        ):
            state = f"{STALE}: {'; '.join(file_changes(written, now))}" if kind == MODEL else STALE
        self.states.update([state.partition(":")[0]] if state else [])
        return state

    def hash_of(self, kind: str, path: Path) -> Any:
        """What the content of a thing is now; it is read once."""
        if (kind, path) not in self.hashes:
            self.hashes[kind, path] = HASHES[kind](path)
        return self.hashes[kind, path]


def no_file(item: dict[str, Any]) -> bool:
    """Whether nothing of it lies here: it is on the Hub, or came over stdin and is gone."""
    return is_on_hub(item) or item["path"] == PIPED


def shown(path: Path) -> str:
    """The path from here, where it is below here."""
    path = Path(os.path.realpath(path))  # as `resolve`, which would not take a link that leads to itself
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def label(name: str, manifest: Manifest | None, option: str = "", state: str | None = None) -> str:
    text = f"{option.replace('_', '-')} {name}".lstrip()
    if manifest:
        counts = manifest.get("counts") or {}
        rows = f", {counts['out']} rows" if "out" in counts else ""
        text += f"  cai {manifest['stage']}, seed {manifest['seed']}{rows}"
    return f"{text}  {state}" if state else text
