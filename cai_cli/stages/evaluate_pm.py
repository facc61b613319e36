"""a preference model + comparisons -> how often it agrees with them, and how far its probabilities can be
trusted.

    cai evaluate pm --pm pm/ --comparisons test.jsonl --out pm-test.json

Accuracy with Wilson intervals, Brier score and expected calibration error, over all pairs, by origin and by
kind; accuracy after length matching; a reliability plot (`pm-test.png`). Prompts that are in the model's own
lineage are counted. Text is read through the model's own template exactly as in training; pairs longer than
the model's context are rejected, never cut. An id is there once in a file; a pair that two files label counts
twice, with either label.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cai_cli.artifacts.rejects import Rejected, counted, put_aside, reasons_text
from cai_cli.artifacts.results import ResultsFile
from cai_cli.console.messages import progress, say, table
from cai_cli.console.options import INPUT, MODEL, RUNTIME, DeviceOptions, IfChanged, Needs, flag
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.calibration import Bin, reliability_bins
from cai_cli.evaluation.comparisons import COLUMNS, Judged, by_group, length_matched, split_groups, table_rows
from cai_cli.evaluation.overlap import find_overlap, tell_overlap
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.processes.ranks import is_main
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.trl_rows import RowReader
from cai_cli.training.preference.pairs import dry_run, tokenise
from cai_cli.training.preference.reading import open_preference_model, open_reading

if TYPE_CHECKING:
    from cai_cli.training.preference.pairs import TokenPair

CHUNK_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """A file of measurements, for who wants one."""

    NEEDS: ClassVar[Needs] = {"if_changed": ("out",)}

    out: Annotated[
        Path | None,
        flag("Output", "Write the measurements to this .json file, the reliability plot to .png."),
        RUNTIME,
    ] = None
    dry_run: Annotated[
        bool, flag("Output", "Show the first pair as the model reads it.", "--dry-run"), RUNTIME
    ] = False
    if_changed: IfChanged = "error"


@dataclass(frozen=True, kw_only=True)
class Options:
    hardware: DeviceOptions
    pm: Annotated[str, flag("Model", "The preference model."), MODEL]
    comparisons: Annotated[
        list[str], flag("Data", "Comparisons, best of held-out prompts. Repeatable."), INPUT
    ]
    max_reject_rate: Annotated[
        float,
        flag("Data", "Exit 1 when a larger share of the pairs does not fit.", min=0.0, max=1.0),
        RUNTIME,
    ] = 0.5
    batch_size: Annotated[
        int, flag("Model", "Texts per forward pass; does not change scores.", min=1), RUNTIME
    ] = 32
    output: MeasureOptions


def run(options: Options) -> None:
    """Measure a preference model on comparisons.

    Example: cai evaluate pm --pm pm/ --comparisons test.jsonl --out pm-test.json
    """
    check_model(options.pm, "--pm", "preference model")
    results = ResultsFile("evaluate pm", options, shared=True) if options.output.out else None
    if results and results.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    reader = RowReader()
    comparisons = [
        row for source in options.comparisons for row in read_records(Path(source), reader.comparison)
    ]
    if not comparisons:
        raise UserError(
            f"{', '.join(options.comparisons)}: no comparisons in it",
            "`cai label` and `cai import` make some",
        )
    overlap = find_overlap((row.prompt for row in comparisons), options.pm)
    tokenizer, encode = open_reading(options.pm)
    outcomes = list(tokenise(((row, 1.0) for row in comparisons), encode))
    rejected = [item for item in outcomes if isinstance(item, Rejected)]
    tokens = [item[1] for item in outcomes if not isinstance(item, Rejected)]
    check_rejects(options, tokens, rejected)
    if options.output.dry_run:
        dry_run(tokens, tokenizer, len(rejected))
        tell_overlap(overlap, options.pm)
        return
    judged, scores = judge_all(options, tokens)
    if not is_main():
        return
    if results:
        results.start()
    if results and rejected:
        rejects = results.out.with_suffix(".rejects.jsonl")
        put_aside(rejected, "pairs", rejects)
    groups = split_groups(judged)
    matched = {name: length_matched(items) for name, items in groups.items() if is_series(name)}
    bins = {name: confidence_bins(groups[name]) for name in matched}
    measured = by_group(groups)
    counts = {
        "in": len(comparisons),
        "out": len(tokens),
        "rejected": counted(rejected),
    }
    measurements: dict[str, Any] = {
        "pm": options.pm,
        "comparisons": options.comparisons,
        "counts": counts,
        "groups": measured,
        "length_matched": matched,
        "reliability": {name: [bin_row(cell) for cell in cells] for name, cells in bins.items()},
        "scores": spread(scores),
        "overlap": overlap.to_row(),
    }
    if results:
        from cai_cli.evaluation.plots import draw_reliability

        shown = bins if len(bins) > 2 else {"all": bins["all"]}
        draw_reliability(
            shown, results.picture, "how often the reply the PM prefers is the preferred one", start=0.5
        )
        results.finish(measurements, counts)
    show(measured, matched, counts)
    tell_overlap(overlap, options.pm)


def is_series(group: str) -> bool:
    """Whether a group gets a line of its own in the plot and in the table of matched lengths: all, and each
    origin.
    """
    return group == "all" or (group.startswith("origin ") and ", kind " not in group)


def check_rejects(options: Options, pairs: list[Any], rejected: list[Rejected]) -> None:
    why = reasons_text(Counter(item.reason for item in rejected))
    total = len(pairs) + len(rejected)
    if not pairs or len(rejected) / total > options.max_reject_rate:
        hint = (
            f"--max-reject-rate raises the bar (now {options.max_reject_rate:g})"
            if pairs
            else "give shorter texts"
        )
        raise RunError(f"{len(rejected)} of {total} pairs cannot be scored ({why})", hint)


def judge_all(options: Options, pairs: list[TokenPair]) -> tuple[list[Judged], list[float]]:
    """What the model says of each pair, and the scores of all texts."""
    from cai_cli.training.parallel import Passes
    from cai_cli.training.preference.losses import score_pairs

    pm = open_preference_model(options.pm, options.hardware.device, options.hardware.dtype)
    judged: list[Judged] = []
    scores: list[float] = []
    size = CHUNK_BATCHES * options.batch_size
    with progress("evaluate pm", len(pairs), unit="pairs") as advance:
        for start in range(0, len(pairs), size):
            chunk = pairs[start : start + size]
            some, their = score_pairs(Passes(pm.model), chunk, pm.pad, options.batch_size)
            judged += some
            scores += their
            advance(len(chunk), "")
    return judged, scores


def confidence_bins(items: list[Judged]) -> list[Bin]:
    """Each pair once, from the side of the reply that the model prefers: its probability against the label's."""
    sides = [
        (p, t) if p >= 0.5 else (1 - p, 1 - t) for p, t in ((item.predicted, item.target) for item in items)
    ]
    return reliability_bins([p for p, _ in sides], [t for _, t in sides], bins=20)


def bin_row(cell: Bin) -> dict[str, Any]:
    return {
        "low": cell.low,
        "high": cell.high,
        "pairs": cell.count,
        "predicted": cell.predicted,
        "observed": cell.target,
    }


def spread(scores: list[float]) -> dict[str, float]:
    mean = sum(scores) / len(scores)
    return {"mean": mean, "deviation": (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5}


def show(
    measured: dict[str, dict[str, Any]], matched: dict[str, dict[str, Any]], counts: dict[str, Any]
) -> None:
    table("preference model on comparisons", COLUMNS, table_rows(measured))
    rows = []
    for name, group in matched.items():
        low, high = group["accuracy_interval"] or (0.0, 1.0)
        right = "–" if group["accuracy"] is None else f"{group['accuracy']:.1%}"
        longer = "–" if group["chosen_is_longer"] is None else f"{group['chosen_is_longer']:.1%}"
        rows.append([name, f"{group['pairs']:,.0f}", right, f"{low:.0%}–{high:.0%}", longer])
    table("after length matching", ["", "pairs kept", "accuracy", "95 %", "chosen is longer"], rows)
    if counts["rejected"]:
        say(f"not scored: {reasons_text(Counter(counts['rejected']))}")
