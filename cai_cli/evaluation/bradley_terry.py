"""Games between models -> a rating for each, in Elo points, with intervals. No torch.

P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)): 400 points are odds of 10:1 (Bradley and Terry 1952; paper of the
helpful and harmless assistant, arXiv 2204.05862, section 2.4 and appendix B.5). By maximum likelihood, from the
anchor, which is at 0; only differences mean anything. A tie is half a win for each, a probability that much of one.
Intervals are bootstrapped over prompts, since games about one prompt go together.

A model that has won, or lost, all of its games has no finite rating. Those games then count as if half of another
one had been won and half lost between each two models, which bounds the rating, and its interval is open at one
end: the other end is where so long a series would have a chance of 2.5 %, each prompt counted as one game.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cai_cli.evaluation.bootstrap import RESAMPLES, Array, Bootstrap, percentiles

POINTS = 400 / math.log(10)  # Elo points of one unit of log odds
CHANCE = 0.025  # on either side of a 95 % interval
HALF = 0.5  # of a game won, and of one lost: what bounds a rating
FAR = 60.0  # units of log odds, beyond which a probability is 1 to rounding
TOLERANCE = 1e-9  # of a game, in a model's wins
Numbers = NDArray[np.int64]
Open = Literal["", "above", "below", "both"]


@dataclass(frozen=True, slots=True)
class Rating:
    """Elo points. `low`, `high`: a 95 % interval, None at an end that is open; `side`: where a model with an
    open end lies of the anchor, "both" where that is not known.
    """

    elo: float
    low: float | None
    high: float | None
    games: int
    side: Open = ""


@dataclass(frozen=True)
class Games:
    """N games between K models. (N,) each: numbers of the two models, what part of the game the first one
    won, and the game's prompt.
    """

    models: int
    first: Numbers
    second: Numbers
    won: Array
    prompts: Sequence[str]


@dataclass(frozen=True)
class Tally:
    """What ratings depend on: for P pairs of models that have played, (P,) numbers of the two, how many games
    they had and how many of them the first one won.
    """

    models: int
    first: Numbers
    second: Numbers
    games: Array
    wins: Array

    def bounded(self, games: Array, wins: Array) -> tuple[Array, Array]:
        """The same with half a game more for each side between models of which one won all there was."""
        parts = strong_parts(self.models, self.first, self.second, games, wins)
        apart = (parts[self.first] != parts[self.second]) & (games > 0)
        return games + 2 * HALF * apart, wins + HALF * apart


def tally(games: Games) -> tuple[Tally, Numbers]:
    """The tally, and (N,) the number of each game's pair. The first of a pair is the one of the lower number."""
    low, high = np.minimum(games.first, games.second), np.maximum(games.first, games.second)
    codes, pair_of = np.unique(low * games.models + high, return_inverse=True)
    won = won_by_lower(games)
    counts = np.bincount(pair_of, minlength=len(codes)).astype(np.float64)
    wins = np.bincount(pair_of, weights=won, minlength=len(codes)).astype(np.float64)
    lower, upper = np.divmod(codes, games.models)
    return Tally(games.models, lower, upper, counts, wins), pair_of


def won_by_lower(games: Games) -> Array:
    """(N,): what part of each game the model of the lower number won."""
    return np.where(games.first < games.second, games.won, 1 - games.won)


def rate(games: Games, anchor: int, seed: int = 0, resamples: int = RESAMPLES) -> list[Rating]:
    """A rating for each model. All have to be connected by games, see `components`."""
    whole, pair_of = tally(games)
    wins, counts = by_draw(games, whole, pair_of, Bootstrap(games.prompts, seed, resamples))
    all_games, all_wins = whole.bounded(whole.games, whole.wins)
    found = fit(whole, all_games, all_wins, anchor)
    drawn = np.full((len(wins), games.models), np.nan)
    for n, (some, won) in enumerate(zip(counts, wins, strict=True)):
        risky = bool(((won <= TOLERANCE) | (won >= some - TOLERANCE)).any())
        if risky and components(games.models, whole.first, whole.second, some).any():
            continue  # a draw without any game between two groups of models says nothing of their difference
        some, won = whole.bounded(some, won) if risky else (some, won)
        drawn[n] = fit(whole, some, won, anchor, found)
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    sides = sides_of(whole, anchor)
    parts = strong_parts(games.models, whole.first, whole.second, whole.games, whole.wins)
    played = np.bincount(np.concatenate([games.first, games.second]), minlength=games.models)
    ratings = []
    for model, side in enumerate(sides):
        elo = POINTS * float(found[model])
        if not side:
            low, high = percentiles(POINTS * drawn[:, model]) if len(drawn) else (None, None)
        else:
            end = elo + POINTS * shift(games, whole, found, parts == parts[model], side)
            low, high = (end if side == "above" else None), (end if side == "below" else None)
        ratings.append(Rating(elo + 0.0, low, high, int(played[model]), side))
    return ratings


