"""Votes -> scores -> ranked pairs: pure functions, no files.

Score of Askell et al. 2021 (arXiv 2112.00861) as given in the card of
HuggingFaceH4/stack-exchange-preferences: round(log2(1 + n)) for n net votes, one more for the accepted
answer, exactly -1 for negative n. Pairs are two answers of one question with different scores.
"""

from __future__ import annotations

import html
import math
import re
from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from cai_cli.keys import Part, uniform
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.records import Comparison

TAG = re.compile(r"<[^<>]*>")  # linear even on a body of nothing but "<"
HEAD, OPENING = 160, 24  # characters of HTML looked at, bytes of fingerprint kept
LONGEST_ENTITY = 40  # characters; HTML's longest is 33
WORD = re.compile(r"\w+")
WORDS_ONLY = bytes(byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(256))
ALIKE = 0.8  # with one word of nineteen changed, two texts are still near-duplicates
GOOD, BAD = "GOOD: ", "BAD: "


SCORE_THEN_ID = attrgetter("score", "id")


class Ranked(NamedTuple):
    """One answer of a question: its full score, acceptance included, and what tells near-duplicates and
    over-long ones.
    """

    id: int
    score: int
    length: int = 0  # characters of HTML
    opening: bytes | None = None  # see `opening`


@lru_cache(maxsize=1 << 14)
def vote_score(net_votes: int) -> int:
    """round(log2(1 + n)) for n >= 0, else -1. No integer n puts log2(1 + n) on a half, so rounding never
    ties.
    """
    return -1 if net_votes < 0 else round(math.log2(1 + net_votes))


def full_score(score: int, accepted: bool) -> int:
    """`vote_score` plus one for the accepted answer; a negative one stays -1, accepted or not."""
    return score + 1 if accepted and score >= 0 else score


def scores_differ(answers: list[Ranked], gap: int = 1) -> bool:
    """Whether two of the answers have scores at least `gap` apart."""
    low = high = answers[0].score
    for answer in answers:
        if answer.score > high:
            high = answer.score
        elif answer.score < low:
            low = answer.score
    return high - low >= gap


def draw_pairs(answers: list[Ranked], wanted: int, *key: Part, gap: int = 1) -> list[tuple[Ranked, Ranked]]:
    """Up to `wanted` distinct (better, worse) pairs, uniform among those with scores at least `gap` apart,
    drawn by key.

    Pairs are numbered without listing them (a question may have thousands of answers): the answers sorted by
    score, each owns as many numbers as there are answers that far below it.
    """
    ordered = sorted(answers, key=SCORE_THEN_ID)
    scores = [answer.score for answer in ordered]
    ends = list(accumulate(bisect_right(scores, score - gap) for score in scores))
    total = ends[-1] if ends else 0
    numbers: list[int] = list(range(total)) if wanted >= total else []
    draw = 0
    while len(numbers) < min(wanted, total):
        number = int(uniform(*key, draw) * total)
        draw += 1
        if number not in numbers:
            numbers.append(number)
    pairs = []
    for number in numbers:
        better = bisect_right(ends, number)
        worse = number - (ends[better - 1] if better else 0)
        pairs.append((ordered[better], ordered[worse]))
    return pairs


def fingerprint(body: str) -> bytes:
    """An HTML body without tags, case and spacing: equal for near-duplicates, cheaper than its text."""
    text = TAG.sub("", body)
    if "&" in text:
        text = html.unescape(text)
    return text.casefold().encode().translate(None, b" \t\r\n\f")


def opening(body: str) -> bytes | None:
    """The first bytes of the fingerprint, from the head of the body alone; None where the head does not hold
    enough.

    Different openings prove different texts, so most questions need no fingerprint.
    """
    if len(body) <= HEAD:
        return fingerprint(body)[:OPENING]
    head = body[:HEAD]
    if head.rfind("<") > head.rfind(">"):  # a tag the cut may have opened
        head = head[: head.rfind("<")]
    entity = head.rfind("&", -LONGEST_ENTITY)
    start = fingerprint(head if entity < 0 else head[:entity])[:OPENING]
    return start if len(start) == OPENING else None


def near_duplicates(first: str, second: str) -> bool:
    """Whether two texts of like length are alike in most of their words and in most of their pairs of
    neighbouring words.

    Alike: a Jaccard similarity of `ALIKE` or more. What is cheap comes first and settles most cases.
    """
    if not like(len(first), len(second)):
        return False
    one, other = words_of(first), words_of(second)
    return (
        like(len(one), len(other))
        and alike(set(one), set(other))
        and alike(set(pairwise(one)), set(pairwise(other)))
    )


def like(first: int, second: int) -> bool:
    return first >= ALIKE * second and second >= ALIKE * first


def words_of(text: str) -> list[bytes] | list[str]:
    """The words of a text, without case and punctuation; what stands between blanks where there are none."""
    if text.isascii():  # several times as fast
        return text.lower().encode().translate(WORDS_ONLY).split() or text.split()
    return WORD.findall(text.casefold()) or text.split()


def alike(first: set, second: set) -> bool:
    shared = len(first & second)
    return shared >= ALIKE * (len(first) + len(second) - shared)


def binarise(pair: Comparison, good: str = GOOD, bad: str = BAD) -> tuple[Comparison, Comparison]:
    """One ranked pair A > B -> two comparisons, each of one text: GOOD:A > BAD:A and BAD:B > GOOD:B
    (2112.00861, 4.1).

    The mark goes in front of the reply. Ids end in /good and /bad, and the attribution names the one answer
    on both sides.
    """
    return (
        replace(
            pair,
            id=f"{pair.id}/good",
            chosen=_mark(pair.chosen, good),
            rejected=_mark(pair.chosen, bad),
            attribution=_attribution_of(pair, "chosen"),
        ),
        replace(
            pair,
            id=f"{pair.id}/bad",
            chosen=_mark(pair.rejected, bad),
            rejected=_mark(pair.rejected, good),
            attribution=_attribution_of(pair, "rejected"),
        ),
    )


def _attribution_of(pair: Comparison, side: str) -> dict[str, Any] | None:
    """The attribution of a pair whose both texts are those of one side."""
    if pair.attribution is None:
        return None
    return {
        name: {**value, "chosen": value[side], "rejected": value[side]} if isinstance(value, dict) else value
        for name, value in pair.attribution.items()
    }


def _mark(reply: Conversation, mark: str) -> Conversation:
    return [message(turn["role"], mark + turn["content"]) for turn in reply]
