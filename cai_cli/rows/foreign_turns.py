"""A conversation however somebody wrote it -> turns of ours, or refused by name.

A cell holds turns, the JSON or Python text of turns (in CSV), a transcript, or plain text. Turns are {role,
content} or {from, value} (ShareGPT); their roles user or human, assistant or gpt, system or developer; their
content is text or a list of text parts. Tool calls and parts that are no text are refused, an empty system
turn is dropped and counted.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import takewhile
from typing import Any

from cai_cli.errors import RecordError
from cai_cli.rows.conversation import (
    ASSISTANT,
    HUMAN,
    Conversation,
    TranscriptError,
    check_conversation,
    from_transcript,
    message,
    unix_lines,
)
from cai_cli.rows.json_text import JsonError, load_json

ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
}
ROLE_NAMES |= {role: role for role in ("user", "assistant", "system")}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
DROPPED = "empty system turns"  # under which `dropped` counts them
# How the text of a list of turns begins, and the two fields without which it is another list.
LIST_TEXT = re.compile(r"\s*(\[|\{|array\(|\()")
TURN_FIELDS = (
    re.compile(r"""['"](role|from)\\*['"]\s*:"""),
    re.compile(r"""['"](content|value)\\*['"]\s*:"""),
)
# A line that begins a reply, with the blank line before it that a transcript has, or without.
REPLY_LINE = re.compile(r"[\r\n\x0b\x0c\x85\u2028\u2029][^\S\n]*Assistant:")
ESCAPED_TRANSCRIPT = re.compile(r"\s*(\\r|\\n)+(Human|Assistant):")


class Refused(RecordError):
    """A row that cannot be used. `reason` is a short fixed name that can be counted, `detail` says what was
    found.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        words = reason.replace("_", " ")
        super().__init__("", f"{words}: {detail}" if detail else words)
        self.reason = reason
        self.detail = detail


def read_turns(value: Any, name: str, dropped: Counter[str] | None = None) -> Conversation:
    """A list of turns in any spelling. Raises RecordError."""
    return check_conversation(plain_turns(value, name, dropped), name)


def plain_turns(value: Any, name: str, dropped: Counter[str] | None = None) -> Any:
    """The list in our spelling, not yet checked; what is no list comes back as it is."""
    if not isinstance(value, list):
        return value
    turns = [
        plain_turn(turn, f"{name}[{n}]") if isinstance(turn, dict) else turn for n, turn in enumerate(value)
    ]
    if (
        turns
        and isinstance(turns[0], dict)
        and turns[0]["role"] == "system"
        and is_blank(turns[0]["content"])
    ):
        if dropped is not None:
            dropped[DROPPED] += 1
        turns = turns[1:]
    return turns


def plain_turn(turn: dict[str, Any], name: str) -> dict[str, Any]:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    spelled = role.strip().lower() if isinstance(role, str) else ""
    if spelled in TOOL_ROLES:
        raise Refused("tool_turn", f"`{name}` is from a {spelled}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Refused("tool_call", f"`{name}` calls a tool")
    return {
        "role": ROLE_NAMES.get(spelled, role),
        "content": joined_parts(content, name) if isinstance(content, list) else content,
    }


def joined_parts(parts: list[Any], name: str) -> str:
    """The text of a content given as parts, each on lines of its own."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(text, str):
            raise Refused("not_text", f"`{name}` has a part of type {str(kind)[:40]!r}")
        texts.append(text)
    return "\n".join(texts)


def is_blank(content: Any) -> bool:
    return content is None or (isinstance(content, str) and not content.strip())


def turns_in_text(text: str) -> list[Any] | None:
    """Turns written as the text of a JSON or Python list; None where the text is none. Never taken for
    somebody's words.

    Raises Refused for text that looks like such a list and cannot be read.
    """
    if ESCAPED_TRANSCRIPT.match(text):
        raise Refused("escaped_transcript", "its line breaks are written as \\n")
    if not LIST_TEXT.match(text) or not all(field.search(text) for field in TURN_FIELDS):
        return None
    try:
        value = load_json(text)
    except JsonError:
        value = python_value(text)
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list | tuple):
        raise Refused(
            "text_of_turns", f"looks like turns, and is neither JSON nor a Python list: {text.strip()[:60]}"
        )
    # A list of other objects is what somebody wrote, such as a question about JSON.
    are_turns = turns and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    return list(turns) if are_turns else None


