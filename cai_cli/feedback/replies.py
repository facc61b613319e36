"""Replies to compare, sampled from SL-CAI: n to a prompt, of which two make the pair (paper section 4.1: n =
2).

Where all of a prompt's replies came out the same, its second one is drawn again with another key.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai_cli.artifacts.chunks import Told
from cai_cli.engines.base import Engine
from cai_cli.engines.segments import Segment, SegmentSettings, sample_segment
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.pairs import IDENTICAL, choose_pair
from cai_cli.prompting.prompts import reply_prompt
from cai_cli.rows.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the replies to a pair's prompt, on a given try at making them differ."""

    pair: Pair
    k: int
    redraw: int = 0


def draw_replies(
    writer: Engine,
    pairs: list[Pair],
    count: int,
    settings: SegmentSettings,
    seed: int,
    chat: bool,
    told: Told | None = None,
) -> None:
    """Fill in the replies of each pair, or why there are none."""
    segment = reply_segment(settings, seed, chat)
    texts: dict[str, dict[int, str]] = {pair.id: {} for pair in pairs}
    failures: dict[str, tuple[str, str]] = {}
    slots = [Slot(pair, k) for pair in pairs for k in range(count)]
    for redraw in range(1, settings.attempts + 1):
        for slot, sampled in zip(
            slots, sample_segment(writer, slots, segment, told if redraw == 1 else None), strict=True
        ):
            slot.pair.tokens += sampled.tokens
            if sampled.reason:
                failures[slot.pair.id] = sampled.reason, f"reply {slot.k}: {sampled.detail}"
            else:
                texts[slot.pair.id][slot.k] = sampled.text
        same = [pair for pair in pairs if len(texts[pair.id]) > 1 and len(set(texts[pair.id].values())) == 1]
        slots = [Slot(pair, max(texts[pair.id]), redraw) for pair in same]
        if not slots:
            break
    for pair in pairs:
        replies = [texts[pair.id][k] for k in sorted(texts[pair.id])]
        if chosen := choose_pair(replies):
            pair.replies = [replies[n] for n in chosen]
        elif len(replies) > 1:
            pair.reject(IDENTICAL, replies[0][:200])
        else:
            pair.reject(*failures[pair.id])


def reply_segment(settings: SegmentSettings, seed: int, chat: bool) -> Segment[Slot]:
    def prompt_of(slot: Slot) -> str | Conversation:
        return slot.pair.prompt if chat else reply_prompt(slot.pair.prompt)

    def key_of(slot: Slot) -> tuple[str | int, ...]:
        return (seed, slot.pair.prompt_id, 0, "pair", slot.k, slot.redraw)

    return Segment("reply", prompt_of, key_of, settings)
