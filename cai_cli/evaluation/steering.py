"""Whether a judge listens to its principles: how labels move between a principle, none, the other ones and
its opposite. Pure functions on arrays of labels. No torch.

A label is P(first reply), averaged over both orders of the options; which reply is called first is
arbitrary, and no number here depends on it. `Labels` holds those of N pairs; rows of `asked` are
principles. A label of 0.5 is on neither side, and counts half where two labels are asked to be on one.

    flips        share of the pairs whose label is on another side than under no principle
    shift        mean |label - label under no principle|
    beyond       shift minus that of no principle in other words: what wording alone does is no listening
    agreement    mean share of pairs on the same side as under each of the other principles
    distance     mean |difference| of the labels under two
    turned       share of the pairs that change sides between a principle and its opposite: most by a judge that
                 listens (p and 1 - p), few by one with a taste of its own, half by one that guesses
    apart        mean shift, counted as positive where it is away from the opposite's label
    correlation  of the labels under two, about 0.5: with x, y = label - 0.5, sum xy / sqrt(sum xx sum yy)

A principle does `nothing` where the upper limit of its shift is below NOTHING, of LEAST_PROMPTS prompts or
more (of fewer, one that moves a prompt in twenty may have met none). It `moves` labels where its shift may
be larger, and the interval of `beyond` is above 0. All else is `unclear`. Intervals are 95 % bootstrap
intervals over prompts. What keeps a judge from listening is told by `shortcoming`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cai_cli.evaluation.bootstrap import Array, Bootstrap, percentiles

NOTHING = 0.02
LEAST_PROMPTS = 60
LEAST_MASS = 0.1  # on the options, as `cai label` wants it
MOST_SHOWN = 5  # pairs that two constitutions see differently

MOVES, UNCLEAR, DOES_NOTHING = "moves", "unclear", "nothing"


@dataclass(frozen=True)
class Labels:
    """`asked` (K, N): under each principle; `empty`, `reworded` (N,): under none, in two wordings;
    `opposites`: id -> (N,); `prompts`: that of each pair.
    """

    names: Sequence[str]
    asked: Array
    empty: Array
    reworded: Array
    opposites: dict[str, Array]
    prompts: Sequence[str]


def sides(labels: Array) -> Array:
    """1 where the first reply is preferred, -1 where the second is, 0 where neither is."""
    return np.sign(labels - 0.5)


def same_side(one: Array, other: Array) -> Array:
    return (1 + sides(one) * sides(other)) / 2


def correlation(one: Array, other: Array) -> float | None:
    """About 0.5; None where one of them is 0.5 throughout."""
    x, y = one - 0.5, other - 0.5
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else None


def correlation_interval(one: Array, other: Array, bootstrap: Bootstrap) -> tuple[float, float] | None:
    x, y = one - 0.5, other - 0.5
    products, squares, others = (bootstrap.means(values) for values in (x * y, x * x, y * y))
    size = np.sqrt(squares * others)
    return percentiles(products[size > 0] / size[size > 0]) if (size > 0).any() else None


def measure(labels: Labels, seed: int = 0) -> dict[str, Any]:
    """All numbers about principles, each by its id, about none reworded, opposites, and agreement."""
    bootstrap = Bootstrap(labels.prompts, seed)
    wording = np.abs(labels.reworded - labels.empty)
    found = {
        name: against_empty(row, labels.empty, wording, bootstrap)
        for name, row in zip(labels.names, labels.asked, strict=True)
    }
    for number, name in enumerate(labels.names):
        others = [row for other, row in enumerate(labels.asked) if other != number]
        if others:
            agreeing = np.mean([same_side(labels.asked[number], row) for row in others], axis=0)
            found[name] |= with_interval("agreement", agreeing, bootstrap)
            apart = np.mean([np.abs(labels.asked[number] - row) for row in others], axis=0)
            found[name] |= with_interval("distance", apart, bootstrap)
        if name in labels.opposites:
            found[name]["opposite"] = against_opposite(
                labels.asked[number], labels.empty, labels.opposites[name], bootstrap
            )
    return {
        "principles": found,
        "reworded": {
            **with_interval("flips", 1 - same_side(labels.reworded, labels.empty), bootstrap),
            **with_interval("shift", wording, bootstrap),
        },
        "opposites": all_turned(labels, bootstrap),
        "agreement": agreement(labels, bootstrap),
        "prompts": bootstrap.prompts,
    }


def with_interval(name: str, values: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    """The mean of `values` (N,) under its name, and its interval."""
    return {name: float(values.mean()), f"{name}_interval": bootstrap.interval(values)}


def against_empty(label: Array, empty: Array, wording: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    shift = np.abs(label - empty)
    facts = {
        **with_interval("flips", 1 - same_side(label, empty), bootstrap),
        **with_interval("shift", shift, bootstrap),
        **with_interval("beyond", shift - wording, bootstrap),
    }
    return {"effect": effect(facts, bootstrap.prompts), **facts}


def effect(facts: dict[str, Any], prompts: int) -> str:
    if facts["shift_interval"][1] < NOTHING:
        return DOES_NOTHING if prompts >= LEAST_PROMPTS else UNCLEAR
    return MOVES if facts["beyond_interval"][0] > 0 else UNCLEAR


def against_opposite(label: Array, empty: Array, opposite: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    away = (label - empty) * np.sign(empty - opposite)
    return {
        **with_interval("turned", 1 - same_side(label, opposite), bootstrap),
        **with_interval("distance", np.abs(label - opposite), bootstrap),
        **with_interval("apart", away, bootstrap),
        "correlation": correlation(label, opposite),
        "correlation_interval": correlation_interval(label, opposite, bootstrap),
    }


def all_turned(labels: Labels, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """`turned` over all principles with an opposite; None where there are none."""
    turned = [
        1 - same_side(row, labels.opposites[name])
        for name, row in zip(labels.names, labels.asked, strict=True)
        if name in labels.opposites
    ]
    return with_interval("turned", np.mean(turned, axis=0), bootstrap) if turned else None


def agreement(labels: Labels, bootstrap: Bootstrap) -> dict[str, Any]:
    """Every principle with every other, with the empty one and with the opposites, as a square table each of
    same sides, their intervals, and correlations.
    """
    opposites = [name for name in labels.names if name in labels.opposites]
    rows = [*labels.asked, labels.empty, *(labels.opposites[name] for name in opposites)]
    return {
        "names": [*labels.names, "(none)", *(f"not {name}" for name in opposites)],
        "same_side": [[float(same_side(one, other).mean()) for other in rows] for one in rows],
        "same_side_interval": [[bootstrap.interval(same_side(one, other)) for other in rows] for one in rows],
        "correlation": [[correlation(one, other) for other in rows] for one in rows],
    }


def positions(took_first: Array, prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """`took_first` (2, Q, N): whether the judge took the first option where the first reply stood there, and
    where the second did, for Q questions about N pairs.
    """
    same = (took_first[0] == took_first[1]).mean(axis=0)
    return with_interval("same_position_rate", same, Bootstrap(prompts, seed))


def compare(ours: Array, theirs: Array, prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Two constitutions' labels of the same pairs, each the mean (N,) over its principles."""
    bootstrap = Bootstrap(prompts, seed)
    return {
        **with_interval("changed_sides", 1 - same_side(ours, theirs), bootstrap),
        **with_interval("distance", np.abs(ours - theirs), bootstrap),
        "correlation": correlation(ours, theirs),
        "correlation_interval": correlation_interval(ours, theirs, bootstrap),
    }


