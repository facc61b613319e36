"""Comparisons: whether labels can be trusted, as `feedback.diagnostics` measures it, and some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePath
from typing import Any

from cai_cli.evaluation.cautions import CAUTIONED, label_cautions, length_cautions, mass_cautions
from cai_cli.feedback.diagnostics import NO_KIND, diagnose
from cai_cli.report.blocks import Group, Section, Table
from cai_cli.report.chains import turns
from cai_cli.report.draws import draw
from cai_cli.report.find import Found, RowFile
from cai_cli.report.reading import Reading
from cai_cli.report.replies import Card, ReplyPage, Side
from cai_cli.report.svg import columns, meter
from cai_cli.report.text import counted, named, number, percent, share, told
from cai_cli.rows.foreign_turns import Refused
from cai_cli.rows.jsonl import Row, read_records
from cai_cli.rows.records import Comparison
from cai_cli.rows.row_kinds import COMPARISONS
from cai_cli.rows.trl_rows import RowReader

MOST_FILES, MOST_ROWS, MOST_PRINCIPLES = 6, 200_000, 60


def section(found: Found, reading: Reading) -> Section | None:
    files = [file for file in found.of_kind(COMPARISONS) if not file.stage.startswith("evaluate")]
    files.sort(key=lambda file: file.stage != "label")  # an AI's first
    items = reading.each(files[:MOST_FILES], lambda file: page_of(file, reading))
    lead = (
        "Pairs of replies and how likely the first is the better one. A judge that reads the position takes the same"
        " option in both orders; one that reads the length prefers the longer reply."
    )
    return Section("labels", "Labels", lead, items, "replies", len(files[MOST_FILES:])) if items else None


def page_of(file: RowFile, reading: Reading) -> ReplyPage:
    summary = (file.manifest or {}).get("summary")
    measured = not (isinstance(summary, dict) and "confidence_histogram" in summary)
    facts: dict[str, Any] = summary or {}
    if measured:
        records = iter(()) if file.unfinished else usable(file)
        facts = diagnose(islice(records, MOST_ROWS))
    group = Group(file.name)
    if not facts["pairs"]:
        group.facts.append(("pairs", "not through"))
    else:
        fill(group, facts, file)
        lines = (
            label_cautions(*(facts[name] for name in CAUTIONED)) if measured and facts["mean_mass"] else []
        )
        lines += mass_cautions(facts["mean_mass"])
        lines += length_cautions(facts["longer_chosen"], facts["longer_chosen_interval"])
        reading.warn(file.name, lines)
    count = (
        reading.examples if facts["mean_mass"] is not None or file.unfinished else min(reading.examples, 1)
    )
    drawn = draw(file.path, tolerant(RowReader()), count, reading.seed, file.unfinished)
    return ReplyPage(group, [card_of(row) for row in drawn.records if row is not None])


def usable(file: RowFile) -> Iterator[Comparison]:
    """The comparisons of a file; rows of public files that are none, such as pairs with an empty reply, are left out."""
    for record in read_records(file.path, tolerant(RowReader())):
        if record is not None:
            yield record


def tolerant(reader: RowReader) -> Callable[[Row], Comparison | None]:
    def parse(row: Row) -> Comparison | None:
        try:
            return reader.comparison(row)
        except Refused:
            return None

    return parse


def fill(group: Group, facts: dict[str, Any], file: RowFile) -> None:
    of_ai = facts["mean_mass"] is not None
    judges = [item for item in (file.manifest or {}).get("models", ()) if item["option"] == "feedback_model"]
    first = " (of the first rows)" if facts["pairs"] == MOST_ROWS else ""
    group.facts.append(("pairs", f"{facts['pairs']:,}{first}"))
    if judges:
        group.facts.append(("judge", named(PurePath(judges[0]["path"]).name)))
    if of_ai:
        by_order = facts["mean_probability_by_order"]
        group.facts += [
            ("same option in both orders", percent(facts["same_position_rate"])),
            ("mean P of the first option", number(facts["mean_probability_a"])),
            (
                "mean P(chosen), standing first / second",
                f"{number(by_order['chosen_first'])} / {number(by_order['rejected_first'])}",
            ),
            ("mean mass on the options", number(facts["mean_mass"])),
            ("labels of 0.5", percent(facts["undecided_rate"])),
        ]
    group.facts.append(
        ("longer reply chosen", share(facts["longer_chosen"], facts["longer_chosen_interval"]))
    )
    soft = sum(count > 0 for count in facts["confidence_histogram"].values()) > 1
    if soft:
        plot = columns(
            facts["confidence_histogram"], "probability of the chosen reply", "confidence of the labels"
        )
        group.draw("Confidence", plot, "pairs by the probability that the chosen reply is preferred")
    if of_ai:
        plot = columns(facts["mass_histogram"], "probability on both options", "mass on the options")
        group.draw("Mass on the options", plot, "answers by the probability that the options hold together")
    if facts["by_principle"]:
        group.tables.append(principles(facts["by_principle"]))
    if set(facts["by_kind"]) != {NO_KIND} and len(facts["by_kind"]) > 1:
        group.tables.append(kinds(facts["by_kind"]))


def principles(by_principle: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            named(name, 40),
            f"{item['questions']:,}",
            meter(item["agreement"]),
            percent(item["agreement"]),
            number(item["mean_probability"]),
        ]
        for name, item in list(by_principle.items())[:MOST_PRINCIPLES]
    ]
    heads = ["principle", "questions", "agrees with the label", "", "mean P(chosen)"]
    more = len(by_principle) - MOST_PRINCIPLES
    return Table(
        "By principle", heads, rows, f"{counted(more, 'more principle')} left out." if more > 0 else ""
    )


def kinds(by_kind: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            name,
            f"{item['pairs']:,}",
            number(item["mean_probability"]),
            percent(item["same_position_rate"]),
            share(item["longer_chosen"], item["longer_chosen_interval"]),
        ]
        for name, item in by_kind.items()
    ]
    heads = ["kind", "pairs", "mean P(chosen)", "same option in both orders", "longer chosen"]
    return Table("By kind of prompt", heads, rows)


def card_of(row: Comparison) -> Card:
    judged = [f"{named(item.principle, 24)} {item.probability_chosen:.2f}" for item in row.judgements[:8]]
    note = f"P {row.probability:.2f}" + (f": {', '.join(judged)}" if judged else f", {row.origin}")
    sides = [
        Side("chosen", told(row.chosen[0]["content"]), note),
        Side("rejected", told(row.rejected[0]["content"])),
    ]
    return Card(row.kind or "", turns(row.prompt), sides)
