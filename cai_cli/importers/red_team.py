r"""Anthropic's red_team_attempts (a JSON array or JSON lines, plain or gzipped) -> harmful prompts.

The prompt is what the red-teamer wrote before the assistant said anything: the transcript up to the first `\n\nAssistant:`, as in
the paper. A second `\n\nHuman:` before it belongs to the same turn (the rule of `transcript.py`). Ratings and tags are not used.
Source: arXiv 2209.07858; https://github.com/anthropics/hh-rlhf, folder red-team-attempts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cai_cli.conversation import prompt_id
from cai_cli.importers.public_files import read_public_rows
from cai_cli.importers.reject import Reject, Row, convert, text_of
from cai_cli.importers.transcript import parse_transcript
from cai_cli.records import Prompt

SOURCE = "red-team-attempts"


def import_prompts(path: Path, *, kind: str | None = "harmful", source: str = SOURCE) -> Iterator[Prompt | Reject]:
    """One prompt a row. Attempts can start alike: see `Tally.merge_identical`."""
    parse = partial(prompt_of_row, kind=kind, source=source)
    return convert(read_public_rows(path), lambda row: [parse(row)])


def prompt_of_row(row: Row, *, kind: str | None, source: str) -> Prompt:
    """The first human turn. Raises Refused (`missing_field`, `not_text`, and those of `parse_transcript`)."""
    prompt = parse_transcript(text_of(row, "transcript"))[:1]
    return Prompt(prompt_id(prompt), prompt, kind, source)
