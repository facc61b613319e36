"""A run of `cai sample` that takes a while."""

from __future__ import annotations

from pathlib import Path


def sampling(helpful: Path, world: Path, out: object) -> tuple[object, ...]:
    limits = ("--limit", 120, "-n", 1, "--max-new-tokens", 48, "--batch-size", 2)
    return ("sample", "--model", helpful, "--prompts", world / "helpful-sft.jsonl", *limits, "--out", out)
