"""Read prompts, forgiving in what is taken: our JSONL, `{"prompt": "text"}`, `{"messages": [...]}`, ShareGPT,
hh-rlhf transcripts, plain .txt lines, .gz of each, `-` for JSON lines or plain ones over stdin, and
`hf:org/name[:split]` through `datasets`. A trailing `:number` on a source is a proportion. Identical prompts
are merged and counted: those without a given id wherever they stand, and those that two files hold under the
same id. In one file a given id is on one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_cli.console.messages import say, tell_dropped
from cai_cli.errors import RecordError, UserError
from cai_cli.rows.conversation import Conversation, check_conversation, message, prompt_id
from cai_cli.rows.foreign_turns import Refused, is_transcript, read_conversation, turns_in_text
from cai_cli.rows.hub import read_hub
from cai_cli.rows.jsonl import read_lines, read_rows
from cai_cli.rows.records import Prompt
from cai_cli.rows.row_kinds import kind_of
from cai_cli.rows.seen import Seen
from cai_cli.rows.sources import input_file, parse_weight
from cai_cli.rows.storage import STDIN

# The prompt that an id stands for, by its hash, and its place
Known = Seen


def read_prompts(sources: list[str], limit: int | None = None, known: Known | None = None) -> list[Prompt]:
    """All prompts of the sources, see `stream_prompts`."""
    return list(stream_prompts(sources, limit, known))


def stream_prompts(
    sources: list[str], limit: int | None = None, known: Known | None = None
) -> Iterator[Prompt]:
    """All prompts of the sources in order, at most `limit`, each id once. Malformed rows stop with file:line
    and field.

    `known`: ids of sources that were read before, which mean the same prompts here; those of this call are
    added.
    """
    known = Known() if known is None else known
    taken = Seen()
    count = merged = 0
    dropped: Counter[str] = Counter()
    for source in sources:
        path = parse_weight(source)[0]
        here = Seen()
        for place, prompt, named in rows_of(path, dropped):
            content = prompt_id(prompt.prompt)
            before, _, there = known.first(prompt.id, f"{content} {place}").partition(" ")
            if before != content:
                hint = f"the other one is at {there}; ids are unique"
                raise RecordError("id", f"{prompt.id!r} is used for two prompts", hint, place=place)
            there = here.first(prompt.id, place)
            if named and there != place:
                line = there.removeprefix(f"{path}:")
                raise RecordError(
                    "id", f"{prompt.id!r} is on line {line} too", "ids are unique in a file", place=place
                )
            if taken.count(prompt.id):
                merged += 1
                continue
            yield prompt
            count += 1
            if count == limit:
                break
        if count == limit:
            break
    if merged:
        say(f"merged {merged} repeated prompts")
    tell_dropped(dropped)
    if not count:
        raise UserError(
            f"{', '.join(sources)}: no prompts in it",
            'one prompt a line, as {"prompt": "text"} or plain .txt',
        )


def rows_of(source: str, dropped: Counter[str]) -> Iterator[tuple[str, Prompt, bool]]:
    """Yield (place, prompt, whether it has a given id) of one source; ids on the Hub are no promise.

    What is left out of rows is counted in `dropped`.
    """
    if source.startswith("hf:"):
        for place, prompt in hub_prompts(source, dropped):
            yield place, prompt, False
        return
    path = input_file(source) or Path(source)
    if path.name.removesuffix(".gz").endswith(".txt") or (path == STDIN and not is_json(path)):
        for number, line in read_lines(path):
            if line.strip():
                yield f"{path}:{number}", Prompt.from_row({"prompt": [message("user", line.strip())]}), False
        return
    for number, row in read_rows(path):
        place = f"{path}:{number}"
        try:
            yield place, prompt_from_row(row, dropped), row.get("id") is not None
        except RecordError as error:
            raise error.at(place) from None


def is_json(path: Path) -> bool:
    """Whether a file without a name to tell by holds JSON, or lines of text, by its first line that is not
    empty.
    """
    first = next((line.strip() for _, line in read_lines(path) if line.strip()), "")
    return first.startswith(("{", "["))


def hub_prompts(source: str, dropped: Counter[str]) -> Iterator[tuple[str, Prompt]]:
    for place, row in read_hub(source):
        try:
            yield place, prompt_from_row(row, dropped)
        except RecordError as error:
            raise error.at(place) from None


def prompt_from_row(row: dict[str, Any], dropped: Counter[str] | None = None) -> Prompt:
    """A prompt from any of the shapes that are taken."""
    return Prompt.from_row({**row, "prompt": conversation_of(row, dropped)})


def conversation_of(row: dict[str, Any], dropped: Counter[str] | None = None) -> Conversation:
    """The conversation of a row that ends in a user turn."""
    name = next((name for name in ("prompt", "messages", "conversations", "chosen") if name in row), None)
    if name is None:
        kind = kind_of(row)
        found = f"is a row of {kind.name}" if kind else f"fields here: {', '.join(sorted(row)) or 'none'}"
        hint = kind.advice if kind else "give prompt, messages or an hh-rlhf transcript"
        raise RecordError("prompt", f"missing ({found})", hint)
    value = row[name]
    try:
        if isinstance(value, str) and not is_transcript(value) and turns_in_text(value) is None:
            # To the letter, since ids are made from it
            return check_conversation([message("user", value)], name)
        turns = read_conversation(value, name, dropped)
    except Refused as error:
        raise RecordError(name, error.problem, "`cai import` puts such rows aside and goes on") from None
    if name == "prompt" and not isinstance(value, str):
        return check_conversation(turns, name, ends_with="user")
    return without_last_reply(turns, name)


def without_last_reply(turns: Conversation, field: str) -> Conversation:
    """Drop closing assistant turns, so that the prompt ends in a user turn."""
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not any(turn["role"] == "user" for turn in turns):
        raise RecordError(field, "there is no user turn in it")
    return check_conversation(turns, field, ends_with="user")
