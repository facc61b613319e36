"""The micro-world: a tiny synthetic language, its oracle, and two small models trained on it from scratch."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINTS = ("helpful-only", "base")


def checkpoint(name: str) -> Path:
    """The folder of a shipped model, `helpful-only` or `base`, as `from_pretrained` takes it."""
    if name not in CHECKPOINTS:
        raise ValueError(f"no micro-world checkpoint {name!r}: choose from {', '.join(CHECKPOINTS)}")
    return FOLDER / "checkpoints" / name


def constitutions() -> dict[str, Path]:
    """Name -> file of the constitutions written in this world's words; the first is the demo's default."""
    names = ("kind", "curt", "permissive", "unseen")
    return {name: FOLDER / "constitutions" / f"{name}.yaml" for name in names}