def most_moved(ours: Array, theirs: Array) -> list[int]:
    """The numbers of the pairs whose labels are furthest apart, those first."""
    return [int(n) for n in np.argsort(-np.abs(ours - theirs), kind="stable")[:MOST_SHOWN]]


def shortcoming(facts: dict[str, Any]) -> dict[str, str] | None:
    """The first thing that keeps the judge from listening: its name, and what is `told` of it; None where it
    listens. Of few prompts nothing is said. A judge that takes the same option in both orders in most
    questions listens all the same where opposites turn most of its labels.

    `facts`: what `measure` returns, with `position` (what `positions` returns) and `mean_mass`.
    """
    position, opposites = facts["position"], facts["opposites"]
    turned = opposites["turned_interval"] if opposites else None
    effects = [principle["effect"] for principle in facts["principles"].values()]
    still = len(effects) - effects.count(MOVES)
    if facts["mean_mass"] < LEAST_MASS:
        name, told = "mass", f"its options hold only {facts['mean_mass']:.2g} of the probability"
    elif facts["prompts"] < LEAST_PROMPTS:
        told = f"{facts['prompts']} prompts are too few to tell whether the judge listens"
        return {"name": "prompts", "told": told}
    elif position["same_position_rate_interval"][0] > 0.5 and not (turned and turned[0] > 0.5):
        rate = position["same_position_rate"]
        name, told = "position", f"it takes the same option in both orders in {rate:.0%} of the questions"
    elif turned and turned[1] < 0.5:
        same = 1 - opposites["turned"]
        name = "opposites"
        told = f"it prefers the same reply under a principle and its opposite in {same:.0%} of the pairs"
    elif 2 * still > len(effects):
        name = "principles"
        told = f"{still} of {len(effects)} principles move its labels no further than other words for none do"
    else:
        return None
    return {"name": name, "told": f"the judge does not listen: {told}"}