def python_value(text: str) -> Any:
    """The value of a Python literal, None where it is none. Arrays of numpy are printed without commas
    between their turns.
    """
    try:
        return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def is_transcript(text: str) -> bool:
    return text.lstrip().startswith(HUMAN.strip())


def parse_transcript(text: str, whole: bool = True) -> Conversation:
    """`from_transcript`. Raises Refused: `not_a_transcript`, `starts_with_assistant`, `empty_turn`.

    Of a `whole` transcript, which has not had its last `Assistant:` cut off, one that is a single human turn
    with a line that begins `Assistant:` is refused: it lacks the blank lines between the turns, and the turn
    would hold both speakers' words.
    """
    try:
        turns = from_transcript(text)
    except TranscriptError as error:
        raise Refused(error.reason, error.detail) from None
    if whole and len(turns) == 1 and REPLY_LINE.search(text):
        raise Refused("not_a_transcript", "no blank line before 'Assistant:'")
    return turns


def read_conversation(value: Any, name: str, dropped: Counter[str] | None = None) -> Conversation:
    """The conversation in a cell; plain text is one human turn. Raises RecordError."""
    if isinstance(value, str):
        if is_transcript(value):
            text = unix_lines(value).rstrip()
            return parse_transcript(text.removesuffix(ASSISTANT), whole=not text.endswith(ASSISTANT))
        turns = turns_in_text(value)
        value = [message("user", value.strip())] if turns is None else turns
    return read_turns(value, name, dropped)


def read_reply(value: Any, name: str, dropped: Counter[str] | None = None) -> tuple[Conversation, str]:
    """The turns before a reply, [] where the cell holds the reply alone, and the reply, which may be empty."""
    if isinstance(value, str):
        turns = (
            parse_transcript(value)
            if is_transcript(value) and REPLY_LINE.search(value)
            else turns_in_text(value)
        )
        if turns is None:
            return [], value.strip()
        value = turns
    turns = plain_turns([value] if isinstance(value, dict) else value, name, dropped)
    if (
        not isinstance(turns, list)
        or not turns
        or not isinstance(turns[-1], dict)
        or turns[-1].get("role") != "assistant"
    ):
        raise Refused("no_reply", f"`{name}` does not end in an assistant turn")
    reply = turns[-1]["content"]
    if not isinstance(reply, str):
        raise Refused("missing_field" if reply is None else "not_text", "field `content`")
    return (check_conversation(turns[:-1], name, ends_with="user") if turns[:-1] else []), reply.strip()


def read_pair(
    prompt_cell: Any,
    chosen_cell: Any,
    rejected_cell: Any,
    names: tuple[str, str, str],
    dropped: Counter[str] | None = None,
) -> tuple[Conversation, str, str]:
    """Prompt, chosen and rejected reply of three cells, the first of which may be None. Raises RecordError."""
    given = None
    if prompt_cell is not None:
        given = check_conversation(
            read_conversation(prompt_cell, names[0], dropped), names[0], ends_with="user"
        )
    chosen_prompt, chosen = read_reply(chosen_cell, names[1], dropped)
    rejected_prompt, rejected = read_reply(rejected_cell, names[2], dropped)
    if chosen_prompt and rejected_prompt and chosen_prompt != rejected_prompt:
        raise Refused("prompts_differ")
    inner = chosen_prompt or rejected_prompt
    # The conversation may say more than the prompt column (a system turn, earlier turns), never something
    # else.
    if given and inner and given[-1]["content"].strip() != inner[-1]["content"].strip():
        raise Refused("prompts_differ", f"`{names[0]}` is not what the replies answer")
    prompt = inner or given
    if not prompt:
        raise Refused("missing_field", "no prompt, neither in a column of its own nor before the replies")
    if not chosen or not rejected:
        raise Refused("empty_reply", names[2] if chosen else names[1])
    return prompt, chosen, rejected


def common_start(chosen: str, rejected: str) -> str:
    """What two texts have in common at their start, up to a whole word: the prompt of TRL's pairs of plain
    texts.
    """
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    start = chosen[:same]
    return start[: max(start.rfind(blank) for blank in " \n\t") + 1].strip()
