"""What lies in a model directory, for `cai inspect`: read from JSON files and the headers of *.safetensors,
without torch.

Role, architecture, size, vocabulary, chat template; how it was made, what was found, and whether it is
finished, as its cai.json says. Of a directory that is no model, what it seems to be.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_cli.artifacts.fingerprints import ADAPTER_CONFIG
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import MODEL_MANIFEST, is_adapter, manifest_path
from cai_cli.errors import UserError
from cai_cli.models.configs import CONTEXT
from cai_cli.models.paths import holds_model, role_of
from cai_cli.models.weight_files import ADAPTER_WEIGHTS, INDEX, WEIGHTS, header, read_json, tensor_types

PARTIAL = "cai.partial.json"
SHOWN_LINES = 6  # of a chat template
FIGURES = (
    "pairs",
    "steps",
    "steps_done",
    "saved_step",
    "best_step",
    "stopped",
    "train_loss",
    "tokens",
    "score_mean",
    "score_deviation",
)
UNITS = ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k"))

Fact = tuple[str, str]


def portrait(folder: Path) -> Iterator[Fact]:
    """(name, value) of all that is known, in the order of interest. Raises UserError for a directory that is
    no model.
    """
    if (
        not holds_model(folder)
        and not (folder / PARTIAL).is_file()
        and not (folder / MODEL_MANIFEST).is_file()
    ):
        raise UserError(
            f"{folder}: is no model directory: {seems_to_be(folder)}",
            "a model has config.json and *.safetensors in it",
        )
    yield from state_of(folder)
    if holds_model(folder):
        yield from weights_of(folder)
        yield from tokenizer_of(folder)
    manifest = read_manifest(manifest_path(folder)) or read_manifest(folder / PARTIAL)
    if manifest:
        yield from history_of(manifest)


# Whether it is whole


def state_of(folder: Path) -> Iterator[Fact]:
    """Finished or in the making, with its checkpoints: those with a seal, and those that a kill has left
    half-written.
    """
    if (folder / MODEL_MANIFEST).is_file():
        yield "state", "finished"
    elif (folder / PARTIAL).is_file():
        yield "state", "in the making: the same command goes on with it"
    else:
        yield "state", "complete" if holds_model(folder) else "no model in it"
        yield "made by", "not by cai, or copied without its cai.json"
    found = sorted((folder / "checkpoints").glob("*-*"), key=lambda path: (path.stat().st_mtime, path.name))
    names = [
        path.name + ("" if (path / "complete").is_file() else " (half-written)")
        for path in found
        if path.is_dir()
    ]
    if names:
        yield "checkpoints", ", ".join(names)


# What it is


def weights_of(folder: Path) -> Iterator[Fact]:
    adapter = is_adapter(folder) and not (folder / "config.json").is_file()
    config = read_json(folder / (ADAPTER_CONFIG if adapter else "config.json"))
    try:
        role: str = role_of(str(folder), "inspect") or "not said"
    except UserError as error:  # shown with the rest: what is wrong with it is what one looks for
        role = f"none that works here: {error.message.removeprefix(f'inspect {folder}: ')}"
    yield "role", f"adapter, of a {role}" if adapter else role
    if adapter:
        yield "base model", str(config.get("base_model_name_or_path"))
        yield (
            "adapter",
            f"{config.get('peft_type')}, rank {config.get('r')}, alpha {config.get('lora_alpha')}",
        )
    else:
        names = ", ".join(map(str, config.get("architectures") or [])) or "not said"
        yield "architecture", f"{names} ({config.get('model_type')})"
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: Counter[str] = Counter()
    for file in weight_files(folder):
        own = header(file)
        shapes |= own
        for name, kind in tensor_types(file).items():
            dtypes[kind] += math.prod(own[name])
    if shapes:
        yield (
            "parameters",
            f"{sum(dtypes.values()):,} ({short(sum(dtypes.values()))}) in {len(shapes)} tensors",
        )
        yield (
            "dtype",
            ", ".join(
                kind if len(dtypes) == 1 else f"{kind} ({short(n)})" for kind, n in dtypes.most_common()
            ),
        )
    else:
        yield "weights", "no *.safetensors in it"
    inner = config.get("text_config")  # of a model that also sees
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    length = next((text[name] for name in CONTEXT if isinstance(text.get(name), int)), None)
    if length:
        yield "context length", f"{length:,} tokens"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold its tensors, as far as they are there."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    else:
        names = [WEIGHTS if (folder / WEIGHTS).is_file() else ADAPTER_WEIGHTS]
    return [folder / name for name in names if (folder / name).is_file()]


def short(number: int) -> str:
    """1,234,567 -> 1.2M."""
    return next((f"{number / size:.3g}{unit}" for size, unit in UNITS if number >= size), str(number))


def tokenizer_of(folder: Path) -> Iterator[Fact]:
    """Size of the vocabulary and of the model's, and the chat template: its hash and how it begins."""
    settings = (
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    )
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    told = []
    if (folder / "tokenizer.json").is_file():
        told.append(vocabulary_of(read_json(folder / "tokenizer.json")))
    elif not settings:
        told.append("no tokenizer in it")
    if isinstance(config.get("vocab_size"), int):
        told.append(f"{config['vocab_size']:,} rows of embeddings")
    yield "vocabulary", ", ".join(told) or "not said"
    file = folder / "chat_template.jinja"
    template = (
        file.read_text(encoding="utf-8", errors="replace")
        if file.is_file()
        else settings.get("chat_template")
    )
    if isinstance(template, list):  # named ones, of which `default` is used
        template = next((item.get("template") for item in template if item.get("name") == "default"), None)
    if not isinstance(template, str) or not template:
        yield "chat template", "none"
        return
    yield (
        "chat template",
        f"{hashlib.sha256(template.encode()).hexdigest()[:16]}, {len(template):,} characters, begins",
    )
    lines = template.strip("\n").splitlines()
    for line in lines[:SHOWN_LINES]:
        yield "", line[:160]


