"""Public transcripts -> conversations, by the rule of `conversation.from_transcript`; what is none is refused."""

from __future__ import annotations

from cai_cli.conversation import Conversation, TranscriptError, from_transcript
from cai_cli.importers.reject import Refused


def parse_transcript(text: str) -> Conversation:
    """`from_transcript`. Raises Refused: `not_a_transcript`, `starts_with_assistant`, `empty_turn`."""
    try:
        return from_transcript(text)
    except TranscriptError as error:
        raise Refused(error.reason, error.detail) from None
