"""How often each of two models wins, with intervals, and how often it would at equal lengths. No torch.

Length-controlled: P(a wins) = logistic(theta + phi tanh(d / s)), d the difference of the two lengths in
characters, s its standard deviation, by maximum likelihood; what is reported is logistic(theta), at d = 0.
Source: length-controlled AlpacaEval (arXiv 2404.04475, section 3), without its term for how hard an instruction is,
which takes many models. So that theta and phi are there also where one model won all, or always wrote more, half a
game at equal lengths is added for each side, and phi is held by a normal prior of `SPREAD`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cai_cli.evaluation.bootstrap import Array, Bootstrap, percentiles
from cai_cli.evaluation.bradley_terry import HALF, Games, tally, won_by_lower
from cai_cli.evaluation.calibration import wilson

SPREAD = 3.0  # of phi: odds of 20:1 for as long a difference as tanh tells apart


def win_rates(games: Games, lengths: Array | None, seed: int = 0) -> list[dict[str, Any]]:
    """One row a pair that has played: {"a", "b", "win", "low", "high", "length_controlled", "games"}, a and b
    the numbers of the models, a the lower one. `lengths`: (N, 2) characters of each game's replies, NaN where
    they are not known.
    """
    whole, pair_of = tally(games)
    won = won_by_lower(games)
    rows = []
    for pair in range(len(whole.games)):
        here = pair_of == pair
        prompts = [prompt for prompt, counts in zip(games.prompts, here, strict=True) if counts]
        low, high = interval(won[here], prompts, seed)
        rows.append(
            {
                "a": int(whole.first[pair]),
                "b": int(whole.second[pair]),
                "win": float(won[here].mean()),
                "low": low,
                "high": high,
                "length_controlled": None if lengths is None else of_pair(games, lengths, won, here),
                "games": int(here.sum()),
            }
        )
    return rows


def interval(won: Array, prompts: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % interval of a win rate over prompts; Wilson's where all of them say the same, of which no draw knows."""
    if np.ptp(won) > 0:
        return percentiles(Bootstrap(prompts, seed).means(won))
    distinct = len(set(prompts))
    return wilson(float(won[0]) * distinct, distinct)


def of_pair(games: Games, lengths: Array, won: Array, here: Any) -> float | None:
    """The length-controlled win rate of the first model of a pair; None where lengths are not known."""
    ours = np.where(games.first < games.second, lengths[:, 0], lengths[:, 1])
    theirs = np.where(games.first < games.second, lengths[:, 1], lengths[:, 0])
    difference = (ours - theirs)[here]
    known = np.isfinite(difference)
    return length_controlled(won[here][known], difference[known]) if known.any() else None


def length_controlled(won: Array, difference: Array) -> float:
    """The win rate at equal lengths. (N,) each: what part of a game was won, by how many characters longer."""
    from scipy import optimize, special

    deviation = float(difference.std())
    slant = np.tanh(difference / deviation) if deviation else np.zeros(len(won))

    def surplus(values: Array) -> tuple[Array, Array]:
        theta, phi = values
        share, level = special.expit(theta + phi * slant), special.expit(theta)
        beyond = won - share
        total = [beyond.sum() + HALF - 2 * HALF * level, (beyond * slant).sum() - phi / SPREAD**2]
        weight = share * (1 - share)
        cross = (weight * slant).sum()
        slopes = [
            [weight.sum() + 2 * HALF * level * (1 - level), cross],
            [cross, (weight * slant**2).sum() + SPREAD**-2],
        ]
        return np.array(total), -np.array(slopes)

    found = optimize.root(surplus, np.zeros(2), jac=True, method="hybr")
    return float(special.expit(found.x[0]))
