"""The diagnostics of AI labels as one picture: confidence, position, mass, principles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from cai_cli.evaluation.plots import plain, short
from cai_cli.feedback.diagnostics import diagnose
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison

matplotlib.use("Agg")
COLOUR, MUTED = "#3b6ea5", "#b8c7d9"
MOST_PRINCIPLES = 20


def summarise_labels(rows: Path, out: Path) -> dict[str, Any]:
    """The diagnostics of the comparisons in `rows` for the manifest of `out`, drawn beside it as a PNG."""
    facts = diagnose(read_records(rows, Comparison.from_row))
    draw_diagnostics(facts, out.with_suffix(".png"))
    return facts


def draw_diagnostics(facts: dict[str, Any], path: Path) -> None:
    """Four panels from what `feedback.diagnostics.diagnose` returns."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    draw_histogram(
        panels[0, 0], facts["confidence_histogram"], "probability of the chosen reply", "confidence"
    )
    draw_positions(panels[0, 1], facts)
    draw_histogram(panels[1, 0], facts["mass_histogram"], "probability on both options together", "mass")
    draw_principles(panels[1, 1], facts["by_principle"])
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    longer = facts["longer_chosen"]
    told = "" if longer is None else f" · longer reply chosen {longer:.1%}"
    figure.suptitle(f"AI labels of {facts['pairs']:,} pairs{told}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_histogram(axes: Any, counts: dict[str, int], label: str, title: str) -> None:
    axes.bar(range(len(counts)), list(counts.values()), color=COLOUR, width=0.9)
    axes.set_xticks(range(len(counts)), list(counts), fontsize=7, rotation=30 if len(counts) > 8 else 0)
    axes.set(xlabel=label, ylabel="pairs" if title == "confidence" else "questions", title=title)


def draw_positions(axes: Any, facts: dict[str, Any]) -> None:
    """Mean probability of the chosen reply by where it stood: equal bars for a judge without position bias."""
    by_order = facts["mean_probability_by_order"]
    values = [by_order["chosen_first"], by_order["rejected_first"]]
    bars = axes.bar([0, 1], [value or 0 for value in values], color=[COLOUR, MUTED], width=0.6)
    axes.bar_label(bars, ["–" if value is None else f"{value:.3f}" for value in values])
    axes.axhline(0.5, color="0.4", linewidth=1, linestyle="--")
    axes.set_xticks([0, 1], ["chosen stood first", "chosen stood second"])
    rate = facts["same_position_rate"]
    title = "position" if rate is None else f"position: same option in both orders {rate:.1%}"
    axes.set(ylim=(0, 1.08), ylabel="mean P(chosen)", title=title)


def draw_principles(axes: Any, by_principle: dict[str, dict[str, Any]]) -> None:
    """How often a judgement by one principle agrees with the label; of many principles, those that agree
    least.
    """
    shown = sorted(by_principle.items(), key=lambda item: item[1]["agreement"])[:MOST_PRINCIPLES]
    names = [plain(short(name, 24)) for name, _ in shown]
    axes.barh(range(len(shown)), [facts["agreement"] for _, facts in shown], color=COLOUR, height=0.7)
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="judgements that agree with the label", title="principles")
