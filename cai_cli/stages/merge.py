"""`cai merge SHARD... --out FILE`: the files of `--shard 0/N` to `N-1/N` -> the one file that a run without
shards writes.

    cai merge revisions.0.jsonl revisions.1.jsonl revisions.2.jsonl --out revisions.jsonl

Rows, rejects, counts and identity are those of the unsharded run: the stage's own command on the merged file
finds it done.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli.artifacts.claims import Claim, claim
from cai_cli.artifacts.identity import identity_differences
from cai_cli.artifacts.locks import give_back, hold
from cai_cli.artifacts.manifest import begin_manifest, read_manifest, write_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import copy_to_backup, manifest_path, move_to_backup, rejects_path, unfinished
from cai_cli.artifacts.shards import lines_by_id, parse_shard
from cai_cli.console.messages import say, warn_all
from cai_cli.console.options import INPUT, OutputOptions
from cai_cli.errors import UserError
from cai_cli.evaluation.cautions import CAUTIONED, label_cautions
from cai_cli.evaluation.revisions import summarise
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.jsonl import read_lines, write_lines
from cai_cli.rows.seen import Seen
from cai_cli.rows.storage import check_writable


def label_summary(rows: Path, rejects: Path, out: Path) -> dict[str, Any]:
    from cai_cli.feedback.label_plot import summarise_labels  # draws: matplotlib is loaded here only

    return summarise_labels(rows, out)


# What a stage's manifest says of all rows together: (rows, rejects, out) -> `summary`. A shard's own would be
# of its part.
SUMMARIES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    "revise": lambda rows, rejects, out: summarise(rows, rejects),
    "label": label_summary,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    shards: Annotated[list[Path], typer.Argument(help="All the shards of one run, in any order."), INPUT]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's file and what its manifest says."""

    path: Path
    manifest: Manifest
    index: int
    count: int


def run(options: Options) -> None:
    """Join the shards of a run into one artifact.

    Example: cai merge part.0.jsonl part.1.jsonl part.2.jsonl --out revisions.jsonl
    """
    check_one_process("shards are joined")
    mine = begin_manifest("merge", options, options.output.out.parent)
    shards = in_order([read_shard(path) for path in options.shards])
    hold(options.output.out, options.output.dry_run)
    check_unfinished(options.output.out)
    there = options.output.out if options.output.out.exists() else None
    old = read_manifest(manifest_path(options.output.out)) if there else None
    before = None
    if old is not None:
        merged = old.get("merged")
        of_shards = isinstance(merged, list)  # an import counts there what it found twice
        before = {
            **mine,
            "inputs": merged if of_shards else [],
            "stage": "merge" if of_shards else old["stage"],
            "counts": old.get("counts"),
        }
    if claim(options, mine, before, there, finished=lambda _: True) == Claim.DONE:
        return
    if options.output.dry_run:
        check_overlap(shards)
        say(f"{len(shards)} shards of `cai {shards[0].manifest['stage']}`, {total(shards, 'out')} rows")
        return
    check_writable(options.output.out, options.output.out.parent, options.output.out.stem)
    check_overlap(shards)
    rejects = rejects_path(options.output.out)
    if old is not None:
        copy_to_backup(manifest_path(options.output.out))
        move_to_backup(rejects, options.output.out)
    write_rejects(shards, rejects)
    manifest = joined_manifest(shards, options, mine)
    temporary = unfinished(options.output.out)
    rows = write_lines(temporary, (line for shard in shards for _, line in read_lines(shard.path)))
    summary = SUMMARIES.get(manifest["stage"]) if rows else None  # of nothing there is none
    if summary:
        manifest["summary"] = summary(temporary, rejects, options.output.out)
    if rows and manifest["stage"] == "label":
        summarised = manifest["summary"]
        manifest["warnings"] = warn_all(label_cautions(*(summarised[name] for name in CAUTIONED)))
    write_manifest(manifest_path(options.output.out), manifest)
    temporary.replace(options.output.out)
    give_back(options.output.out)
    say(f"{options.output.out}: {manifest['counts']['out']} rows of {len(shards)} shards")


def check_unfinished(out: Path) -> None:
    """Raise UserError where the stage's own command has begun the file."""
    begun = manifest_path(out).with_suffix(".partial.json")
    if not out.exists() and (manifest := read_manifest(begun)):
        raise UserError(
            f"{out}: `cai {manifest['stage']}` has begun it ({begun})", "finish that, or choose another --out"
        )


