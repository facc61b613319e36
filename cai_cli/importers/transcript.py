"""Public transcripts -> conversations, by the rule of `conversation.from_transcript`; what is none is refused."""

from __future__ import annotations

from cai_cli.conversation import Conversation, TranscriptError, check_conversation, from_transcript, prompt_id
from cai_cli.importers.reject import Refused
from cai_cli.records import Prompt


def parse_transcript(text: str) -> Conversation:
    """`from_transcript`. Raises Refused: `not_a_transcript`, `starts_with_assistant`, `empty_turn`."""
    try:
        return from_transcript(text)
    except TranscriptError as error:
        raise Refused(error.reason, error.detail) from None


def prompts_of_turns(turns: Conversation, every_turn: bool, kind: str | None, source: str | None) -> list[Prompt]:
    """The conversation up to its last human turn, or with `every_turn` up to each of them (paper section 3.2)."""
    ends = [number + 1 for number, turn in enumerate(turns) if turn["role"] == "user"]
    if not ends:
        raise Refused("no_human_turn")
    prompts = [check_conversation(turns[:end], "prompt", ends_with="user") for end in (ends if every_turn else ends[-1:])]
    return [Prompt(prompt_id(prompt), prompt, kind, source) for prompt in prompts]
