"""Pairs from files and the questions drawn about them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cai_cli.errors import RecordError, UserError
from cai_cli.feedback.judge import Inquiry, first_is_a
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.pairs import choose_pair, read_pairs
from cai_cli.prompting.constitution import load_constitution
from cai_cli.rows.conversation import message

PROMPT = [message("user", "q")]
ARTICLE = load_constitution("article")


def sample_row(identity: str, reply: str) -> dict:
    return {
        "id": identity,
        "prompt": PROMPT,
        "completion": [message("assistant", reply)],
        "finish_reason": "stop",
    }


def comparison_row(identity: str, other: str = "two") -> dict:
    replies = {"chosen": [message("assistant", "one")], "rejected": [message("assistant", other)]}
    return {
        "id": identity,
        "prompt_id": "i",
        "prompt": PROMPT,
        **replies,
        "probability": 1,
        "origin": "human",
    }


def put(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_two_different_samples_of_a_prompt_make_a_pair_and_others_are_rejected(tmp_path):
    rows = [
        ("a/0", "x"),
        ("b/0", "y"),
        ("a/1", "x"),
        ("a/2", "z"),
        ("a/3", "w"),
        ("b/1", "y"),
        ("c/0", "v"),
        ("d/0", "v"),
    ]
    rows.append(("d/1", "u"))
    pairs = list(read_pairs([put(tmp_path / "s.jsonl", [sample_row(*row) for row in rows])]))
    assert [(made.id, made.replies) for made in pairs if not made.rejected] == [
        ("a/0", ["x", "z"]),
        ("d/0", ["v", "u"]),
    ]
    assert {made.id: made.rejected.reason for made in pairs if made.rejected} == {
        "b/0": "identical_replies",
        "c/0": "single_reply",
    }


def test_of_many_replies_the_pair_is_the_one_that_shares_the_fewest_words():
    assert choose_pair(["a b c d", "a b c e", "x y z", "a b c d"]) == (0, 2)
    assert choose_pair(["a b", "A B", "a c"]) == (0, 2), "case is no difference in words"
    assert choose_pair(["a b", "b a"]) == (0, 1), "two that differ are a pair, however little"
    assert choose_pair(["a", "a"]) is None and choose_pair(["a"]) is None and choose_pair([]) is None


def test_comparisons_are_labelled_anew_in_an_order_that_tells_nothing(tmp_path):
    path = put(tmp_path / "c.jsonl", [comparison_row(f"{n}/0") for n in range(200)])
    pairs = list(read_pairs([path]))
    assert 70 < sum(made.replies == ["one", "two"] for made in pairs) < 130
    assert all(sorted(made.replies) == ["one", "two"] for made in pairs)
    assert [made.id for made in read_pairs([path], 3)] == ["0/0", "1/0", "2/0"]


def test_comparisons_of_identical_replies_are_rejected(tmp_path):
    [made] = read_pairs([put(tmp_path / "c.jsonl", [comparison_row("a/0", "one")])])
    assert made.rejected.reason == "identical_replies"


def test_pairs_of_one_id_in_two_files_are_a_mistake(tmp_path):
    first, second = (put(tmp_path / name, [comparison_row("a/0")]) for name in ("x.jsonl", "y.jsonl"))
    with pytest.raises(UserError, match=r"y\.jsonl: there is a pair 'a/0' already"):
        list(read_pairs([first, second]))


def test_malformed_rows_name_line_and_field(tmp_path):
    empty = comparison_row("b/0")
    empty["rejected"] = [message("assistant", " ")]
    path = put(tmp_path / "c.jsonl", [comparison_row("a/0"), empty])
    with pytest.raises(RecordError, match=r"c\.jsonl:2: field `rejected\[0\]\.content`: is empty"):
        list(read_pairs([path]))


def test_hh_rlhf_rows_are_pairs_or_rejects(tmp_path):
    def row(chosen, rejected):
        return {
            "chosen": f"\n\nHuman: h\n\nAssistant: {chosen}",
            "rejected": f"\n\nHuman: h\n\nAssistant: {rejected}",
        }

    other = {"chosen": "\n\nHuman: h\n\nAssistant: a", "rejected": "\n\nHuman: g\n\nAssistant: b"}
    path = put(
        tmp_path / "harmless.jsonl",
        [row("a", "b"), row("a", ""), other, row("a", "a"), {"chosen": 1}, row("c", "d")],
    )
    pairs = list(read_pairs([path]))
    assert [sorted(made.replies) for made in pairs if not made.rejected] == [["a", "b"], ["c", "d"]]
    assert [(made.id, made.rejected.reason) for made in pairs if made.rejected] == [
        ("harmless.jsonl:2", "empty_reply"),
        ("harmless.jsonl:3", "prompts_differ"),
        ("harmless.jsonl:4", "identical"),
        ("harmless.jsonl:5", "not_text"),
    ]
    assert {made.kind for made in pairs if not made.rejected} == {"harmful"}


# Questions


def made_pair(number: int) -> Pair:
    return Pair(f"{number}/0", str(number), PROMPT, None, ["one", "two"])


def test_orders_drawn_by_key_are_even_and_fixed():
    draws = [first_is_a(0, f"{n}/0", 0) for n in range(400)]
    assert draws == [first_is_a(0, f"{n}/0", 0) for n in range(400)]
    assert 160 < sum(draws) < 240
    assert draws != [first_is_a(1, f"{n}/0", 0) for n in range(400)]


@pytest.mark.parametrize("orders", ["both", "random", "first"])
def test_questions_of_each_order_policy(orders):
    inquiry = Inquiry(constitution=ARTICLE, orders=orders, principles_per_pair=2)
    found = [[question.first_as_a for question in inquiry.questions(made_pair(n))] for n in range(60)]
    if orders == "both":
        assert all(row == [True, False, True, False] for row in found)
    elif orders == "first":
        assert all(row == [True, True] for row in found)
    else:
        assert {tuple(row) for row in found} == {(True, True), (True, False), (False, True), (False, False)}


def test_principles_are_drawn_without_a_second_time_until_all_were_drawn():
    count = len(ARTICLE.principles)
    first = Counter()
    for n in range(300):
        ids = [
            p.id
            for p in Inquiry(constitution=ARTICLE, principles_per_pair=2 * count + 1).principles(made_pair(n))
        ]
        assert len(set(ids[:count])) == len(set(ids[count : 2 * count])) == count
        first[ids[0]] += 1
        fewer = [p.id for p in Inquiry(constitution=ARTICLE, principles_per_pair=3).principles(made_pair(n))]
        assert fewer == ids[:3], "asking about more principles adds to those asked about before"
    assert len(first) == count and max(first.values()) < 2 * 300 / count
