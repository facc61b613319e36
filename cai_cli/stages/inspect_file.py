"""`cai inspect PATH`: pages through a file of ours in the terminal, with what changed marked; or says what a
model is.

    cai inspect revisions.jsonl                 each chain: prompt, draft, every round and what its revision changed
    cai inspect comparisons.jsonl --limit 5     rejected against chosen, and the judgements
    cai inspect rl-cai/                         a model: what it is, how it was made, whether it is finished

On a terminal, what a text lost is red and struck, what it gained is green; elsewhere they stand in [-...-]
and {+...+}. Model text is shown as it is, but for control characters, which are spelled out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cai_cli.console.messages import say, show_text, visible
from cai_cli.console.options import flag
from cai_cli.errors import RecordError, UserError
from cai_cli.evaluation import changes
from cai_cli.prompting.hygiene import is_near, share_kept
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.jsonl import check_new, read_rows
from cai_cli.rows.records import Prompt, Revision, Sample, events_text
from cai_cli.rows.seen import Seen
from cai_cli.rows.trl_rows import RowReader

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PLAIN, LOST, GAINED, TITLE, NOTE, FAULT = "", "red strike", "green bold", "bold cyan", "dim", "red"
STYLES = {changes.KEPT: PLAIN, changes.LOST: LOST, changes.GAINED: GAINED}
MARKS = {LOST: ("[-", "-]"), GAINED: ("{+", "+}")}

# A page is a list of (text, style); styles are rich's.
Page = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Options:
    file: Annotated[
        Path,
        typer.Argument(help="Prompts, revisions, samples, comparisons or rejects; or a model directory."),
    ]
    id: Annotated[list[str] | None, flag("Data", "Show the row with this id only. Repeatable.")] = None
    first: Annotated[int, flag("Data", "Row to start from, counted from 1.", "--from", min=1)] = 1
    limit: Annotated[int | None, flag("Data", "Show at most this many rows.", min=1)] = None


def run(options: Options) -> None:
    """Page through a file of ours, with what changed marked, or show what a model directory holds.

    Example: cai inspect revisions.jsonl --from 10
    """
    if options.file.is_dir():
        show_model(options)
        return
    pages = islice(pages_of(options), options.limit)
    if sys.stdout.isatty():
        show_in_pager(pages)
        return
    for page in pages:
        show_text("".join(plain(text, style) for text, style in page))


def show_model(options: Options) -> None:
    """What is known of a model directory, a line each."""
    from cai_cli.models.portrait import portrait

    if options.id or options.limit is not None or options.first != 1:
        raise UserError(
            f"{options.file}: is a directory, and --id, --from and --limit choose rows", "leave them out"
        )
    facts = list(portrait(options.file))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        show_text(f"{visible(name):{width}}  {visible(value)}".rstrip())


def pages_of(options: Options) -> Iterator[Page]:
    wanted = set(options.id or [])
    missing = set(wanted)
    seen = Seen()
    number = 0
    for number, (line, row) in enumerate(read_rows(options.file), start=1):
        if (
            isinstance(row.get("id"), str) and "reason" not in row
        ):  # a trainer may reject a row of each of its files
            check_new(seen, row["id"], options.file, line)
        if (wanted and row.get("id") not in wanted) or number < options.first:
            continue
        missing.discard(str(row.get("id")))
        try:
            page = [(f"row {number}  {visible(str(row.get('id', '')))}\n", TITLE), *page_of(row)]
        except RecordError as error:
            raise error.at(f"{options.file}:{line}") from None
        yield [(visible(text, keep="\n\t"), style) for text, style in page]
    if not number:
        say(f"{options.file}: no rows")
    elif number < options.first:
        raise UserError(
            f"{options.file}: has {number} rows, none at --from {options.first}", "choose one there"
        )
    if missing:
        raise UserError(
            f"{options.file}: no row with id {', '.join(sorted(missing))}", "see `cai inspect` without --id"
        )


def page_of(row: dict[str, Any]) -> Page:
    """A row as a page, told apart by its fields."""
    makers: list[tuple[str, Callable[[dict[str, Any]], Page]]] = [
        ("reason", rejected_page),
        ("rounds", revision_page),
        ("chosen", comparison_page),
        ("completion", sample_page),
    ]
    return next((make for field, make in makers if field in row), prompt_page)(row)


def prompt_page(row: dict[str, Any]) -> Page:
    return conversation_lines(Prompt.from_row(row).prompt)


def sample_page(row: dict[str, Any]) -> Page:
    sample = RowReader().sample(row)
    page = [
        *conversation_lines(sample.prompt),
        *conversation_lines(sample.completion),
        (f"  {sample.finish_reason}\n", NOTE),
    ]
    if "finish_reason" in row:  # a row of ours: what else is known of the reply, such as its score
        known = {field.name for field in fields(Sample)}
        page += [(f"  {name}: {value}\n", NOTE) for name, value in row.items() if name not in known]
    return page


def revision_page(row: dict[str, Any]) -> Page:
    revision = Revision.from_row(row)
    before = draft = revision.initial[0]["content"]
    page = [*conversation_lines(revision.prompt), *titled("draft", draft)]
    for number, step in enumerate(revision.rounds, start=1):
        page.append((f"round {number}: {visible(step.principle)}\n", TITLE))
        if step.critique:
            page += titled("critique", step.critique)
        same = "unchanged, " if step.revision == before else ""
        near = f"{same}keeps {share_kept(step.revision, draft):.0%} of the draft's words"
        page += [("revision", NOTE), (f"  ({near})\n", FAULT if is_near(step.revision, draft) else NOTE)]
        page += indented(difference(before, step.revision))
        before = step.revision
    if revision.hygiene:
        page.append((f"trimmed or drawn again: {events_text(revision.hygiene)}\n", NOTE))
    return page


def comparison_page(row: dict[str, Any]) -> Page:
    comparison = RowReader().comparison(row)
    chosen, other = comparison.chosen[0]["content"], comparison.rejected[0]["content"]
    page = [*conversation_lines(comparison.prompt), *titled("rejected", other)]
    page += [(f"chosen, probability {comparison.probability:.3f}, {comparison.origin}\n", NOTE)]
    page += indented(difference(other, chosen))
    for judgement in comparison.judgements:
        answer = f"P(chosen) {judgement.probability_chosen:.3f}, mass {judgement.mass:.3f}"
        page.append((f"  {visible(judgement.principle)}, {judgement.order}: {answer}\n", NOTE))
        if judgement.rationale:
            page += titled("rationale", judgement.rationale)
    return page


def rejected_page(row: dict[str, Any]) -> Page:
    page: Page = [
        (f"rejected: {visible(str(row['reason']))}\n", FAULT),
        (f"  {row.get('detail', '')}\n", PLAIN),
    ]
    if "line" in row:
        page.append((f"  line: {row['line']}\n", NOTE))
    inner = row.get("row")
    if isinstance(inner, dict):
        page += [(f"  {visible(name)}: {value}\n", NOTE) for name, value in inner.items()]
    elif inner is not None:  # a line that was no JSON, as it stands in the file
        page.append((f"  row: {inner}\n", NOTE))
    return page


def conversation_lines(conversation: Conversation) -> Page:
    return [part for turn in conversation for part in titled(turn["role"], turn["content"])]


def titled(name: str, text: str) -> Page:
    return [(f"{name}\n", NOTE), *indented([(text, PLAIN)])]


def indented(parts: Page) -> Page:
    """The parts as a block, each line two columns in, closed by a newline."""
    return [("  ", PLAIN), *((text.replace("\n", "\n  "), style) for text, style in parts), ("\n", PLAIN)]


def difference(before: str, after: str) -> Page:
    """The later text word by word: kept, gained, and what was lost where it stood."""
    return [(text, STYLES[how]) for text, how in changes.difference(before, after)]


def plain(text: str, style: str) -> str:
    """The text with marks instead of a style, white space at its end outside of them."""
    if style not in MARKS or not text.strip():
        return text
    opening, closing = MARKS[style]
    words = text.rstrip()
    return f"{opening}{words}{closing}{text[len(words) :]}"


def show_in_pager(pages: Iterator[Page]) -> None:
    """The pages through the user's pager (less, by default), in colours unless NO_COLOR is set."""
    from rich.console import Console
    from rich.text import Text

    coloured = not os.environ.get("NO_COLOR")
    os.environ.setdefault("LESS", "-RFX")
    console = Console(highlight=False, emoji=False)
    with console.pager(styles=coloured):
        for page in pages:
            parts = page if coloured else [(plain(text, style), PLAIN) for text, style in page]
            for line in Text.assemble(*parts).split("\n", allow_blank=True):
                print_line(console, line)


def print_line(console: Console, line: Text) -> None:
    """A line, broken where the terminal ends; what goes on below keeps the line's indent."""
    indent = min(len(line.plain) - len(line.plain.lstrip(" ")), console.width // 2)
    for piece in line[indent:].wrap(console, console.width - indent):
        console.print(" " * indent, piece, sep="")
