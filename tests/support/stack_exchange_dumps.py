"""Small Stack Exchange dumps for tests, and the pairs made of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from cai_cli.importers.posts import Counts, Skip
from cai_cli.importers.stack_exchange import PairOptions, make_pairs
from cai_cli.rows.records import Comparison


def question(number: int, **extra: Any) -> dict[str, Any]:
    return {
        "Id": number,
        "PostTypeId": 1,
        "Score": 1,
        "Title": f"Title {number}",
        "Body": f"<p>Asked {number}.</p>",
        **extra,
    }


def answer(number: int, parent: int, score: int, **extra: Any) -> dict[str, Any]:
    body = f"<p>Answer number {number}.</p>"
    return {"Id": number, "PostTypeId": 2, "ParentId": parent, "Score": score, "Body": body, **extra}


def dump(path: Path, rows: list[dict[str, Any]], start: str = "\ufeff") -> Path:
    """A Posts.xml with these rows; an attribute that is None is left out."""
    lines = []
    for row in rows:
        attributes = " ".join(
            f"{name}={quoteattr(str(value))}" for name, value in row.items() if value is not None
        )
        lines.append(f"  <row {attributes} />\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{start}<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{"".join(lines)}</posts>\n',
        encoding="utf-8",
    )
    return path


def pairs(tmp_path: Path, *files: Path, **options: Any) -> tuple[list[Comparison], list[Skip], Counts]:
    counts = Counts()
    found = list(make_pairs(list(files), PairOptions(**{"seed": 0, **options}), tmp_path / "work", counts))
    assert not list((tmp_path / "work").iterdir()), "the index must be gone"
    comparisons = [item for item in found if isinstance(item, Comparison)]
    skips = [item for item in found if isinstance(item, Skip)]
    assert counts.pairs == len(comparisons)
    assert counts.skips == Counter(skip.reason for skip in skips)
    return comparisons, skips, counts


def site_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(1, 400, 10):
        rows.append(question(number, AcceptedAnswerId=number + 1, OwnerUserId=number % 7))
        rows += [answer(number + k, number, k * k, OwnerUserId=k) for k in range(1, 2 + number // 10 % 5)]
    return rows
