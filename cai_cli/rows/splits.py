"""Splits: which part a prompt belongs to, by a hash of its first human turn.

The answer depends on the text, the parts and the seed alone, never on the other rows of a file: the same
prompt is on the same side in every file, stage and rerun. Prompts cut from one conversation share their first
human turn and never straddle; near-duplicates (other case, white space or punctuation) are the same text
here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from cai_cli.errors import UserError
from cai_cli.keys import uniform
from cai_cli.rows.conversation import Conversation, first_human_turn

NOT_A_LETTER = re.compile(r"[\W_]+")
RESERVED = ("split",)  # beside the parts lies split.manifest.json
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def group_key(text: str) -> str:
    """What near-duplicates have in common: their letters and digits, in lower case and without anything
    between.
    """
    letters = NOT_A_LETTER.sub("", unicodedata.normalize("NFKC", text).casefold())
    # Texts of punctuation only, such as emoji, are grouped as they are: else they would all be one group.
    return letters or " ".join(text.split())


def assign(text: str, parts: Mapping[str, float], seed: int) -> str:
    """The part that the prompt with this first human turn belongs to. `parts` are names and proportions of
    any sum.

    Each part draws an exponential waiting time for the text at a rate of its proportion, and the shortest
    wins (weighted rendezvous hashing). So a part gets its share, the order of the parts does not matter, and
    changing a proportion moves prompts only into the parts that grew or out of those that shrank: a new part
    takes a little from each of the others.
    """
    check_parts(parts)
    group = group_key(text)
    waits = {
        name: -math.log1p(-uniform("split", seed, group, name)) / weight
        for name, weight in sorted(parts.items())
        if weight > 0
    }
    return min(waits, key=waits.__getitem__)


def assign_prompt(prompt: Conversation, parts: Mapping[str, float], seed: int) -> str:
    """The part of a prompt, by its first human turn."""
    return assign(first_human_turn(prompt), parts, seed)


def is_held_out(prompt: Conversation, share: float, seed: int) -> bool:
    """Whether a trainer keeps this prompt for measuring, by its first human turn: prompts of one conversation
    stay together.
    """
    return share > 0 and assign_prompt(prompt, {"train": 1 - share, "held_out": share}, seed) == "held_out"


def parse_parts(text: str) -> dict[str, float]:
    """`sft=0.5,rl=0.4,test=0.1` -> proportions. Raises UserError."""
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (piece.strip() for piece in item.partition("="))
        if not equals or not PART_NAME.fullmatch(name):
            raise UserError(
                f"cannot read the part {item.strip()!r} of a split",
                "write NAME=PROPORTION, as in sft=0.5,rl=0.4,test=0.1",
            )
        if name in RESERVED:
            told = f"no part of a split can be called {name!r}: {name}.manifest.json is that of them all"
            raise UserError(told, "give it another name")
        if name in parts:
            raise UserError(
                f"the part {name!r} of the split is given twice",
                "give each part once, with all of its proportion",
            )
        try:
            parts[name] = float(number)
        except ValueError:
            hint = "write numbers: 0.9, or 90 where all of them are per cent"
            raise UserError(
                f"the proportion of the part {name!r} is not a number: {number!r}", hint
            ) from None
    check_parts(parts)
    return parts


def split_cautions(parts: Mapping[str, float], counts: Mapping[str, int]) -> list[str]:
    """Proportions that do not add up, as if one were forgotten, and how they are taken; parts that got no
    prompt.
    """
    found = []
    total = sum(parts.values())
    if (
        not any(math.isclose(total, whole, rel_tol=1e-6) for whole in (1, 100))
        and len(set(parts.values())) > 1
    ):
        taken = ", ".join(f"{name} {weight / total:.1%}" for name, weight in parts.items())
        found.append(f"the parts add up to {total:g}, neither 1 nor 100: all prompts are divided as {taken}")
    if empty := ", ".join(f"{name}={parts[name]:g}" for name in parts if not counts.get(name)):
        found.append(
            f"no prompt of {sum(counts.values())} fell into {empty}: give larger shares, or more prompts"
        )
    return found


def check_parts(parts: Mapping[str, float]) -> None:
    for name, weight in parts.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"the proportion of the part {name!r} is {weight}", "proportions are numbers from 0 up"
            )
    if not any(parts.values()):
        raise UserError(
            "a split needs a part with a proportion above 0", "for example sft=0.5,rl=0.4,test=0.1"
        )
