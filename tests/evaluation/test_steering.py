"""How far labels move between principles: every statistic worked by hand, and judges made up."""

from __future__ import annotations

import numpy as np
import pytest

from cai_cli.evaluation.bootstrap import Bootstrap
from cai_cli.evaluation.steering import (
    LEAST_PROMPTS,
    Labels,
    compare,
    correlation,
    measure,
    most_moved,
    positions,
    same_side,
    shortcoming,
)

P = np.array([0.9, 0.2, 0.6, 0.5])
Q = np.array([0.8, 0.7, 0.9, 0.4])
NONE = np.array([0.4, 0.3, 0.7, 0.5])
REWORDED = np.array([0.5, 0.3, 0.6, 0.5])
OPPOSITE = np.array([0.2, 0.8, 0.5, 0.6])


def labels(asked, none=NONE, reworded=REWORDED, opposites=None, prompts=None) -> Labels:
    names = [f"p{n}" for n in range(len(asked))]
    prompts = prompts or [f"prompt {n}" for n in range(len(none))]
    return Labels(names, np.array(asked), none, reworded, opposites or {}, prompts)


def turned(facts: dict, name: str) -> float:
    return facts["principles"]["p0"]["opposite"][name]


def test_a_tie_counts_half_on_either_side():
    assert same_side(P, NONE).tolist() == [0, 1, 1, 0.5]
    assert same_side(P, OPPOSITE).tolist() == [0, 0, 0.5, 0.5]


