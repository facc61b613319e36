"""Tables with any column names -> prompts, samples and comparisons.

Rows come from `read_public_rows` or from `enumerate(dataset, 1)`. A cell may hold a conversation in any form
that `foreign_turns` reads. chosen and rejected may be a reply alone or the whole conversation with the reply
last. `dropped` counts what is left out of rows that are taken.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cai_cli.errors import UserError
from cai_cli.importers.formats import Asked, Format
from cai_cli.importers.public_files import check_columns, read_public_rows
from cai_cli.importers.reject import DUPLICATE, Item, Reject, Row, convert, number_comparisons
from cai_cli.importers.transcript import prompts_of_turns
from cai_cli.rows.conversation import Conversation, check_conversation, message, prompt_id
from cai_cli.rows.foreign_turns import Refused, read_conversation, read_pair, read_reply
from cai_cli.rows.records import KINDS, Comparison, Prompt, Sample


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what; None: the data has no such column. `prompt` may be None where chosen holds it."""

    prompt: str | None = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    id: str | None = None  # of the prompt
    kind: str | None = None  # "harmful" or "helpful" by row
    probability: str | None = None  # that chosen is preferred
    score_chosen: str | None = None
    score_rejected: str | None = None


def given_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,chosen=better` -> our name: theirs. Raises UserError."""
    known = [field.name for field in dataclasses.fields(Columns)]
    given: dict[str, str] = {}
    for item in (text or "").split(","):
        name, equals, column = (piece.strip() for piece in item.partition("="))
        if not item.strip():
            continue
        if name not in known or not equals or not column:
            raise UserError(
                f"--columns: cannot read {item.strip()!r}",
                f"write NAME=COLUMN, with NAME of {', '.join(known)}",
            )
        given[name] = column
    return given


def parse_columns(text: str | None) -> Columns:
    """What is not named keeps its name. Raises UserError."""
    given: dict[str, Any] = dict(given_columns(text))
    # chosen and rejected may hold the whole conversations, so a column for the prompt is looked for only
    # where it is named.
    if {"chosen", "rejected"} & given.keys() and "prompt" not in given:
        given["prompt"] = None
    return Columns(**given)


def import_prompts(
    items: Iterable[Item],
    columns: Columns,
    *,
    every_turn: bool = False,
    kind: str | None = None,
    source: str | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Prompt | Reject]:
    """One prompt a row, or with `every_turn` one per human turn; a reply at the end of the conversation is
    left out.
    """

    def parse(row: Row) -> list[Prompt]:
        turns = read_conversation(cell(row, columns.prompt or columns.chosen), "prompt", dropped)
        prompts = prompts_of_turns(turns, every_turn, kind_of(row, columns, kind), source)
        given = given_id(row, columns)
        for position, prompt in enumerate(prompts):
            if given:
                prompt.id = given if len(prompts) == 1 else f"{given}/turn-{position}"
        return prompts

    return convert(items, parse)


def import_samples(
    items: Iterable[Item],
    columns: Columns,
    *,
    kind: str | None = None,
    source: str | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Sample | Reject]:
    """One sample a row: the reply is in a column of its own, or ends the conversation in the prompt's."""
    counts: Counter[str] = Counter()
    named: dict[str, str] = {}

    def parse(row: Row) -> list[Sample]:
        name = columns.prompt or columns.completion
        turns = read_conversation(cell(row, name), name, dropped)
        if columns.prompt and row.get(columns.completion) is not None:
            inner, reply = read_reply(row[columns.completion], columns.completion, dropped)
            turns = [*(inner or turns), message("assistant", reply)]
        if turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
            raise Refused("no_reply", f"neither `{columns.completion}` nor the end of the conversation")
        prompt = check_conversation(turns[:-1], "prompt", ends_with="user")
        identity = identity_of(row, columns, prompt, named)
        counts[identity] += 1
        return [
            Sample(
                id=f"{identity}/{counts[identity] - 1}",
                prompt=prompt,
                completion=turns[-1:],
                finish_reason="stop",
                kind=kind_of(row, columns, kind),
                source=source,
            )
        ]

    return convert(items, parse)


def import_comparisons(
    items: Iterable[Item],
    columns: Columns,
    *,
    kind: str | None = None,
    origin: str = "human",
    source: str | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Comparison | Reject]:
    """One comparison a row. Rejected: replies to different prompts, identical or empty replies, scores that
    are tied or contradict the order of the pair. A probability under 0.5 turns the pair round.
    """

    named: dict[str, str] = {}

    def parse(row: Row) -> list[Comparison]:
        check_scores(row, columns)
        cells = (
            row.get(columns.prompt) if columns.prompt else None,
            cell(row, columns.chosen),
            cell(row, columns.rejected),
        )
        prompt, chosen, rejected = read_pair(
            *cells, (columns.prompt or "prompt", columns.chosen, columns.rejected), dropped
        )
        if chosen == rejected:
            raise Refused("identical", chosen[:200])
        probability = probability_of(row, columns)
        if probability < 0.5:
            chosen, rejected, probability = rejected, chosen, 1 - probability
        identity = identity_of(row, columns, prompt, named)
        replies = ([message("assistant", chosen)], [message("assistant", rejected)])
        return [
            Comparison(
                identity, identity, prompt, *replies, probability, origin, kind_of(row, columns, kind), source
            )
        ]

    return number_comparisons(convert(items, parse))


def cell(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise Refused("missing_field", f"field `{name}`")
    return row[name]


def check_scores(row: Row, columns: Columns) -> None:
    if columns.score_chosen is None or columns.score_rejected is None:
        return
    chosen, rejected = number(row, columns.score_chosen), number(row, columns.score_rejected)
    if chosen == rejected:
        raise Refused("tied_scores", f"both {chosen:g}")
    if chosen < rejected:
        raise Refused("scores_contradict", f"chosen {chosen:g}, rejected {rejected:g}")


def probability_of(row: Row, columns: Columns) -> float:
    if columns.probability is None:
        return 1.0
    value = number(row, columns.probability)
    if not 0 <= value <= 1:
        raise Refused("not_a_probability", f"`{columns.probability}` is {value:g}")
    return value


def number(row: Row, name: str) -> float:
    """A number, or text that is one, as CSV has it."""
    value = cell(row, name)
    try:
        result = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = float("nan")
    if result != result or abs(result) == float("inf"):
        raise Refused("not_a_number", f"`{name}` is {value!r}")
    return result


def given_id(row: Row, columns: Columns) -> str:
    """The row's own id of the prompt, "" without one."""
    value = row.get(columns.id) if columns.id else None
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Refused("not_an_id", f"`{columns.id}` is {type(value).__name__}")
    return "" if value is None else str(value)


def identity_of(row: Row, columns: Columns, prompt: Conversation, named: dict[str, str]) -> str:
    """The id of a row's prompt: the given one, which must not be another prompt's, or made from the prompt."""
    made = prompt_id(prompt)
    given = given_id(row, columns)
    if given and named.setdefault(given, made) != made:
        raise Refused(DUPLICATE, f"id {given!r} is used for another prompt before")
    return given or made


def kind_of(row: Row, columns: Columns, default: str | None) -> str | None:
    value = row.get(columns.kind) if columns.kind else None
    if value in (None, ""):
        return default
    if value not in KINDS:
        raise Refused("unknown_kind", f"`{columns.kind}` is {value!r}")
    return str(value)


READ = {
    "prompts": ("prompt", "chosen", "id", "kind"),
    "samples": ("prompt", "completion", "id", "kind"),
    "comparisons": (
        "prompt",
        "chosen",
        "rejected",
        "id",
        "kind",
        "probability",
        "score_chosen",
        "score_rejected",
    ),
}


def rows(asked: Asked, to: str, *needed: str) -> Iterator[Item]:
    """The rows of a file that has the columns which were asked for, and those that are needed besides.

    Raises UserError for a column that was named and is not read.
    """
    given = given_columns(asked.columns)
    if lost := next((name for name in given if name not in READ[to]), None):
        others = " or ".join(f"--to {other}" for other in READ if lost in READ[other])
        raise UserError(f"--columns {lost}=...: {to} have no place for it", f"leave it out, or pass {others}")
    return check_columns(asked.path, read_public_rows(asked.path), [*given.values(), *needed])


def prompts_asked(asked: Asked) -> Iterator[Prompt | Reject]:
    columns = parse_columns(asked.columns)
    items = rows(asked, "prompts", columns.prompt or columns.chosen)
    how = {"kind": asked.kind, **asked.source}
    return import_prompts(items, columns, every_turn=asked.every_turn, **how, dropped=asked.dropped)


def samples_asked(asked: Asked) -> Iterator[Sample | Reject]:
    columns = parse_columns(asked.columns)
    items = rows(asked, "samples", columns.prompt or columns.completion)
    return import_samples(items, columns, kind=asked.kind, **asked.source, dropped=asked.dropped)


def comparisons_asked(asked: Asked) -> Iterator[Comparison | Reject]:
    columns = parse_columns(asked.columns)
    items = rows(asked, "comparisons", columns.chosen, columns.rejected)
    return import_comparisons(items, columns, kind=asked.kind, **asked.source, dropped=asked.dropped)


FORMATS = {
    "table": Format(
        "CSV, TSV, JSON lines or parquet with any --columns",
        {"prompts": prompts_asked, "samples": samples_asked, "comparisons": comparisons_asked},
        every_turn=True,
        any_columns=True,
    )
}
