r"""Anthropic's red_team_attempts (a JSON array or JSON lines, plain or gzipped) -> harmful prompts.

The prompt is what the red-teamer wrote before the assistant said anything: the transcript up to the first
`\n\nAssistant:`, as in the paper. A second `\n\nHuman:` before it belongs to the same turn
(`from_transcript`). Ratings and tags are not used.
Source: arXiv 2209.07858; https://github.com/anthropics/hh-rlhf, folder red-team-attempts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cai_cli.importers.formats import Asked, Format
from cai_cli.importers.public_files import expect_fields, read_public_rows
from cai_cli.importers.reject import Reject, Row, convert, text_of
from cai_cli.importers.transcript import prompts_of_turns
from cai_cli.rows.foreign_turns import parse_transcript
from cai_cli.rows.records import Prompt

SOURCE = "red-team-attempts"


def import_prompts(
    path: Path, *, every_turn: bool = False, kind: str | None = "harmful", source: str = SOURCE
) -> Iterator[Prompt | Reject]:
    """One prompt a row, or with `every_turn` one per human turn. Attempts can start alike: see
    `Tally.merge_identical`.
    """
    parse = partial(prompts_of_row, every_turn=every_turn, kind=kind, source=source)
    return convert(expect_fields(path, read_public_rows(path), "transcript"), parse)


def prompts_of_row(row: Row, *, every_turn: bool, kind: str | None, source: str) -> list[Prompt]:
    """The first human turn, or each with what came before. Raises Refused (`missing_field`, `not_text`,
    `parse_transcript`'s).
    """
    turns = parse_transcript(text_of(row, "transcript"))
    return prompts_of_turns(turns if every_turn else turns[:1], every_turn, kind, source)


def prompts_asked(asked: Asked) -> Iterator[Prompt | Reject]:
    return import_prompts(asked.path, every_turn=asked.every_turn, **asked.given)


FORMATS = {"red-team": Format("red_team_attempts", {"prompts": prompts_asked}, every_turn=True)}