def vocabulary_of(tokenizer: dict[str, Any]) -> str:
    """How many tokens a tokenizer.json knows; its model's vocabulary is an object, or in Unigram models a
    list of pairs.
    """
    try:
        pieces = tokenizer["model"]["vocab"]
        known = set(pieces) if isinstance(pieces, dict) else {piece[0] for piece in pieces}
        return f"{len(known | {token['content'] for token in tokenizer.get('added_tokens') or []}):,} tokens"
    except (KeyError, TypeError, IndexError):
        return "tokenizer.json does not say which tokens"


# How it was made


def history_of(manifest: Manifest) -> Iterator[Fact]:
    """Stage, date, what it was made from, figures and warnings."""
    when = f", begun {manifest['started']}" if manifest.get("started") else ""
    took = f", {manifest['seconds']:,.0f} s" if manifest.get("seconds") is not None else ""
    yield (
        "made by",
        f"cai {manifest['stage']} {manifest.get('version', '')}, seed {manifest['seed']}{when}{took}".replace(
            " ,", ","
        ),
    )
    for item in [*manifest["models"], *manifest["inputs"]]:
        weight = f", weight {item['weight']:g}" if item.get("weight", 1) != 1 else ""
        yield item["option"].replace("_", " "), f"{item['path']}{weight}"
    if constitution := manifest["constitution"]:
        yield "constitution", f"{constitution['name']} ({constitution['sha256'][:16]})"
    counts = manifest.get("counts") or {}
    if counts:
        rejected = sum((counts.get("rejected") or {}).values())
        yield (
            "rows",
            figure(counts.get("out", counts.get("in"))) + (f", {rejected:,} rejected" if rejected else ""),
        )
    for name in FIGURES:
        if manifest.get(name) is not None:
            yield name.replace("_", " "), figure(manifest[name])
    held_out, evaluation = (manifest.get(name) for name in ("held_out", "evaluation"))
    losses = held_out.get("loss") if isinstance(held_out, dict) else None
    for kind, loss in (losses or {}).items():
        yield f"held-out loss, {kind}", figure(loss)
    for name, value in (evaluation if isinstance(evaluation, dict) else {}).items():
        if isinstance(value, dict):
            yield (
                f"held-out pairs, {name}",
                f"accuracy {figure(value.get('accuracy'))} of {figure(value.get('pairs'))}",
            )
        else:
            yield name.replace("_", " "), figure(value)
    for warning in manifest.get("warnings") or []:
        yield "warning", str(warning)


def figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "not known" if value is None else str(value)


# What is no model


def seems_to_be(folder: Path) -> str:
    """What a directory without a model seems to be."""
    names = sorted(file.name for file in folder.iterdir())
    inside = [name for name in names if holds_model(folder / name)]
    rows = [name for name in names if name.endswith((".jsonl", ".jsonl.gz"))]
    if not names:
        return "it is empty"
    if (folder / "complete").is_file() or folder.resolve().parent.name == "checkpoints":
        return "it seems to be a checkpoint of a run in the making"
    if (folder / "snapshots").is_dir():
        return "it seems to be the Hub's cache of a model: the model is in a folder of snapshots/"
    if {"world", "models"} <= set(names):
        return "it seems to be the folder of a demo: look at rl-cai, sl-cai or pm in it"
    if inside:
        return f"models are in it: {', '.join(inside[:5])}"
    for pattern, told in (
        ("*.safetensors", "weights without a config.json: half a model"),
        ("*.bin", "weights as a pickle without a config.json"),
        ("*.gguf", "a model in GGUF, for inference elsewhere"),
        ("tokenizer*.json", "a tokenizer without a model"),
        ("events.out.tfevents*", "logs of TensorBoard"),
    ):
        if next(folder.glob(pattern), None):
            return f"it seems to hold {told}"
    if rows:
        return f"it holds rows, each a file to inspect: {', '.join(rows[:5])}"
    return f"it holds {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
