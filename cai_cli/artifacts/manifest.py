"""Manifests: what an artifact was made from, kept beside it, and whether a new command would make the same
one.

Beside `revisions.jsonl` lies `revisions.manifest.json`; inside a model directory it is `cai.json`. Identity
is what changes
content: the stage, its content options, and the hashes of the inputs, models and constitution, wherever they
lie.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cai_cli import __version__
from cai_cli.artifacts.fingerprints import hash_file
from cai_cli.artifacts.identity import identity
from cai_cli.artifacts.inputs import describe_input, describe_model, describe_named
from cai_cli.artifacts.manifest_shape import Manifest, Misshapen, parse_manifest
from cai_cli.console.groups import flags_of, values_of
from cai_cli.console.options import CONSTITUTION, DEMONSTRATIONS, INPUT, MODEL, NAMED
from cai_cli.errors import UserError
from cai_cli.prompting.constitution import find_constitution
from cai_cli.rows.jsonl import strict_json, write_atomically
from cai_cli.rows.storage import is_input, read_input

LARGEST_MANIFEST = 16 << 20
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "bitsandbytes")


def plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def begin_manifest(stage: str, options: Any, folder: Path) -> Manifest:
    """The manifest as known before the work: options, hashes of inputs, models and constitution. Paths are
    relative.
    """
    given = values_of(options)
    manifest: Manifest = {"stage": stage, "version": __version__, "seed": given.get("seed")}
    manifest["options"] = {name: plain(value) for name, value in given.items()}
    inputs, models, constitution = [], [], None
    for name, flag in flags_of(type(options)).items():
        part, value = flag.part, given[name]
        values = value if isinstance(value, list) else [] if value is None else [value]
        if part is INPUT:
            inputs += [describe_input(name, str(item), folder) for item in values]
        elif part is MODEL:
            models += [describe_model(name, str(item), folder) for item in values]
        elif part is NAMED:
            for number, item in enumerate(values):
                named = describe_named(name, str(item), folder, number)
                (models if "files" in named else inputs).append(named)
        elif part is DEMONSTRATIONS and value is not None and Path(value).is_file():
            inputs.append(describe_input(name, value, folder))
        elif part is CONSTITUTION and value is not None:
            path = find_constitution(value)
            if name == "constitution":
                constitution = {
                    "name": value,
                    "path": os.path.relpath(path, folder),
                    "sha256": hash_file(path),
                }
            else:  # a second one, beside it
                inputs.append(describe_input(name, str(path), folder))
    manifest |= {"inputs": inputs, "models": models, "constitution": constitution}
    manifest["libraries"] = {"python": ".".join(map(str, sys.version_info[:3])), **library_versions()}
    manifest["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest["identity"] = identity(manifest, type(options))
    return manifest


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Those of the named libraries that are installed."""
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_facts(device: str, dtype: str) -> dict[str, Any]:
    """Device, dtype and threads, for stages that ran a model. Called where torch is loaded."""
    import platform

    import torch

    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine()
    )
    return {"device": device, "device_name": name, "dtype": dtype, "threads": torch.get_num_threads()}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in the file, checked whole; None where there is none. Raises UserError that names file and
    field.
    """
    if not is_input(path):
        return None
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise Misshapen("", f"is larger than {LARGEST_MANIFEST >> 20} MiB")
        return parse_manifest(read_input(path))
    except Misshapen as error:
        raise UserError(
            f"{path}: {error}", "restore it, or move it away with what it belongs to, and make that again"
        ) from None
    except ValueError:
        raise UserError(
            f"{path}: is not one of our manifests", "move it away, or choose another --out"
        ) from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    text = strict_json(manifest, str(path), indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        text = json.dumps(manifest, indent=2)
    write_atomically(path, text + "\n")
