"""The rows of our JSONL files: one dataclass each, validated when read, in TRL's conversational formats when
written.

    Prompt       prompts.jsonl       a conversation that ends in a user turn
    Revision     revisions.jsonl     prompt, final revision, and every round that led to it
    Sample       samples.jsonl       prompt and one sampled completion
    Comparison   comparisons.jsonl   prompt, chosen, rejected and the probability that chosen is preferred

`from_row` raises RecordError with the field at fault; `to_row` gives the dictionary that is written.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from cai_cli.errors import RecordError
from cai_cli.rows.conversation import Conversation, check_conversation, check_reply, prompt_id
from cai_cli.rows.json_text import is_unicode

KINDS = ("harmful", "helpful")
ORIGINS = ("ai", "human", "votes")
ORDERS = ("chosen_first", "rejected_first")
FINISH_REASONS = ("stop", "length")


def text_field(row: dict[str, Any], name: str, prefix: str = "") -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise RecordError(prefix + name, "missing" if value is None else "expected non-empty text")
    if not is_unicode(value):
        raise RecordError(prefix + name, "holds half of a surrogate pair, which is no character")
    return value


def choice_field(row: dict[str, Any], name: str, choices: tuple[str, ...], prefix: str = "") -> str:
    value = row.get(name)
    if value not in choices:
        raise RecordError(prefix + name, f"expected one of {', '.join(choices)}, got {value!r}")
    return choices[choices.index(str(value))]  # the one text of it, not the row's own


def number_field(row: dict[str, Any], name: str, low: float, high: float, prefix: str = "") -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(prefix + name, f"expected a number, got {value!r}")
    if not low <= value <= high:
        raise RecordError(prefix + name, f"expected a number in [{low:g}, {high:g}], got {value}")
    return float(value)


def optional_kind(row: dict[str, Any]) -> str | None:
    return None if row.get("kind") is None else choice_field(row, "kind", KINDS)


def optional_text(row: dict[str, Any], name: str, prefix: str = "") -> str | None:
    return None if row.get(name) is None else text_field(row, name, prefix)


def list_of_rows(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError(name, "expected a list of objects")
    return value


def spare_text(row: dict[str, Any], name: str, prefix: str = "") -> str:
    """A text that may be empty or missing: always text when written, so that tools see one type in every row."""
    value = row.get(name)
    if value is not None and (not isinstance(value, str) or not is_unicode(value)):
        raise RecordError(prefix + name, "expected text")
    return value or ""


# A rule of `hygiene` and the segment that it applied to, such as ("truncated", "draft").
Event = tuple[str, str]


def events_text(events: list[Event]) -> str:
    """Events as files keep them: "truncated draft, lead_in revision 2".

    A list would be empty in most rows, and `datasets` cannot read a file whose first part has empty lists
    only.
    """
    return ", ".join(f"{rule} {segment}" for rule, segment in events)


def events_field(row: dict[str, Any], name: str = "hygiene") -> list[Event]:
    """What `events_text` wrote; a missing or empty text is no events."""
    events = []
    for event in filter(None, spare_text(row, name).split(", ")):
        rule, _, segment = event.partition(" ")
        if not segment:
            raise RecordError(name, f"expected rules with their segments, got {event!r}")
        events.append((rule, segment))
    return events


@dataclass(slots=True)
class Prompt:
    id: str
    prompt: Conversation
    kind: str | None = None
    source: str | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Prompt:
        prompt = check_conversation(row.get("prompt"), "prompt", ends_with="user")
        given = optional_text(row, "id") or prompt_id(prompt)
        return cls(given, prompt, optional_kind(row), optional_text(row, "source"))

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Round:
    """One critique and revision. `critique_request` and `critique` are empty where the critique was skipped.

    What a reasoning model thought before each is kept apart from it.
    """

    principle: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str
    critique_thinking: str = ""
    revision_thinking: str = ""


@dataclass(slots=True)
class Revision:
    """A chain of `cai revise`: the draft, its rounds and the final revision."""

    id: str
    prompt: Conversation
    completion: Conversation
    initial: Conversation
    rounds: list[Round]
    kind: str | None = None
    initial_thinking: str = ""
    hygiene: list[Event] = field(default_factory=list)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Revision:
        rounds = []
        for position, item in enumerate(list_of_rows(row, "rounds")):
            prefix = f"rounds[{position}]."
            for name in ("critique_request", "critique"):
                if not isinstance(item.get(name), str):
                    raise RecordError(prefix + name, "expected text")
            rounds.append(
                Round(
                    principle=text_field(item, "principle", prefix),
                    critique_request=item["critique_request"],
                    critique=item["critique"],
                    revision_request=text_field(item, "revision_request", prefix),
                    revision=text_field(item, "revision", prefix),
                    critique_thinking=spare_text(item, "critique_thinking", prefix),
                    revision_thinking=spare_text(item, "revision_thinking", prefix),
                )
            )
        if not rounds:
            raise RecordError(
                "rounds", "a revision without a round is the unrevised draft, never a training target"
            )
        return cls(
            id=text_field(row, "id"),
            prompt=check_conversation(row.get("prompt"), "prompt", ends_with="user"),
            completion=check_reply(row.get("completion"), "completion"),
            initial=check_reply(row.get("initial"), "initial"),
            rounds=rounds,
            kind=optional_kind(row),
            initial_thinking=spare_text(row, "initial_thinking"),
            hygiene=events_field(row),
        )

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "hygiene": events_text(self.hygiene)}


@dataclass(slots=True)
class Sample:
    id: str
    prompt: Conversation
    completion: Conversation
    finish_reason: str
    kind: str | None = None
    thinking: str = ""
    hygiene: list[Event] = field(default_factory=list)
    source: str | None = None  # of the prompt

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Sample:
        return cls(
            id=text_field(row, "id"),
            prompt=check_conversation(row.get("prompt"), "prompt", ends_with="user"),
            completion=check_reply(row.get("completion"), "completion"),
            finish_reason=choice_field(row, "finish_reason", FINISH_REASONS),
            kind=optional_kind(row),
            thinking=spare_text(row, "thinking"),
            hygiene=events_field(row),
            source=optional_text(row, "source"),
        )

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "hygiene": events_text(self.hygiene)}


@dataclass(slots=True)
class Judgement:
    """One multiple-choice answer of the feedback model. `mass` is the probability on both options together."""

    principle: str
    order: str
    logprob_a: float
    logprob_b: float
    mass: float
    rationale: str | None = None

    @property
    def probability_chosen(self) -> float:
        """Softmax of the two option log-probabilities, seen from the chosen response."""
        difference = self.logprob_a - self.logprob_b
        if self.order == "rejected_first":
            difference = -difference
        return 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0


@dataclass(slots=True)
class Comparison:
    id: str
    prompt_id: str
    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    probability: float
    origin: str
    kind: str | None = None
    source: str | None = None
    judgements: list[Judgement] = field(default_factory=list)
    # Who wrote the texts and under which licence, for data that asks for it
    attribution: dict[str, Any] | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Comparison:
        judgements = []
        for position, item in enumerate(list_of_rows(row, "judgements") if row.get("judgements") else []):
            prefix = f"judgements[{position}]."
            judgements.append(
                Judgement(
                    principle=text_field(item, "principle", prefix),
                    order=choice_field(item, "order", ORDERS, prefix),
                    logprob_a=number_field(item, "logprob_a", -math.inf, 0, prefix),
                    logprob_b=number_field(item, "logprob_b", -math.inf, 0, prefix),
                    mass=number_field(item, "mass", 0, 1.000001, prefix),
                    rationale=optional_text(item, "rationale", prefix),
                )
            )
        prompt = check_conversation(row.get("prompt"), "prompt", ends_with="user")
        return cls(
            id=text_field(row, "id"),
            prompt_id=optional_text(row, "prompt_id") or prompt_id(prompt),
            prompt=prompt,
            chosen=check_reply(row.get("chosen"), "chosen"),
            rejected=check_reply(row.get("rejected"), "rejected"),
            probability=number_field(row, "probability", 0.5, 1),
            origin=choice_field(row, "origin", ORIGINS),
            kind=optional_kind(row),
            source=optional_text(row, "source"),
            judgements=judgements,
            attribution=row["attribution"] if isinstance(row.get("attribution"), dict) else None,
        )

    def to_row(self) -> dict[str, Any]:
        return asdict(self)
