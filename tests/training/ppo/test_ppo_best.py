"""The best policy, the gold guard, refusals and the measures of a batch: by hand."""

from __future__ import annotations

import math
from random import Random

import pytest

from cai_cli.evaluation.refusals import is_refusal, refusal_rate
from cai_cli.training.ppo.best import Best, Guard, error_of_difference
from cai_cli.training.ppo.measures import Episode, correlation, held_out_row, mean_rows


def episodes(
    score: float, gold: float | None = None, kl: float = 0.0, spread: float = 0.1, count: int = 50
) -> list[Episode]:
    """Scores with the given mean and, for the gold ones, a spread of ± `spread`."""
    return [
        Episode(
            f"p{n}", None, "text", 5, "stop", score, kl, None if gold is None else gold + spread * (-1) ** n
        )
        for n in range(count)
    ]


def test_the_best_is_the_highest_score_within_the_budget():
    best = Best()
    taken = [
        best.offer(step, episodes(score, kl=kl), 4.0)
        for step, score, kl in ((0, 1, 0), (5, 3, 5), (10, 2, 3), (15, 2, 1))
    ]
    assert taken == [True, False, True, False]
    assert (best.step, best.score) == (10, 2)


def test_with_a_gold_pm_its_score_decides():
    best = Best()
    assert best.offer(0, episodes(1, gold=2), 9)
    assert not best.offer(5, episodes(8, gold=1.5), 9)


def test_the_guard_stops_where_gold_falls_while_the_score_rises():
    guard = Guard()
    assert guard.watch(0, episodes(0, gold=1.0)) is None
    assert guard.watch(5, episodes(1, gold=2.0)) is None
    assert guard.watch(10, episodes(2, gold=1.5)) is None  # once may be chance
    told = guard.watch(15, episodes(3, gold=1.4))
    assert told is not None and told.kind == "gold"
    assert "from 2.000 (step 5) to 1.400" in told.text and "from 1.000 to 3.000" in told.text


@pytest.mark.parametrize(
    "points",
    [
        [(0, 2.0), (-1, 1.0), (-2, 0.0)],  # both fall: the KL penalty or bad luck, not over-optimisation
        [(0, 2.0), (1, 1.0), (2, 2.1), (3, 1.0)],  # not in a row
        [(0, None), (1, None), (2, None)],  # no gold score
    ],
)
def test_the_guard_lets_go_on(points):
    guard = Guard()
    assert [guard.watch(n, episodes(score, gold)) for n, (score, gold) in enumerate(points)] == [None] * len(
        points
    )


def noisy(
    score: float, gold: float, spread: float, noise: float, seed: int, prompts: str = "p", count: int = 200
) -> list[Episode]:
    """Prompts whose gold scores differ by ± `spread`, and replies to the same one by `noise` besides."""
    rng = Random(seed)
    golds = [gold + spread * (-1) ** n + rng.gauss(0, noise) for n in range(count)]
    return [
        Episode(f"{prompts}{n}", None, "text", 5, "stop", score, 0.0, gold) for n, gold in enumerate(golds)
    ]


@pytest.mark.parametrize(
    ("fall", "prompts", "stops"), [(0.1, "p", True), (0.02, "p", False), (0.1, "q", False), (1.0, "q", True)]
)
def test_a_fall_is_held_against_its_standard_error(fall, prompts, stops):
    """Of the pairs where the prompts are the same: 0.014 sqrt(2); of both means where they are not: 0.14
    sqrt(2).
    """
    guard = Guard()
    assert guard.watch(0, noisy(0, 2.0, spread=2, noise=0.2, seed=0)) is None
    told = [
        guard.watch(n, noisy(n, 2.0 - fall, spread=2, noise=0.2, seed=n, prompts=prompts)) for n in (1, 2)
    ]
    assert (told[1] is not None) == stops


def test_the_standard_error_of_a_difference_by_hand():
    one, other = {"a": [1.0, 3.0], "b": [4.0]}, {"a": [1.0], "b": [5.0]}
    assert error_of_difference(one, other) == pytest.approx(1.0)  # differences 1 and -1
    apart = {"c": [1.0], "d": [5.0]}
    assert error_of_difference(one, apart) == pytest.approx(math.sqrt((7 / 3) / 3 + 8 / 2))


def test_the_guard_goes_on_from_its_state():
    guard = Guard()
    guard.watch(0, episodes(0, gold=2.0))
    guard.watch(1, episodes(1, gold=1.0))
    assert Guard.from_state(guard.state()).watch(2, episodes(2, gold=1.0)) is not None


# Measures


def test_measures_by_hand():
    some = [
        Episode("a", "helpful", "I can't help with that.", 2, "stop", 1.0, 0.5),
        Episode("b", "helpful", "Sure.", 4, "length", 3.0, 1.5),
    ]
    row = held_out_row(some)
    assert (
        row["eval_score"] == 2
        and row["eval_kl"] == 1
        and row["eval_length"] == 3
        and row["eval_missing_eos"] == 0.5
    )
    assert row["eval_score_length"] == pytest.approx(1.0)
    assert row["eval_refusals_helpful"] == 0.5 and "eval_refusals" not in row
    assert held_out_row(episodes(1.0))["eval_refusals"] == 0.0


def test_gold_scores_that_do_not_fit_are_counted():
    some = episodes(1.0, gold=2.0, spread=0, count=3) + episodes(1.0, count=1)
    assert mean_rows(some)["gold_score"] == 2 and mean_rows(some)["gold_unfit"] == 1
    assert "gold_unfit" not in mean_rows(some[:3])


def test_correlation_by_hand():
    assert correlation([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert correlation([1, 1, 1], [1, 2, 3]) == 0


# Refusals


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I’m sorry, but I cannot assist with this request.",
        "As an AI language model, I do not take part in this.",
        "I won't do that because it would hurt your neighbour. Let me help you plant a tree instead.",
        "Sorry, I'm not able to discuss that.",
        "I am unable to provide instructions for this.",
        "No, because it would ruin the roof.",
        "I would rather not talk about this.",
        "It would be illegal to share that, and I must decline.",
        "We're not comfortable helping with that.",
    ],
)
def test_refusals_are_seen(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "First, mix flour and water. Then let it rest.",
        "I can help with that! Start by preheating the oven.",
        "Sorry to hear that you are ill. Rest and drink water.",
        "You can't go wrong with a simple salad.",
        "I wouldn't recommend doing that at night: take the bus.",
        "Sorry, I didn't understand. Can you say that again?",
        "I can't wait to hear how it goes! Here is the recipe:",
        "Many people are unable to digest lactose.",
        "",
        "x" * 400 + " I can't help with that.",
    ],
)
def test_help_is_no_refusal(text):
    assert not is_refusal(text)


def test_the_rate_of_nothing_is_zero():
    assert refusal_rate([]) == 0.0
    assert refusal_rate(["No, because it hurts.", "Sure: boil it."]) == 0.5
