"""`cai lineage PATH`: the tree of data, models and constitution that an artifact came from, and what is stale.

Stale: an input has another content now than when the artifact was made, or is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from cai_cli.errors import UserError
from cai_cli.manifest import Manifest, fingerprint_file, fingerprint_model, hash_file, manifest_path, read_manifest
from cai_cli.talk import console


@dataclass(frozen=True, kw_only=True)
class Options:
    artifact: Annotated[Path, typer.Argument(help="A file or model directory that a stage wrote.")]


def run(options: Options) -> None:
    """Show what an artifact was made from, and what is stale.

    Example: cai lineage runs/demo/rl-cai
    """
    manifest = read_manifest(manifest_path(options.artifact))
    if manifest is None:
        hint = f"a stage writes {manifest_path(options.artifact).name} beside its output"
        raise UserError(f"{options.artifact}: has no manifest", hint)
    tree = Tree(label(options.artifact, manifest, None))
    grow(tree, options.artifact, manifest)
    from rich import get_console

    get_console().print(tree)
    if stale := [name for name in walk_labels(tree) if "stale" in name or "missing" in name]:
        console.print(f"{len(stale)} stale")


def grow(tree: Tree, artifact: Path, manifest: Manifest) -> None:
    """Add what the artifact was made from, each with its own sources below it."""
    folder = manifest_path(artifact).parent
    for item in manifest["inputs"] + manifest["models"]:
        path = folder / item["path"] if not str(item["path"]).startswith("hf:") else Path(item["path"])
        parent = read_manifest(manifest_path(path)) if path.exists() else None
        branch = tree.add(label(path, parent, state_of(path, item), item["option"]))
        if parent is not None:
            grow(branch, path, parent)
    if constitution := manifest.get("constitution"):
        path = folder / constitution["path"]
        state = "missing" if not path.is_file() else None if hash_file(path) == constitution["sha256"] else "stale"
        tree.add(label(path, None, state, "constitution"))


def state_of(path: Path, item: dict[str, Any]) -> str | None:
    if not path.exists():
        return None if "/" in str(item["path"]) and not str(item["path"]).startswith((".", "/")) else "missing"
    now = fingerprint_model(str(path)) if "fingerprint" in item else fingerprint_file(path)
    return None if now == item.get("fingerprint", item.get("sha256")) else "stale"


def label(path: Path, manifest: Manifest | None, state: str | None, option: str = "") -> str:
    shown = path.resolve()
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    parts = [f"[dim]{option.replace('_', '-')}[/dim] " if option else "", f"[bold]{escape(str(shown))}[/bold]"]
    if manifest:
        counts = manifest.get("counts") or {}
        rows = f", {counts['out']} rows" if "out" in counts else ""
        parts.append(f"  [dim]cai {manifest['stage']}, seed {manifest['seed']}{rows}[/dim]")
    if state:
        parts.append(f"  [red]{state}[/red]")
    return "".join(parts)


def walk_labels(tree: Tree) -> list[str]:
    return [str(tree.label), *(name for child in tree.children for name in walk_labels(child))]
