"""The files of a split: `<folder>/<part>.jsonl`, a manifest for each, and `split.manifest.json`, written last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from cai_cli.conversation import Conversation
from cai_cli.jsonl import replacing
from cai_cli.manifest import Manifest, write_manifest
from cai_cli.splits import assign_prompt
from cai_cli.talk import say

SPLIT_MANIFEST = "split.manifest.json"


def write_parts(folder: Path, rows: Iterable[tuple[Conversation, str]], parts: Mapping[str, float], seed: int) -> dict[str, int]:
    """Write `folder/<part>.jsonl` from (prompt, line) pairs, each file atomically; returns their numbers of rows."""
    files = {name: folder / f"{name}.jsonl" for name in parts}
    counts = dict.fromkeys(parts, 0)
    with ExitStack() as stack:
        streams = {name: stack.enter_context(replacing(path)) for name, path in files.items()}
        for prompt, line in rows:
            part = assign_prompt(prompt, parts, seed)
            streams[part].write(line + "\n")
            counts[part] += 1
    return counts


def finish_parts(folder: Path, manifest: Manifest, counts: Mapping[str, int]) -> None:
    """Write the manifest of each part, and last `split.manifest.json`, by which the split is complete."""
    total = sum(counts.values())
    for name, count in counts.items():
        write_manifest(folder / f"{name}.manifest.json", {**manifest, "counts": {"in": total, "out": count, "rejected": {}}})
    write_manifest(folder / SPLIT_MANIFEST, {**manifest, "counts": {"in": total, "out": total, "rejected": {}}})
    say(f"{folder}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
