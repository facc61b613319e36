"""Where what belongs to an artifact lies: its manifest, its rejected rows, backups of an older one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from cai_cli.artifacts.fingerprints import ADAPTER_CONFIG
from cai_cli.rows.jsonl import write_atomically
from cai_cli.rows.storage import is_input

MODEL_MANIFEST = "cai.json"
FILE_ENDINGS = (".jsonl", ".json", ".yaml", ".yml")  # x.jsonl and x.json both have x.manifest.json


def manifest_path(out: Path) -> Path:
    """Where the manifest of an artifact lies; that of an adapter is the one of the model it was saved with."""
    if out.suffix == "" or os.path.isdir(out):  # noqa: PTH112 - a name that can be no path is no folder
        own, beside = out / MODEL_MANIFEST, out.parent / MODEL_MANIFEST
        return beside if is_adapter(out) and beside.is_file() and not own.is_file() else own
    name = re.sub(r"\.(jsonl?|ya?ml)$", "", out.name.removesuffix(".gz"))
    return out.with_name(f"{name}.manifest.json")


def is_adapter(folder: Path) -> bool:
    """Whether the directory holds low-rank adapters, to be put on a base model, instead of a model."""
    return is_input(folder / ADAPTER_CONFIG)


def unfinished(out: Path) -> Path:
    """The file in the making, before it has its name."""
    return out.with_name(out.name + ".partial")


def rejects_path(out: Path) -> Path:
    """Where the rejected rows of an artifact lie."""
    stem = manifest_path(out).name.removesuffix(".manifest.json")
    return out.with_name(f"{stem}.rejects.jsonl")


PARTIAL_MODEL_MANIFEST = "cai.partial.json"


def move_to_backup(*paths: Path) -> None:
    """Rename each existing path to `<name>.bak`, replacing an older backup."""
    for path in paths:
        if path.exists():
            backup = path.with_name(path.name + ".bak")
            if backup.is_dir():
                shutil.rmtree(backup)
            path.replace(backup)


def copy_to_backup(*paths: Path) -> None:
    """Copy each existing manifest to `<name>.bak`; its place is overwritten when the new one is written.

    Until all else has moved it tells a restart that was killed from a new start.
    """
    for path in paths:
        if path.exists():
            write_atomically(path.with_name(path.name + ".bak"), path.read_text(encoding="utf-8"))
