"""Ratings, their intervals and win rates beside formulas by hand, another iteration, and known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cai_cli.evaluation.bradley_terry import Games, components, rate
from cai_cli.evaluation.calibration import wilson
from cai_cli.evaluation.frontier_plot import draw_ratings
from cai_cli.evaluation.outcomes import Outcome
from cai_cli.evaluation.tournament import assess, unrated
from cai_cli.evaluation.win_rates import length_controlled, win_rates


def games_of(models: int, played: list[tuple[int, int, float]]) -> Games:
    """Each game about a prompt of its own."""
    first, second, won = zip(*played, strict=True)
    return Games(models, np.array(first), np.array(second), np.array(won), [f"p{n}" for n in range(len(won))])


def elo_of(games: Games, anchor: int = 0, resamples: int = 20) -> list[float]:
    return [rating.elo for rating in rate(games, anchor, resamples=resamples)]


@pytest.mark.parametrize(("wins", "lost", "elo"), [(10, 1, 400), (1, 10, -400), (100, 1, 800), (7, 7, 0)])
def test_400_points_are_odds_of_ten_to_one(wins, lost, elo):
    """Of two models the likeliest odds are those of the wins: the closed form."""
    assert elo_of(games_of(2, [(1, 0, 1.0)] * wins + [(0, 1, 1.0)] * lost)) == pytest.approx(
        [0, elo], abs=1e-6
    )


def test_a_tie_is_half_a_win_and_a_probability_is_that_much_of_one():
    ties = games_of(2, [(1, 0, 1.0)] * 3 + [(0, 1, 0.5)] * 2 + [(1, 0, 0.0)])
    assert elo_of(ties)[1] == pytest.approx(400 * math.log10(4 / 2))
    soft = games_of(2, [(1, 0, 0.9), (0, 1, 0.4), (1, 0, 0.3)])
    assert elo_of(soft)[1] == pytest.approx(400 * math.log10(1.8 / 1.2))
    sure = games_of(2, [(1, 0, 1 - 1e-7)] * 5)
    assert elo_of(sure)[1] == pytest.approx(400 * math.log10(1e7), rel=1e-3)


def zermelo(wins: np.ndarray) -> np.ndarray:
    """Strengths by Zermelo's iteration (1929), Hunter's MM: p_i = W_i / sum_j n_ij / (p_i + p_j). As Elo, model 0 at
    0. `wins[i, j]`: of i against j.
    """
    strength, games = np.ones(len(wins)), wins + wins.T
    for _ in range(5000):
        strength = wins.sum(axis=1) / (games / (strength[:, None] + strength)).sum(axis=1)
    return 400 * np.log10(strength / strength[0])


def test_ratings_are_those_of_zermelos_iteration():
    random = np.random.default_rng(3)
    wins = random.integers(1, 30, size=(6, 6)).astype(float)
    np.fill_diagonal(wins, 0)
    wins[0, 4] = wins[4, 0] = 0  # two that never met
    wins[2] *= 5
    played = [(a, b, 1.0) for a in range(6) for b in range(6) for _ in range(int(wins[a, b]))]
    found = elo_of(games_of(6, played), resamples=2)
    assert found == pytest.approx(zermelo(wins).tolist(), abs=1e-4)
    moved = elo_of(games_of(6, played), anchor=3, resamples=2)
    assert moved == pytest.approx([elo - found[3] for elo in found], abs=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 draws of games between models of known ratings; the replies to a prompt share its luck, so that games
    about it go together. Each interval of 95 % covers the truth in 190 of 200 draws, give or take 3.1: below 180 or
    in all of them is one chance in some thousand.
    """
    random = np.random.default_rng(0)
    truth = np.array([0.0, 120.0, -200.0])
    pairs = [(0, 1), (0, 2), (1, 2)]
    prompts = [f"p{n}" for n in range(100) for _ in range(6)]
    first, second = (np.array([pair[side] for pair in pairs * 2] * 100) for side in (0, 1))
    odds = (truth[first] - truth[second]) * math.log(10) / 400
    covered = np.zeros(3)
    for draw in range(200):
        # The same luck for both games of a pair about a prompt: they end alike
        luck = np.tile(random.random((100, 3)), 2).reshape(-1)
        won = (luck < 1 / (1 + np.exp(-odds))).astype(float)
        for n, rating in enumerate(rate(Games(3, first, second, won, prompts), 0, draw, resamples=120)):
            covered[n] += rating.low <= truth[n] <= rating.high
    assert covered[0] == 200, "the anchor is where it is"
    assert all(180 <= count <= 199 for count in covered[1:]), covered


def test_a_model_that_won_all_has_a_bound_on_one_side_only():
    """Nine games won of nine: by hand, 2.5 % is the chance of that at p = 0.025^(1/9); 9.5 of 10 bounds the Elo."""
    games = games_of(3, [(1, 0, 1.0)] * 9 + [(0, 2, 1.0)] * 4 + [(0, 2, 0.0)] * 4)
    anchor, above, level = rate(games, 0, resamples=200)
    least = 0.025 ** (1 / 9)
    assert (anchor.elo, anchor.low, anchor.high, anchor.games) == (0, 0, 0, 17)
    assert (above.side, above.high, above.games) == ("above", None, 9)
    assert above.low == pytest.approx(400 * math.log10(least / (1 - least)), abs=1e-6)
    assert above.elo == pytest.approx(400 * math.log10(9.5 / 0.5), abs=1e-6)
    assert level.side == "" and level.elo == pytest.approx(0, abs=1e-6) and level.low < 0 < level.high
    from_above = rate(games, 1, resamples=50)
    assert [rating.side for rating in from_above] == ["below", "", "below"]
    assert from_above[0].low is None and from_above[0].high == pytest.approx(-above.low, abs=1e-6)


