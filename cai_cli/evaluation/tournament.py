"""Judged games of one kind of prompt -> ratings, win rates and what has to be said of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cai_cli.evaluation.bradley_terry import Games, Rating, components, rate
from cai_cli.evaluation.win_rates import win_rates

# The kind of a prompt -> what is measured on it
AXES = {"helpful": "helpfulness", "harmful": "harmlessness"}
SIDES = {
    "above": "won every game that ties it to {anchor}: its Elo has no upper end",
    "below": "lost every game that ties it to {anchor}: its Elo has no lower end",
    "both": "is tied to {anchor} only by models that won, or lost, all: its Elo is not known",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judged game. `won`: the probability that the first model's reply is the better one, 0.5 for a tie;
    `lengths`: characters of the two replies, where they are known; `same_position`: whether a judge that was
    asked in both orders took the same option in both.
    """

    models: tuple[str, str]
    won: float
    prompt_id: str
    kind: str
    lengths: tuple[int, int] | None = None
    same_position: bool | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What came of the games of one kind: a rating for each model that played, a row for each pair."""

    ratings: dict[str, Rating]
    win_rates: list[dict[str, Any]]


def measure(outcomes: Sequence[Outcome], names: Sequence[str], anchor: str, seed: int) -> Standing:
    """Of the games of one kind of prompt. `names`: of all models, in their order; who has not played is left
    out. All who have are connected, see `apart`.
    """
    played = {name for outcome in outcomes for name in outcome.models}
    names = [name for name in names if name in played]
    number = {name: n for n, name in enumerate(names)}
    games = Games(
        len(names),
        np.array([number[outcome.models[0]] for outcome in outcomes]),
        np.array([number[outcome.models[1]] for outcome in outcomes]),
        np.array([outcome.won for outcome in outcomes]),
        [outcome.prompt_id for outcome in outcomes],
    )
    lengths = np.array([outcome.lengths or (np.nan, np.nan) for outcome in outcomes])
    rows = win_rates(games, lengths, seed)
    for row in rows:
        row |= {"a": names[row["a"]], "b": names[row["b"]]}
        pair = {row["a"], row["b"]}
        same = [
            outcome.same_position
            for outcome in outcomes
            if outcome.same_position is not None and set(outcome.models) == pair
        ]
        if same:
            row["position_bias"] = fmean(same)
    return Standing(dict(zip(names, rate(games, number[anchor], seed), strict=True)), rows)


def apart(pairs: Sequence[tuple[str, str]], names: Sequence[str], anchor: str) -> list[str]:
    """The models that no chain of games ties to the anchor. `pairs`: the two models of each game."""
    number = {name: n for n, name in enumerate(names)}
    first, second = (np.array([number[pair[side]] for pair in pairs], dtype=int) for side in (0, 1))
    group = components(len(names), first, second, np.ones(len(pairs)))
    return [name for name in names if group[number[name]] != group[number[anchor]]]


def one_sided(standing: Standing, anchor: str, axis: str) -> list[str]:
    """A line for each model whose rating is open at an end."""
    return [
        f"{axis}: {name} {SIDES[rating.side].format(anchor=anchor)}"
        for name, rating in standing.ratings.items()
        if rating.side
    ]


def rating_row(rating: Rating | None) -> dict[str, Any] | None:
    """A rating for the results: an open end is null."""
    if rating is None:
        return None
    return {"elo": rating.elo, "low": rating.low, "high": rating.high, "games": rating.games}
