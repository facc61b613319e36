"""Manifests: what an artifact was made from, kept beside it, and whether a new command would make the same one.

Beside `revisions.jsonl` lies `revisions.manifest.json`; inside a model directory it is `cai.json`. Identity is what changes
content: the stage, its content options, and the hashes of the inputs, models and constitution, wherever they lie.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from cai_cli import __version__
from cai_cli.constitution import find_constitution
from cai_cli.errors import UserError
from cai_cli.fingerprints import ADAPTER_CONFIG, combined, file_changes, fingerprint_file, hash_file, model_files
from cai_cli.jsonl import strict_json, write_atomically
from cai_cli.manifest_shape import Manifest as Manifest
from cai_cli.manifest_shape import Misshapen, parse_manifest
from cai_cli.options import CONSTITUTION, DEMONSTRATIONS, INPUT, MODEL, NOTED, Part, Takes, flag_name
from cai_cli.ranks import world_size
from cai_cli.storage import STDIN, check_input, is_input, read_input

MODEL_MANIFEST = "cai.json"
PIPED = "-"  # how stdin is named
WEIGHT = re.compile(r"^(?P<path>.+):(?P<weight>\d+(\.\d+)?|\.\d+)$")
LARGEST_MANIFEST = 16 << 20
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "bitsandbytes")


def parse_weight(text: str) -> tuple[str, float]:
    """`FILE:0.5` -> (FILE, 0.5). A trailing `:number` is a weight, nothing else is."""
    match = WEIGHT.match(text)
    return (match["path"], float(match["weight"])) if match else (text, 1.0)


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


def rejects_path(out: Path) -> Path:
    """Where the rejected rows of an artifact lie."""
    stem = manifest_path(out).name.removesuffix(".manifest.json")
    return out.with_name(f"{stem}.rejects.jsonl")


def input_file(path: str) -> Path | None:
    """The local file behind an input, `-` for what is piped in; None for a data set on the Hub (`hf:org/name`)."""
    return None if path.startswith("hf:") else STDIN if path == PIPED else Path(path)


def check_inputs(options: Any) -> None:
    """Raise UserError for an input that is written as this option cannot be read.

    `-` stands for one input of one process, and only where rows are read that need no file's name; a weight above 0 is only for
    inputs that are mixed.
    """
    hints = get_type_hints(type(options), include_extras=True)
    piped = []
    mixed: set[tuple[str, str]] = set()
    for name in (name for name, part in parts_of(options).items() if part is INPUT):
        marks, value = hints[name].__metadata__, getattr(options, name)
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
                raise UserError(f"{told}: only prompts are read from stdin", "write it to a file, and name that")
            piped += [told] if path == PIPED else []
    if len(piped) > 1:
        raise UserError(f"{piped[-1]}: stdin is there once, and named {len(piped)} times", "write it to a file, and name that")
    if piped and world_size() > 1:
        raise UserError(f"{piped[0]}: several processes cannot share stdin", "write the prompts to a file, and name that")


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


def parts_of(options: Any) -> dict[str, Part]:
    """Which part in the identity each field of an options dataclass has."""
    hints = get_type_hints(type(options), include_extras=True)
    return {
        field.name: next(
            (mark for mark in getattr(hints[field.name], "__metadata__", ()) if isinstance(mark, Part)), Part.CONTENT
        )
        for field in dataclasses.fields(options)
    }


def plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def begin_manifest(stage: str, options: Any, folder: Path) -> Manifest:
    """The manifest as known before the work: options, hashes of inputs, models and constitution. Paths are relative."""
    manifest: Manifest = {"stage": stage, "version": __version__, "seed": getattr(options, "seed", None)}
    manifest["options"] = {name: plain(getattr(options, name)) for name in parts_of(options)}
    inputs, models, constitution = [], [], None
    for name, part in parts_of(options).items():
        value = getattr(options, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if part is INPUT:
            inputs += [describe_input(name, str(item), folder) for item in values]
        elif part is MODEL:
            models += [describe_model(name, str(item), folder) for item in values]
        elif part is DEMONSTRATIONS and value is not None and Path(value).is_file():
            inputs.append(describe_input(name, value, folder))
        elif part is CONSTITUTION and value is not None:
            path = find_constitution(value)
            constitution = {"name": value, "path": os.path.relpath(path, folder), "sha256": hash_file(path)}
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

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": device, "device_name": name, "dtype": dtype, "threads": torch.get_num_threads()}


def identity(manifest: Manifest, options_type: type) -> dict[str, Any]:
    """What must be equal for two manifests to be of the same artifact: flag -> comparable value."""
    hints = get_type_hints(options_type, include_extras=True)
    same: dict[str, Any] = {"stage": manifest["stage"]}
    described = {item["option"] for item in manifest["inputs"]}
    for field in dataclasses.fields(options_type):
        marks = getattr(hints[field.name], "__metadata__", ())
        named = DEMONSTRATIONS in marks and field.name not in described
        if named or not any(isinstance(mark, Part) for mark in marks):
            same[flag_name(field.name)] = manifest["options"].get(field.name)
    contents: dict[str, list[Any]] = {}
    for item in manifest["inputs"]:
        contents.setdefault(flag_name(item["option"]), []).append([item["sha256"] or item["path"], item["weight"]])
    for item in manifest["models"]:
        contents.setdefault(flag_name(item["option"]), []).append(item.get("fingerprint"))
    return {**same, **contents, "--constitution": (manifest["constitution"] or {}).get("sha256")}


def differences(old: Manifest, new: Manifest, options_type: type) -> list[str]:
    """What differs in identity, worded for the user: `--seed was 0, now 1`, `--prompts has other content`."""
    if old.get("stage") != new["stage"]:
        return [f"it was made by `cai {old.get('stage')}`"]
    before, now = identity(old, options_type), identity(new, options_type)
    return identity_differences(before, now, old, new)


def model_changes(name: str, old: Manifest, new: Manifest) -> list[str]:
    """Which files of the models given to a flag are not those of before; nothing where there are no files to tell by."""
    before, now = ([item["files"] for item in m["models"] if flag_name(item["option"]) == name] for m in (old, new))
    if len(before) != len(now) or not all([*before, *now]):
        return []
    return [f"{name}: {change}" for was, is_now in zip(before, now, strict=True) for change in file_changes(was, is_now)]


def identity_differences(before: dict[str, Any], now: dict[str, Any], old: Manifest, new: Manifest) -> list[str]:
    """What differs between two identities, worded for the user."""
    hashed = {flag_name(item["option"]) for source in (old, new) for item in source["inputs"] + source["models"]}
    hashed.add("--constitution")
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            changed = "has other content" if name in hashed else f"was {was}, now {is_now}"
            if name in hashed and not (was and is_now):
                changed = "is new" if is_now else "is gone"
            found += model_changes(name, old, new) or [f"{name} {changed}"]
    return found


def noted_changes(old: Manifest, new: Manifest, options_type: type) -> list[str]:
    """Changes that are allowed but worth a warning: dtype, engine."""
    hints = get_type_hints(options_type, include_extras=True)
    names = [f.name for f in dataclasses.fields(options_type) if NOTED in getattr(hints[f.name], "__metadata__", ())]
    before, now = old["options"], new["options"]
    return [f"{flag_name(n)} was {before.get(n)}, now {now[n]}" for n in names if before.get(n) != now[n]]


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in the file, checked whole; None where there is none. Raises UserError that names file and field."""
    if not is_input(path):
        return None
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise Misshapen("", f"is larger than {LARGEST_MANIFEST >> 20} MiB")
        return parse_manifest(read_input(path))
    except Misshapen as error:
        raise UserError(f"{path}: {error}", "restore it, or move it away with what it belongs to, and make that again") from None
    except ValueError:
        raise UserError(f"{path}: is not one of our manifests", "move it away, or choose another --out") from None


def rows_told(manifest: Manifest) -> str:
    """How many rows a finished artifact holds, for a line of talk; nothing where its manifest does not say."""
    counts = manifest.get("counts") or {}
    return f" ({counts['out']} rows)" if "out" in counts else ""


def write_manifest(path: Path, manifest: Manifest) -> None:
    text = strict_json(manifest, str(path), indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        text = json.dumps(manifest, indent=2)
    write_atomically(path, text + "\n")