def test_nine_replies_to_one_prompt_are_one_game_to_a_bound():
    games = Games(2, np.array([1] * 9), np.array([0] * 9), np.ones(9), ["p"] * 9)
    assert rate(games, 0)[1].low == pytest.approx(400 * math.log10(0.025 / 0.975), abs=1e-6)


def test_two_that_only_a_winner_ties_together_are_not_rated():
    games = games_of(3, [(1, 0, 1.0)] * 5 + [(1, 2, 1.0)] * 5)
    assert [rating.side for rating in rate(games, 0, resamples=20)] == ["", "above", "both"]


def outcome(a: str, b: str, won: float, kind: str = "helpful", prompt: str = "p", **facts) -> Outcome:
    return Outcome((a, b), won, prompt, kind, **facts)


def test_models_that_no_game_ties_are_named_with_a_next_step():
    games = [(("a", "b"), "helpful"), (("c", "d"), "helpful"), (("a", "b"), "harmful")]
    told, step = unrated(games, ["a", "b", "c", "d"], "a")
    assert told == "helpfulness: no chain of games ties c, d to a" and "same prompts" in step
    assert unrated(games, ["a", "b", "c", "d", "e"], "a")[0] == "e: is in no game with another model"
    assert (
        "c: has no game on harmful prompts"
        in unrated([*games, games[0], (("b", "c"), "helpful")], list("abcd"), "c")[0]
    )
    assert unrated([games[0], games[2], (("b", "c"), "helpful")], ["a", "b", "c"], "a") is None
    assert components(3, np.array([0]), np.array([2]), np.ones(1)).tolist() == [0, 1, 0]


def test_the_picture_takes_open_ends_runs_and_names_of_any_kind(tmp_path):
    """On both axes, and where one was not measured of all models."""

    def model(name: str, step: int | None, low: float | None, high: float | None) -> dict:
        rating = {"elo": 50.0, "low": low, "high": high, "games": 9}
        return {"name": name, "run": "r", "step": step, "helpfulness": rating, "harmlessness": rating}

    models = [model("a$", None, 10, None), model("<b>" * 20, 5, None, 60), model("c", 20, None, None)]
    for name, ratings in (("both", models), ("one", [{**models[0], "harmlessness": None}, models[1]])):
        draw_ratings(ratings, "a$", tmp_path / f"{name}.png", "of $x_$")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# Win rates


def test_win_rates_by_hand():
    games = Games(
        2, np.array([0, 1, 0, 0]), np.array([1, 0, 1, 1]), np.array([1.0, 1.0, 0.5, 1.0]), list("ppqr")
    )
    (row,) = win_rates(games, None)
    assert (row["a"], row["b"], row["win"], row["games"]) == (0, 1, 0.625, 4)
    assert 0 <= row["low"] < 0.625 < row["high"] <= 1
    always = Games(2, np.array([0] * 6), np.array([1] * 6), np.ones(6), list("aabbcc"))
    (row,) = win_rates(always, np.array([[9.0, 9.0]] * 6))
    assert (row["low"], row["high"]) == wilson(3, 3), "no draw of prompts knows of a loss: three prompts do"
    assert row["length_controlled"] == pytest.approx(6.5 / 7)


def test_the_win_rate_at_equal_lengths_by_hand():
    """One model wins 80 % where it is longer and 40 % where it is as much shorter: with d of one size the two shares
    are those of theta + phi and theta - phi, and theta is the mean of their log odds.
    """
    longer, shorter = [1.0] * 8000 + [0.0] * 2000, [1.0] * 4000 + [0.0] * 6000
    difference = np.array([50.0] * 10_000 + [-50.0] * 10_000)
    odds = (math.log(0.8 / 0.2) + math.log(0.4 / 0.6)) / 2
    found = length_controlled(np.array(longer + shorter), difference)
    assert found == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)
    assert length_controlled(np.array(longer + shorter), -difference) == pytest.approx(found, abs=1e-9)
    alike = length_controlled(np.array([1.0, 1.0, 0.0]), np.zeros(3))
    assert alike == pytest.approx(2.5 / 4), "equal lengths: the wins, with half a game more for each side"
    assert 0.5 < length_controlled(np.ones(50), np.linspace(1, 99, 50)) < 1, (
        "always longer, always the winner"
    )


def test_what_is_assessed():
    games = [
        outcome("b", "a", 1.0, prompt=f"p{n}", lengths=(20, 10 + n), same_position=n > 1) for n in range(4)
    ]
    games += [outcome("a", "c", 0.7, "harmful", f"q{n}") for n in range(4)]
    found = assess(games, ["a", "b", "c"], [], "a", 0)
    a, b, c = found.models
    assert a["helpfulness"] == {"elo": 0, "low": 0, "high": 0, "games": 4} and a["harmlessness"]["games"] == 4
    assert b["helpfulness"]["high"] is None and b["harmlessness"] is None and c["helpfulness"] is None
    assert c["harmlessness"]["elo"] == pytest.approx(400 * math.log10(3 / 7))
    (row,) = found.win_rates["helpfulness"]
    assert (row["a"], row["b"], row["win"], row["position_bias"]) == ("a", "b", 0, 0.5)
    assert row["length_controlled"] < 0.5
    assert found.win_rates["harmlessness"][0]["length_controlled"] is None
    assert found.warnings == ["helpfulness: b won every game that ties it to a: its Elo has no upper end"]
