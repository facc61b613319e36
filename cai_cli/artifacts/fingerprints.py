"""What a thing is by its content: hashes of files, and of all the files that a model consists of, each by its
name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cai_cli.rows.storage import STDIN, open_input

WHOLE_FILE_BYTES = 64 << 20
SAMPLE_BYTES = 1 << 16
SAMPLES = 64
NAMED_FILES = 3  # of the files that changed
ADAPTER_CONFIG = "adapter_config.json"
EXPORT_SETTINGS = "export.json"  # what `cai export` writes for another engine's PPO
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
# All that decides what a model says: its weights, how they are put together, how text becomes ids, and where
# a reply ends.
MODEL_FILES = (
    *WEIGHT_FILES,
    "*.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "*.model",  # SentencePiece: tokenizer.model, spiece.model, sentencepiece.bpe.model
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    EXPORT_SETTINGS,
)


def hash_file(path: Path) -> str:
    with open_input(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_file(path: Path) -> str:
    """Whole-content hash up to 64 MiB; above, of the size and 64 evenly spaced samples, so that 100 GB take
    seconds.
    """
    if path == STDIN or (size := path.stat().st_size) <= WHOLE_FILE_BYTES:
        return hash_file(path)
    state = hashlib.sha256(str(size).encode())
    with open_input(path) as stream:
        for n in range(SAMPLES):
            stream.seek((size - SAMPLE_BYTES) * n // (SAMPLES - 1))
            state.update(stream.read(SAMPLE_BYTES))
    return state.hexdigest()


def model_files(path: str, patterns: tuple[str, ...] = MODEL_FILES) -> dict[str, str]:
    """Name -> fingerprint of the files that a model directory consists of; none for a name on the Hub.

    Those of the model below an adapter are there too, as `base/<name>`.
    """
    found: dict[str, str] = {}
    folder, below, seen = Path(path), "", set[Path]()
    while folder.is_dir() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        files = {file for pattern in patterns for file in folder.glob(pattern)}
        found |= {
            f"{below}{file.relative_to(folder).as_posix()}": fingerprint_file(file) for file in sorted(files)
        }
        base = base_model(folder)
        if base is None:
            break
        folder, below = Path(base), f"{below}base/"
    return found


def base_model(folder: Path) -> str | None:
    """Directory or name of the model that an adapter is put on; None for a model, or where the adapter does
    not say it.
    """
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) else None


def combined(files: dict[str, str], path: str) -> str:
    """One hash for all of a model's files; of the name itself where it has none here."""
    lines = [f"{name}={files[name]}\n" for name in sorted(files)] if Path(path).is_dir() else [path]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprint_model(path: str) -> str:
    """Hash of all that a model directory consists of; of the name itself where it is not a directory."""
    return combined(model_files(path), path)


def fingerprint_weights(path: str) -> str:
    """Hash of a model's weights alone: equal for two copies under different names."""
    return combined(model_files(path, WEIGHT_FILES), path)


def file_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs between two models' files: `tokenizer_config.json has other content`, `vocab.json is
    gone`.
    """
    both = before.keys() & now.keys()
    found = []
    for names, one, several in (
        ({name for name in both if before[name] != now[name]}, "has other content", "have other content"),
        (now.keys() - before.keys(), "is new", "are new"),
        (before.keys() - now.keys(), "is gone", "are gone"),
    ):
        if names:
            more = [f"{len(names) - NAMED_FILES} more"] if len(names) > NAMED_FILES else []
            told = [*sorted(names)[:NAMED_FILES], *more]
            found.append(f"{', '.join(told)} {one if len(names) == 1 else several}")
    return found