def read_shard(path: Path) -> Shard:
    """A finished shard. Raises UserError for any other file."""
    manifest = read_manifest(manifest_path(path))
    if (
        manifest is None
        or not {"in", "out", "rejected"} <= manifest.get("counts", {}).keys()
        or "identity" not in manifest
    ):
        raise UserError(
            f"{path}: has no finished manifest beside it",
            "only what a stage wrote with --shard can be merged",
        )
    if not manifest["options"].get("shard"):
        raise UserError(
            f"{path}: was not made with --shard", "trainers take several files as they are: repeat the flag"
        )
    return Shard(path, manifest, *parse_shard(manifest["options"]["shard"]))


def in_order(shards: list[Shard]) -> list[Shard]:
    """All shards of one run by their number. Raises UserError where they are not of one run, or not all
    there.
    """
    first = shards[0]
    for shard in shards[1:]:
        problems = identity_differences(
            first.manifest["identity"], shard.manifest["identity"], first.manifest, shard.manifest
        )
        limits = [item.manifest["options"].get("limit") for item in (first, shard)]
        if limits[0] != limits[1]:
            problems.append(f"--limit was {limits[0]}, now {limits[1]}")
        if first.count != shard.count:
            problems.append(f"it is one of {shard.count} shards, not {first.count}")
        if problems:
            raise UserError(
                f"{shard.path} is of another run than {first.path}: {'; '.join(problems)}",
                "merge shards of one run",
            )
    by_index = {shard.index: shard for shard in shards}
    if len(by_index) < len(shards):
        twice = next(index for index, count in Counter(shard.index for shard in shards).items() if count > 1)
        raise UserError(f"shard {twice}/{first.count} is given twice", "name each shard once")
    if missing := [f"{index}/{first.count}" for index in range(first.count) if index not in by_index]:
        raise UserError(f"missing: shard {', '.join(missing)}", "name all the shards of the run")
    return [by_index[index] for index in range(first.count)]


def check_overlap(shards: list[Shard]) -> None:
    """No id may be in two shards."""
    owners, files = Seen(), [file for shard in shards for file in (shard.path, rejects_path(shard.path))]
    for number, path in enumerate(files):
        for name, _ in lines_by_id(path):
            if (owner := owners.first(name, number)) != number:
                raise UserError(
                    f"{path}: id {name!r} is in {files[owner]} too",
                    "make the shards again from the same prompts",
                )


def write_rejects(shards: list[Shard], target: Path) -> None:
    files = [path for shard in shards if (path := rejects_path(shard.path)).exists()]
    if files:
        write_lines(target, (line for path in files for _, line in read_lines(path)))
    else:
        target.unlink(missing_ok=True)


def joined_manifest(shards: list[Shard], options: Options, mine: Manifest) -> Manifest:
    """The manifest of the run without shards, and `merged`: which files it was put together from."""
    first = shards[0].manifest
    rejected: Counter[str] = Counter()
    for shard in shards:
        rejected.update(shard.manifest["counts"]["rejected"])
    manifest = {
        **first,
        "options": {**first["options"], "shard": None, "out": str(options.output.out)},
        "inputs": [moved(item, shards[0].path, options.output.out) for item in first["inputs"]],
        "models": [moved(item, shards[0].path, options.output.out) for item in first["models"]],
        "constitution": first["constitution"]
        and moved(first["constitution"], shards[0].path, options.output.out),
        "counts": {
            "in": total(shards, "in"),
            "out": total(shards, "out"),
            "rejected": dict(sorted(rejected.items())),
        },
        "merged": mine["inputs"],
    }
    for name in ("summary", "warnings"):  # the first shard's
        manifest.pop(name, None)
    for name in ("tokens", "seconds", "generation_seconds"):
        if name in first:
            manifest[name] = round(sum(shard.manifest.get(name) or 0 for shard in shards), 3)
    return manifest


def total(shards: list[Shard], name: str) -> int:
    return sum(shard.manifest["counts"][name] for shard in shards)


def moved(item: dict[str, Any], beside: Path, out: Path) -> dict[str, Any]:
    """A source whose relative path starts at the merged file instead of the shard."""
    path = beside.parent / item["path"]
    there = os.path.exists(path)  # noqa: PTH110 - False for what can be no path
    return {**item, "path": os.path.relpath(path, out.parent)} if there else item
