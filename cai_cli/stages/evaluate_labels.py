"""AI comparisons + human comparisons -> how far they agree on the pairs that both have labelled (.json,
.png).

    cai evaluate labels comparisons.jsonl human.jsonl --out agreement.json

Pairs are matched by their content, else by id and replies (see `evaluation.agreement`). Either file holds
comparisons of ours or hh-rlhf rows as published; rows that are no comparison are counted. A human tie is no
test and is left out, an AI tie counts half. Source of the measure: RLAIF (arXiv 2309.00267), section 4.1,
alignment of the label's argmax with the human's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli.artifacts.results import ResultsFile
from cai_cli.console.messages import say, table, warn
from cai_cli.console.options import INPUT, OutputOptions
from cai_cli.errors import RecordError, RunError, UserError
from cai_cli.evaluation.agreement import SharedPair, by_confidence, by_kind, measure, shared_pairs
from cai_cli.evaluation.calibration import reliability_bins
from cai_cli.feedback.pairs import comparisons_of_file
from cai_cli.rows.records import Comparison


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    ai: Annotated[Path, typer.Argument(help="Comparisons labelled by a feedback model."), INPUT]
    human: Annotated[Path, typer.Argument(help="Comparisons labelled by people, or hh-rlhf rows."), INPUT]


def run(options: Options) -> None:
    """Compare AI labels with human ones on the pairs that both have labelled.

    Example: cai evaluate labels comparisons.jsonl human.jsonl --out agreement.json
    """
    results = ResultsFile("evaluate labels", options)
    if results.done:
        return
    ours, theirs = list(comparisons(options.ai)), list(comparisons(options.human))
    check_origins(options, ours, theirs)
    pairs, counts = shared_pairs(ours, theirs)
    if options.output.dry_run:
        say(f"{counts['shared']} pairs are in both files")
        return
    whole = measure(pairs)
    if "agreement" not in whole:
        problem = (
            f"{options.ai} and {options.human}: no pair that both have decided ({counts['shared']} in both)"
        )
        raise RunError(
            problem, "pairs are matched by prompt and replies: label the human file with `cai label --pairs`"
        )
    results.start()
    facts = {"all": whole, "by_confidence": by_confidence(pairs), "by_kind": by_kind(pairs)}
    draw(results.picture, pairs, whole)
    results.finish(
        {"counts": counts, **facts}, {"in": counts["ai_rows"], "out": counts["shared"], "rejected": {}}
    )
    say(
        f"{counts['shared']} pairs in both: of {counts['ai_pairs']} by the AI, {counts['human_pairs']} by people"
    )
    for name in ("by_confidence", "by_kind"):
        show(name.replace("_", " "), {"all": whole, **facts[name]})


def check_origins(options: Options, ours: list[Comparison], theirs: list[Comparison]) -> None:
    """Raise UserError where no AI has labelled the first file; warn where one has labelled all of the second."""
    if ours and not any(comparison.origin == "ai" for comparison in ours):
        told = f"{options.ai}: none of its {len(ours)} comparisons is an AI's label"
        raise UserError(told, "the AI's file comes first, then the people's")
    if theirs and all(comparison.origin == "ai" for comparison in theirs):
        warn(f"{options.human}: all of it is an AI's labels, too: two judges are compared")


def comparisons(path: Path) -> Iterator[Comparison]:
    """The comparisons of a file. A sample is a mistake here; what is no comparison in an hh-rlhf file is left
    out and counted.
    """
    refused = 0
    for item in comparisons_of_file(path):
        if isinstance(item, Comparison):
            yield item
        elif item.rejected is not None:
            refused += 1
        else:
            raise RecordError(
                "chosen",
                "missing: samples are no comparisons",
                "label them with `cai label --pairs`",
                place=str(path),
            )
    if refused:
        say(f"{path}: {refused} rows are no comparison")


def draw(path: Path, pairs: list[SharedPair], whole: dict[str, Any]) -> None:
    """Seen from both replies of each pair, so that the picture covers all probabilities."""
    from cai_cli.evaluation.plots import draw_reliability

    decided = [pair for pair in pairs if pair.human != 0.5]
    groups = {"all": decided}
    kinds = sorted({pair.kind for pair in decided})
    if len(kinds) > 1:
        groups |= {kind: [pair for pair in decided if pair.kind == kind] for kind in kinds}
    series = {
        name: reliability_bins(
            [p for pair in group for p in (pair.ai, 1 - pair.ai)],
            [p for pair in group for p in (pair.human, 1 - pair.human)],
        )
        for name, group in groups.items()
    }
    low, high = whole["interval"]
    draw_reliability(
        series, path, f"AI and human labels: agreement {whole['agreement']:.1%} ({low:.1%}–{high:.1%})"
    )


def show(title: str, groups: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, facts in groups.items():
        if "agreement" not in facts:
            rows.append([name, str(facts["pairs"]), "–", "–", "–", "–"])
            continue
        low, high = facts["interval"]
        cells = [f"{facts['agreement']:.1%}", f"{low:.1%}–{high:.1%}", f"{facts['mean_probability']:.3f}"]
        rows.append([name, str(facts["pairs"]), *cells, f"{facts['calibration_error']:.3f}"])
    table(title, ["", "pairs", "agreement", "95 % interval", "mean P(AI)", "calibration error"], rows)
