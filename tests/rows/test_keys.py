"""Keyed draws: pinned, since every artifact made so far depends on them."""

from __future__ import annotations

from collections import Counter

import pytest

from cai_cli import keys

PINNED = {
    (): "cae66941d9efbd404e4d88758ea67670",
    (0,): "fa0f92d49a0e3adb27ade15263e164db",
    (0, "abc", 1): "7812366525ec391fa47d3bd3d91670e7",
    ("principle", "ü"): "80cfbc401b0158fb5b0f248326358407",
}


@pytest.mark.parametrize("parts", PINNED)
def test_digests_are_pinned(parts):
    assert keys.digest(*parts).hex() == PINNED[parts]
    assert keys.key(*parts) == int.from_bytes(bytes.fromhex(PINNED[parts]), "little")


def test_uniforms_are_pinned():
    assert keys.uniform(0, "split", "x") == 0.27488726063408275
    assert keys.uniform(1, "split", "x") == 0.16311669349254576


def test_no_two_lists_of_parts_collide():
    lists = [
        ("a", "b"),
        ("ab",),
        ("a", "", "b"),
        ("", "ab"),
        (1, 2),
        (12,),
        ("1", 2),
        ("1", "2"),
        ("12",),
        (-1,),
        ("-1",),
    ]
    assert len({keys.digest(*parts) for parts in lists}) == len(lists)


def test_uniforms_are_even_and_below_one():
    draws = [keys.uniform("even", n) for n in range(4000)]
    assert min(draws) >= 0 and max(draws) < 1
    tenths = Counter(int(draw * 10) for draw in draws)
    assert set(tenths) == set(range(10)) and all(330 <= count <= 470 for count in tenths.values())


def test_shuffled_is_a_permutation_by_key():
    items = list("abcdefgh")
    assert sorted(keys.shuffled(items, 0)) == items
    assert keys.shuffled(items, 0) == list("befcadgh")
    assert keys.shuffled(items, 0) != keys.shuffled(items, 1)
    assert keys.shuffled([], 0) == []
