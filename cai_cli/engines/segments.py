"""Sampling a segment for many items: keyed attempts, a check on each text, what still fails is returned with
its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cai_cli.artifacts.chunks import Told
from cai_cli.engines.base import LENGTH, OVERLONG, STOP, UNFIT, Completion, Engine, Request
from cai_cli.keys import key
from cai_cli.prompting.hygiene import LEAKED_ROLE, OVERLONG_PROMPT, REPLY, STOP_STRING, TRUNCATED, clean
from cai_cli.rows.conversation import Conversation

Item = TypeVar("Item")


def keep_all(item: object, text: str) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """What the segments of a stage have in common. `attempts`: draws before an item is given up."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    keep_truncated: bool = False
    attempts: int = 3


@dataclass(frozen=True, slots=True)
class Segment(Generic[Item]):
    """What is to be sampled for each item.

    prompt(item): what the model gets; draw_key(item): the parts of its key besides the attempt;
    kind: reply, critique or revision, for the rules of `hygiene`; check(item, text): a reason not to keep the
    cleaned text, or None.
    """

    name: str
    prompt: Callable[[Item], str | Conversation]
    draw_key: Callable[[Item], tuple[str | int, ...]]
    settings: SegmentSettings
    kind: str = REPLY
    check: Callable[[Item, str], str | None] = keep_all


@dataclass(frozen=True, slots=True)
class Sampled:
    """A kept text, or the reason for which the last attempt was not kept.

    `events`: the hygiene rules that applied, one for each trimming of the kept text and each attempt that was
    not kept.
    """

    text: str
    finish_reason: str
    tokens: int
    reason: str | None = None
    events: tuple[str, ...] = ()
    thinking: str = ""
    told: str = ""  # of a reason that is not in the text

    @property
    def detail(self) -> str:
        """What is kept of a text that was not kept."""
        return self.told or f"last attempt {self.text[:200]!r}"


def sample_segment(
    engine: Engine, items: list[Item], segment: Segment[Item], told: Told | None = None
) -> list[Sampled]:
    """One text for each item, in order. A text that fails is tried again with the next attempt's key.

    `told(count)` hears of the first attempts as they end.
    """
    results: dict[int, Sampled] = {}
    waiting = list(range(len(items)))
    settings = segment.settings
    for attempt in range(settings.attempts):
        requests = [
            Request(
                segment.prompt(items[n]),
                key(*segment.draw_key(items[n]), attempt),
                settings.max_new_tokens,
                settings.stop,
            )
            for n in waiting
        ]
        completions = engine.generate(requests, told if attempt == 0 else None)
        for n, completion in zip(waiting, completions, strict=True):
            results[n] = keep_or_reason(completion, items[n], segment, results.get(n))
        waiting = [
            n for n in waiting if results[n].reason and results[n].finish_reason not in (OVERLONG, UNFIT)
        ]
        if not waiting:
            break
    return [results[n] for n in range(len(items))]


def keep_or_reason(
    completion: Completion, item: Item, segment: Segment[Item], before: Sampled | None = None
) -> Sampled:
    """Clean one completion and say whether it is kept. `before`: what came of the attempt before it."""
    tokens = completion.drawn + (before.tokens if before else 0)
    events = before.events if before else ()
    if completion.finish_reason == OVERLONG:
        return Sampled("", OVERLONG, tokens, OVERLONG_PROMPT, (*events, OVERLONG_PROMPT))
    if completion.fault:
        fault, told = completion.fault
        return Sampled(completion.text, completion.finish_reason, tokens, fault, (*events, fault), told=told)
    cleaned = clean(completion.text, segment.kind)
    trimmed = list(cleaned.trimmed)
    if completion.stop:
        trimmed.insert(0, STOP_STRING if completion.stop in segment.settings.stop else LEAKED_ROLE)
    # What stands before somebody else's turn is whole, wherever that turn was cut off.
    finish_reason = STOP if LEAKED_ROLE in trimmed else completion.finish_reason
    if finish_reason == LENGTH and not segment.settings.keep_truncated:
        reason: str | None = TRUNCATED
    else:
        reason = cleaned.reason or segment.check(item, cleaned.text)
    events = (*events, reason) if reason else (*events, *trimmed)
    return Sampled(cleaned.text, finish_reason, tokens, reason, events, completion.thinking)


def attempts_at(temperature: float, attempts: int) -> int:
    """At temperature 0 another attempt would give the same text."""
    return attempts if temperature > 0 else 1
