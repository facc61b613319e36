"""Which prompt each episode gets: by the seed alone, all before any again, sources in their proportions."""

from __future__ import annotations

from collections import Counter

from cai_cli.rows.conversation import message
from cai_cli.rows.prompt_mix import mixed_prompts, source_at
from cai_cli.rows.records import Prompt


def source(name: str, count: int) -> list[Prompt]:
    return [Prompt(f"{name}{n}", [message("user", f"{name} {n}")]) for n in range(count)]


def test_one_pool_is_gone_through_before_any_comes_again():
    sources = [(source("a", 5), 1.0), (source("b", 3), 1.0)]
    ids = [prompt.id for prompt in mixed_prompts(sources, 24, seed=0)]
    for start in (0, 8, 16):
        assert len(set(ids[start : start + 8])) == 8
    assert ids[:8] != ids[8:16]


def test_the_seed_alone_decides_and_a_longer_run_starts_alike():
    sources = [(source("a", 5), 1.0), (source("b", 30), 3.0)]
    first = [prompt.id for prompt in mixed_prompts(sources, 40, seed=3)]
    assert [prompt.id for prompt in mixed_prompts(sources, 100, seed=3)][:40] == first
    assert [prompt.id for prompt in mixed_prompts(sources, 40, seed=4)] != first


def test_proportions_are_of_episodes_whatever_the_sizes():
    sources = [(source("a", 4), 3.0), (source("b", 500), 1.0)]
    episodes = mixed_prompts(sources, 2000, seed=0)
    share = sum(prompt.id[0] == "a" for prompt in episodes) / 2000
    assert 0.72 < share < 0.78
    counts = Counter(prompt.id for prompt in episodes)
    assert max(counts[f"a{n}"] for n in range(4)) - min(counts[f"a{n}"] for n in range(4)) <= 1


def test_source_at_by_hand():
    assert [source_at(mark, [1.0, 0.0, 2.0]) for mark in (0.0, 0.99, 1.0, 2.9, 3.0)] == [0, 0, 2, 2, 2]
