"""What importers share: rejects with a reason, turning rows into records one by one, ids of children, counts.

An importer takes items, each `(line, row)` or a Reject from further up, and yields records and Rejects: no
row is lost on the way. All of it streams; only ids are remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cai_cli.errors import RecordError
from cai_cli.rows.conversation import prompt_id
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.records import Comparison, Prompt

Row = dict[str, Any]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not imported. `line` counts lines, or the items of a JSON array, from 1; `row` is it as
    it came.
    """

    line: int
    reason: str
    row: Any
    detail: str = ""
    part: str = ""  # of the row, where its parts are records of their own

    def to_row(self) -> Row:
        return {"line": self.line, "reason": self.reason, "detail": self.detail, "row": self.row}


Item = tuple[int, Row] | Reject
DUPLICATE = "duplicate_id"


def convert(items: Iterable[Item], parse: Callable[[Row], Iterable[Record]]) -> Iterator[Record | Reject]:
    """The records of each row, or one Reject for the whole row where `parse` raises Refused or RecordError."""
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        line, row = item
        try:
            records = list(parse(row))
        except Refused as error:
            yield Reject(line, error.reason, row, error.detail)
        except RecordError as error:
            yield Reject(line, "malformed", row, str(error))
        else:
            yield from records


def text_of(row: Row, name: str) -> str:
    """The text in a field of a public row; it may be empty."""
    value = row.get(name)
    if not isinstance(value, str):
        raise Refused("missing_field" if value is None else "not_text", f"field `{name}`")
    return value


def number_comparisons(items: Iterable[Comparison | Reject]) -> Iterator[Comparison | Reject]:
    """Give comparisons their ids `<prompt_id>/<k>`, k counting the comparisons of one prompt.

    Remembers one count per distinct prompt, about 100 bytes each.
    """
    counts: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Comparison):
            counts[item.prompt_id] += 1
            yield replace(item, id=f"{item.prompt_id}/{counts[item.prompt_id] - 1}")
        else:
            yield item


@dataclass(slots=True)
class Tally:
    """Counts of an import: what came out, prompts merged into an earlier identical one, rejects by reason,
    turns dropped.
    """

    records: int = 0
    merged: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def watch(self, items: Iterable[Record | Reject]) -> Iterator[Record | Reject]:
        """The same items, counted as they pass."""
        for item in items:
            if isinstance(item, Reject):
                self.rejects[item.reason] += 1
            else:
                self.records += 1
            yield item

    def merge_identical(self, items: Iterable[Prompt | Reject]) -> Iterator[Prompt | Reject]:
        """The same items without prompts that were there before, which are counted; another prompt under a
        given id that was there before is a Reject (line 0: prompts do not know theirs). Remembers ids and
        hashes only.
        """
        seen: dict[str, str] = {}
        for item in items:
            if isinstance(item, Prompt):
                content = prompt_id(item.prompt)
                before = seen.setdefault(item.id, "")
                if before == content:
                    self.merged += 1
                    continue
                if before:
                    self.rejects[DUPLICATE] += 1
                    yield Reject(
                        0, DUPLICATE, item.to_row(), f"id {item.id!r} is used for another prompt before"
                    )
                    continue
                seen[item.id] = content
            yield item
