"""How --help is written: plain text, flags and commands under the headings they belong to, no name cut off.

Typer's own panels shorten long flag names in a terminal of 80 columns.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# What a reader looks for first comes first; headings that are not named here stand in between.
FIRST = ("Arguments", "Data", "Model")
LAST = ("Output", "Options")


class Command(TyperCommand):
    """A command whose flags stand under the headings given to them."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in sorted(self.get_params(ctx), key=lambda parameter: not parameter.required):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
            names, text = record
            heading = getattr(parameter, "rich_help_panel", None) or plain
            sections.setdefault(heading, []).append((names.replace(" range>", ">"), text))
        write_sections(formatter, sections)


class Group(TyperGroup):
    """A group whose commands stand under the headings given to them, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                text = command.get_short_help_str(limit=1000)
                sections.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(
                    (name, text)
                )
        write_sections(formatter, sections)


def write_sections(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    middle = [heading for heading in sections if heading not in (*FIRST, *LAST)]
    for heading in (*FIRST, *middle, *LAST):
        if heading in sections:
            with formatter.section(heading):
                formatter.write_dl(sections[heading])