def by_draw(games: Games, whole: Tally, pair_of: Numbers, draws: Bootstrap) -> tuple[Array, Array]:
    """(draws, P) each: wins of the first model of each pair, and games, in each draw of prompts."""
    shape = (draws.prompts, len(whole.games))
    cells = draws.members * shape[1] + pair_of
    size = shape[0] * shape[1]
    wins = np.bincount(cells, weights=won_by_lower(games), minlength=size).reshape(shape)
    counts = np.bincount(cells, minlength=size).reshape(shape).astype(float)
    return draws.times @ wins, draws.times @ counts


def fit(pairs: Tally, games: Array, wins: Array, anchor: int, start: Array | None = None) -> Array:
    """(K,) log odds of largest likelihood, 0 for the anchor: where each model's expected wins are its wins."""
    from scipy import optimize

    first, second, models = pairs.first, pairs.second, pairs.models
    free = np.arange(models) != anchor

    def spread(values: Array) -> Array:
        ratings = np.zeros(models)
        ratings[free] = np.clip(values, -FAR, FAR)
        return ratings

    def expected(values: Array) -> Array:
        ratings = spread(values)
        return 1 / (1 + np.exp(ratings[second] - ratings[first]))

    def surplus(values: Array) -> tuple[Array, Array]:
        """Wins beyond those expected, (K-1,), and their derivatives (K-1, K-1)."""
        share = expected(values)
        beyond = wins - games * share
        total = np.bincount(first, beyond, models) - np.bincount(second, beyond, models)
        slopes = np.zeros((models, models))
        np.add.at(slopes, (first, second), games * share * (1 - share))
        slopes += slopes.T
        slopes -= np.diag(slopes.sum(axis=1))
        return total[free], slopes[np.ix_(free, free)]

    def unlikelihood(values: Array) -> float:
        gap = spread(values)[second] - spread(values)[first]
        return float((wins * np.logaddexp(0, gap) + (games - wins) * np.logaddexp(0, -gap)).sum())

    before = np.zeros(models - 1) if start is None else start[free]
    found = optimize.root(surplus, before, jac=True, method="hybr")
    if not found.success:  # far from where it began
        settings = {"gtol": TOLERANCE, "maxiter": 500}
        slope = lambda values: -surplus(values)[0]  # noqa: E731
        curve = lambda values: -surplus(values)[1]  # noqa: E731
        found = optimize.minimize(
            unlikelihood, before, jac=slope, hess=curve, method="trust-exact", options=settings
        )
    return spread(found.x)


# Who can be told from whom


def components(models: int, first: Numbers, second: Numbers, games: Array) -> Numbers:
    """(K,): the number of the group of each model, within which all are connected by games."""
    from scipy.sparse import coo_array, csgraph

    played = games > 0
    graph = coo_array((games[played], (first[played], second[played])), shape=(models, models))
    found: Numbers = csgraph.connected_components(graph, directed=False)[1]
    return found


def strong_parts(models: int, first: Numbers, second: Numbers, games: Array, wins: Array) -> Numbers:
    """(K,): the number of the part of each model. Between two parts, one has won every game."""
    from scipy.sparse import csgraph

    found: Numbers = csgraph.connected_components(
        beaten(models, first, second, games, wins), connection="strong"
    )[1]
    return found


def beaten(models: int, first: Numbers, second: Numbers, games: Array, wins: Array) -> NDArray[np.bool_]:
    """(K, K): whether one has won any part of a game against the other."""
    table = np.zeros((models, models), dtype=bool)
    table[first, second] |= wins > TOLERANCE
    table[second, first] |= games - wins > TOLERANCE
    return table


def sides_of(whole: Tally, anchor: int) -> list[Open]:
    """Of each model, on which side of the anchor its rating has no end."""
    from scipy.sparse import csgraph

    table = beaten(whole.models, whole.first, whole.second, whole.games, whole.wins)
    reach = np.isfinite(csgraph.shortest_path(table, unweighted=True))
    names: dict[tuple[bool, bool], Open] = {
        (True, True): "",
        (True, False): "above",
        (False, True): "below",
        (False, False): "both",
    }
    return [names[bool(reach[model, anchor]), bool(reach[anchor, model])] for model in range(whole.models)]


def shift(games: Games, whole: Tally, found: Array, inside: NDArray[np.bool_], side: Open) -> float:
    """How far a part of the models may lie from its bounded ratings towards the anchor, in log odds: where the
    series that it won (lost) has a chance of 2.5 %.
    """
    from scipy import optimize

    if side == "both":
        return 0.0
    sign = 1 if side == "above" else -1
    table = beaten(whole.models, whole.first, whole.second, whole.games, whole.wins)
    for_us, for_them = (table, table.T) if side == "above" else (table.T, table)
    first, second = games.first, games.second
    crossing = inside[first] != inside[second]
    ours, theirs = np.where(inside[first], first, second), np.where(inside[first], second, first)
    crossing &= for_us[ours, theirs] & ~for_them[ours, theirs]
    gaps = sign * (found[ours] - found[theirs])[crossing]
    prompts = len({prompt for prompt, counts in zip(games.prompts, crossing, strict=True) if counts})

    def beyond(moved: float) -> float:
        return prompts * float(-np.logaddexp(0, -(gaps + moved)).mean()) - math.log(CHANCE)

    return sign * float(optimize.brentq(beyond, -4 * FAR, 4 * FAR))
