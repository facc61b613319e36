"""What a model directory says of itself without torch: whether its files are whole, and which role it can
play.

Read are JSON files and the headers of *.safetensors, which name every tensor with its shape: no weights.
`check_model` goes through every model that a command takes before anything expensive. Damage inside a
tensor's bytes shows nowhere here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from cai_cli.artifacts.fingerprints import ADAPTER_CONFIG
from cai_cli.artifacts.places import is_adapter
from cai_cli.errors import UserError, first_line
from cai_cli.models.weight_files import (
    INDEX,
    OTHER_WEIGHTS,
    WRAPPERS,
    Shapes,
    adapter_shapes,
    missing_weights,
    model_shapes,
    read_json,
)
from cai_cli.rows.hub import why_offline

Role = Literal["language model", "preference model", "either"]
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", INDEX, ADAPTER_CONFIG)
# Files of which a tokenizer has one
TOKENIZERS = ("tokenizer*", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
HEAD_NAMES = ("score", "classifier")  # of a sequence classifier
PREFERENCE_MODEL = "ForSequenceClassification"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "ForConditionalGeneration")


def check_model(path: str, flag: str = "--model", role: Role | None = None, trains: bool = False) -> None:
    """Stop early where `path` is neither a model directory nor the name of a model on the Hub, or cannot play
    the `role`, or is to be trained and cannot be.

    "either" is a language model or a preference model; without a role the directory is only looked for.
    """
    check_place(path, flag)
    if role is None:
        return
    found = role_of(path, flag)
    if found is None:
        return
    check_tokenizer(path, flag)
    if trains or base_and_adapters(path, flag)[1]:
        check_unpacked(path, flag)
    if role in ("either", found):
        return
    if found == "language model":
        raise UserError(
            f"{flag} {path}: is a language model without a score head", "train it with `cai train-pm`"
        )
    raise UserError(
        f"{flag} {path}: is a preference model, not a language model", "name a causal language model"
    )


def check_place(path: str, flag: str) -> None:
    folder = Path(path)
    if folder.is_file():
        whole = f": {folder.parent}" if holds_model(folder.parent) else ""
        raise UserError(
            f"{flag} {path}: is a file", f"a model is a directory with config.json and *.safetensors{whole}"
        )
    if folder.is_dir():
        # A stage writes cai.json last: before that, even saved weights may be half a model.
        stage = folder.parent if is_adapter(folder) else folder
        if (stage / "cai.partial.json").is_file() and not (stage / "cai.json").is_file():
            hint = "its training has not finished: run the same command again"
            raise UserError(f"{flag} {path}: is not a model directory", hint)
        if not holds_model(folder):
            raise UserError(
                f"{flag} {path}: is not a model directory",
                f"no config.json in it{what_else(folder) or ': name what a trainer or `save_pretrained` wrote'}",
            )
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or path.endswith("/"):
        raise UserError(
            f"{flag} {path}: no such directory", "give a model directory, or org/name of a model on the Hub"
        )


def what_else(folder: Path) -> str:
    """What a directory without a config.json holds instead, for a hint: models below it, or rows."""
    models = sorted(
        path.parent.relative_to(folder)
        for depth in ("*", "*/*")
        for path in folder.glob(f"{depth}/config.json")
    )
    if models:
        return f": name a model below it, such as {', '.join(map(str, models[:3]))}"
    if rows := next(iter(sorted(folder.glob("*.jsonl"))), None):
        return f", but rows ({rows.name}): name the directory that a trainer wrote"
    other = any(next(folder.glob(pattern), None) for pattern, _ in OTHER_WEIGHTS)
    return f"; {missing_weights(folder)}" if other else ""


def holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def base_and_adapters(path: str, flag: str) -> tuple[str, list[str]]:
    """The model below an adapter directory, and the adapters to put on it in their order; a model is its own
    base.

    A relative base counts from the working directory, as in peft, or else from the adapter.
    """
    adapters: list[str] = []
    where = flag
    while True:
        check_place(path, where)
        if not is_adapter(Path(path)):
            return path, adapters[::-1]
        config = Path(path) / ADAPTER_CONFIG
        adapters.append(path)
        where = f"{flag} {path}: its base model"
        base = read_json(config).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise UserError(
                f"{config}: no base_model_name_or_path in it", "it says which model the adapter belongs to"
            )
        beside = Path(path) / base
        path = str(beside) if holds_model(beside) and not holds_model(Path(base)) else base
        if Path(path).resolve() in [Path(adapter).resolve() for adapter in adapters]:
            raise UserError(
                f"{config}: the adapter is its own base model", "name the model that it was trained on"
            )


def role_of(path: str, flag: str = "--model") -> Role | None:
    """Language model or preference model, as config.json, the adapters on it or else the tensors' names say.

    None where the directory says nothing. Raises UserError where a file of it is damaged, and for any other
    kind of model.
    """
    base, adapters = base_and_adapters(path, flag)
    role = base_role(base, flag if base == path else f"{flag} {path}: its base model")
    for adapter in adapters:
        shapes = adapter_shapes(adapter, flag)
        task = read_json(Path(adapter) / ADAPTER_CONFIG).get("task_type")
        if task not in (None, "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"):
            raise UserError(
                f"{flag} {adapter}: is an adapter for {task}", "an adapter here is for CAUSAL_LM or SEQ_CLS"
            )
        head = check_one_label(shapes, f"{flag} {adapter}")
        if task == "CAUSAL_LM" and role == "preference model":
            raise UserError(
                f"{flag} {adapter}: is for a language model, but {base} is a preference model",
                "name its own base",
            )
        if task == "SEQ_CLS" and role == "language model" and not head:
            hint = "save it with its score head (modules_to_save), or name the merged model"
            raise UserError(
                f"{flag} {adapter}: has no score head in it, and {base} is a language model without one", hint
            )
        role = "preference model" if task == "SEQ_CLS" or head else role
    return role


def base_role(path: str, flag: str) -> Role | None:
    folder = Path(path) if Path(path).is_dir() else hub_folder(path, flag)
    local = folder == Path(path) or why_offline() is not None  # nothing that is missing can be fetched
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    config = read_json(folder / "config.json")
    shapes = model_shapes(folder, flag, path) if local else {}
    if not config.get("model_type"):
        if shapes:
            raise UserError(
                f"{folder / 'config.json'}: no model_type in it",
                "it says which architecture the weights belong to",
            )
        return None
    if not shapes and local:
        raise UserError(f"{flag} {path}: has no weights", missing_weights(folder))
    head = check_one_label(shapes, f"{flag} {path}")
    names = [str(name) for name in config.get("architectures") or []]
    if config.get("is_encoder_decoder"):
        name = ", ".join(names) or config["model_type"]
        raise UserError(
            f"{flag} {path}: {name} has an encoder beside its decoder", "name a causal language model"
        )
    if any(name.endswith(PREFERENCE_MODEL) for name in names):
        if len(config.get("id2label") or [1]) != 1:
            raise UserError(
                f"{flag} {path}: a classifier of {len(config['id2label'])} labels",
                "a preference model has one",
            )
        return "preference model"
    if any(name.endswith(LANGUAGE_MODELS) for name in names):
        return "language model"
    if not names or all(
        name.endswith("Model") for name in names
    ):  # a body, or a hand-made config.json: the tensors tell
        return "preference model" if head else "language model"
    raise UserError(
        f"{flag} {path}: {', '.join(names)} neither writes nor scores",
        "name a causal language model or a preference model",
    )


def check_unpacked(path: str, flag: str) -> None:
    """Raise UserError where the files of the model, or of the base below an adapter, hold packed weights (of
    bitsandbytes, GPTQ, AWQ ...): they can be computed with, but no step changes them, and no adapter can be
    merged into them.
    """
    base, adapters = base_and_adapters(path, flag)
    folder = Path(base) if Path(base).is_dir() else hub_folder(base, flag)
    packing = read_json(folder / "config.json").get("quantization_config")
    if not packing:
        return
    kind = packing.get("quant_method") if isinstance(packing, dict) else None
    whose = f"its base model {base} has" if adapters else "has"
    told = f"{flag} {path}: {whose} weights that are quantised on disk ({kind or 'quantization_config'})"
    if adapters:
        raise UserError(
            f"{told}, which an adapter cannot be merged into",
            "name the unquantised base in its adapter_config.json",
        )
    raise UserError(
        f"{told}, which cannot be trained", "name the unquantised model, with --lora --quantize 4bit"
    )


def check_tokenizer(path: str, flag: str) -> None:
    """Raise UserError where neither the directory nor, below an adapter, its base model has a tokenizer's
    files.
    """
    base, adapters = base_and_adapters(path, flag)
    folders = [Path(place) for place in (base, *adapters)]
    if all(
        folder.is_dir() and not any(next(folder.glob(name), None) for name in TOKENIZERS)
        for folder in folders
    ):
        hint = "save it with the model (`tokenizer.save_pretrained`), or copy tokenizer.json and tokenizer_config.json there"
        raise UserError(f"{flag} {path}: has no tokenizer", hint)


def is_preference_model(path: str) -> bool:
    """Whether the checkpoint was saved as a sequence classifier, so that its score head means something."""
    return role_of(path) == "preference model"


def check_one_label(shapes: Shapes, where: str) -> bool:
    """Whether a score head is among the tensors. Raises UserError where it has more than one label."""
    found = False
    for name, shape in shapes.items():
        match = re.fullmatch(rf"{WRAPPERS}({'|'.join(HEAD_NAMES)})\.(.*\.)?weight", name)
        found |= match is not None
        if match and match[2] is None and len(shape) == 2 and shape[0] != 1:
            raise UserError(f"{where}: its {name} gives {shape[0]} labels", "a preference model has one")
    return found


def hub_folder(path: str, flag: str) -> Path:
    """Where the Hub's copy of a model's config.json lies on this machine."""
    from huggingface_hub import hf_hub_download

    offline = why_offline()
    try:
        return Path(hf_hub_download(path, "config.json")).parent
    except (
        Exception
    ) as error:  # the library raises many types: no such model, no config.json in it, no network
        if offline:
            told = f"{flag} {path}: no such directory, and of that name none is cached here; {offline}"
            raise UserError(
                told, f"give a model directory, or fetch it where there is a network: hf download {path}"
            ) from None
        told = f"{flag} {path}: no such directory, and no config.json of that name from the Hub: {first_line(error)}"
        raise UserError(told, "give a model directory, or org/name of a model on the Hub") from None
