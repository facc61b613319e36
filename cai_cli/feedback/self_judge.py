"""A model is not its own judge: its preferences about its own replies teach it nothing (paper: another model
judges).

Told from files where that can be done, before anything is loaded; else from the loaded weights, which also
finds a model that was stored in another way (other shards, another type, an adapter beside its base model).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai_cli.artifacts.fingerprints import WEIGHT_FILES, fingerprint_model, fingerprint_weights, model_files
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.errors import UserError
from cai_cli.rows.sources import parse_weight

HINT = "let another model judge, or pass --allow-self-judge"


def check_author(model: str | None, pairs: list[str], judge: str) -> None:
    """Raises UserError where the judge's files are those of `model`, or of the model that wrote the pairs."""
    if model and fingerprint_weights(model) == fingerprint_weights(judge):
        raise UserError(f"--feedback-model {judge}: holds the same weights as --model {model}", HINT)
    for source in pairs:
        path = Path(parse_weight(source)[0])
        for written in authors(path):
            weights = model_files(judge, WEIGHT_FILES)
            same = written["fingerprint"] == fingerprint_model(judge) or (
                weights and weights.items() <= written["files"].items()
            )
            author = path.parent / written["path"]
            if same or (author.is_dir() and fingerprint_weights(str(author)) == fingerprint_weights(judge)):
                raise UserError(
                    f"--feedback-model {judge}: holds the weights of the model that wrote {path}", HINT
                )


def authors(path: Path) -> list[dict[str, Any]]:
    """The models that sampled the replies of an artifact, by its manifest."""
    manifest = read_manifest(manifest_path(path))
    return [item for item in (manifest or {}).get("models", []) if item["option"] == "model"]


def check_two_models(writer: Any, judge: Any, name: str) -> None:
    """Raises UserError where two loaded models are the same one."""
    from cai_cli.models.compare import same_weights

    if same_weights(writer, judge):
        raise UserError(
            f"--feedback-model {name}: holds the same weights as --model, stored in another way", HINT
        )
