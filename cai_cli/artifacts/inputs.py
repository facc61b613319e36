"""The inputs and models of a command: whether they are given as they can be read, and what a manifest says of
each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cai_cli.artifacts.fingerprints import combined, fingerprint_file, hash_file, model_files
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.groups import flags_of, values_of
from cai_cli.console.options import INPUT, Takes, flag_name
from cai_cli.errors import UserError
from cai_cli.processes.ranks import world_size
from cai_cli.rows.sources import PIPED, input_file, parse_name, parse_weight
from cai_cli.rows.storage import STDIN, check_input


def check_inputs(options: Any) -> None:
    """Raise UserError for an input that is written as this option cannot be read.

    `-` stands for one input of one process, and only where rows are read that need no file's name; a weight
    above 0 is only for inputs that are mixed.
    """
    piped = []
    mixed: set[tuple[str, str]] = set()
    values = values_of(options)
    for name, flag in flags_of(type(options)).items():
        marks, value = flag.marks, values[name]
        if flag.part is not INPUT:
            continue
        for source in value if isinstance(value, list) else [value] if value is not None else []:
            path, weight = parse_weight(str(source))
            told = f"{flag_name(name)} {source}"
            if path != str(source) and Takes.WEIGHT not in marks:
                raise UserError(f"{told}: its files have no weights", f"name {path} alone")
            if weight == 0:
                raise UserError(f"{told}: a weight is above 0", "leave the file out, or give it a share")
            if (name, path) in mixed:
                raise UserError(f"{told}: is named twice", f"name it once; {path}:2 counts it twice")
            mixed |= {(name, path)} if Takes.WEIGHT in marks and path != PIPED else set()
            if path == PIPED and Takes.STDIN not in marks:
                raise UserError(
                    f"{told}: only prompts are read from stdin", "write it to a file, and name that"
                )
            piped += [told] if path == PIPED else []
    if len(piped) > 1:
        raise UserError(
            f"{piped[-1]}: stdin is there once, and named {len(piped)} times",
            "write it to a file, and name that",
        )
    if piped and world_size() > 1:
        raise UserError(
            f"{piped[0]}: several processes cannot share stdin", "write the prompts to a file, and name that"
        )


def describe_input(option: str, value: str, beside: Path) -> dict[str, Any]:
    path, weight = parse_weight(value)
    file = input_file(path)
    if file is None:
        return {"option": option, "path": path, "weight": weight, "sha256": None}
    if file == STDIN:
        return {"option": option, "path": path, "weight": weight, "sha256": fingerprint_file(file)}
    check_input(file)
    parent = manifest_path(file)
    return {
        "option": option,
        "path": os.path.relpath(file, beside),
        "weight": weight,
        "sha256": fingerprint_file(file),
        "manifest_sha256": hash_file(parent) if parent.is_file() else None,
    }


def describe_model(option: str, value: str, beside: Path) -> dict[str, Any]:
    local = Path(value).is_dir()
    parent = manifest_path(Path(value))
    files = model_files(value)
    return {
        "option": option,
        "path": os.path.relpath(value, beside) if local else value,
        "fingerprint": combined(files, value),
        "files": files,
        "manifest_sha256": hash_file(parent) if parent.is_file() else None,
    }


def describe_named(option: str, value: str, beside: Path, number: int) -> dict[str, Any]:
    """A model or a file of a list that holds both, with its place in the list and its name."""
    name, path = parse_name(value)
    describe = describe_input if Path(path).is_file() else describe_model
    return {**describe(option, path, beside), "named": f"{number}: {name or Path(path).name}"}
