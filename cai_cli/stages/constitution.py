"""`cai constitution show|check`: print a constitution's principles; check a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from cai_cli.console.messages import say, show_text, warn_all
from cai_cli.prompting.constitution import find_constitution, load_constitution
from cai_cli.prompting.constitution_cautions import cautions
from cai_cli.rows.jsonl import open_binary


@dataclass(frozen=True, kw_only=True)
class Options:
    constitution: Annotated[
        str, typer.Argument(help="YAML file or shipped name: article, humanity, thorough.")
    ] = "article"


def show(options: Options) -> None:
    """Print a constitution as it is read.

    Example: cai constitution show article
    """
    load_constitution(options.constitution)
    with open_binary(find_constitution(options.constitution)) as stream:
        text = stream.read().decode("utf-8-sig", "backslashreplace")
    show_text(text.replace("\r\n", "\n"), end="")


def check(options: Options) -> None:
    """Check a constitution: every principle has an id and the three texts.

    Warns of comparison texts that give a judge nothing to compare, of principles that say the same in other
    words, and where nothing speaks against evasion and preaching: by rules on English words, which miss much
    and should blame little. What a judge makes of the principles is measured by `cai constitution test`.

    Example: cai constitution check my-principles.yaml
    """
    constitution = load_constitution(options.constitution)
    say(f"{constitution.name}: {len(constitution.principles)} principles, well-formed")
    for principle in constitution.principles:
        say(f"  {principle.id}{', with its opposite' if principle.opposite else ''}")
    warn_all(cautions(constitution))
