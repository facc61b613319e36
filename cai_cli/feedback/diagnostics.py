"""Whether labels can be trusted: position bias, mass, confidence, length, by principle and by kind. No torch.

Position bias reaches half of the answers of small judges: the same position was taken after a swap in 18 %,
21 % and 56 % of the pairs by a large, a small and a very small model (RLAIF, arXiv 2309.00267, appendix B).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

from cai_cli.console.messages import table
from cai_cli.evaluation.calibration import wilson
from cai_cli.evaluation.cautions import undecided_rate
from cai_cli.feedback.labels import softmax_first
from cai_cli.rows.records import ORDERS, Comparison

CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
MASS_BINS = 10
NO_KIND = "–"


@dataclass
class Group:
    """The pairs of one kind, or all of them."""

    probabilities: list[float] = field(default_factory=list)
    longer: list[bool] = field(default_factory=list)
    same_position: list[bool] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        longer = sum(self.longer)
        return {
            "pairs": len(self.probabilities),
            "mean_probability": mean_or_none(self.probabilities),
            "undecided_rate": undecided_rate(self.probabilities),
            "same_position_rate": mean_or_none(self.same_position),
            "longer_chosen": mean_or_none(self.longer),
            "longer_chosen_interval": wilson(longer, len(self.longer)) if self.longer else None,
        }


def diagnose(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """All the numbers, in one pass. Every mean is None where there is nothing to take it over.

    `mean_probability_a`: of the first option, 0.5 for a judge without position bias where both orders are
    asked; `mean_probability_by_order`: of the chosen reply, where it stood first and where it stood second;
    `by_principle`: how often a single judgement agrees with the label of its pair.
    """
    whole = Group()
    kinds: dict[str, Group] = defaultdict(Group)
    first: list[float] = []
    masses: list[float] = []
    by_order: dict[str, list[float]] = {order: [] for order in ORDERS}
    by_principle: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        lengths = [len(reply[0]["content"]) for reply in (comparison.chosen, comparison.rejected)]
        for group in (whole, kinds[comparison.kind or NO_KIND]):
            group.probabilities.append(comparison.probability)
            group.same_position += same_positions(comparison)
            if lengths[0] != lengths[1]:
                group.longer.append(lengths[0] > lengths[1])
        for judgement in comparison.judgements:
            first.append(softmax_first(judgement.logprob_a, judgement.logprob_b))
            masses.append(judgement.mass)
            by_order[judgement.order].append(judgement.probability_chosen)
            by_principle[judgement.principle].append(judgement.probability_chosen)
    return {
        **whole.facts(),
        "mean_probability_a": mean_or_none(first),
        "mean_probability_by_order": {order: mean_or_none(values) for order, values in by_order.items()},
        "mean_mass": mean_or_none(masses),
        "mass_histogram": histogram(masses, [n / MASS_BINS for n in range(MASS_BINS + 1)]),
        "confidence_histogram": histogram(whole.probabilities, CONFIDENCE_EDGES),
        "by_principle": {name: principle_facts(values) for name, values in sorted(by_principle.items())},
        "by_kind": {name: group.facts() for name, group in sorted(kinds.items())},
    }


def mean_or_none(values: list[float] | list[bool]) -> float | None:
    return fmean(values) if values else None


def principle_facts(values: list[float]) -> dict[str, Any]:
    return {
        "questions": len(values),
        "agreement": fmean(0.5 if value == 0.5 else float(value > 0.5) for value in values),
        "mean_probability": fmean(values),
    }


def histogram(values: list[float], edges: Iterable[float]) -> dict[str, int]:
    """Counts by bin `low–high`; a value on an edge counts above it, except on the last."""
    bins = list(pairwise(edges))
    last = bins[-1][1]
    return {
        f"{low:g}–{high:g}": sum(low <= v < high or (high == last and v >= high) for v in values)
        for low, high in bins
    }


def same_positions(comparison: Comparison) -> list[bool]:
    """For each principle asked about in both orders: whether the judge took the same position both times."""
    took: dict[str, dict[str, bool]] = defaultdict(dict)
    for judgement in comparison.judgements:
        took[judgement.principle][judgement.order] = judgement.logprob_a >= judgement.logprob_b
    return [len(set(orders.values())) == 1 for orders in took.values() if len(orders) == 2]


def show(facts: dict[str, Any]) -> None:
    """The diagnostics as tables."""
    by_order = facts["mean_probability_by_order"]
    rows = [
        ["same option in both orders", share(facts["same_position_rate"])],
        ["mean P of the first option", number(facts["mean_probability_a"])],
        ["mean P(chosen) where it stood first", number(by_order["chosen_first"])],
        ["mean P(chosen) where it stood second", number(by_order["rejected_first"])],
        ["mean mass on the options", number(facts["mean_mass"])],
        ["mean probability of chosen", number(facts["mean_probability"])],
        ["labels of 0.5", share(facts["undecided_rate"])],
        ["longer reply chosen", with_interval(facts["longer_chosen"], facts["longer_chosen_interval"])],
    ]
    table(f"label: {facts['pairs']} pairs", ["", ""], rows)
    counts = facts["confidence_histogram"]
    cells = [[name, str(count), share(count / max(facts["pairs"], 1))] for name, count in counts.items()]
    table("confidence", ["probability of chosen", "pairs", ""], cells)
    principles = [
        [name, str(f["questions"]), share(f["agreement"]), number(f["mean_probability"])]
        for name, f in facts["by_principle"].items()
    ]
    table("by principle", ["principle", "questions", "agrees with the label", "mean P(chosen)"], principles)
    if set(facts["by_kind"]) != {NO_KIND}:
        kinds = [
            [
                name,
                str(f["pairs"]),
                number(f["mean_probability"]),
                share(f["same_position_rate"]),
                share(f["longer_chosen"]),
            ]
            for name, f in facts["by_kind"].items()
        ]
        table(
            "by kind",
            ["kind", "pairs", "mean P(chosen)", "same option in both orders", "longer chosen"],
            kinds,
        )


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return share(value)
    return f"{value:.1%} ({interval[0]:.0%}–{interval[1]:.0%})"
