"""How good a preference model is on comparisons: accuracy with intervals, calibration, and how much of it is
length.

In: what the model said of each pair. Out: plain dictionaries for JSON and rows of a table. No torch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cai_cli.evaluation.calibration import accuracy, brier, calibration_error, wilson

# Of |ln(chosen tokens / rejected tokens)|; a factor of 1.1, 1.3, 1.6, 2.7
LENGTH_BINS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: the model's probability that chosen is preferred, the label's, and how long the two rows are
    in tokens.
    """

    predicted: float
    target: float
    origin: str
    kind: str | None
    chosen_tokens: int
    rejected_tokens: int

    @property
    def right(self) -> float:
        """1 where the model is on the label's side, 0.5 where it is undecided."""
        return 0.5 if self.predicted == 0.5 else float((self.predicted > 0.5) == (self.target > 0.5))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def measure(items: list[Judged]) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson) over the pairs whose label takes a side, Brier score,
    calibration error.
    """
    predicted, target = [item.predicted for item in items], [item.target for item in items]
    decided = [item for item in items if item.target != 0.5]
    return {
        "pairs": len(items),
        "decided": len(decided),
        "accuracy": accuracy(predicted, target),
        "accuracy_interval": list(wilson(sum(item.right for item in decided), len(decided)))
        if decided
        else None,
        "brier": brier(predicted, target),
        "calibration_error": calibration_error(predicted, target),
    }


def by_group(groups: Mapping[str, list[Judged]]) -> dict[str, dict[str, Any]]:
    return {name: measure(items) for name, items in groups.items()}


def split_groups(items: list[Judged]) -> dict[str, list[Judged]]:
    """All pairs, and those of each origin, each kind, and each origin and kind together where a pair has a
    kind.
    """
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in items:
        groups["all"].append(item)
        groups[f"origin {item.origin}"].append(item)
        if item.kind:
            groups[f"kind {item.kind}"].append(item)
            groups[f"origin {item.origin}, kind {item.kind}"].append(item)
    return dict(groups)


def length_matched(items: list[Judged]) -> dict[str, Any]:
    """Accuracy where length says nothing: a model that always takes the longer (or shorter) reply is right
    half of the time.

    Within each bin of relative length difference, pairs whose chosen reply is the longer one and pairs whose
    chosen reply is the shorter one get the same total weight, that of the fewer of the two; pairs of equal
    length count in full. `pairs` is the total weight, and the interval is that of as many pairs.
    """
    bins: dict[int, tuple[list[Judged], list[Judged]]] = defaultdict(lambda: ([], []))
    weight = right = 0.0
    for item in items:
        if item.target == 0.5:
            continue
        # Chosen is the reply with the larger probability, at 0.5 or above.
        if item.chosen_tokens == item.rejected_tokens:
            weight, right = weight + 1, right + item.right
            continue
        ratio = math.log(item.chosen_tokens / item.rejected_tokens)
        bins[bisect_right(LENGTH_BINS, abs(ratio))][ratio > 0].append(item)
    for shorter, longer in bins.values():
        each = min(len(shorter), len(longer))
        if each:
            weight += 2 * each
            right += sum(each * sum(item.right for item in side) / len(side) for side in (shorter, longer))
    decided = [item for item in items if item.target != 0.5]
    longer_chosen = sum(item.chosen_tokens > item.rejected_tokens for item in decided)
    return {
        "pairs": weight,
        "accuracy": right / weight if weight else None,
        "accuracy_interval": list(wilson(right, weight)) if weight else None,
        "chosen_is_longer": longer_chosen / len(decided) if decided else None,
    }


def table_rows(groups: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row a group for `messages.table` and model cards: name, pairs, accuracy, interval, Brier score,
    calibration error.
    """
    rows = []
    for name, group in groups.items():
        low, high = group["accuracy_interval"] or (0.0, 1.0)
        rows.append(
            [
                name,
                f"{group['pairs']:,}",
                "–" if group["accuracy"] is None else f"{group['accuracy']:.1%}",
                f"{low:.0%}–{high:.0%}",
                f"{group['brier']:.3f}",
                f"{group['calibration_error']:.3f}",
            ]
        )
    return rows


COLUMNS = ["", "pairs", "accuracy", "95 %", "Brier", "calibration error"]
