"""Pairs of token ids whose better reply can be told, and the settings of a run on them."""

from __future__ import annotations

from random import Random

from cai_cli.console.groups import build
from cai_cli.training.preference.pairs import TokenPair
from cai_cli.training.preference.settings import PairwiseOptions

EOS, PAD = 2, 0
GOOD, BAD = 50, 60


def random_pairs(number: int, probability: float | None = None, seed: int = 0) -> list[TokenPair]:
    """Replies to one prompt; the better one holds the token GOOD, the other one BAD."""
    rng = Random(seed)
    pairs = []
    for _ in range(number):
        prompt = [rng.randrange(100, 300) for _ in range(rng.randint(1, 8))]
        sides = []
        for mark in (GOOD, BAD):
            reply = [rng.randrange(100, 300) for _ in range(rng.randint(1, 12))]
            reply[rng.randrange(len(reply))] = mark
            sides.append([*prompt, *reply, EOS])
        p = rng.uniform(0.5, 1) if probability is None else probability
        pairs.append(TokenPair(sides[0], sides[1], p, 1.0, rng.choice(["ai", "human"])))
    return pairs


def options(**settings) -> PairwiseOptions:
    defaults = {
        "save_steps": 4,
        "logging_steps": 2,
        "learning_rate": 3e-3,
    }
    return build(PairwiseOptions, **{**defaults, **settings})
