"""Numbers with intervals, and what they say of a claim.

Two sorts of 95 % intervals. Where a study compares texts of the same two shipped models, seeds differ in requests
and draws alone: combinations of action and thing are drawn again, each with all its replies of all seeds
(`pooled`, `changed`). Where it trains, or draws what it compares, a seed is one such draw and all that is measured
on it: Student's t over the seeds (`over_seeds`), which is wide with three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from cai_cli.microworld.results import bootstrap

Means = dict[str, float]  # prompt -> mean over its replies
# 97.5 % of Student's t, by the number of seeds
STUDENT = dict(zip(range(2, 11), (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), strict=True))
MORE, LESS, SAME = "more", "less", "same"
SHOWS, SHOWS_NOT, REVERSED = "shows", "does not show", "is reversed"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95 % interval, and the seeds."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Claim:
    """What the article says of a difference, and what was found. `margin`: how far from 0 still counts as the
    same; `scale` and `unit`: how it is told.
    """

    text: str
    source: str
    expects: str
    found: Estimate
    margin: float = 0.0
    unit: str = "points"
    scale: float = 100.0


def verdict(claim: Claim) -> str:
    """`shows`: the interval lies on the claimed side of 0, or within ± margin where nothing is to differ.
    `is reversed`: on the other side, or wholly outside of the margin. Else it `does not show`.
    """
    low, high = claim.found.low, claim.found.high
    if claim.expects == SAME:
        if -claim.margin < low and high < claim.margin:
            return SHOWS
        return REVERSED if low > claim.margin or high < -claim.margin else SHOWS_NOT
    if claim.expects == LESS:
        low, high = -high, -low
    return SHOWS if low > 0 else REVERSED if high < 0 else SHOWS_NOT


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t. Raises KeyError for fewer than two seeds or more than ten."""
    centre, half = fmean(values), STUDENT[len(values)] * stdev(values) / sqrt(len(values))
    return Estimate(centre, centre - half, centre + half, tuple(values))


def pooled(seeds: Sequence[Means]) -> Estimate:
    """Mean over the prompts of all seeds, bootstrapped over combinations."""
    values = [item for means in seeds for item in means.items()]
    return Estimate(fmean(v for _, v in values), *bootstrap(values), tuple(average(means) for means in seeds))


def changed(before: Sequence[Means], after: Sequence[Means]) -> Estimate:
    """After minus before, over the prompts that both have, seed by seed."""
    return pooled(
        [
            {prompt: new[prompt] - old[prompt] for prompt in sorted(old.keys() & new.keys())}
            for old, new in zip(before, after, strict=True)
        ]
    )


def changed_by_seed(before: Sequence[Means], after: Sequence[Means]) -> Estimate:
    """The same with a seed as one number: for what was trained anew with each."""
    return over_seeds(changed(before, after).seeds)


def by_seed(seeds: Sequence[Means]) -> Estimate:
    """Mean over the prompts with a seed as one number."""
    return over_seeds([average(means) for means in seeds])


def average(means: Means) -> float:
    return fmean(means.values())


def percent(found: Estimate, digits: int = 1) -> str:
    """`93.4 (92–95)`, of a rate: what Student's interval has beyond 0 and 100 is left off."""
    low, high = max(0.0, found.low), min(1.0, found.high)
    return f"{100 * found.mean:.{digits}f} ({100 * low:.0f}–{100 * high:.0f})"


def number(found: Estimate, digits: int = 3) -> str:
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
