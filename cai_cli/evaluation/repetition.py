"""What generated texts have in common: phrases that recur from text to text, texts that loop. Pure functions.

Over-trained models answer in boilerplate ("you are valid, valued, and cared for": arXiv 2212.08073, section
4.3), which these rates show without a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

PHRASE_WORDS = 5
SHARE, FEWEST = 0.05, 3  # a phrase recurs when it is in this share of the texts, and in so many at least
LOOP = 3  # times that a phrase is in one text when the text loops
MOST_TEXTS = 5000  # phrases are counted over the first texts only, so that memory stays small
WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True, slots=True)
class PhraseRates:
    """Shares of texts with a phrase that recurs and of texts that loop; the phrase in most texts, "" where
    none recurs.
    """

    recurring: float
    looping: float
    commonest: str


def phrases(text: str) -> Iterator[str]:
    """Every run of PHRASE_WORDS words, in lower case."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - PHRASE_WORDS + 1):
        yield " ".join(words[start : start + PHRASE_WORDS])


def loops(text: str) -> bool:
    """Whether a phrase is LOOP times in the text."""
    return is_loop(Counter(phrases(text)))


def is_loop(count: Counter[str]) -> bool:
    return max(count.values(), default=0) >= LOOP


def phrase_rates(texts: Iterable[str]) -> PhraseRates:
    """How alike the texts are, over the first MOST_TEXTS of them."""
    counts = [Counter(phrases(text)) for text in islice(texts, MOST_TEXTS)]
    if not counts:
        return PhraseRates(0.0, 0.0, "")
    spread = Counter(phrase for count in counts for phrase in count)
    bar = max(FEWEST, SHARE * len(counts))
    common = {phrase for phrase, number in spread.items() if number >= bar}
    recurring = sum(not common.isdisjoint(count) for count in counts) / len(counts)
    looping = sum(map(is_loop, counts)) / len(counts)
    return PhraseRates(recurring, looping, max(sorted(common), key=spread.__getitem__, default=""))
