"""Conversations -> the prompts in them."""

from __future__ import annotations

from cai_cli.rows.conversation import Conversation, check_conversation, prompt_id
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.records import Prompt


def prompts_of_turns(
    turns: Conversation, every_turn: bool, kind: str | None, source: str | None
) -> list[Prompt]:
    """The conversation up to its last human turn, or with `every_turn` up to each of them (paper section
    3.2).
    """
    ends = [number + 1 for number, turn in enumerate(turns) if turn["role"] == "user"]
    if not ends:
        raise Refused("no_human_turn")
    prompts = [
        check_conversation(turns[:end], "prompt", ends_with="user")
        for end in (ends if every_turn else ends[-1:])
    ]
    return [Prompt(prompt_id(prompt), prompt, kind, source) for prompt in prompts]
