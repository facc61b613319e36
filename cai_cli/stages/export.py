"""`cai export paper-chains revisions.jsonl`: our records -> a public format.

    cai export paper-chains revisions.jsonl --out chains.jsonl

paper-chains: the critique-revision chains of the Constitutional AI paper (`*_SLMADISON.jsonl`). What `cai import paper-chains`
made comes out as it was published; chains of `cai revise` get the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cai_cli.artifact import check_same, move_to_backup
from cai_cli.errors import UserError
from cai_cli.jsonl import read_records, write_rows
from cai_cli.manifest import begin_manifest, manifest_path, read_manifest, write_manifest
from cai_cli.options import INPUT, OutputOptions
from cai_cli.talk import say


@dataclass(frozen=True, kw_only=True)
class Options(OutputOptions):
    format: Annotated[Literal["paper-chains"], typer.Argument(help="What to write.")]
    file: Annotated[Path, typer.Argument(help="A revisions file."), INPUT]


def run(options: Options) -> None:
    """Write our records in a public format.

    Example: cai export paper-chains revisions.jsonl --out chains.jsonl
    """
    from cai_cli.importers.paper_chains import PublishedChain, export_chain

    manifest = begin_manifest("export", options, options.out.parent)
    place = manifest_path(options.out)
    old: dict[str, Any] | None = read_manifest(place)
    if old is None and options.out.exists():
        raise UserError(f"{options.out} exists and has no manifest", "move it away, or choose another --out")
    same = old is not None and check_same(old, manifest, options)
    if same and options.out.exists():
        say(f"{options.out}: already done; nothing to do")
        return
    rows = [export_chain(chain) for chain in read_records(options.file, PublishedChain.from_row)]
    if not rows:
        raise UserError(f"{options.file}: no rows in it", "its stage may have rejected everything")
    if options.dry_run:
        say(f"{len(rows)} chains")
        return
    if old is not None:
        move_to_backup(options.out, place)
    write_manifest(place, {**manifest, "counts": {"in": len(rows), "out": len(rows), "rejected": {}}})
    write_rows(options.out, rows)
    say(f"{options.out}: {len(rows)} chains")
