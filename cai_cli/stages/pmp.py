"""base LM + Stack Exchange votes -> pmp/: preference-model pretraining.

    cai pmp --model base/ --posts beer.Posts.xml --out pmp/

Askell et al. (arXiv 2112.00861): before it sees scarce human comparisons, the preference model learns from public votes.
Score of an answer: round(log2(1 + net votes)), +1 if accepted, -1 if the net votes are negative; a question's pair is drawn
among its answers of different score. Text as in the article, "Question: ... Answer: ...", closed by EOS, where the score is
read. The pairs are kept in `pmp/comparisons.jsonl` with the authors' ids (the data is CC BY-SA).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cai_cli.artifact import ModelArtifact, reasons_text
from cai_cli.errors import RunError, UserError
from cai_cli.jsonl import dump_row, read_records
from cai_cli.manifest import write_manifest
from cai_cli.models.load import check_model
from cai_cli.options import INPUT, MODEL, RUNTIME, OutputOptions, PairwiseOptions, flag
from cai_cli.preference_model import reading, run_pairwise_stage, split_held_out, tokenise
from cai_cli.records import Comparison
from cai_cli.talk import say, table

if TYPE_CHECKING:
    from cai_cli.importers.posts import Counts


@dataclass(frozen=True, kw_only=True)
class Options(PairwiseOptions, OutputOptions):
    model: Annotated[str, flag("Model", "The base language model."), MODEL]
    posts: Annotated[list[str], flag("Data", "Posts.xml (.gz too), or rows of HF stack-exchange-preferences. Repeatable."), INPUT]
    data_only: Annotated[
        bool, flag("Output", "Write comparisons.jsonl and stop; without it later, training goes on from there."), RUNTIME
    ] = False
    format: Annotated[
        Literal["qa", "chat"], flag("Data", "Question/Answer text as in the article, or the model's chat template.")
    ] = "qa"
    pairs_per_question: Annotated[int, flag("Data", "Pairs drawn for each question.", min=1)] = 1
    min_answers: Annotated[int, flag("Data", "Least number of answers of a question that is used.", min=2)] = 2
    min_score_gap: Annotated[
        int, flag("Data", "Least difference of a pair's scores (paper: 1); more leaves out pairs that are mostly noise.", min=1)
    ] = 1
    max_pairs: Annotated[int | None, flag("Data", "Most pairs in all, a uniform sample.", min=1)] = None
    max_chars: Annotated[int, flag("Data", "Longest question or answer in characters; longer ones are skipped.", min=1)] = 8192
    keep_html: Annotated[bool, flag("Data", "Keep the posts' HTML instead of readable text.", "--keep-html")] = False
    held_out: Annotated[float, flag("Data", "Share of the questions kept for accuracy and calibration.", min=0.0, max=0.9)] = 0.02


def run(options: Options) -> None:
    """Pretrain a preference model on Stack Exchange votes (arXiv 2112.00861).

    Example: cai pmp --model base/ --posts beer.Posts.xml --out pmp/
    """
    check_model(options.model)
    artifact = ModelArtifact("pmp", options)
    if artifact.done:
        return
    if options.dry_run and not (options.out / "comparisons.jsonl").exists():
        say(f"would make pairs of {', '.join(options.posts)}, then train {options.model} on them")
        return
    artifact.start()
    comparisons = options.out / "comparisons.jsonl"
    write_comparisons(comparisons, options, artifact)
    if options.data_only:
        return

    from cai_cli.models.chat import install_template
    from cai_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    if options.format == "chat":
        install_template(tokenizer)
    weighted = ((row, 1.0) for row in read_records(comparisons, Comparison.from_row))
    pairs, rejected = tokenise(weighted, reading(tokenizer, options.format, options.max_length))
    if not pairs:
        why = reasons_text(Counter(item.reason for item in rejected)) or "no question has two answers of different score"
        raise RunError("no pair can be trained on", why)
    training, held_out = split_held_out(pairs, options.held_out, options.seed)
    run_pairwise_stage(artifact, options, tokenizer, training, held_out, rejected)


def write_comparisons(path: Path, options: Options, artifact: ModelArtifact) -> None:
    """The pairs of the dump as comparisons.jsonl, what was left out as comparisons.rejects.jsonl; done once."""
    if path.exists():
        say(f"{path}: already done")
        return

    from cai_cli.importers.posts import Counts, Skip
    from cai_cli.importers.stack_exchange import PairOptions, make_pairs

    counts = Counts()
    rejects = path.with_name("comparisons.rejects.jsonl")
    settings = PairOptions(
        seed=options.seed,
        pairs_per_question=options.pairs_per_question,
        min_answers=options.min_answers,
        min_score_gap=options.min_score_gap,
        max_pairs=options.max_pairs,
        max_chars=options.max_chars,
        keep_html=options.keep_html,
    )
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as rows, rejects.open("w", encoding="utf-8") as skips:
        for item in make_pairs([Path(name) for name in options.posts], settings, options.out, counts):
            (skips if isinstance(item, Skip) else rows).write(dump_row(item.to_row()) + "\n")
    if not counts.pairs:
        raise UserError(f"{', '.join(options.posts)}: no question has two answers of different score", f"see {rejects}")
    write_manifest(path.with_name("comparisons.manifest.json"), {**artifact.manifest, "counts": counts.to_row()})
    temporary.replace(path)
    show_counts(counts)


def show_counts(counts: Counts) -> None:
    rows = [
        ["questions", counts.questions],
        ["answers", counts.answers],
        ["other posts", counts.other_posts],
        ["answers without their question", counts.orphan_answers],
        ["questions with enough answers", counts.answered_questions],
        ["of those with differing scores", counts.usable_questions],
        ["pairs", counts.pairs],
        *([f"skipped: {reason}", count] for reason, count in counts.skips.most_common()),
    ]
    table("pmp: pairs from votes", ["", "count"], [[str(name), f"{count:,}"] for name, count in rows])
