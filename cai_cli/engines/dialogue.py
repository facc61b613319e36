"""Several models that hear the same turns of one person, each with a history of its own; out come samples.

A turn that a model did not answer (it was stopped, or the prompt did not fit) is not in this model's history, so that
turns go on alternating. A reply is keyed as `cai sample` keys it: by seed, prompt and draw. So the same words at the
same place get the same reply, and the first turn gets what `cai sample` writes for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cai_cli.engines.base import OVERLONG, Engine
from cai_cli.engines.replies import Slot, reply_segment, to_record
from cai_cli.engines.segments import Sampled, sample_segment
from cai_cli.rows.conversation import Conversation, message, prompt_id, system_in_first_user_turn
from cai_cli.rows.records import Prompt

ATTEMPTS = 3  # draws of a reply before there is none, as in `cai sample`
LEAST = 16  # tokens that a reply has room for, or there is none


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that takes part. `path` as it was given, `name` as it is shown."""

    path: str
    name: str
    engine: Engine


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a draw: a text, or the reason for none. `limit`: tokens that it had room for."""

    prompt: Conversation
    draw: int
    sampled: Sampled
    limit: int


@dataclass(slots=True)
class Turn:
    """What the person said, and by model all replies to it; with the last one the conversation goes on."""

    said: str
    draws: int = 0
    replies: dict[str, list[Reply]] = field(default_factory=dict)


class Dialogue:
    """`turns` are those of the conversation under way; `ended` those of the ones before it."""

    def __init__(
        self, speakers: list[Speaker], seed: int, temperature: float, max_new_tokens: int, system: str = ""
    ) -> None:
        self.speakers, self.seed, self.temperature = speakers, seed, temperature
        self.max_new_tokens = max_new_tokens
        self.system = system
        self.turns: list[Turn] = []
        self.ended: list[Turn] = []

    def say(self, text: str) -> Turn:
        """Begin a turn. Replies are drawn one by one: `reply`."""
        self.turns.append(Turn(text))
        return self.turns[-1]

    def reply(self, speaker: Speaker) -> Reply:
        """Draw this model's reply to the last turn; it is kept unless its `sampled` has a reason not to be."""
        turn = self.turns[-1]
        prompt = self.prompt_of(speaker)
        limit = self.max_new_tokens
        sampled = self._draw(speaker, prompt, turn.draws, limit)
        while sampled.finish_reason == OVERLONG and limit // 2 >= LEAST:
            limit //= 2
            sampled = self._draw(speaker, prompt, turn.draws, limit)
        reply = Reply(prompt, turn.draws, sampled, limit)
        if sampled.reason is None:
            turn.replies.setdefault(speaker.path, []).append(reply)
        return reply

    def prompt_of(self, speaker: Speaker) -> Conversation:
        """What it gets for the last turn."""
        conversation = [message("system", self.system)] if self.system else []
        for turn in self.turns[:-1]:
            if replies := turn.replies.get(speaker.path):
                conversation += [
                    message("user", turn.said),
                    message("assistant", replies[-1].sampled.text),
                ]
        return [*conversation, message("user", self.turns[-1].said)]

    def _draw(self, speaker: Speaker, prompt: Conversation, draw: int, limit: int) -> Sampled:
        renderer = speaker.engine.renderer
        segment = reply_segment(renderer, self.seed, self.temperature, limit, True, ATTEMPTS)
        return sample_segment(speaker.engine, [slot_of(prompt, draw)], segment)[0]

    def drop(self) -> Turn | None:
        """Take the last turn back; None where there is none."""
        return self.turns.pop() if self.turns else None

    def reset(self) -> None:
        """Begin a new conversation, with the same system text."""
        self.ended += self.turns
        self.turns = []

    def rows(self) -> Iterator[dict[str, Any]]:
        """Samples with their `model`: every reply that was drawn and not taken back, once.

        Replies to the same prompt, of one model or of several, share the first part of their id.
        """
        counts: Counter[str] = Counter()
        met: set[tuple[str, str, int]] = set()
        for turn in [*self.ended, *self.turns]:
            for path, replies in turn.replies.items():
                for reply in replies:
                    asked = prompt_id(reply.prompt)
                    if (path, asked, reply.draw) in met:  # said again after a reset
                        continue
                    met.add((path, asked, reply.draw))
                    sample = to_record(slot_of(reply.prompt, counts[asked]), reply.sampled)
                    yield {**sample.to_row(), "model": path}
                    counts[asked] += 1


def slot_of(prompt: Conversation, number: int) -> Slot:
    return Slot(Prompt(prompt_id(prompt), prompt), number)


def has_system_role(speaker: Speaker, system: str) -> bool:
    """Whether it reads a system text as one, instead of in front of the first turn. Raises UserError where it
    cannot read the text at all.
    """
    prompt = [message("system", system), message("user", "probe")]
    renderer = speaker.engine.renderer
    merged = system_in_first_user_turn(prompt)
    return renderer.reply_form == "chat" and renderer.show(prompt) != renderer.show(merged)
