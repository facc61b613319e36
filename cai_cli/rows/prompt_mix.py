"""Which prompt each episode of a run gets: a function of the seed alone, so that a resumed run sees the same
ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from cai_cli.keys import shuffled, uniform
from cai_cli.rows.records import Prompt


def mixed_prompts(sources: list[tuple[list[Prompt], float]], count: int, seed: int) -> list[Prompt]:
    """The prompts of `count` episodes. Sources are (prompts, proportion).

    With equal proportions all prompts are one pool, gone through in a new order each pass. With different
    ones each episode draws its source by key, and each source is gone through in orders of its own.
    """
    if len({proportion for _, proportion in sources}) == 1:
        sources = [([prompt for prompts, _ in sources for prompt in prompts], 1.0)]
    total = sum(proportion for _, proportion in sources)
    streams = [endless(prompts, seed, number) for number, (prompts, _) in enumerate(sources)]
    episodes = []
    for n in range(count):
        drawn = source_at(uniform(seed, "mix", n) * total, [proportion for _, proportion in sources])
        episodes.append(next(streams[drawn]))
    return episodes


def source_at(mark: float, proportions: list[float]) -> int:
    """Which source a mark falls on when they lie end to end, each as long as its proportion."""
    for number, proportion in enumerate(proportions):
        mark -= proportion
        if mark < 0:
            return number
    return len(proportions) - 1


def endless(prompts: list[Prompt], seed: int, number: int) -> Iterator[Prompt]:
    """All prompts in a keyed order, then all again in another."""
    passes = 0
    while True:
        yield from shuffled(prompts, seed, "pass", number, passes)
        passes += 1
