"""From option log-probabilities to labels: the sums done by hand."""

from __future__ import annotations

import json
import math

import pytest

from cai_cli.constitution import Principle
from cai_cli.conversation import message
from cai_cli.errors import UserError
from cai_cli.feedback import Pair, Question, diagnostics, first_is_a, read_pairs, same_position_rate, softmax_first, summarise
from cai_cli.records import Comparison

P, Q = (Principle(name, "c", "r", "which?") for name in "pq")
PROMPT = [message("user", "q")]


def pair(*answers: tuple[Principle, bool, float, float], replies: tuple[str, str] = ("one", "two two")) -> Pair:
    """A pair with answers (principle, whether the first reply stood as (A), probabilities of (A) and (B))."""
    made = Pair("i/0", "i", PROMPT, "harmful", list(replies))
    made.answers = [(Question(made, principle, first), math.log(a), math.log(b)) for principle, first, a, b in answers]
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
    assert [question.replies for question, _, _ in both.answers] == [("one", "two two"), ("two two", "one")]


def test_same_position_rate():
    agrees = pair((P, True, 0.8, 0.2), (P, False, 0.2, 0.8)).to_comparison()
    says_a = pair((P, True, 0.8, 0.2), (P, False, 0.7, 0.3)).to_comparison()
    says_b = pair((P, True, 0.2, 0.8), (P, False, 0.3, 0.7)).to_comparison()
    one_order = pair((P, True, 0.8, 0.2)).to_comparison()
    two_principles = pair((P, True, 0.8, 0.2), (P, False, 0.2, 0.8), (Q, True, 0.9, 0.1), (Q, False, 0.6, 0.4)).to_comparison()
    assert same_position_rate([agrees]) == 0.0
    assert same_position_rate([says_a]) == same_position_rate([says_b]) == 1.0
    assert same_position_rate([agrees, says_a, says_b, agrees]) == 0.5
    assert same_position_rate([two_principles]) == 0.5
    assert same_position_rate([one_order]) is None
    assert same_position_rate([one_order, says_a]) == 1.0


def test_diagnostics(capsys):
    rows = [pair((P, True, 0.6, 0.2), (P, False, 0.6, 0.2)).to_comparison(), pair((Q, True, 0.1, 0.3)).to_comparison()]
    values = diagnostics(rows)
    assert values["mean_probability_a"] == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert values["mean_mass"] == pytest.approx((0.8 + 0.8 + 0.4) / 3)
    assert values["mean_probability"] == pytest.approx((0.5 + 0.75) / 2)
    assert values["longer_chosen"] == 0.5  # the tie chose "one", the other chose "two two"
    assert values["same_position_rate"] == 1.0
    same_length = [pair((P, True, 0.6, 0.2), replies=("one", "two")).to_comparison()]
    assert diagnostics(same_length)["longer_chosen"] is None
    summarise(rows)
    told = capsys.readouterr().err
    assert "label: 2 pairs" in told and "50.0%" in told


def test_orders_drawn_by_key_are_even_and_fixed():
    draws = [first_is_a(0, f"{n}/0", 0) for n in range(400)]
    assert draws == [first_is_a(0, f"{n}/0", 0) for n in range(400)]
    assert 160 < sum(draws) < 240
    assert draws != [first_is_a(1, f"{n}/0", 0) for n in range(400)]


# Pairs from files


def sample_row(identity: str, reply: str) -> dict:
    return {"id": identity, "prompt": PROMPT, "completion": [message("assistant", reply)], "finish_reason": "stop"}


def comparison_row(identity: str) -> dict:
    replies = {"chosen": [message("assistant", "one")], "rejected": [message("assistant", "two")]}
    return {"id": identity, "prompt_id": "i", "prompt": PROMPT, **replies, "probability": 1, "origin": "human"}


def put(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_first_two_different_samples_of_a_prompt_make_a_pair(tmp_path, capsys):
    rows = [("a/0", "x"), ("b/0", "y"), ("a/1", "x"), ("a/2", "z"), ("a/3", "w"), ("b/1", "y"), ("c/0", "v"), ("c/1", "u")]
    pairs = list(read_pairs([put(tmp_path / "s.jsonl", [sample_row(*row) for row in rows])], None))
    assert [(made.id, made.replies) for made in pairs] == [("a/0", ["x", "z"]), ("c/0", ["v", "u"])]
    assert "1 prompts have no two different replies" in capsys.readouterr().err


def test_comparisons_are_labelled_anew_in_an_order_that_tells_nothing(tmp_path):
    path = put(tmp_path / "c.jsonl", [comparison_row(f"{n}/0") for n in range(200)])
    pairs = list(read_pairs([path], None))
    assert 70 < sum(made.replies == ["one", "two"] for made in pairs) < 130
    assert all(sorted(made.replies) == ["one", "two"] for made in pairs)
    assert [made.id for made in read_pairs([path], 3)] == ["0/0", "1/0", "2/0"]


def test_pairs_of_one_id_in_two_files_are_a_mistake(tmp_path):
    first, second = (put(tmp_path / name, [comparison_row("a/0")]) for name in ("x.jsonl", "y.jsonl"))
    with pytest.raises(UserError, match=r"y\.jsonl: there is a pair 'a/0' already"):
        list(read_pairs([first, second], None))
