"""Pairs of votes far enough apart."""

from __future__ import annotations

from collections import Counter

from stack_exchange_dumps import answer, dump, pairs, question

from cai_cli.importers.votes import Ranked, draw_pairs


def test_pairs_are_uniform_among_those_far_enough_apart():
    """Scores 5, 3, 3, 2, -1 and a gap of 2: counted by hand, seven pairs."""
    answers = [Ranked(n, score) for n, score in enumerate((5, 3, 3, 2, -1))]
    expected = {(0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 4)}
    every = draw_pairs(answers, 99, "key", gap=2)
    assert {(better.id, worse.id) for better, worse in every} == expected and len(every) == len(expected)
    drawn = Counter((b.id, w.id) for n in range(3500) for b, w in draw_pairs(answers, 1, "key", n, gap=2))
    assert drawn.keys() == expected
    assert all(400 < count < 600 for count in drawn.values())
    assert not draw_pairs(answers, 1, "key", gap=7)


def test_questions_without_such_a_pair_are_not_usable(tmp_path):
    rows = [question(1), answer(2, 1, 3), answer(3, 1, 1), question(4), answer(5, 4, 90), answer(6, 4, 1)]
    file = dump(tmp_path / "site.Posts.xml", rows)
    found = {gap: pairs(tmp_path, file, min_score_gap=gap) for gap in (1, 2, 7)}
    assert [len(comparisons) for comparisons, _, _ in found.values()] == [2, 1, 0]
    assert [counts.usable_questions for _, _, counts in found.values()] == [2, 1, 0]
    assert found[2][0][0].attribution["scores"] == {"chosen": 7, "rejected": 1}
