"""`cai import FORMAT FILE`: public data -> our records, row by row; what does not fit goes to the rejects file with its reason.

hh-rlhf           Anthropic's hh-rlhf transcripts            -> prompts or comparisons
red-team          red_team_attempts (array or lines)         -> prompts
cai-conversation  HuggingFaceH4/cai-conversation-harmless    -> revisions or comparisons
ultrafeedback     HuggingFaceH4/ultrafeedback_binarized      -> comparisons
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cai_cli.artifact import Rejected
from cai_cli.errors import UserError
from cai_cli.jsonl import dump_row
from cai_cli.options import INPUT, RowOptions, flag
from cai_cli.row_artifact import RowArtifact
from cai_cli.talk import say

if TYPE_CHECKING:
    from cai_cli.importers.reject import Tally

FLUSH_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Options(RowOptions):
    format: Annotated[
        Literal["hh-rlhf", "red-team", "cai-conversation", "ultrafeedback"],
        typer.Argument(help="What the file is."),
    ]
    file: Annotated[Path, typer.Argument(help="The published file; .gz is read."), INPUT]
    to: Annotated[
        Literal["prompts", "comparisons", "revisions"] | None, flag("Data", "What to make; the format's first by default.")
    ] = None
    kind: Annotated[Literal["harmful", "helpful"] | None, flag("Data", "Kind of the prompts; from the path where it tells.")] = (
        None
    )
    every_turn: Annotated[
        bool, flag("Data", "One prompt for each human turn of a conversation (paper section 3.2).", "--every-turn")
    ] = False


def run(options: Options) -> None:
    """Turn public data into our files.

    Example: cai import hh-rlhf harmless-base/train.jsonl.gz --to prompts --out prompts.jsonl
    """
    from cai_cli.importers.reject import Reject, Tally

    items = importer(options)
    artifact = RowArtifact("import", options, options.limit)
    if artifact.done:
        return
    tally = Tally()
    items = tally.merge_identical(tally.watch(items))
    if options.dry_run:
        dry_run(options, items, tally)
        return
    seen = 0
    for item in items:
        if isinstance(item, Reject):
            name = f"line-{item.line}"
            if name not in artifact.rejected_ids:
                artifact.reject(Rejected(name, item.reason, item.detail, {"line": item.line, "row": item.row}))
        elif item.id not in artifact.accepted_ids:
            artifact.accept(item.to_row())
        seen += 1
        if seen % FLUSH_ROWS == 0:
            artifact.flush()
        if options.limit is not None and len(artifact.accepted_ids) >= options.limit:
            break
    if tally.merged:
        say(f"merged {tally.merged} repeated prompts")
    artifact.finish(seen=seen + tally.merged, merged=tally.merged)


def importer(options: Options) -> Iterator[Any]:
    """The reader of the format, with what it is to make."""
    from cai_cli.importers import hh_rlhf, preferences, red_team
    from cai_cli.importers.public_files import read_public_rows

    path = options.file
    kind = options.kind or hh_rlhf.kind_of_path(path)
    makers: dict[tuple[str, str], Callable[[], Iterator[Any]]] = {
        ("hh-rlhf", "prompts"): lambda: hh_rlhf.import_prompts(path, every_turn=options.every_turn, kind=kind),
        ("hh-rlhf", "comparisons"): lambda: hh_rlhf.import_comparisons(path, kind=kind),
        ("red-team", "prompts"): lambda: red_team.import_prompts(path, kind=options.kind or "harmful"),
        ("cai-conversation", "revisions"): lambda: preferences.import_cai_revisions(read_public_rows(path)),
        ("cai-conversation", "comparisons"): lambda: preferences.import_cai_comparisons(read_public_rows(path)),
        ("ultrafeedback", "comparisons"): lambda: preferences.import_ultrafeedback(read_public_rows(path)),
    }
    kinds = [to for name, to in makers if name == options.format]
    to = options.to or kinds[0]
    if to not in kinds:
        raise UserError(f"--to {to}: {options.format} makes {' or '.join(kinds)}", f"leave --to out for {kinds[0]}")
    if options.every_turn and (options.format, to) != ("hh-rlhf", "prompts"):
        raise UserError("--every-turn is for hh-rlhf prompts", "leave it out")
    return makers[options.format, to]()


def dry_run(options: Options, items: Iterator[Any], tally: Tally) -> None:
    """Show the first record as it would be written, and count the rest."""
    from cai_cli.importers.reject import Reject

    records = 0
    for item in items:
        if isinstance(item, Reject):
            continue
        if records == 0:
            print(dump_row(item.to_row()))  # noqa: T201
        records += 1
        if records == options.limit:
            break
    say(f"{records} records, {tally.merged} repeated, {tally.rejects.total()} rejected")
