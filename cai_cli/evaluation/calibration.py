"""How good probabilities are: accuracy, Brier score, calibration error, intervals. Plain Python, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean


def accuracy(predicted: list[float], target: list[float]) -> float | None:
    """Share of predictions on the target's side of 0.5; a prediction of exactly 0.5 counts half. Ties in
    target are left out.
    """
    decided = [(p, t) for p, t in zip(predicted, target, strict=True) if t != 0.5]
    if not decided:
        return None
    return sum(0.5 if p == 0.5 else float((p > 0.5) == (t > 0.5)) for p, t in decided) / len(decided)


def brier(predicted: list[float], target: list[float]) -> float:
    """Mean squared difference of probability and target."""
    return sum((p - t) ** 2 for p, t in zip(predicted, target, strict=True)) / len(predicted)


def calibration_error(predicted: list[float], target: list[float], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins: weighted mean |mean prediction - mean target|.

    Every pair is seen from both sides, so that which reply happens to be called chosen does not matter.
    """
    sums = [[0.0, 0.0, 0.0] for _ in range(bins)]
    both = [
        *zip(predicted, target, strict=True),
        *((1 - p, 1 - t) for p, t in zip(predicted, target, strict=True)),
    ]
    for p, t in both:
        cell = sums[min(int(p * bins), bins - 1)]
        cell[0] += 1
        cell[1] += p
        cell[2] += t
    return sum(abs(p - t) for _, p, t in sums) / len(both)


def wilson(successes: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson's score interval)."""
    if total == 0:
        return (0.0, 1.0)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability plot: of `count` predictions in [low, high), their mean and the mean of the
    targets.
    """

    low: float
    high: float
    count: int
    predicted: float
    target: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the target's mean, as if targets were outcomes."""
        return wilson(self.target * self.count, self.count)


def reliability_bins(predicted: list[float], target: list[float], bins: int = 10) -> list[Bin]:
    """The bins that hold any prediction; the last one is closed on both sides."""
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for p, t in zip(predicted, target, strict=True):
        members[min(int(p * bins), bins - 1)].append((p, t))
    return [
        Bin(n / bins, (n + 1) / bins, len(items), fmean(p for p, _ in items), fmean(t for _, t in items))
        for n, items in enumerate(members)
        if items
    ]
