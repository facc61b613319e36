r"""Conversations: lists of `{"role", "content"}`, and the transcript form `\n\nHuman: ...\n\nAssistant: ...`.

A conversation is an optional first system turn, then user and assistant turns; a prompt ends in a user turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from cai_cli.errors import RecordError
from cai_cli.rows.json_text import is_unicode

Message = dict[str, str]
Conversation = list[Message]
CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
ROLES = ("system", "user", "assistant")
HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIPT_NAMES = {"user": "Human", "assistant": "Assistant"}
ROLE_OF = {"Human": "user", "Assistant": "assistant"}


class TranscriptError(ValueError):
    """Text that is no transcript: `not_a_transcript`, `starts_with_assistant` or `empty_turn`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason.replace('_', ' ')}: {detail}" if detail else reason.replace("_", " "))
        self.reason = reason
        self.detail = detail


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
        if not is_unicode(content):
            raise RecordError(f"{name}.content", "holds half of a surrogate pair, which is no character")
        turns.append(message(ROLES[ROLES.index(role)], content))  # the one text of it, not the row's own
    if ends_with and turns[-1]["role"] != ends_with:
        raise RecordError(
            f"{field}[{len(turns) - 1}].role", f"expected the last turn to be from the {ends_with}"
        )
    return turns


def check_reply(value: Any, field: str) -> Conversation:
    """Return `value` as a reply: exactly one assistant turn."""
    reply = check_conversation(value, field, ends_with="assistant")
    if len(reply) != 1:
        raise RecordError(field, f"expected exactly one assistant turn, got {len(reply)}")
    return reply


def prompt_id(prompt: Conversation) -> str:
    """First 16 hex digits of the SHA-256 of the canonical prompt JSON."""
    return hashlib.sha256(CANONICAL.encode(prompt).encode()).hexdigest()[:16]


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


def unix_lines(text: str) -> str:
    """The text with line breaks of Windows and old Macs as newlines."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def from_transcript(text: str) -> Conversation:
    r"""Turns with their text stripped at both ends; an assistant's turn that ends the transcript may be
    empty.

    Turns alternate, so a marker starts a turn only where it names the *other* speaker:

    - `\n\nAssistant:` while the assistant is speaking (or `\n\nHuman:` while the human is) cannot start a turn. It is text of
      the turn that is going on and stays in it, letter for letter.
    - `Human:` or `Assistant:` without two newlines before it is text as well.
    - `\n\nHuman:` inside an assistant's turn cannot be told from a turn of the human, and is one.

    So `to_transcript` gives back the transcript, but for white space at the ends of turns, and turns
    alternate as chat templates ask. Line breaks of Windows count as newlines. Raises TranscriptError.
    """
    text = unix_lines(text)
    if text.lstrip().startswith((HUMAN.strip(), ASSISTANT.strip())):
        text = f"\n\n{text.lstrip()}"  # the published ones have the two newlines; copies often have lost them
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise TranscriptError("not_a_transcript", "expected it to start with 'Human:'")
    if marks[0].group(1) != "Human":
        raise TranscriptError("starts_with_assistant")
    turns = [(marks[0], marks[0].end())]  # the marker of each turn, and where its text starts
    for mark in marks[1:]:
        opening, start = turns[-1]
        if mark.group(1) != opening.group(1):
            turns.append((mark, mark.end()))
        elif not text[start : mark.start()].strip():
            turns[-1] = (opening, mark.end())  # nothing was said after the first of the two markers
    conversation = []
    for number, (opening, start) in enumerate(turns):
        last = number == len(turns) - 1
        content = text[start : len(text) if last else turns[number + 1][0].start()].strip()
        role = ROLE_OF[opening.group(1)]
        if not content and not (last and role == "assistant"):
            raise TranscriptError("empty_turn", f"turn {number + 1} ({role})")
        conversation.append(message(role, content))
    return conversation


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
