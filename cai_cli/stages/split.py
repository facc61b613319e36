"""`cai split FILE... --parts sft=0.5,rl=0.4,test=0.1 --out DIR`: prompts -> DIR/<part>.jsonl.

A prompt's part depends on its first human turn and the seed alone, near-duplicates together: the same prompt is on one side
in every stage and every rerun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cai_cli.artifact import check_same, move_to_backup
from cai_cli.errors import UserError
from cai_cli.jsonl import dump_row
from cai_cli.manifest import begin_manifest, read_manifest
from cai_cli.options import INPUT, OutputOptions, flag
from cai_cli.prompt_files import read_prompts
from cai_cli.split_files import SPLIT_MANIFEST, finish_parts, write_parts
from cai_cli.splits import assign_prompt, parse_parts
from cai_cli.talk import say


@dataclass(frozen=True, kw_only=True)
class Options(OutputOptions):
    prompts: Annotated[list[str], typer.Argument(help="Prompts in any form that is read."), INPUT]
    parts: Annotated[str, flag("Data", "Names and proportions: sft=0.5,label=0.2,rl=0.2,validation=0.05,test=0.05.")]


def run(options: Options) -> None:
    """Divide prompts into parts that never share a conversation.

    Example: cai split prompts.jsonl --parts sft=0.5,rl=0.4,test=0.1 --out splits/
    """
    parts = parse_parts(options.parts)
    if options.out.is_file():
        raise UserError(f"--out {options.out}: is a file", "name a directory")
    manifest = begin_manifest("split", options, options.out)
    manifest_file = options.out / SPLIT_MANIFEST
    old = read_manifest(manifest_file)
    if old is not None and check_same(old, manifest, options):
        say(f"{options.out}: already done; nothing to do")
        return
    if old is None and (there := [name for name in parts if (options.out / f"{name}.jsonl").exists()]):
        raise UserError(f"{options.out / there[0]}.jsonl: exists and is not from a split", "choose another --out")
    prompts = read_prompts(options.prompts)
    if options.dry_run:
        counts = Counter(assign_prompt(prompt.prompt, parts, options.seed) for prompt in prompts)
        say(", ".join(f"{name} {counts[name]}" for name in parts))
        return
    if old is not None:
        move_to_backup(manifest_file, *part_files(options.out, parse_parts(old["options"].get("parts") or options.parts)))
    lines = ((prompt.prompt, dump_row(prompt.to_row())) for prompt in prompts)
    finish_parts(options.out, manifest, write_parts(options.out, lines, parts, options.seed))


def part_files(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    """The files of each part: its rows and their manifest."""
    for name in parts:
        yield folder / f"{name}.jsonl"
        yield folder / f"{name}.manifest.json"
