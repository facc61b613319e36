"""What the principles of this world say, and in which words: frame x phrase, from wordings.yaml.

`draw` writes a principle in words of one part, `learned` or `held_out`; `read` finds the families that a text
names, in whatever words the file has, or None: the demo tells by it which features a constitution asks for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import yaml

from cai_cli.keys import key
from cai_cli.microworld.features import FAMILIES, Principle

LEARNED, HELD_OUT = PARTS = ("learned", "held_out")
KINDS = ("comparison", "revision", "critique")
HELD_OUT_ONE_IN = 6
SLOT = re.compile(r"\{([^}]+)\}")
AND = " and "


@dataclass(frozen=True, slots=True)
class Texts:
    """A principle in words: one text for each of its three uses."""

    critique: str
    revision: str
    comparison: str


@lru_cache(maxsize=1)
def entries() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parent / "wordings.yaml").read_text(encoding="utf-8")
    )
    return data


def products(template: str) -> dict[str, tuple[str, ...]]:
    """Text -> the words in its slots, of a template as "is {warm|cold} to {you|me}"."""
    pieces = SLOT.split(template)  # text, slot, text, slot, ... text
    slots = [piece.split("|") for piece in pieces[1::2]]
    found = {}
    for words in product(*slots):
        filled = [text + word for text, word in zip(pieces[::2], (*words, ""), strict=True)]
        found["".join(filled)] = words
    return found


def held_out_of(template: str) -> set[str]:
    """One product in six, drawn by key, of which each word still stands in two others that are learned: what is
    new in a held-out phrase is how its words go together.
    """
    texts = products(template)
    left = Counter((slot, word) for words in texts.values() for slot, word in enumerate(words))
    found: set[str] = set()
    for text in sorted(texts, key=lambda text: key("wording", text)):
        places = list(enumerate(texts[text]))
        if places and all(left[place] > 2 for place in places) and len(found) < len(texts) / HELD_OUT_ONE_IN:
            found.add(text)
            left.subtract(places)
    return found


@lru_cache(maxsize=1)
def phrases() -> dict[str, dict[str, list[str]]]:
    """Part -> family -> phrases. Which phrases of a template are held out does not change with the others."""
    found: dict[str, dict[str, list[str]]] = {part: {name: [] for name in FAMILIES} for part in PARTS}
    for name, templates in entries()["families"].items():
        for template in templates:
            held_out = held_out_of(template)
            for phrase in products(template):
                found[HELD_OUT if phrase in held_out else LEARNED][name].append(phrase)
    return found


def frames(kind: str, part: str) -> list[str]:
    texts: list[str] = entries()["frames"][kind][part]
    return texts


def write(principle: Principle, kind: str, part: str, rng: Random) -> str:
    """One text of a principle; phrases and frame of the part."""
    spoken = [rng.choice(phrases()[part][family.name]) for family in principle]
    rng.shuffle(spoken)
    return rng.choice(frames(kind, part)).format(AND.join(spoken))


def draw(principle: Principle, part: str, rng: Random) -> Texts:
    """The principle's three texts."""
    return Texts(*(write(principle, kind, part, rng) for kind in ("critique", "revision", "comparison")))


@lru_cache(maxsize=1)
def family_of_phrase() -> dict[str, str]:
    return {phrase: name for part in PARTS for name, texts in phrases()[part].items() for phrase in texts}


@lru_cache(maxsize=1)
def frame_patterns() -> list[re.Pattern[str]]:
    found = [frame for kind in KINDS for part in PARTS for frame in frames(kind, part)]
    return [re.compile(re.escape(frame).replace(r"\{\}", "(.+)")) for frame in found]


def read(text: str) -> Principle | None:
    """The families that a principle's text names, or None where it has other words than the world's."""
    known = family_of_phrase()
    for pattern in frame_patterns():
        match = pattern.fullmatch(text.strip())
        if not match:
            continue
        said = match[1]
        if said in known:
            return (FAMILIES[known[said]],)
        for place in (found.start() for found in re.finditer(AND, said)):
            both = said[:place], said[place + len(AND) :]
            if all(phrase in known for phrase in both):
                return tuple(FAMILIES[known[phrase]] for phrase in both)
    return None
