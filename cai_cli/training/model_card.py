"""README.md of a trained model, for all four trainers: what it is, what it was made from, how it was trained,
what was measured.

In: what cai.json will hold, and the manifests of what the model came from. Out: the card as huggingface_hub
reads it. Names of people's files, models and principles are never Markdown, HTML or YAML of the card, and a
local path is shown without its folders.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from cai_cli.artifacts.ancestry import is_on_hub, source_path
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.messages import visible
from cai_cli.errors import UserError
from cai_cli.evaluation.comparisons import COLUMNS, table_rows
from cai_cli.training.card_texts import CARDS, CHAT_TEXT, QA_NOTE, QA_TEXT, CardText

TEMPLATE = Path(__file__).with_suffix(".md")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#|!~$&+-])")


@dataclass(slots=True)
class Origins:
    """What a model came from, all the way back: data sets and the first model on the Hub, constitutions, what
    cannot be read.
    """

    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    constitutions: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def model_card(manifest: Manifest, folder: Path) -> str:
    """The card of the model in `folder`, whose cai.json will be `manifest`."""
    from huggingface_hub import ModelCard, ModelCardData

    stage, options = manifest["stage"], manifest["options"]
    text, origins = CARDS[stage], origins_of(manifest, folder)
    measured, results = measures(manifest)
    tags = ["constitutional-ai", *text.tags, *(["lora"] if options.get("lora") else [])]
    data = ModelCardData(
        base_model=origins.base_model,
        datasets=origins.datasets or None,
        library_name="transformers",
        pipeline_tag=text.use.pipeline_tag,
        tags=tags,
        model_name=text.title if results else None,
        eval_results=results or None,
    )
    asked = stage == "pmp" and options["format"] == "qa"
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=text.title,
        about=text.about,
        stage=stage,
        version=manifest["version"],
        python=text.use.python.replace("TEXT", QA_TEXT if asked else CHAT_TEXT).replace(
            "SPECIAL", str(asked)
        ),
        command=text.use.command,
        note=QA_NOTE if asked else text.note,
        weight=text.weight,
        sources=list(sources(manifest)),
        constitutions=origins.constitutions,
        unread=origins.unread,
        rows=rows_told(manifest),
        settings=list(settings(manifest, text)),
        measured=measured,
        limits=text.limits,
        warnings=[plain(warning) for warning in manifest.get("warnings") or []],
    )
    return str(card).rstrip() + "\n"


# What it came from


def origins_of(manifest: Manifest, folder: Path) -> Origins:
    """Read from the manifests beside its data and models, and theirs."""
    found = Origins()
    # The line of models: each was trained from the next
    trained: tuple[Manifest, Path] | None = (
        manifest,
        folder,
    )
    seen = {os.path.realpath(folder)}
    waiting = [(manifest, folder)]
    while waiting:
        item = waiting.pop(0)
        own, artifact = item
        if constitution := own["constitution"]:
            name = Path(constitution["name"]).name  # of a file that is given by its place here
            note(found.constitutions, f"{code(name)} (SHA-256 {code(constitution['sha256'][:16])})")
        for source in own["inputs"]:
            if source["path"].startswith("hf:"):
                name = source["path"].removeprefix("hf:").split(":")[0]
                note(found.datasets, name if HUB_NAME.fullmatch(name) else "")
        for source in own["models"] + own["inputs"]:
            path = source_path(artifact, source)
            if is_on_hub(source) or os.path.realpath(path) in seen:
                continue
            seen.add(os.path.realpath(path))
            try:
                parent = read_manifest(manifest_path(path))
            except UserError:
                note(found.unread, code(shown(source["path"])))
                continue
            if parent is not None:
                waiting.append((parent, path))
    while trained is not None and found.base_model is None:
        trained, found.base_model = before(*trained)
    return found


def before(manifest: Manifest, folder: Path) -> tuple[tuple[Manifest, Path] | None, str | None]:
    """The model that a model was trained from, with its manifest; or its name, where it is one of the Hub."""
    source = next((item for item in manifest["models"] if item["option"] == "model"), None)
    if source is None:
        return None, None
    if is_on_hub(source):
        return None, source["path"] if HUB_NAME.fullmatch(source["path"]) else None
    path = source_path(folder, source)
    try:
        parent = read_manifest(manifest_path(path))
    except UserError:
        parent = None
    return (None if parent is None or path == folder else (parent, path)), None


def note(names: list[str], name: str) -> None:
    """Add a name that is not there yet."""
    if name and name not in names:
        names.append(name)


def sources(manifest: Manifest) -> Iterator[list[str]]:
    """The models and files given to the command: option, name, weight, hash."""
    for item in manifest["models"] + manifest["inputs"]:
        name = item["path"] if is_on_hub(item) else shown(item["path"])
        digest = item.get("sha256") or ("" if is_on_hub(item) else item.get("fingerprint", ""))
        weight = f"{item['weight']:g}" if "weight" in item else ""
        yield [
            plain(item["option"].replace("_", " ")),
            code(name),
            weight,
            code(digest[:16]) if digest else "",
        ]


# How it was trained, and what was measured


def rows_told(manifest: Manifest) -> str:
    counts, held_out = manifest.get("counts") or {}, manifest.get("held_out")
    taken, rejected = counts.get("out", counts.get("in", 0)), sum((counts.get("rejected") or {}).values())
    apart = held_out["rows"] if isinstance(held_out, dict) else held_out
    what = {"sft": "rows", "ppo": "prompts"}.get(manifest["stage"], "pairs")
    told = [
        f"{taken:,} {what}",
        f"{apart:,} of them held out by their first human turn" if apart else "",
        f"{rejected:,} rejected",
    ]
    return ", ".join(filter(None, told)) + "."


def settings(manifest: Manifest, text: CardText) -> Iterator[tuple[str, str]]:
    options = manifest["options"]
    adapters = ("lora_r", "lora_alpha", "lora_dropout", "quantize") if options.get("lora") else ()
    for name in (*text.settings, *adapters, "seed"):
        if options.get(name) is not None:
            value = options[name]
            yield name, plain(value if isinstance(value, str) else json.dumps(value))
    for name in ("steps", "steps_done", "saved_step", "stopped", "train_loss"):
        if manifest.get(name) is not None:
            value = manifest[name]
            yield name.replace("_", " "), plain(f"{value:.4f}" if isinstance(value, float) else str(value))


def measures(manifest: Manifest) -> tuple[list[list[str]], list[Any]]:
    """A table with its heading in the first row, and the same as results of huggingface_hub; both empty where
    there are none.
    """
    stage, evaluation = manifest["stage"], manifest.get("evaluation") or {}
    if stage in ("pmp", "train-pm"):
        if not evaluation:
            return [], []
        table = [list(COLUMNS), *table_rows(evaluation)]
        spread = [
            [
                "scores: mean, deviation",
                "",
                f"{manifest['score_mean']:.3f}, {manifest['score_deviation']:.3f}",
                "",
                "",
                "",
            ]
        ]
        results = [
            result("text-classification", f"held-out comparisons, {name}", metric, group[metric])
            for name, group in evaluation.items()
            for metric in ("accuracy", "brier", "calibration_error")
            if group[metric] is not None
        ]
        return [[plain(cell) for cell in row] for row in table + spread], results
    losses = ((manifest.get("held_out") or {}).get("loss") or {}) if stage == "sft" else {}
    table = [[f"held-out loss, {kind}", f"{loss:.4f}"] for kind, loss in losses.items()]
    table += [
        [name.removeprefix("eval_").replace("_", " "), f"{value:.4f}"] for name, value in evaluation.items()
    ]
    results = [
        result("text-generation", f"held-out rows, {kind}", "loss", loss) for kind, loss in losses.items()
    ]
    results += [
        result("text-generation", "held-out prompts", name.removeprefix("eval_"), value)
        for name, value in evaluation.items()
    ]
    heading = [["", "held out"]] if table else []
    return [[plain(cell) for cell in row] for row in heading + table], results


def result(task: str, data: str, metric: str, value: float) -> Any:
    """A figure as huggingface_hub keeps it: `data` is what it was measured on."""
    from huggingface_hub import EvalResult

    kind, _, part = data.partition(", ")
    return EvalResult(
        task, kind.replace(" ", "-"), data, metric, round(value, 6), dataset_config=part or None
    )


# Text that is not ours


def shown(path: str) -> str:
    """A path without its folders."""
    return PurePath(path).name or path


def code(text: str) -> str:
    """A name as Markdown code that ends where the name does, in a cell of a table too."""
    return "`" + visible(text).replace("`", "'").replace("|", "\\|") + "`"


def plain(text: str) -> str:
    """A line of text that means nothing to Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", visible(text)) if not re.fullmatch(r"[\w .,:%–/-]*", text) else text
