"""Read prompts, forgiving in what is taken: our JSONL, `{"prompt": "text"}`, `{"messages": [...]}`, hh-rlhf transcripts,
plain .txt lines, .gz of each, and `hf:org/name[:split]` through `datasets`. A trailing `:number` on a source is a
proportion. Identical prompts without a given id are merged and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_cli.conversation import HUMAN, Conversation, TranscriptError, check_conversation, from_transcript, message
from cai_cli.errors import RecordError, UserError
from cai_cli.hub import read_hub
from cai_cli.jsonl import read_lines, read_rows
from cai_cli.manifest import parse_weight
from cai_cli.records import Prompt
from cai_cli.talk import say


def read_prompts(sources: list[str], limit: int | None = None) -> list[Prompt]:
    """All prompts of the sources in order, at most `limit`, each id once. Malformed rows stop with file:line and field."""
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    merged = 0
    for source in sources:
        for place, prompt in rows_of(parse_weight(source)[0]):
            if prompt.id in prompts:
                if prompts[prompt.id].prompt != prompt.prompt:
                    hint = f"the other one is at {places[prompt.id]}; ids are unique"
                    raise RecordError("id", f"{prompt.id!r} is used for two prompts", hint, place=place)
                merged += 1
                continue
            prompts[prompt.id] = prompt
            places[prompt.id] = place
            if limit is not None and len(prompts) == limit:
                break
        if limit is not None and len(prompts) == limit:
            break
    if merged:
        say(f"merged {merged} repeated prompts")
    if not prompts:
        raise UserError(f"{', '.join(sources)}: no prompts in it", 'one prompt a line, as {"prompt": "text"} or plain .txt')
    return list(prompts.values())


def rows_of(source: str) -> Iterator[tuple[str, Prompt]]:
    """Yield (place, prompt) of one source."""
    if source.startswith("hf:"):
        yield from hub_prompts(source)
        return
    path = Path(source)
    if path.name.removesuffix(".gz").endswith(".txt"):
        for number, line in read_lines(path):
            if line.strip():
                yield f"{path}:{number}", Prompt.from_row({"prompt": [message("user", line.strip())]})
        return
    for number, row in read_rows(path):
        place = f"{path}:{number}"
        try:
            yield place, prompt_from_row(row)
        except RecordError as error:
            raise error.at(place) from None


def hub_prompts(source: str) -> Iterator[tuple[str, Prompt]]:
    for place, row in read_hub(source):
        try:
            yield place, prompt_from_row(row)
        except RecordError as error:
            raise error.at(place) from None


def prompt_from_row(row: dict[str, Any]) -> Prompt:
    """A prompt from any of the shapes that are taken."""
    return Prompt.from_row({**row, "prompt": conversation_of(row)})


def conversation_of(row: dict[str, Any]) -> Conversation:
    if isinstance(row.get("prompt"), str):
        return prompt_from_text(row["prompt"], "prompt")
    if "prompt" in row:
        return check_conversation(row["prompt"], "prompt", ends_with="user")
    if "messages" in row:
        turns = check_conversation(row["messages"], "messages")
        return without_last_reply(turns, "messages")
    if isinstance(row.get("chosen"), str):
        return prompt_from_text(row["chosen"], "chosen")
    if "chosen" in row:
        return without_last_reply(check_conversation(row["chosen"], "chosen"), "chosen")
    names = ", ".join(sorted(row)) or "none"
    raise RecordError("prompt", f"missing (fields here: {names})", "give prompt, messages or an hh-rlhf transcript")


def prompt_from_text(text: str, field: str) -> Conversation:
    """A transcript where the text starts as one, else one user turn."""
    if not text.lstrip().startswith(HUMAN.strip()):
        return check_conversation([message("user", text)], field, ends_with="user")
    try:
        return without_last_reply(from_transcript(text), field)
    except TranscriptError as error:
        raise RecordError(field, str(error), "`cai import hh-rlhf` puts such rows aside and goes on") from None


def without_last_reply(turns: Conversation, field: str) -> Conversation:
    """Drop closing assistant turns, so that the prompt ends in a user turn."""
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return check_conversation(turns, field, ends_with="user")
