"""`cai split FILE... --parts sft=0.5,rl=0.4,test=0.1 --out DIR`: prompts -> DIR/<part>.jsonl.

A prompt's part depends on its first human turn and the seed alone, near-duplicates together: the same prompt
is on one side in every stage and every rerun.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Annotated

import typer

from cai_cli.artifacts.manifest import begin_manifest
from cai_cli.artifacts.split_files import SplitFolder
from cai_cli.console.messages import say, warn_all
from cai_cli.console.options import INPUT, OutputOptions, Takes, flag
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import dump_row
from cai_cli.rows.prompt_files import stream_prompts
from cai_cli.rows.splits import assign_prompt, split_cautions


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    prompts: Annotated[
        list[str], typer.Argument(help="Prompts in any form that is read, - for stdin."), INPUT, Takes.STDIN
    ]
    parts: Annotated[
        str, flag("Data", "Names and proportions: sft=0.5,label=0.2,rl=0.2,validation=0.05,test=0.05.")
    ]


def run(options: Options) -> None:
    """Divide prompts into parts that never share a conversation.

    Example: cai split prompts.jsonl --parts sft=0.5,rl=0.4,test=0.1 --out splits/
    """
    manifest = begin_manifest("split", options, options.output.out)
    folder = SplitFolder(options, options.parts, manifest)
    if folder.done():
        return
    prompts = stream_prompts(options.prompts)
    if options.output.dry_run:
        counts = Counter(
            assign_prompt(prompt.prompt, folder.parts, options.output.seed) for prompt in prompts
        )
        say(", ".join(f"{name} {counts[name]}" for name in folder.parts))
        warn_all(split_cautions(folder.parts, counts))
        return
    # What lies at --out is touched when all rows have been read: any may be malformed
    with TemporaryFile("w+", encoding="utf-8", newline="\n") as lines:
        lines.writelines(dump_row(prompt.to_row()) + "\n" for prompt in prompts)
        lines.seek(0)
        folder.write(((load_json(line)["prompt"], line.rstrip("\n")) for line in lines), manifest)
