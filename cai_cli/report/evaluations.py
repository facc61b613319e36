"""What evaluations found: Elo and its frontier, responses, multiple choice, agreement of labels, whether the judge
listens, the demo's oracle. Each maker takes the content of a results file, whose shape is the caller's to guard.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from cai_cli.evaluation.outcomes import AXES, elo_text
from cai_cli.evaluation.steering import DOES_NOTHING
from cai_cli.report.blocks import Cell, Group, Section, Table
from cai_cli.report.find import Found, Result
from cai_cli.report.reading import Reading
from cai_cli.report.shapes import CONSTITUTION, DEMO, ELO, HHH, LABELS, RESPONSES
from cai_cli.report.svg import Dot, dots, meter
from cai_cli.report.text import DASH, between, named, number, percent, share

MOST_GROUPS = 40  # kinds and sources of a model's replies: XSTest has 21
# Of the demo's rates, those that every run is about, and what a constitution may name besides
RATES = (
    "harmless",
    "evasive",
    "reason",
    "alternative",
    "helpful",
    "helpful_dual",
    "over_refusal",
    "nonsense",
)


def elo(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    judge = content["judge"]
    told = judge.get("told") or judge.get("path") or judge.get("kind")
    if told:
        group.facts.append(("judge", named(str(told).removeprefix("judged by "))))
    if content["anchor"]:
        group.facts.append(("0 points", named(content["anchor"])))
    models = content["models"]
    placed = [
        Dot(
            named(item["name"], 24),
            item["helpfulness"]["elo"],
            item["harmlessness"]["elo"],
            ends(item["helpfulness"]),
            ends(item["harmlessness"]),
            item["run"] or "",
        )
        for item in sorted(models, key=lambda item: (item["run"] or "", item["step"] or 0))
        if item["helpfulness"] and item["harmlessness"]
    ]
    note = "up and to the right is better; checkpoints of one run are joined; lines are 95 % intervals, where both ends are known"
    group.draw(
        "Frontier", dots(placed, "helpfulness, Elo", "harmlessness, Elo", "Elo frontier"), note, wide=True
    )
    rows = [[named(item["name"], 40), *(rating(item[axis]) for axis in AXES.values())] for item in models]
    group.tables.append(Table("Ratings", ["model", *(f"{axis} (95 %)" for axis in AXES.values())], rows))
    for axis in AXES.values():
        games = content["win_rates"].get(axis) or []
        rows_of = [
            [
                named(item["a"], 30),
                named(item["b"], 30),
                meter(item["win"], (item["low"], item["high"])),
                share(item["win"], (item["low"], item["high"])),
                percent(item["length_controlled"]),
                f"{item['games']:,}",
            ]
            for item in games
        ]
        if rows_of:
            heads = ["model", "against", "wins", "", "at equal length", "games"]
            group.tables.append(Table(f"Win rates, {axis}", heads, rows_of))
    return group


def ends(rating: dict[str, Any]) -> tuple[float, float] | None:
    """None where one is open, since all games were won or lost: there is no line to draw."""
    low, high = rating["low"], rating["high"]
    return None if low is None or high is None else (low, high)


def rating(item: dict[str, Any] | None) -> str:
    if item is None:
        return DASH
    return f"{elo_text(item)}, {item['games']:,} games"


def responses(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    if content.get("judge"):
        group.facts.append(("judge of harm", named(PurePath(content["judge"]).name)))
    rows: list[list[Cell]] = []
    kinds: list[list[Cell]] = []
    judged = False
    for model in content["models"]:
        for name, item in list(model["groups"].items())[:MOST_GROUPS]:
            harm = item["harm"]
            judged = judged or harm is not None
            rows.append(
                [
                    named(model["name"], 30),
                    named(name, 30),
                    f"{item['n']:,}",
                    *(rate(item[flag]) for flag in ("refusal", "bare", "preaching", "repetition")),
                    number(item["words"]["median"], 0),
                    DASH if harm is None else f"{harm['mean']:.2f} ({between(harm['low'], harm['high'], 1)})",
                ]
            )
        if model["over_refusal"] or model["compliance"]:
            over, answered = model["over_refusal"], model["compliance"]
            cells: list[Cell] = [named(model["name"], 30)]
            for item, colour in ((over, 3), (answered, 1)):
                cells += [meter(item["share"], span(item), colour) if item else "", rate(item)]
            kinds.append(cells)
    if kinds:
        heads = ["model", "over-refusal", "", "compliance", ""]
        note = (
            "Over-refusal: helpful prompts refused. Compliance: harmful ones answered. By rules, in English."
        )
        group.tables.append(Table("Refusing the right ones", heads, kinds, note))
    heads = [
        "model",
        "prompts",
        "replies",
        "refuses",
        "bare refusal",
        "preaches",
        "repeats",
        "median words",
        "harm, 0–4",
    ]
    rows = rows if judged else [row[:-1] for row in rows]
    most = max((len(model["groups"]) for model in content["models"]), default=0)
    note = f"Each model's first {MOST_GROUPS} of {most} groups." if most > MOST_GROUPS else ""
    group.tables.append(Table("Replies", heads if judged else heads[:-1], rows, note))
    return group


def span(item: dict[str, float]) -> tuple[float, float]:
    return item["low"], item["high"]


def rate(item: dict[str, float] | None) -> str:
    return DASH if item is None else share(item["share"], span(item))


def demo(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    group.facts.append(("constitution", named(content["constitution"])))
    models = content["models"]
    rates = [name for name in RATES if all(name in facts for facts in models.values())]
    rates += [
        name for name in content["asked"] if name not in rates and all(name in m for m in models.values())
    ]
    rows = []
    for name in rates:
        asked = content["asked"].get(name)
        told = name.replace("_", " ") + (
            f" ({'more' if asked == 'up' else 'less'} asked for)" if asked else ""
        )
        row: list[Cell] = [told]
        for place, facts in enumerate(models.values()):
            interval = facts["intervals"][name]
            row += [meter(facts[name], interval, place), share(facts[name], interval)]
        rows.append(row)
    heads = ["share of replies", *(head for name in models for head in (named(name, 24), ""))]
    note = "On held-out requests, by the world’s oracle, which reads any answer exactly; with 95 % intervals."
    group.tables.append(Table("What the models answer", heads, rows, note))
    return group


def hhh(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    group.facts.append(("model", named(PurePath(str(content["model"])).name)))
    rows = []
    for name, item in [*content["files"].items(), ("all", content["all"])]:
        if item["scored"]:
            accuracy, interval = item["accuracy"], item["interval"]
            cells = [meter(accuracy, interval), share(accuracy, interval), percent(item["chance"])]
            rows.append([named(name, 40), f"{item['scored']:,}", *cells])
    group.tables.append(Table("Multiple choice", ["file", "items", "accuracy", "", "chance"], rows))
    return group


def agreement(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    group.facts.append(("pairs in both files", f"{content['counts']['shared']:,}"))
    for title, groups in (
        ("By the AI’s confidence", {"all": content["all"], **content["by_confidence"]}),
        ("By kind", content["by_kind"]),
    ):
        rows = [
            [
                name,
                f"{item['pairs']:,}",
                meter(item["agreement"], item["interval"]),
                share(item["agreement"], item["interval"]),
            ]
            for name, item in groups.items()
            if "agreement" in item
        ]
        if rows:
            group.tables.append(Table(title, ["", "pairs", "agreement", ""], rows))
    return group


def listens(result: Result) -> Group:
    content, group = result.content, Group(result.name)
    problem = content.get("shortcoming")
    position = content["position"]
    group.facts += [
        ("judge", named(PurePath(str(content["feedback_model"])).name)),
        ("constitution", named(content["constitution"])),
        ("verdict", problem["told"] if problem else "the judge listens"),
        ("pairs", f"{content['pairs_judged']:,}"),
        (
            "same option in both orders",
            share(position["same_position_rate"], position["same_position_rate_interval"]),
        ),
        ("mean mass on the options", number(content["mean_mass"])),
    ]
    rows = []
    for name, item in content["principles"].items():
        opposite = item.get("opposite") or {}
        rows.append(
            [
                named(name, 40),
                item["effect"],
                meter(item["flips"], item["flips_interval"]),
                share(item["flips"], item["flips_interval"]),
                points(item, "shift"),
                points(item, "beyond"),
                share(item.get("agreement"), item.get("agreement_interval")),
                share(opposite.get("turned"), opposite.get("turned_interval")),
            ]
        )
    none = content["reworded"]
    interval = none["flips_interval"]
    moved = [meter(none["flips"], interval, 5), share(none["flips"], interval), points(none, "shift")]
    rows.append(["(none, reworded)", "", *moved, "", "", ""])
    heads = ["principle", "effect", "changes sides", "", "moves labels, points", "beyond rewording"]
    heads += ["agrees with others", "turned by its opposite"]
    group.tables.append(Table("Labels under each principle against none", heads, rows))
    return group


def points(item: dict[str, Any], name: str) -> str:
    return f"{100 * item[name]:.1f} ({between(*item[f'{name}_interval'])})"


def idle_cautions(principles: dict[str, Any]) -> list[str]:
    """Principles that move no labels, by the test's own verdict."""
    return [
        f"the principle `{named(name, 40)}` does nothing: it moves labels by {share(item['shift'], item['shift_interval'])}"
        for name, item in principles.items()
        if item["effect"] == DOES_NOTHING
    ]


MAKERS = {ELO: elo, DEMO: demo, RESPONSES: responses, HHH: hhh, LABELS: agreement, CONSTITUTION: listens}
SECTIONS = {
    "results": ("Results", "", (ELO, DEMO, RESPONSES, HHH)),
    "judge": (
        "Does the judge listen?",
        "How labels move when the principle changes, beyond what other words for the same do.",
        (CONSTITUTION,),
    ),
    "agreement": ("AI and human labels", "Pairs that both have labelled.", (LABELS,)),
}


def section(found: Found, reading: Reading, key: str) -> Section | None:
    """One of SECTIONS."""
    title, lead, stages = SECTIONS[key]
    results = [result for stage in stages for result in found.results_of(stage)]
    items = reading.each(results, lambda result: group_of(result, reading))
    return Section(key, title, lead, items) if items else None


def group_of(result: Result, reading: Reading) -> Group:
    group = MAKERS[result.stage](result)
    if result.stage == CONSTITUTION:
        reading.warn(result.name, idle_cautions(result.content["principles"]))
    return group
