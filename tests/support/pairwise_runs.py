"""Pairs of token ids whose better reply can be told, and the settings of a run on them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import jsonlines
from tiny import make_model

from cai_cli.console.groups import build
from cai_cli.rows.conversation import message
from cai_cli.training.preference.pairs import TokenPair
from cai_cli.training.preference.settings import PairwiseOptions

EOS, PAD = 2, 0
GOOD, BAD = 50, 60
COMMAND = (
    "train-pm --model lm --comparisons ai.jsonl:3 --comparisons human.jsonl --num-train-epochs 2 --learning-rate 1e-3"
    " --lm-coef 0.5 --held-out 0.2 --logging-steps 5 --save-steps 10 --eval-steps 15"
)


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


def write_comparisons(folder: Path) -> Path:
    """A tiny language model and comparisons of two origins, for COMMAND."""
    make_model(folder / "lm")
    for origin in ("ai", "human"):
        with jsonlines.open(folder / f"{origin}.jsonl", "w") as writer:
            for n in range(120):
                prompt = [message("user", f"How do I make bread, {'please, ' * (n % 4)}number {n} {origin}?")]
                good = [message("assistant", "First, mix it." * (1 + n % 3))]
                bad = [message("assistant", "No." * (1 + n % 4))]
                sides = {"prompt": prompt, "chosen": good, "rejected": bad}
                probability = 1.0 if origin == "human" else 0.5 + n % 50 / 100
                writer.write({"id": f"{origin}{n}", **sides, "origin": origin, "probability": probability})
    return folder
