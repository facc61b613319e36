"""Rejected rows: why, how many, what to do, and some of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from cai_cli.prompting.hygiene import advice
from cai_cli.report.blocks import Section
from cai_cli.report.draws import draw
from cai_cli.report.find import Found, RowFile
from cai_cli.report.reading import Reading
from cai_cli.report.text import Told, counted, named, told
from cai_cli.rows.jsonl import Row, read_rows

MOST_FILES, MOST_ROWS, MOST_REASONS = 20, 200_000, 12


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    detail: Told
    prompt: Told


@dataclass(frozen=True, slots=True)
class RejectFile:
    """`reasons`: (reason, count, next step); `note`: what they leave out."""

    name: str
    total: int
    reasons: list[tuple[str, int, str]]
    rows: list[Reject]
    note: str = ""


def section(found: Found, reading: Reading) -> Section | None:
    items = reading.each(found.rejects[:MOST_FILES], lambda file: reject_file(file, reading))
    items = [item for item in items if item.total]
    lead = "What did not work out, and why. Nothing here is in any figure above."
    left_out = len(found.rejects[MOST_FILES:])
    return Section("rejects", "Rejected rows", lead, items, "rejects", left_out) if items else None


def reject_file(file: RowFile, reading: Reading) -> RejectFile:
    reasons = Counter(named(row.get("reason"), 60) for _, row in islice(read_rows(file.path), MOST_ROWS))
    shown = [
        (reason, count, advice(reason, ALL_FLAGS)) for reason, count in reasons.most_common(MOST_REASONS)
    ]
    drawn = draw(file.path, reject_of, reading.examples, reading.seed)
    left_out = [counted(len(reasons) - MOST_REASONS, "rarer reason")] if len(reasons) > MOST_REASONS else []
    left_out += [counted(drawn.rows - MOST_ROWS, "later row")] if drawn.rows > MOST_ROWS else []
    note = f"{' and '.join(left_out)} left out." if left_out else ""
    return RejectFile(file.name, reasons.total(), shown, drawn.records, note)


# Those that advice may name: whichever command wrote the rows has them, or the line helps nobody
ALL_FLAGS = (
    "--rendering", "--max-new-tokens", "--rationale-tokens", "--on-truncated", "--few-shot", "--critique", "--constitution",
    "--max-length",
)  # fmt: skip


def reject_of(row: Row) -> Reject:
    inner = row.get("row")
    prompt = inner.get("prompt") if isinstance(inner, dict) else inner
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content")
    text = prompt if isinstance(prompt, str) else ""
    return Reject(named(row.get("reason"), 60), told(str(row.get("detail") or "")), told(text))
