r"""Conversations: lists of `{"role", "content"}`, and the transcript form `\n\nHuman: ...\n\nAssistant: ...`.

A conversation is an optional first system turn, then user and assistant turns; a prompt ends in a user turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from cai_cli.errors import RecordError

Message = dict[str, str]
Conversation = list[Message]

ROLES = ("system", "user", "assistant")
HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIPT_NAMES = {"user": "Human", "assistant": "Assistant"}


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def check_conversation(value: Any, field: str, ends_with: str | None = None) -> Conversation:
    """Return `value` as a conversation, or raise a RecordError that names the field at fault."""
    if not isinstance(value, list) or not value:
        raise RecordError(field, "expected a non-empty list of {role, content} turns")
    turns: Conversation = []
    for position, turn in enumerate(value):
        name = f"{field}[{position}]"
        if not isinstance(turn, dict):
            raise RecordError(name, "expected an object with role and content")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise RecordError(f"{name}.role", f"expected one of {', '.join(ROLES)}, got {role!r}")
        if role == "system" and position > 0:
            raise RecordError(f"{name}.role", "a system turn can only come first")
        if not isinstance(content, str):
            raise RecordError(f"{name}.content", f"expected text, got {type(content).__name__}")
        if not content.strip():
            raise RecordError(f"{name}.content", "is empty")
        turns.append(message(role, content))
    if ends_with and turns[-1]["role"] != ends_with:
        raise RecordError(f"{field}[{len(turns) - 1}].role", f"expected the last turn to be from the {ends_with}")
    return turns


def check_reply(value: Any, field: str) -> Conversation:
    """Return `value` as a reply: exactly one assistant turn."""
    reply = check_conversation(value, field, ends_with="assistant")
    if len(reply) != 1:
        raise RecordError(field, f"expected exactly one assistant turn, got {len(reply)}")
    return reply


def prompt_id(prompt: Conversation) -> str:
    """First 16 hex digits of the SHA-256 of the canonical prompt JSON."""
    canonical = json.dumps(prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def first_human_turn(prompt: Conversation) -> str:
    """The text that splits go by: equal for every prompt cut from one conversation."""
    return next((turn["content"] for turn in prompt if turn["role"] == "user"), "")


def to_transcript(conversation: Conversation) -> str:
    r"""`\n\nHuman: ...\n\nAssistant: ...`; a system turn goes in front of the first human turn's text."""
    system, turns = split_system(conversation)
    parts = []
    for position, turn in enumerate(turns):
        content = turn["content"]
        if position == 0 and system:
            content = f"{system}\n\n{content}"
        parts.append(f"\n\n{TRANSCRIPT_NAMES[turn['role']]}: {content}")
    return "".join(parts)


def from_transcript(text: str) -> Conversation:
    r"""Parse a transcript that starts with `\n\nHuman:`; turns keep their text, stripped at both ends.

    Every role marker starts a turn, so repeated roles survive as they are; empty turns raise.
    """
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise RecordError("", r"a transcript must start with '\n\nHuman:'")
    turns = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : following.start() if following else len(text)].strip()
        role = "user" if mark.group(1) == "Human" else "assistant"
        if not content:
            raise RecordError("", f"an empty {mark.group(1)} turn in the transcript")
        turns.append(message(role, content))
    return turns


def split_system(conversation: Conversation) -> tuple[str, Conversation]:
    """The system text (or "") and the turns after it."""
    if conversation and conversation[0]["role"] == "system":
        return conversation[0]["content"], conversation[1:]
    return "", conversation


def system_in_first_user_turn(conversation: Conversation) -> Conversation:
    """For templates without a system role: its text goes in front of the first user turn."""
    system, turns = split_system(conversation)
    if not system:
        return conversation
    if not turns:
        return [message("user", system)]
    head = message(turns[0]["role"], f"{system}\n\n{turns[0]['content']}")
    return [head, *turns[1:]]
