"""`cai export paper-chains revisions.jsonl`: our records -> a public format. (What other engines train from is
`export_ppo`.)

    cai export paper-chains revisions.jsonl --out chains.jsonl

paper-chains: the critique-revision chains of the Constitutional AI paper (`*_SLMADISON.jsonl`). What `cai
import paper-chains` made comes out as it was published; chains of `cai revise` get the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cai_cli.artifacts.results import FileArtifact
from cai_cli.console.messages import say
from cai_cli.console.options import INPUT, OutputOptions
from cai_cli.errors import UserError
from cai_cli.rows.jsonl import dump_row, read_records


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    file: Annotated[Path, typer.Argument(help="A revisions file."), INPUT]


def run(options: Options) -> None:
    """Critique-revision chains in the format of the Constitutional AI paper.

    Example: cai export paper-chains revisions.jsonl --out chains.jsonl
    """
    from cai_cli.importers.paper_chains import PublishedChain, export_chain

    artifact = FileArtifact("export", options)
    if artifact.done:
        return
    rows = [export_chain(chain) for chain in read_records(options.file, PublishedChain.from_row)]
    if not rows:
        raise UserError(f"{options.file}: no rows in it", "its stage may have rejected everything")
    if options.output.dry_run:
        say(f"{len(rows)} chains")
        return
    artifact.start()
    artifact.write(
        "".join(f"{dump_row(row)}\n" for row in rows), {"in": len(rows), "out": len(rows), "rejected": {}}
    )
    say(f"{options.output.out}: {len(rows)} chains")
