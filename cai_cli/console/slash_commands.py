"""What a line of a conversation asks for: `/save talk.jsonl` a command, anything else a text; `//save` the text /save.

Commands are a table: `/save` -> (what it takes, what it does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from cai_cli.errors import UserError

Commands = Mapping[str, tuple[str, str]]


def text_of(line: str) -> str | None:
    """What is said; None where the line is a command."""
    if line.startswith("//"):
        return line[1:]
    return None if line.startswith("/") else line


def command_of(line: str, commands: Commands) -> tuple[str, str]:
    """The command of a line and what stands behind it. Raises UserError for one that there is not."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word not in commands:
        near = get_close_matches(word, commands, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no command {word}", f"{hint}/help lists them; /{line} says it to the models")
    if rest and not commands[word][0]:
        raise UserError(f"{word} takes nothing behind it", f"/{line} says it to the models")
    return word, rest


def help_lines(commands: Commands) -> Iterator[str]:
    listed = {f"{word} {takes}".rstrip(): told for word, (takes, told) in commands.items()}
    listed["//TEXT"] = "say /TEXT to the models"
    width = max(map(len, listed))
    for command, told in listed.items():
        yield f"  {command:{width}}  {told}"
    yield "Ctrl-C stops models that write; twice at the prompt it leaves."
