"""Splits: shares, determinism, near-duplicates together, and what moves when the proportions change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cai_cli.errors import UserError
from cai_cli.rows.conversation import message
from cai_cli.rows.splits import assign, assign_prompt, group_key, parse_parts

PARTS = {"sft": 0.5, "rl": 0.3, "validation": 0.1, "test": 0.1}
TEXTS = [f"question number {n}" for n in range(4000)]


def test_parts_get_their_shares():
    counts = Counter(assign(text, PARTS, 0) for text in TEXTS)
    for name, weight in PARTS.items():
        # four standard deviations of a binomial
        assert abs(counts[name] - 4000 * weight) < 4 * (4000 * weight * (1 - weight)) ** 0.5


def test_only_the_ratio_counts_and_not_the_order():
    percent = {name: weight * 100 for name, weight in reversed(PARTS.items())}
    assert [assign(text, PARTS, 3) for text in TEXTS[:500]] == [
        assign(text, percent, 3) for text in TEXTS[:500]
    ]


def test_seed_changes_the_split():
    same = sum(assign(text, PARTS, 0) == assign(text, PARTS, 1) for text in TEXTS)
    assert 0.30 < same / len(TEXTS) < 0.42  # 0.36 = sum of squared shares, if the seeds are independent


def test_same_answer_in_another_process():
    code = f"from cai_cli.rows.splits import assign; print([assign(f'question number {{n}}', {PARTS}, 7) for n in range(50)])"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert other.stdout.strip() == str([assign(text, PARTS, 7) for text in TEXTS[:50]])


def test_pinned():
    # Published splits must stay what they are: a change of the hash is a breaking change.
    found = [assign(text, PARTS, 0) for text in ("How do I bake bread?", "Why is the sky blue?", "?!", "")]
    assert found == ["sft", "rl", "sft", "test"]


@pytest.mark.parametrize(
    "other",
    [
        "how do i bake bread",
        "  How do I\n bake   bread?! ",
        "HOW DO I BAKE BREAD",
        "How do I, bake-bread…",
        "Ｈow do I bake bread",
    ],
)
def test_near_duplicates_are_together(other):
    first = "How do I bake bread?"
    assert group_key(other) == group_key(first)
    assert all(assign(other, PARTS, seed) == assign(first, PARTS, seed) for seed in range(20))


def test_different_texts_are_different_groups():
    texts = [
        "How do I bake bread?",
        "How do I bake breads?",
        "???",
        "!!!",
        "",
        "🙂",
        "🙁",
        "straße 1",
        "straße 2",
        "1.5",
        "1.6",
    ]
    assert len({group_key(text) for text in texts}) == len(texts)
    assert group_key("STRASSE 1") == group_key("straße 1")


def test_prefixes_of_one_conversation_never_straddle():
    conversation = [
        message("system", "s"),
        message("user", "a"),
        message("assistant", "b"),
        message("user", "c"),
    ]
    for seed in range(20):
        whole, cut = assign_prompt(conversation, PARTS, seed), assign_prompt(conversation[1:2], PARTS, seed)
        assert whole == cut == assign("a", PARTS, seed)


def test_a_new_part_takes_from_the_others_and_moves_nothing_else():
    grown = {**PARTS, "label": 0.5}
    moves = Counter((assign(text, PARTS, 0), assign(text, grown, 0)) for text in TEXTS)
    changed = {pair for pair in moves if pair[0] != pair[1]}
    assert {after for _, after in changed} == {"label"} and {before for before, _ in changed} == set(PARTS)


def test_a_part_of_nothing_stays_empty():
    assert {assign(text, {"a": 0, "b": 1}, 0) for text in TEXTS[:200]} == {"b"}


def test_parse_parts():
    assert parse_parts("sft=0.5, rl=40,test-1=1e-1") == {"sft": 0.5, "rl": 40.0, "test-1": 0.1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sft", "cannot read the part 'sft'"),
        ("", "cannot read the part ''"),
        ("../x=1", "cannot read the part"),
        ("a=1,a=2", "'a' of the split is given twice"),
        ("a=1,split=1", "no part of a split can be called 'split'"),
        ("a=one", "'a' is not a number: 'one'"),
        ("a=-1,b=2", "'a' is -1.0"),
        ("a=nan", "'a' is nan"),
        ("a=inf", "'a' is inf"),
        ("a=0,b=0", "needs a part with a proportion above 0"),
    ],
)
def test_bad_parts(text, problem):
    with pytest.raises(UserError) as error:
        parse_parts(text)
    assert problem in error.value.message and error.value.exit_code == 2


def test_assign_refuses_bad_parts():
    for parts in ({}, {"a": 0.0}, {"a": -1.0, "b": 1.0}, {"a": float("nan")}):
        with pytest.raises(UserError):
            assign("text", parts, 0)


def test_real_prompts_do_not_straddle():
    path = Path(os.environ.get("CAI_TEST_DATA", "")) / "hh-rlhf/harmless-base-test-1500.jsonl.gz"
    if not path.is_file():
        pytest.skip("set CAI_TEST_DATA to a folder that holds hh-rlhf/")
    from cai_cli.importers.hh_rlhf import import_prompts

    sides: dict[str, set[str]] = {}
    for prompt in import_prompts(path, every_turn=True):
        sides.setdefault(json.dumps(prompt.prompt[0]), set()).add(assign_prompt(prompt.prompt, PARTS, 0))
    assert len(sides) > 1300 and all(len(side) == 1 for side in sides.values())
    assert {name for side in sides.values() for name in side} == set(PARTS)
