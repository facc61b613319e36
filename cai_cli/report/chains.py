"""Revisions: what each round does on the whole, and some chains with every change marked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from cai_cli.evaluation.cautions import near_cautions
from cai_cli.evaluation.changes import KEPT, difference
from cai_cli.evaluation.revisions import segment_names, summarise
from cai_cli.prompting.hygiene import is_near, share_kept
from cai_cli.report.blocks import Group, Section, Table
from cai_cli.report.draws import draw
from cai_cli.report.find import Found, RowFile
from cai_cli.report.reading import Reading
from cai_cli.report.svg import meter
from cai_cli.report.text import Told, named, number, percent, told
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.jsonl import read_rows
from cai_cli.rows.records import Revision, events_text
from cai_cli.rows.row_kinds import REVISIONS

MOST_FILES = 4
COMPARED = 2500  # characters of each text: a comparison word by word takes the product of their lengths
MOST_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """`parts`: the revision against the text before it, as `evaluation.changes` has it; `cut`: characters left out."""

    number: int
    principle: str
    request: Told
    critique: Told
    thinking: Told
    parts: list[tuple[str, str]]
    cut: int
    kept: str
    note: str
    near: bool


@dataclass(frozen=True, slots=True)
class Chain:
    id: str
    kind: str
    prompt: list[tuple[str, Told]]
    draft: Told
    steps: list[Step]
    hygiene: str


@dataclass(frozen=True, slots=True)
class ChainFile:
    group: Group
    chains: list[Chain]


def section(found: Found, reading: Reading) -> Section | None:
    files = found.of_kind(REVISIONS)
    items = reading.each(files[:MOST_FILES], lambda file: chain_file(file, reading))
    if not items:
        return None
    lead = (
        "Each chain begins with a draft; in every round a principle is drawn, the reply is criticised under it and"
        " rewritten. Struck words were taken out, underlined ones put in, against the text before."
    )
    return Section("chains", "Critiques and revisions", lead, items, "chains", len(files[MOST_FILES:]))


def chain_file(file: RowFile, reading: Reading) -> ChainFile:
    drawn = draw(file.path, Revision.from_row, reading.examples, reading.seed, file.unfinished)
    group = Group(file.name)
    summary = None
    if file.manifest and "rounds" in (file.manifest.get("summary") or {}):
        summary = file.manifest["summary"]
    elif not file.unfinished:
        summary = summarise(file.path, file.path.with_name(f"{file.path.name}.no-rejects"))
    group.facts.append(("chains", f"{drawn.rows:,}" + (" so far" if file.unfinished else "")))
    if file.stage != "revise" and not file.unfinished:
        near = count_near(file)
        group.facts.append(("still their draft", f"{near:,}"))
        reading.warn(file.name, near_cautions(near, drawn.rows))
    if summary:
        group.tables += tables_of(summary)
        if phrase := summary["rounds"][-1]["commonest_phrase"]:
            group.facts.append(("commonest phrase of the last round", f"“{named(phrase)}”"))
    return ChainFile(group, [chain_of(row) for row in drawn.records])


def count_near(file: RowFile) -> int:
    """Final revisions that still are their draft; `revise` rejects them, other sources may not."""
    rows = (Revision.from_row(row) for _, row in read_rows(file.path))
    return sum(is_near(row.completion[0]["content"], row.initial[0]["content"]) for row in rows)


def tables_of(summary: dict[str, Any]) -> list[Table]:
    rows = []
    for item in summary["rounds"]:
        first = item["name"] == "draft"
        rows.append(
            [
                item["name"],
                number(item["mean_characters"], 0),
                "" if first else percent(item["draft_kept"], 0),
                "" if first else percent(item["unchanged"], 0),
                meter(item["refusal_phrases"]),
                percent(item["refusal_phrases"], 0),
                percent(item["repeated_phrases"], 0),
                percent(item["looping"], 0),
            ]
        )
    columns = [
        "",
        "mean characters",
        "draft’s words kept",
        "same as before",
        "opens with a refusal",
        "",
        "repeated phrase",
        "looping",
    ]
    found = [Table("By round", columns, rows)]
    if hygiene := summary.get("hygiene"):
        used = [
            name
            for name in segment_names(len(summary["rounds"]) - 1)
            if any(name in counts for counts in hygiene.values())
        ]
        cells = [[rule, *(f"{counts.get(name, 0):,}" for name in used)] for rule, counts in hygiene.items()]
        found.append(Table("Trimmed, or drawn again", ["rule", *used], cells))
    return found


def chain_of(row: Revision) -> Chain:
    before = draft = row.initial[0]["content"]
    steps = []
    for place, step in enumerate(islice(row.rounds, MOST_ROUNDS), start=1):
        same = step.revision == before
        near = is_near(step.revision, draft)
        steps.append(
            Step(
                number=place,
                principle=named(step.principle, 40),
                request=told(step.critique_request),
                critique=told(step.critique),
                thinking=told(step.critique_thinking),
                parts=spaced(difference(before[:COMPARED], step.revision[:COMPARED])),
                cut=max(0, len(step.revision) - COMPARED),
                kept=f"{share_kept(step.revision, draft):.0%} of the draft’s words kept",
                note="still the draft" if near else "unchanged" if same else "",
                near=near,
            )
        )
        before = step.revision
    return Chain(
        named(row.id), row.kind or "", turns(row.prompt), told(draft), steps, events_text(row.hygiene)
    )


def spaced(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parts with the white space at the end of what is lost or gained outside of it."""
    found: list[tuple[str, str]] = []
    for text, how in parts:
        words = text.rstrip() if how != KEPT else text
        found += [(some, kind) for some, kind in ((words, how), (text[len(words) :], KEPT)) if some]
    return found


def turns(conversation: Conversation) -> list[tuple[str, Told]]:
    """The last turns of a conversation, as (role, text)."""
    return [(turn["role"], told(turn["content"])) for turn in conversation[-5:]]
