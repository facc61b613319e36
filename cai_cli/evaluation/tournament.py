"""Judged games -> ratings and win rates of the models, for each kind of prompt, and what has to be said of them. No
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cai_cli.evaluation.bradley_terry import Games, Rating, components, rate
from cai_cli.evaluation.cautions import label_cautions
from cai_cli.evaluation.outcomes import AXES, Outcome, same_position_rate
from cai_cli.evaluation.players import Player
from cai_cli.evaluation.win_rates import win_rates

SIDES = {
    "above": "won every game that ties it to {anchor}: its Elo has no upper end",
    "below": "lost every game that ties it to {anchor}: its Elo has no lower end",
    "both": "is tied to {anchor} only by models that won, or lost, all: its Elo is not known",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What came of the games of one kind: a rating for each model that played, a row for each pair."""

    ratings: dict[str, Rating]
    win_rates: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Assessed:
    """Rows of the results: of each model, and of each pair by axis; and warnings."""

    models: list[dict[str, Any]]
    win_rates: dict[str, list[dict[str, Any]]]
    warnings: list[str]


def assess(
    outcomes: Sequence[Outcome], names: Sequence[str], players: Sequence[Player], anchor: str, seed: int
) -> Assessed:
    """`names`: of all models, in their order; `players`: those of them that were named. All are connected, see
    `unrated`.
    """
    standings: dict[str, Standing] = {}
    warnings: list[str] = []
    for kind, axis in AXES.items():
        if games := [game for game in outcomes if game.kind == kind]:
            standings[axis] = measure(games, names, anchor, seed)
            positions = label_cautions(None, same_position_rate(games))
            warnings += one_sided(standings[axis], anchor, axis) + [f"{axis}: {line}" for line in positions]
    known = {player.name: player for player in players}
    models = [model_row(name, known.get(name), standings) for name in names]
    pairs = {axis: standings[axis].win_rates if axis in standings else [] for axis in AXES.values()}
    return Assessed(models, pairs, warnings)


def model_row(name: str, player: Player | None, standings: dict[str, Standing]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "path": player.path if player else None,
        "run": player.run if player else None,
        "step": player.step if player else None,
    }
    for axis in AXES.values():
        row[axis] = rating_row(standings[axis].ratings.get(name)) if axis in standings else None
    return row


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
    positions: dict[frozenset[str], list[bool]] = {}
    for outcome in outcomes:
        if outcome.same_position is not None:
            positions.setdefault(frozenset(outcome.models), []).append(outcome.same_position)
    for row in rows:
        row |= {"a": names[row["a"]], "b": names[row["b"]]}
        if same := positions.get(frozenset((row["a"], row["b"]))):
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