def test_what_a_principle_does_by_hand():
    facts = measure(labels([P, Q], opposites={"p0": OPPOSITE}))
    first = facts["principles"]["p0"]
    assert first["flips"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert first["shift"] == pytest.approx((0.5 + 0.1 + 0.1 + 0) / 4)
    assert facts["reworded"]["shift"] == pytest.approx((0.1 + 0 + 0.1 + 0) / 4)
    assert first["beyond"] == pytest.approx(0.175 - 0.05)
    assert first["agreement"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)  # with the other one
    assert first["distance"] == pytest.approx((0.1 + 0.5 + 0.3 + 0.1) / 4)
    assert turned(facts, "turned") == facts["opposites"]["turned"] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert turned(facts, "distance") == pytest.approx((0.7 + 0.6 + 0.1 + 0.1) / 4)
    # From none: to 0.9, away from 0.2; to 0.2, away from 0.8; to 0.6, toward 0.5; the last not at all
    assert turned(facts, "apart") == pytest.approx((0.5 + 0.1 - 0.1 + 0) / 4)
    assert turned(facts, "correlation") == pytest.approx(-0.21 / (0.26 * 0.19) ** 0.5)
    assert "opposite" not in facts["principles"]["p1"]


def test_the_table_of_agreement_holds_principles_none_and_opposites():
    table = measure(labels([P, Q], opposites={"p1": OPPOSITE}))["agreement"]
    assert table["names"] == ["p0", "p1", "(none)", "not p1"]
    rows = [P, Q, NONE, OPPOSITE]
    for n, one in enumerate(rows):
        for m, other in enumerate(rows):
            assert table["same_side"][n][m] == pytest.approx(same_side(one, other).mean())
            low, high = table["same_side_interval"][n][m]
            assert low <= table["same_side"][n][m] <= high
    assert table["correlation"][0][0] == pytest.approx(1)
    assert correlation(np.full(4, 0.5), P) is None


def test_nothing_depends_on_which_reply_is_called_first():
    swap = np.array([True, False, True, False])
    other = lambda row: np.where(swap, 1 - row, row)  # noqa: E731
    one = measure(labels([P, Q], opposites={"p0": OPPOSITE}))
    two = measure(labels([other(P), other(Q)], other(NONE), other(REWORDED), {"p0": other(OPPOSITE)}))
    assert flat(one) == pytest.approx(flat(two))


def flat(facts) -> list[float]:
    if isinstance(facts, dict):
        return [number for item in facts.values() for number in flat(item)]
    if isinstance(facts, list | tuple):
        return [number for item in facts for number in flat(item)]
    return [facts] if isinstance(facts, float) else []


def test_pairs_of_one_prompt_are_drawn_together():
    values = np.tile([0.0, 1.0], 100)
    alone = Bootstrap([str(n) for n in range(200)])
    low, high = alone.interval(values)
    half = 1.96 * np.sqrt(0.25 / 200)  # the normal interval of 200 independent pairs
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert Bootstrap(["a", "b"] * 100).interval(values) == (0, 1), "two prompts are two observations"
    # A prompt with more pairs weighs more, as the mean over pairs has it: draws are 0, 1/4 (a and b) or 1
    assert set(Bootstrap(["a", "a", "a", "b"]).means(np.array([0, 0, 0, 1.0]))) == {0, 0.25, 1}


def judged(kind: str, prompts: int = 100, own: float = 0.3):
    """Labels by a judge of a kind, under two principles that ask for two things."""
    random = np.random.default_rng(3)
    taste, *things = random.uniform(-1, 1, (3, prompts))
    noise = lambda size: random.normal(0, size, prompts)  # noqa: E731
    none = 0.5 + own * taste
    if kind == "listens":
        asked, opposite = 0.5 + own * np.array(things), 0.5 - own * things[0]
    elif kind == "deaf":
        asked, opposite = none + noise(0.002) * np.ones((2, 1)), none + noise(0.002)
    else:  # words move it, whatever they say
        asked, opposite = none + np.array([noise(0.05), noise(0.05)]), none + noise(0.05)
    reworded = none + noise(0.05 if kind == "wording" else 0.002)
    return measure(labels(list(asked), none, reworded, {"p0": opposite}))


HEARD = {"mean_mass": 0.9, "position": {"same_position_rate": 0.2, "same_position_rate_interval": (0.1, 0.3)}}


def test_a_judge_that_listens():
    facts = judged("listens")
    assert [item["effect"] for item in facts["principles"].values()] == ["moves", "moves"]
    assert turned(facts, "turned") == 1 and turned(facts, "correlation") == pytest.approx(-1)
    assert shortcoming(facts | HEARD) is None


def test_a_judge_with_a_taste_of_its_own():
    facts = judged("deaf")
    assert [item["effect"] for item in facts["principles"].values()] == ["nothing", "nothing"]
    assert turned(facts, "turned") < 0.1 and turned(facts, "correlation") > 0.99
    assert shortcoming(facts | HEARD)["name"] == "opposites"
    without = facts | HEARD | {"opposites": None}
    assert (
        shortcoming(without)["name"] == "principles" and "2 of 2 principles" in shortcoming(without)["told"]
    )


def test_a_judge_that_words_move_whatever_they_say():
    facts = judged("wording")
    assert [item["effect"] for item in facts["principles"].values()] == ["unclear", "unclear"]
    assert facts["principles"]["p0"]["shift"] > 0.03, "labels do move"


def test_of_few_prompts_nothing_is_said_to_do_nothing():
    facts = judged("deaf", LEAST_PROMPTS - 1)
    assert {item["effect"] for item in facts["principles"].values()} == {"unclear"}
    assert shortcoming(facts | HEARD | {"opposites": None})["name"] == "prompts"
    many = labels([NONE] * 2, NONE, NONE, prompts=["a", "a", "b", "b"])
    assert measure(many)["principles"]["p0"]["effect"] == "unclear"


def test_a_principle_that_moves_a_few_prompts_far_does_something():
    none, row = np.full(100, 0.4), np.full(100, 0.4)
    row[:3] = 0.8
    facts = measure(labels([row], none, none))["principles"]["p0"]
    assert facts["shift"] == pytest.approx(0.012) and facts["effect"] == "unclear"
    assert measure(labels([none], none, none))["principles"]["p0"]["effect"] == "nothing"


def test_mass_and_position_come_first():
    facts = judged("deaf") | HEARD
    reads_position = {"same_position_rate": 0.8, "same_position_rate_interval": (0.7, 0.9)}
    found = shortcoming(facts | {"position": reads_position})
    assert found["name"] == "position" and "80%" in found["told"]
    assert shortcoming(facts | {"position": reads_position, "mean_mass": 0.01})["name"] == "mass"
    heard = judged("listens") | HEARD | {"position": reads_position}
    assert shortcoming(heard) is None, "its opposites turn: what it takes by position is what it is silent on"
    assert shortcoming(heard | {"opposites": None})["name"] == "position"


def test_position_is_the_same_option_in_both_orders():
    # Two questions about three pairs: the first option taken with the first reply there, and with the second
    there, back = np.array([[1, 1, 0], [1, 0, 0]]), np.array([[1, 1, 0], [0, 0, 1]])
    facts = positions(np.array([there, back]), ["a", "b", "c"])
    assert facts["same_position_rate"] == pytest.approx(4 / 6)


def test_two_constitutions_by_hand():
    facts = compare(P, Q, list("abcd"))
    assert facts["changed_sides"] == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    assert facts["distance"] == pytest.approx((0.1 + 0.5 + 0.3 + 0.1) / 4)
    assert facts["correlation"] == pytest.approx((0.12 - 0.06 + 0.04) / (0.26 * 0.30) ** 0.5)
    assert most_moved(P, Q)[:2] == [1, 2]
