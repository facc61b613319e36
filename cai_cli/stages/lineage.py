"""`cai lineage PATH`: the tree of data, models and constitution that an artifact came from, and what is stale.

Stale: an input has another content now than when the artifact was made. Missing: it is gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cai_cli.errors import UserError
from cai_cli.manifest import Manifest, fingerprint_file, fingerprint_model, hash_file, manifest_path, read_manifest
from cai_cli.talk import say

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

STALE, MISSING = "stale", "missing"


@dataclass(frozen=True, kw_only=True)
class Options:
    artifact: Annotated[Path, typer.Argument(help="A file or model directory that a stage wrote.")]


def run(options: Options) -> None:
    """Show what an artifact was made from, and what is stale.

    Example: cai lineage runs/demo/rl-cai
    """
    from rich.console import Console
    from rich.tree import Tree

    manifest = read_manifest(manifest_path(options.artifact))
    if manifest is None:
        problem = "has no manifest" if options.artifact.exists() else "no such file or directory"
        hint = f"a stage writes {manifest_path(options.artifact).name} with its output"
        raise UserError(f"{options.artifact}: {problem}", hint)
    tree = Tree(label(shown(options.artifact), manifest))
    states = grow(tree, options.artifact, manifest)
    Console(soft_wrap=True, highlight=False).print(tree)
    if states:
        say(", ".join(f"{count} {state}" for state, count in sorted(states.items())))


def grow(tree: Tree, artifact: Path, manifest: Manifest) -> Counter[str]:
    """Add what the artifact was made from, each with its own sources below it. Returns how many are stale or missing."""
    folder = manifest_path(artifact).parent
    states: Counter[str] = Counter()
    for item in manifest["inputs"] + manifest["models"]:
        if on_hub(item):
            tree.add(label(item["path"], None, item["option"]))
            continue
        path = folder / item["path"]
        state = state_of(path, item)
        parent = read_manifest(manifest_path(path)) if path.exists() else None
        branch = tree.add(label(shown(path), parent, item["option"], state))
        states.update([state] if state else [])
        if parent is not None:
            states += grow(branch, path, parent)
    if constitution := manifest.get("constitution"):
        path = folder / constitution["path"]
        state = state_of(path, constitution)
        states.update([state] if state else [])
        tree.add(label(shown(path), None, "constitution", state))
    return states


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
    # A constitution is hashed whole, an input by samples where it is large; small files are the same either way.
    now = fingerprint_file(path) if "option" in item else hash_file(path)
    return None if now == item["sha256"] else STALE


def shown(path: Path) -> str:
    """The path from here, where it is below here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def label(name: str, manifest: Manifest | None, option: str = "", state: str | None = None) -> Text:
    from rich.text import Text

    parts = [(f"{option.replace('_', '-')} ", "dim"), (name, "bold")]
    if manifest:
        counts = manifest.get("counts") or {}
        rows = f", {counts['out']} rows" if "out" in counts else ""
        parts.append((f"  cai {manifest['stage']}, seed {manifest['seed']}{rows}", "dim"))
    if state:
        parts.append((f"  {state}", "red"))
    return Text.assemble(*(part for part in parts if part[0].strip()))
