"""The tensors that a directory says it holds, by the headers of its safetensors files: names, shapes and
types, without torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_cli.artifacts.fingerprints import ADAPTER_CONFIG
from cai_cli.errors import UserError, first_line
from cai_cli.rows.storage import read_input

Shapes = dict[str, tuple[int, ...]]
WEIGHTS, INDEX, ADAPTER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
# What peft and others put in front of a head's name
WRAPPERS = r"(?:base_model\.model\.|module\.|_orig_mod\.)*"
AGAIN = "fetch or save it again"
PICKLE = "is a pickle, which may run code when read: convert it with `save_pretrained` on a machine you trust it on"
OTHER_WEIGHTS = (
    ("*.bin", PICKLE),
    ("*.pt*", PICKLE),
    ("*.gguf", "is GGUF, for inference elsewhere: fetch the model's *.safetensors"),
    ("*.incomplete", "is half a download: fetch it again"),
)


def model_shapes(folder: Path, flag: str, path: str) -> Shapes:
    """Name -> shape of every tensor of a model; empty where there are no safetensors. Raises UserError for
    files cut short.
    """
    shapes: Shapes = {}
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        return shapes
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{folder / INDEX}: no weight_map in it", AGAIN)
    for file in sorted(set(places.values())):
        if not (folder / file).is_file():
            half = next(
                (name.name for name in folder.rglob(f"*{Path(file).stem}*") if name.name != file), None
            )
            told = f"{flag} {path}: {file} is missing" + (f" ({half} is there)" if half else "")
            raise UserError(told, f"{INDEX} names it: fetch it")
        shapes |= header(folder / file)
    if absent := sorted(places.keys() - shapes.keys()):
        told = (
            f"{folder / places[absent[0]]}: {len(absent)} tensors of {INDEX} are not in it, first {absent[0]}"
        )
        raise UserError(told, AGAIN)
    return shapes


def adapter_shapes(adapter: str, flag: str) -> Shapes:
    """Name -> shape of the tensors of an adapter that can be merged. Raises UserError for any other."""
    folder = Path(adapter)
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if not kind:
        raise UserError(f"{folder / ADAPTER_CONFIG}: no peft_type in it", AGAIN)
    if "num_virtual_tokens" in config or kind in ("ADAPTION_PROMPT", "XLORA"):
        raise UserError(
            f"{flag} {adapter}: an adapter of kind {kind} cannot be merged", "use one of LoRA's kind"
        )
    if config.get("megatron_config"):  # peft would import the module that it names
        raise UserError(f"{flag} {adapter}: is an adapter for Megatron", "convert it for transformers")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{flag} {adapter}: has no {ADAPTER_WEIGHTS}", missing_weights(folder))
    return header(folder / ADAPTER_WEIGHTS)


def missing_weights(folder: Path) -> str:
    """The next step for a directory without safetensors, by what is there instead."""
    for pattern, hint in OTHER_WEIGHTS:
        if file := next(iter(sorted(folder.rglob(pattern))), None):
            return f"{file.name} {hint}"
    return "no *.safetensors in it: " + AGAIN


def header(file: Path) -> Shapes:
    """Name -> shape from a safetensors file's header. Raises UserError where the file is not of the length
    that it gives.
    """
    return {name: tuple(tensor["shape"]) for name, tensor in tensors_of(file).items()}


def tensor_types(file: Path) -> dict[str, str]:
    """Name -> dtype as safetensors writes it (F32, BF16), from the file's header."""
    return {name: str(tensor.get("dtype")) for name, tensor in tensors_of(file).items()}


def tensors_of(file: Path) -> dict[str, dict[str, Any]]:
    """What the header says of each tensor. Raises UserError where the file is not of the length that it
    gives.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            content = b"" if length > size - 8 else stream.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}", AGAIN) from None
    if start == b"version ":
        raise UserError(f"{file}: is a pointer of Git LFS, not the file itself", "run `git lfs pull` there")
    if not content:
        problem = "is empty" if size == 0 else f"is no safetensors file or is cut short ({size} bytes)"
        raise UserError(f"{file}: {problem}", AGAIN)
    try:
        tensors = json.loads(content)
        found = {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}
        for tensor in found.values():
            tuple(tensor["shape"])
        end = max(
            (tensor["data_offsets"][1] for tensor in tensors.values() if "data_offsets" in tensor), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{file}: its header is damaged", AGAIN) from None
    if size != 8 + length + end:
        problem = "is cut short" if size < 8 + length + end else "is too long"
        raise UserError(f"{file}: {problem}: {size} bytes, its header gives {8 + length + end}", AGAIN)
    return found


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(given := read_input(file, AGAIN))
    except ValueError as error:
        pointer = given.startswith(b"version https://git-lfs")
        told = (
            "is a pointer of Git LFS, not the file itself" if pointer else f"is not JSON: {first_line(error)}"
        )
        raise UserError(f"{file}: {told}", "run `git lfs pull` there" if pointer else AGAIN) from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not a JSON object", AGAIN)
    return content
