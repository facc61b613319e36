"""`cai import FORMAT FILE`: public data -> our records, row by row; what does not fit goes to the rejects
file with its reason.

hh-rlhf             Anthropic's hh-rlhf transcripts            -> prompts or comparisons
red-team            red_team_attempts (array or lines)         -> prompts
xstest, or-bench, strongreject, harmbench: sets of safe and unsafe prompts -> prompts with their kinds
paper-chains        the paper's *_SLMADISON.jsonl              -> revisions (`cai export` gives them back)
paper-samples       the paper's *_RLHF and *_RLMADISON files   -> samples, with their `pm_scores`
paper-constitution  the paper's principles, two JSON files     -> a constitution (YAML)
cai-conversation    HuggingFaceH4/cai-conversation-harmless    -> revisions or comparisons
ultrafeedback       HuggingFaceH4/ultrafeedback_binarized      -> comparisons
policy              what OpenRLHF or verl trained -> a model directory (`cai export` wrote what it started from)
table               CSV, TSV, JSON, JSON lines, parquet: --columns -> prompts, samples or comparisons
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cai_cli.artifacts.manifest import begin_manifest, read_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.results import FileArtifact
from cai_cli.artifacts.rows import RowArtifact
from cai_cli.artifacts.split_files import SplitFolder
from cai_cli.console.groups import changed, values_of
from cai_cli.console.messages import say, show_text, tell_dropped, warn
from cai_cli.console.options import INPUT, OutputOptions, RowOptions, flag
from cai_cli.errors import UserError
from cai_cli.importers.formats import Asked
from cai_cli.importers.hh_rlhf import kind_of_path
from cai_cli.importers.registry import FORMATS
from cai_cli.importers.reject import Reject, Tally
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import dump_row, read_lines
from cai_cli.rows.splits import parse_parts

FLUSH_ROWS = 1000
WHOLE = "all"  # beside the parts of --split
CONSTITUTION_FORMAT, POLICY = "paper-constitution", "policy"


if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[(*FORMATS, CONSTITUTION_FORMAT, POLICY)]
ABOUT = " ".join(f"{name}: {found.about} ({' or '.join(found.makes)})." for name, found in FORMATS.items())


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    rows: RowOptions
    format: Annotated[
        Name,
        typer.Argument(
            help=f"{ABOUT} {CONSTITUTION_FORMAT}: the paper's principles (a constitution). "
            f"{POLICY}: a model that another engine trained (a model directory)."
        ),
    ]
    file: Annotated[
        Path,
        typer.Argument(
            help="The published file, in .gz too, as parquet, or hf:org/name[:split]; for policy a directory."
        ),
        INPUT,
    ]
    to: Annotated[
        Literal["prompts", "samples", "comparisons", "revisions"] | None,
        flag("Data", "What to make; the format's first by default."),
    ] = None
    kind: Annotated[
        Literal["harmful", "helpful"] | None,
        flag("Data", "Kind of the prompts; from the path where it tells."),
    ] = None
    source: Annotated[
        str | None, flag("Data", "Name of the data set, kept with each row; the format's own by default.")
    ] = None
    columns: Annotated[
        str | None,
        flag(
            "Data",
            "For table: NAME=COLUMN,... with NAME of prompt, completion, chosen, rejected, id, kind, probability, "
            "score_chosen, score_rejected; what is not named keeps its name.",
        ),
    ] = None
    every_turn: Annotated[
        bool,
        flag("Data", "One prompt for each human turn of a conversation (paper section 3.2).", "--every-turn"),
    ] = False
    comparisons: Annotated[
        Path | None,
        flag("Data", "For paper-constitution: RLMadisonInstructions.json, the comparison principles."),
        INPUT,
    ] = None
    from_export: Annotated[
        Path | None,
        flag("Data", "For policy: what `cai export openrlhf` or `cai export verl` wrote for its training."),
    ] = None
    split: Annotated[
        str | None,
        flag(
            "Data",
            "Divide the rows, as `cai split` does: sft=0.5,rl=0.4,test=0.1; --out is a directory then.",
        ),
    ] = None


def run(options: Options) -> None:
    """Turn public data into our files.

    Example: cai import hh-rlhf harmless-base/train.jsonl.gz --to prompts --out prompts.jsonl
    """
    if options.from_export and options.format != POLICY:
        raise UserError(f"--from-export is for {POLICY}", "leave it out")
    if options.format == CONSTITUTION_FORMAT:
        import_paper_constitution(options)
    elif options.format == POLICY:
        import_policy(options)
    elif options.split:
        import_parts(options, options.split)
    else:
        import_rows(options)


def import_rows(options: Options) -> None:
    """Records into `--out`, rejects beside it."""
    tally = Tally()
    items = importer(options, tally)
    artifact = RowArtifact("import", options)
    if artifact.done:
        return
    items = tally.merge_identical(tally.watch(items))
    if options.output.dry_run:
        dry_run(options, items, tally)
        return
    seen = 0
    for item in items:
        if isinstance(item, Reject):
            name = "/".join(
                filter(None, [f"line-{item.line}" if item.line else f"row-{seen + 1}", item.part])
            )
            if name not in artifact.rejected_ids:
                artifact.reject(
                    Rejected(name, item.reason, item.detail, {"line": item.line, "row": item.row})
                )
        elif item.id not in artifact.accepted_ids:
            artifact.accept(item.to_row())
        seen += 1
        if seen % FLUSH_ROWS == 0:
            artifact.flush()
        if options.rows.limit is not None and len(artifact.accepted_ids) >= options.rows.limit:
            break
    if tally.merged:
        say(f"merged {tally.merged} repeated prompts")
    tell_dropped(tally.dropped)
    facts: dict[str, Any] = {"dropped": dict(tally.dropped)} if tally.dropped else {}
    artifact.finish(seen=seen + tally.merged, merged=tally.merged, **facts)


def importer(options: Options, tally: Tally) -> Iterator[Any]:
    """The reader of the format, with what it is to make."""
    found = FORMATS[options.format]
    to: str = options.to or next(iter(found.makes))
    if to not in found.makes:
        problem = f"--to {to}: {options.format} makes {' or '.join(found.makes)}"
        raise UserError(problem, f"leave --to out for {next(iter(found.makes))}")
    if options.every_turn and not (found.every_turn and to == "prompts"):
        takes = ", ".join(name for name, each in FORMATS.items() if each.every_turn)
        raise UserError(f"--every-turn is for prompts, of {takes}", "leave it out")
    if options.source and to == "revisions":
        raise UserError("--source: revisions have no place for it", "leave it out")
    if options.columns and not found.any_columns:
        raise UserError(f"--columns is for table: {options.format} has columns of its own", "leave it out")
    if options.comparisons:
        raise UserError("--comparisons is for paper-constitution", "leave it out")
    kind = options.kind or kind_of_path(options.file)
    given = {name: value for name, value in (("source", options.source), ("kind", options.kind)) if value}
    return found.makes[to](
        Asked(options.file, kind, given, options.every_turn, options.columns, tally.dropped)
    )


def import_parts(options: Options, spec: str) -> None:
    """All rows into `--out`/all.jsonl, then each into the file of its part, by its first human turn."""
    if options.output.out.suffix in (".jsonl", ".json"):
        raise UserError(
            f"--out {options.output.out}: --split writes a file for each part", "name a directory"
        )
    if WHOLE in parse_parts(spec):
        told = f"--split: no part can be called {WHOLE!r}, since {WHOLE}.jsonl holds what all parts are made from"
        raise UserError(told, "give it another name")
    whole = changed(options, out=options.output.out / f"{WHOLE}.jsonl")
    folder = SplitFolder(options, spec, begin_manifest("import", whole, options.output.out))
    import_rows(whole)
    if options.output.dry_run:
        return
    manifest = read_manifest(manifest_path(whole.output.out))
    assert manifest is not None, "the import has just written it"
    if not folder.done(manifest["counts"]["out"]):
        folder.write(
            ((load_json(line)["prompt"], line) for _, line in read_lines(whole.output.out)), manifest
        )


def import_paper_constitution(options: Options) -> None:
    """The published principles, critiques and comparisons joined by position, as a constitution file."""
    from cai_cli.prompting.published import constitution_yaml, import_constitution

    check_no_rows(options, f"{CONSTITUTION_FORMAT} makes one file")
    if options.output.out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {options.output.out}: a constitution is written as YAML", "name a .yaml file")
    artifact = FileArtifact("import", options)
    if artifact.done:
        return
    text = constitution_yaml(import_constitution(options.file, options.comparisons, options.output.out.stem))
    if options.output.dry_run:
        show_text(text, end="")
        return
    count = text.count("\n- id:")
    if options.comparisons is None:
        warn(
            f"no --comparisons: `label` will ask the same general question under each of the {count} principles"
        )
    artifact.start()
    artifact.write(text, {"in": count, "out": count, "rejected": {}})
    say(f"{options.output.out}: {count} principles")


def import_policy(options: Options) -> None:
    """What another engine trained from an export, as a model directory."""
    check_no_rows(options, f"{POLICY} makes a model directory", "comparisons")
    if options.from_export is None:
        raise UserError(
            f"{POLICY}: of which export is it?", "name what `cai export` wrote: --from-export DIR"
        )

    from cai_cli.training.export import policy

    made_from = {"policy": str(options.file), "from_export": str(options.from_export)}
    policy.import_policy(policy.Options(output=options.output, **made_from))


def check_no_rows(options: Options, makes: str, *others: str) -> None:
    """Raise UserError for an option of formats that have rows."""
    given = values_of(options)
    for name in ("to", "kind", "source", "columns", "every_turn", "split", "limit", *others):
        if given[name]:
            raise UserError(f"--{name.replace('_', '-')} is for rows: {makes}", "leave it out")


def dry_run(options: Options, items: Iterator[Any], tally: Tally) -> None:
    """Show the first record as it would be written, and count the rest."""
    records = 0
    for item in items:
        if isinstance(item, Reject):
            continue
        if records == 0:
            show_text(dump_row(item.to_row()))
        records += 1
        if records == options.rows.limit:
            break
    tell_dropped(tally.dropped)
    say(f"{records} records, {tally.merged} repeated, {tally.rejects.total()} rejected")
