"""From option log-probabilities to labels and diagnostics: the sums done by hand."""

from __future__ import annotations

import json
import math

import pytest

from cai_cli.errors import UserError
from cai_cli.feedback.diagnostics import diagnose, histogram, show
from cai_cli.feedback.labels import Answer, Pair, Question, Rule, parse_clamp, softmax_first
from cai_cli.prompting.principles import Principle
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Comparison

P, Q = (Principle(name, "c", "r", "which?") for name in "pq")
PROMPT = [message("user", "q")]


def pair(
    *answers: tuple[Principle, bool, float, float], replies: tuple[str, str] = ("one", "two two")
) -> Pair:
    """A pair with answers (principle, whether the first reply stood as (A), probabilities of (A) and (B))."""
    made = Pair("i/0", "i", PROMPT, "harmful", list(replies))
    made.answers = [
        Answer(Question(made, principle, first), math.log(a), math.log(b))
        for principle, first, a, b in answers
    ]
    return made


def test_softmax_of_two():
    assert softmax_first(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert softmax_first(-1000.0, -1001.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert softmax_first(-1e9, 0.0) == 0.0


def test_both_orders_are_averaged():
    # First reply as (A): 0.6 of 0.8, so 0.75. As (B): 0.3 of 0.4, so 0.75 for (B), which is the first reply.
    assert pair((P, True, 0.6, 0.2), (P, False, 0.1, 0.3)).probability_first == pytest.approx(0.75)
    # A judge that always says (A) with 0.9 has no opinion.
    assert pair((P, True, 0.9, 0.1), (P, False, 0.9, 0.1)).probability_first == pytest.approx(0.5)
    # One order at 0.8, the other at 0.4: the mean, not the softmax of the means.
    assert pair((P, True, 0.8, 0.2), (P, False, 0.6, 0.4)).probability_first == pytest.approx(0.6)


def test_principles_are_averaged():
    answers = [(P, True, 0.8, 0.2), (P, False, 0.2, 0.8), (Q, True, 0.2, 0.8), (Q, False, 0.4, 0.6)]
    assert pair(*answers).probability_first == pytest.approx((0.8 + 0.8 + 0.2 + 0.6) / 4)


def test_the_second_reply_can_be_chosen():
    row = pair((P, True, 0.1, 0.3), (P, False, 0.36, 0.04)).to_comparison()
    assert row.chosen == [message("assistant", "two two")] and row.rejected == [message("assistant", "one")]
    assert row.probability == pytest.approx((0.75 + 0.9) / 2)
    assert [judgement.order for judgement in row.judgements] == ["rejected_first", "chosen_first"]
    assert [judgement.probability_chosen for judgement in row.judgements] == pytest.approx([0.75, 0.9])
    assert [judgement.mass for judgement in row.judgements] == pytest.approx([0.4, 0.4])
    assert Comparison.from_row(json.loads(json.dumps(row.to_row()))) == row
    assert (row.origin, row.kind, row.prompt_id) == ("ai", "harmful", "i")


def test_a_tie_goes_to_the_first_reply():
    row = pair((P, True, 0.25, 0.25)).to_comparison()
    assert row.chosen == [message("assistant", "one")] and row.probability == 0.5


def test_mass_is_the_mean_over_questions():
    assert pair((P, True, 0.6, 0.2), (P, False, 0.1, 0.1)).mass == pytest.approx(0.5)


def test_question_puts_the_first_reply_where_it_says():
    both = pair((P, True, 0.5, 0.5), (P, False, 0.5, 0.5))
    assert [answer.question.replies for answer in both.answers] == [("one", "two two"), ("two two", "one")]


# What becomes of the mean


def test_the_clamp_is_on_the_mean():
    made = pair((P, True, 0.9, 0.1), (P, False, 0.5, 0.5))  # mean 0.7; clamped one by one it would be 0.55
    assert made.to_comparison(Rule((0.4, 0.6))).probability == pytest.approx(0.6)
    assert made.to_comparison(Rule((0.2, 0.8))).probability == pytest.approx(0.7)
    second = pair((P, True, 0.1, 0.9)).to_comparison(Rule((0.4, 0.6)))
    assert second.chosen == [message("assistant", "two two")] and second.probability == pytest.approx(0.6)
    assert second.judgements[0].probability_chosen == pytest.approx(0.9), "what the judge said is kept"


def test_hard_labels_are_certain_but_for_ties():
    assert pair((P, True, 0.45, 0.4)).to_comparison(Rule(hard=True)).probability == 1
    assert pair((P, True, 0.4, 0.45)).to_comparison(Rule(hard=True)).chosen == [
        message("assistant", "two two")
    ]
    assert pair((P, True, 0.4, 0.4)).to_comparison(Rule(hard=True)).probability == 0.5


def test_clamps_are_even_bounds():
    assert (
        parse_clamp("0.4:0.6") == (0.4, 0.6) and parse_clamp("0:1") == (0, 1) and parse_clamp("none") is None
    )
    for text in ("0.4", "0.4:0.7", "0.6:0.4", "x:y", "0.5:0.5", "-0.1:1.1", "0.4:0.6:0.8"):
        with pytest.raises(UserError, match="--clamp"):
            parse_clamp(text)


# Diagnostics


def test_same_position_rate():
    agrees = pair((P, True, 0.8, 0.2), (P, False, 0.2, 0.8)).to_comparison()
    says_a = pair((P, True, 0.8, 0.2), (P, False, 0.7, 0.3)).to_comparison()
    says_b = pair((P, True, 0.2, 0.8), (P, False, 0.3, 0.7)).to_comparison()
    one_order = pair((P, True, 0.8, 0.2)).to_comparison()
    two_principles = pair(
        (P, True, 0.8, 0.2), (P, False, 0.2, 0.8), (Q, True, 0.9, 0.1), (Q, False, 0.6, 0.4)
    ).to_comparison()
    for rows, rate in (
        ([agrees], 0.0),
        ([says_a], 1.0),
        ([says_b], 1.0),
        ([agrees, says_a, says_b, agrees], 0.5),
        ([two_principles], 0.5),
        ([one_order], None),
        ([one_order, says_a], 1.0),
    ):
        assert diagnose(rows)["same_position_rate"] == rate


def test_diagnostics(capsys):
    rows = [
        pair((P, True, 0.6, 0.2), (P, False, 0.6, 0.2)).to_comparison(),
        pair((Q, True, 0.1, 0.3)).to_comparison(),
    ]
    facts = diagnose(rows)
    assert facts["mean_probability_a"] == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert facts["mean_mass"] == pytest.approx((0.8 + 0.8 + 0.4) / 3)
    assert facts["mean_probability"] == pytest.approx((0.5 + 0.75) / 2)
    # The tie's chosen reply stood first with 0.75 and second with 0.25, the other one's stood second with
    # 0.75.
    assert facts["mean_probability_by_order"] == pytest.approx({"chosen_first": 0.75, "rejected_first": 0.5})
    assert facts["longer_chosen"] == 0.5, "the tie chose 'one', the other chose 'two two'"
    assert facts["same_position_rate"] == 1.0
    assert facts["by_principle"]["p"] == {
        "questions": 2,
        "agreement": 0.5,
        "mean_probability": pytest.approx(0.5),
    }
    assert facts["confidence_histogram"]["0.5–0.6"] == facts["confidence_histogram"]["0.7–0.8"] == 1
    assert sum(facts["mass_histogram"].values()) == 3 and facts["by_kind"]["harmful"]["pairs"] == 2
    assert json.loads(json.dumps(facts, allow_nan=False))
    same_length = [pair((P, True, 0.6, 0.2), replies=("one", "two")).to_comparison()]
    assert diagnose(same_length)["longer_chosen"] is None
    show(facts)
    told = capsys.readouterr().err
    assert "label: 2 pairs" in told and "50.0%" in told


def test_histogram_edges():
    assert histogram([0.5, 0.6, 0.99, 1.0], (0.5, 0.6, 1.0)) == {"0.5–0.6": 1, "0.6–1": 3}
