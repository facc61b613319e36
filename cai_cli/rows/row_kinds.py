"""What a row of which kind looks like, and which command takes it or makes something of it: one table for
every reader.

A reader that cannot use a row says, through `kind_taken`, what the row is instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cai_cli.errors import RecordError

Row = dict[str, Any]

REVISIONS, COMPARISONS, SAMPLES, CONVERSATIONS, PROMPTS = (
    "revisions",
    "comparisons",
    "samples",
    "conversations",
    "prompts",
)
ITEMS = "multiple-choice items"

CONVERSATIONS_GO = (
    "`cai sft --data`, `cai label --pairs` and `cai import table --columns prompt={}` take them"
)


class RowKind(NamedTuple):
    name: str
    fields: tuple[str, ...]  # all of them are there
    advice: str


# A row is of the first kind whose fields it has.
KINDS = (
    RowKind(REVISIONS, ("prompt", "rounds"), "`cai sft --data` and `cai export` take them"),
    RowKind(
        COMPARISONS,
        ("chosen", "rejected"),
        "`cai train-pm`, `cai evaluate pm` and `cai label --pairs` take them",
    ),
    RowKind(
        "unpaired preferences",
        ("prompt", "completion", "label"),
        "jq -c 'select(.label)' keeps those that are good, for `cai sft`",
    ),
    RowKind(SAMPLES, ("completion",), "`cai sft --data`, `cai label --pairs` and `cai score` take them"),
    RowKind(CONVERSATIONS, ("messages",), CONVERSATIONS_GO.format("messages")),
    RowKind(CONVERSATIONS, ("conversations",), CONVERSATIONS_GO.format("conversations")),
    RowKind("rejected rows", ("reason", "detail", "row"), "`cai inspect` shows them"),
    RowKind("manifests", ("stage", "options", "inputs"), "`cai lineage` shows them"),
    RowKind(ITEMS, ("corrects", "incorrects"), "`cai evaluate hhh` takes them"),
    RowKind("published chains", ("rl_prompt", "cst"), "`cai import paper-chains` makes revisions of them"),
    RowKind(
        "published samples",
        ("rl_prompt", "sampled_answers"),
        "`cai import paper-samples` makes samples of them",
    ),
    RowKind(
        "cai-conversation",
        ("init_prompt", "revision_response"),
        "`cai import cai-conversation` makes revisions of them",
    ),
    RowKind("red-team attempts", ("transcript",), "`cai import red-team` makes prompts of them"),
    RowKind("Stack Exchange questions", ("qid", "answers"), "`cai pmp --posts` takes them"),
    RowKind(
        "instructions",
        ("instruction", "output"),
        "`cai import table --to samples --columns prompt=instruction,completion=output` makes samples of them",
    ),
    RowKind(
        PROMPTS, ("prompt",), "`cai sample` and `cai revise` make replies to them; every --prompts takes them"
    ),
    RowKind("texts", ("text",), "`cai import table --columns prompt=text` makes prompts of them"),
)


def kind_of(row: Row) -> RowKind | None:
    """The kind of a row, None where no kind has its fields."""
    return next((kind for kind in KINDS if row.keys() >= set(kind.fields)), None) or wrapper_of(row)


def wrapper_of(row: Row) -> RowKind | None:
    """A whole document in place of a row: {"data": [{...}, ...]}."""
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return RowKind(
                f"rows wrapped in {name!r}", (name,), f"take them out, one a line: jq -c '.[{name!r}][]' FILE"
            )
    return None


def kind_taken(row: Row, *taken: str) -> str:
    """Which of the kinds that a reader takes the row is of. Raises RecordError that says what it is instead."""
    kind = kind_of(row)
    if kind is not None and kind.name in taken:
        return kind.name
    if kind is None or kind.name == PROMPTS:
        for half in KINDS:  # a row that lacks one field of those that are taken
            if half.name in taken and set(half.fields) & row.keys() - {"prompt"}:
                raise RecordError(next(field for field in half.fields if field not in row), "missing")
    wanted = " or ".join(taken)
    if kind is None:
        names = ", ".join(sorted(row)) or "none"
        hint = "`cai import table --columns` reads fields of any names"
        raise RecordError("", f"is no row of {wanted} (fields here: {names})", hint)
    raise RecordError("", f"is a row of {kind.name}, and {wanted} are taken here", kind.advice)
