"""base LM + Stack Exchange votes -> pmp/: preference-model pretraining.

    cai pmp --model base/ --posts beer.Posts.xml --out pmp/

Askell et al. (arXiv 2112.00861): before it sees scarce human comparisons, the preference model learns from
public votes. Score of an answer: round(log2(1 + net votes)), +1 if accepted, -1 if the net votes are
negative; a question's pair is drawn among its answers of different score. Text as in the article, "Question:
... Answer: ...", closed by EOS, where the score is read. The pairs are kept in `pmp/comparisons.jsonl` with
the authors' ids (the data is CC BY-SA).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cai_cli.artifacts.claims import Claim, claim
from cai_cli.artifacts.locks import give_back, hold
from cai_cli.artifacts.manifest import begin_manifest, read_manifest, write_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.places import copy_to_backup, move_to_backup
from cai_cli.console.groups import changed
from cai_cli.console.messages import progress, say, table, tell_next
from cai_cli.console.options import INPUT, MODEL, RUNTIME, OutputOptions, flag
from cai_cli.errors import RunError, UserError
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.processes.ranks import barrier, check_quantize, is_main, wait_for
from cai_cli.rows.jsonl import dump_row, read_records
from cai_cli.rows.records import Comparison
from cai_cli.rows.sources import input_file
from cai_cli.rows.storage import check_writable
from cai_cli.training.preference.pairs import dry_run
from cai_cli.training.preference.reading import reading
from cai_cli.training.preference.settings import PairwiseOptions
from cai_cli.training.trackers import check_trackers

if TYPE_CHECKING:
    from cai_cli.importers.posts import Counts


PAIRS = "comparisons.jsonl"
PAIRS_MANIFEST, PAIRS_REJECTS, PAIRS_PARTIAL = (
    "comparisons.manifest.json",
    "comparisons.rejects.jsonl",
    f"{PAIRS}.partial",
)
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PairFileOptions:
    """How posts become pairs."""

    posts: Annotated[
        list[str],
        flag(
            "Data",
            "Posts.xml (in .gz or .7z too), rows of HF stack-exchange-preferences, or hf:org/name[:split]. Repeatable.",
        ),
        INPUT,
    ]
    pairs_per_question: Annotated[int, flag("Data", "Pairs drawn for each question.", min=1)] = 1
    min_answers: Annotated[
        int, flag("Data", "Least number of answers of a question that is used.", min=2)
    ] = 2
    min_score_gap: Annotated[
        int,
        flag(
            "Data",
            "Least difference of a pair's scores (paper: 1); more leaves out pairs that are mostly noise.",
            min=1,
        ),
    ] = 1
    max_pairs: Annotated[int | None, flag("Data", "Most pairs in all, a uniform sample.", min=1)] = None
    max_chars: Annotated[
        int, flag("Data", "Longest question or answer in characters; longer ones are skipped.", min=1)
    ] = 8192
    keep_html: Annotated[
        bool, flag("Data", "Keep the posts' HTML instead of readable text.", "--keep-html")
    ] = False
    binarise: Annotated[
        bool,
        flag(
            "Data",
            "Make two comparisons of each pair A over B, each of one text with a mark in front: GOOD: A over BAD: A, and "
            "BAD: B over GOOD: B (Askell et al., section 4.1).",
            "--binarise",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """What comparisons.jsonl depends on: an artifact of its own, whatever is trained on it."""

    output: OutputOptions
    pairs: PairFileOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    pairs: PairFileOptions
    fit: PairwiseOptions
    model: Annotated[
        str | None, flag("Model", "The base language model; not needed with --data-only."), MODEL
    ] = None
    data_only: Annotated[
        bool,
        flag("Output", "Write comparisons.jsonl and stop; without it later, training goes on from there."),
        RUNTIME,
    ] = False
    format: Annotated[
        Literal["qa", "chat"],
        flag("Data", "Question/Answer text as in the article, or the model's chat template."),
    ] = "qa"
    held_out: Annotated[
        float, flag("Data", "Share of the questions kept for accuracy and calibration.", min=0.0, max=0.9)
    ] = 0.02


def run(options: Options) -> None:
    """Pretrain a preference model on Stack Exchange votes (arXiv 2112.00861).

    Example: cai pmp --model base/ --posts beer.Posts.xml --out pmp/
    """
    if not options.data_only:
        if options.model is None:
            raise UserError(
                "--model is missing",
                "name the base language model, or pass --data-only to make the pairs alone",
            )
        check_model(options.model, role="either", trains=True)
        check_trackers(options.fit.report.report_to)
    if options.output.dry_run and (options.data_only or not (options.output.out / PAIRS).exists()):
        then = f", then train {options.model} on them" if not options.data_only else ""
        say(f"would make pairs of {', '.join(options.pairs.posts)}{then}")
        if options.model is not None and not options.data_only:
            from cai_cli.training.memory.told import tell_pairwise

            tell_pairwise(options, options.fit, options.model, [])
        return
    if options.data_only or options.model is None:
        if options.output.out.is_file():
            raise UserError(f"--out {options.output.out}: is a file", "name a directory")
        hold(options.output.out, options.output.dry_run)
        write_comparisons(options)
        give_back(options.output.out)
        return
    check_quantize(options.fit.adapters.quantize)
    artifact = ModelArtifact("pmp", options, beside="comparisons.")
    if artifact.done:
        return
    check_device(options.fit.hardware.device, options.output.dry_run)

    from cai_cli.models.configs import check_classifier, check_plain_logits, longest_row
    from cai_cli.models.templates import install_template
    from cai_cli.models.tokenizers import load_tokenizer

    check_classifier(options.model, "--model")  # before a dump is read
    if options.fit.lm_coef:
        check_plain_logits(options.model)
    tokenizer = load_tokenizer(options.model)
    if options.format == "chat":
        install_template(tokenizer)
    if not options.output.dry_run:
        artifact.make_room()
        write_comparisons(options)

    from cai_cli.training.preference.pair_files import pairs_once_a_node

    file = options.output.out / PAIRS
    weighted = ((row, 1.0) for row in read_records(file, Comparison.from_row))
    encode = reading(tokenizer, options.format, longest_row(options.fit.training.max_length, options.model))
    with pairs_once_a_node(artifact, weighted, [file], tokenizer, encode) as pairs:
        if options.output.dry_run:
            from cai_cli.training.memory.told import tell_pairwise

            dry_run(pairs.training, tokenizer, pairs.rejected.total())
            tell_pairwise(options, options.fit, options.model, [pair.lengths for pair in pairs.training])
            return

        from cai_cli.training.preference.run import run_pairwise_stage

        run_pairwise_stage(artifact, options.fit, options.model, tokenizer, pairs)
    tell_next(
        "cai train-pm --model",
        options.output.out,
        "--comparisons",
        "COMPARISONS.jsonl",
        "--out",
        options.output.out.parent / "pm",
    )


def write_comparisons(options: Options) -> None:
    """The pairs as comparisons.jsonl, what was left out as comparisons.rejects.jsonl; done once, by the first
    process.
    """
    made, folder = PairFile(output=options.output, pairs=options.pairs), options.output.out
    path = folder / PAIRS
    manifest = begin_manifest("pmp", made, folder)
    there = path if path.exists() else None
    old = read_manifest(folder / PAIRS_MANIFEST) if there else None
    found = claim(changed(made, out=path), manifest, old, there, finished=lambda _: True)
    barrier()  # every process has looked
    if found == Claim.DONE:
        return
    if is_main():
        check_writable(folder, folder, PAIRS)
    if is_main() and path.exists():
        copy_to_backup(folder / PAIRS_MANIFEST)
        move_to_backup(folder / PAIRS_REJECTS, path)
    barrier()
    if is_main():
        draw_comparisons(options.pairs, folder, options.output.seed, manifest)
    wait_for(lambda: path if path.exists() else None, str(path))


def draw_comparisons(data: PairFileOptions, folder: Path, seed: int, manifest: Manifest) -> None:
    from cai_cli.importers.post_index import INDEX
    from cai_cli.importers.posts import Counts, Skip
    from cai_cli.importers.stack_exchange import PairOptions, make_pairs
    from cai_cli.importers.votes import binarise

    counts = Counts()
    settings = PairOptions(
        seed=seed,
        pairs_per_question=data.pairs_per_question,
        min_answers=data.min_answers,
        min_score_gap=data.min_score_gap,
        max_pairs=data.max_pairs,
        max_chars=data.max_chars,
        keep_html=data.keep_html,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{INDEX}*"):  # by a run that was killed while it opened its index
        shutil.rmtree(left)
    temporary, rejects = folder / PAIRS_PARTIAL, folder / PAIRS_REJECTS
    written = 0
    files = [file for file in map(input_file, data.posts) if file is not None]
    with (
        no_trace(folder, temporary, rejects),
        temporary.open("w", encoding="utf-8") as rows,
        rejects.open("w", encoding="utf-8") as skips,
        progress(
            "pmp: read posts", sum(file.stat().st_size for file in files) // MEGABYTE, unit="MB"
        ) as advance,
    ):
        for item in make_pairs(data.posts, settings, folder, counts, in_megabytes(advance)):
            if isinstance(item, Skip):
                skips.write(dump_row(item.to_row()) + "\n")
                continue
            for comparison in binarise(item) if data.binarise else (item,):
                rows.write(dump_row(comparison.to_row()) + "\n")
                written += 1
    if not counts.skips:
        rejects.unlink()
    if not written:
        temporary.unlink()
        look = (
            f"see {rejects}"
            if counts.skips
            else f"{counts.questions} questions and {counts.answers} answers were read"
        )
        raise RunError(f"{', '.join(data.posts)}: no pair of two answers of different score", look)
    write_manifest(folder / PAIRS_MANIFEST, {**manifest, "counts": {**counts.to_row(), "out": written}})
    temporary.replace(folder / PAIRS)
    show_counts(counts, written)


@contextmanager
def no_trace(folder: Path, *files: Path) -> Iterator[None]:
    """Where the user's mistake ends what is within, leave neither the files nor an empty folder."""
    try:
        yield
    except UserError:
        for file in files:
            file.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        raise


def in_megabytes(advance: Callable[[float, str], None]) -> Callable[[int], None]:
    """Progress that is told bytes and shows whole megabytes."""
    read = 0

    def add(count: int) -> None:
        nonlocal read
        before, read = read // MEGABYTE, read + count
        if read // MEGABYTE > before:
            advance(read // MEGABYTE - before, "")

    return add


def show_counts(counts: Counts, written: int) -> None:
    rows = [
        ["questions", counts.questions],
        ["answers", counts.answers],
        ["other posts", counts.other_posts],
        ["answers without their question", counts.orphan_answers],
        ["questions with enough answers", counts.answered_questions],
        ["of those with differing scores", counts.usable_questions],
        ["pairs", counts.pairs],
        *([["comparisons, GOOD or BAD in front", written]] if written != counts.pairs else []),
        *([f"skipped: {reason}", count] for reason, count in counts.skips.most_common()),
    ]
    table("pmp: pairs from votes", ["", "count"], [[str(name), f"{count:,}"] for name, count in rows])
