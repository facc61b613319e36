"""Judged games of one kind of prompt -> ratings, win rates and what has to be said of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cai_cli.console.messages import table
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


def unrated(
    games: Sequence[tuple[tuple[str, str], str]], names: Sequence[str], anchor: str
) -> tuple[str, str] | None:
    """Why the games (the two models, the kind of the prompt) rate not all models: the problem and the next step."""
    step = "give samples of the same prompts for all of them, or leave it out"
    played = {name for models, _ in games for name in models}
    for name in names:
        if name not in played:
            return f"{name}: is in no game with another model", step
    for kind, axis in AXES.items():
        pairs = [models for models, of_kind in games if of_kind == kind]
        here = [name for name in names if any(name in models for models in pairs)]
        if here and anchor not in here:
            return f"{anchor}: has no game on {kind} prompts, and is the anchor", "name another --anchor"
        if alone := apart(pairs, here, anchor) if here else []:
            told = f"{axis}: no chain of games ties {', '.join(alone)} to {anchor}"
            return told, "give samples of the same prompts, or comparisons between them, or leave it out"
    return None


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


def show(
    models: Sequence[dict[str, Any]], win_rates: dict[str, list[dict[str, Any]]], anchor: str, told: str
) -> None:
    """The tables at the end, from the rows of the results."""
    heads = ["model", *(f"{axis} Elo\n(95 %)" for axis in AXES.values()), "games"]
    rows = [
        [
            model["name"],
            *(elo_text(model[axis]) for axis in AXES.values()),
            str(sum((model[axis] or {"games": 0})["games"] for axis in AXES.values())),
        ]
        for model in models
    ]
    table(f"{told}; {anchor} is at 0", heads, rows)
    for axis, pairs in win_rates.items():
        if not pairs:
            continue
        cells = [
            [
                f"{row['a']} – {row['b']}",
                f"{row['win']:.1%} ({row['low']:.0%}–{row['high']:.0%})",
                "–" if row["length_controlled"] is None else f"{row['length_controlled']:.1%}",
                "–" if "position_bias" not in row else f"{row['position_bias']:.0%}",
                str(row["games"]),
            ]
            for row in pairs
        ]
        columns = ["", "the first wins\n(95 %)", "at equal\nlengths", "same option\nin both orders", "games"]
        table(f"{axis}: win rates", columns, cells)


def elo_text(rating: dict[str, Any] | None) -> str:
    """`120 (80 to 160)`; an open end is `…`."""
    if rating is None:
        return "–"
    low, high = ("…" if rating[end] is None else f"{rating[end]:.0f}" for end in ("low", "high"))
    return f"{rating['elo']:.0f} ({low} to {high})"
