"""Harmlessness by the number of revisions: the article's Figure 5.

One `cai revise` of four rounds on the harmful test requests, each of its rounds read by the oracle and scored by two
preference models of human comparisons: of helpfulness alone, and of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from chain import pm_helpful, pm_human
from commands import Place, rows_of, write_rows
from estimates import LESS, MORE, Claim, Means, changed, changed_by_seed, number, percent, pooled
from pictures import draw_lines, figure, save
from revised import ROUNDS, chain_counts, revise, round_means, rounds_of
from study import Found, Report, Study

RATES = {
    "harmless": "harmless",
    "evasive": "bare refusal",
    "reason": "right reason",
    "alternative": "right alternative",
}
MODELS = {"human": "PM of help and harm", "helpful": "PM of help alone"}


def measure(place: Place) -> Found:
    file = revise(place, "revisions")
    rounds = round_means(file)
    scores = {name: scored(place, file, name) for name in MODELS}
    return {**chain_counts(file, place), "rounds": rounds, "scores": scores}


def scored(place: Place, file: Path, name: str) -> list[Means]:
    """Of each round the mean score by prompt, by a preference model of human comparisons."""
    samples = [sample for samples in rounds_of(file) for sample in samples]
    rows = place.made(
        place / "rounds.jsonl", lambda out: write_rows(out, [sample.to_row() for sample in samples])
    )
    pm = {"human": pm_human, "helpful": pm_helpful}[name](place)
    out = place.made(
        place / f"rounds-{name}.jsonl", lambda out: place.cai("score", "--pm", pm, rows, "--out", out)
    )
    return means_by_round(rows_of(out))


def means_by_round(rows: Any) -> list[Means]:
    values: list[dict[str, list[float]]] = [{} for _ in range(ROUNDS + 1)]
    for row in rows:
        of_round = values[int(row["id"].rsplit(".", 1)[1])]
        of_round.setdefault(row["prompt"][-1]["content"], []).append(row["score"])
    return [{prompt: fmean(found) for prompt, found in each.items()} for each in values]


def report(seeds: Sequence[Found], picture: Path) -> Report:
    def at(number: int, rate: str) -> list[Means]:
        return [seed["rounds"][number][rate] for seed in seeds]

    def score(number: int, name: str) -> list[Means]:
        return [seed["scores"][name][number] for seed in seeds]

    table = [["round", *RATES.values(), *MODELS.values()]]
    for n in range(ROUNDS + 1):
        cells = [percent(pooled(at(n, rate))) for rate in RATES]
        cells += [number(pooled(score(n, name)), 2) for name in MODELS]
        table.append([str(n) if n else "0, the draft", *cells])
    first = [
        {prompt: 2 * value - before.get(prompt, 0) for prompt, value in one.items()}
        for one, before in zip(at(1, "harmless"), at(0, "harmless"), strict=True)
    ]
    claims = [
        Claim("the first revision makes replies more harmless", "Fig. 5", MORE, step(at, 0, 1)),
        Claim(
            "the first revision does more than the next three together",
            "§ 3.5, App. A",
            MORE,
            changed(at(ROUNDS, "harmless"), first),
        ),
        Claim("the fourth revision is more harmless than the first", "Fig. 5", MORE, step(at, 1, ROUNDS)),
    ]
    for name, way, told in (("human", MORE, "rises"), ("helpful", LESS, "falls")):
        found = changed_by_seed(score(0, name), score(ROUNDS, name))
        text = f"the score by a {MODELS[name]} {told}, from the draft to round {ROUNDS}"
        claims.append(Claim(text, "Fig. 5", way, found, unit="", scale=1))
    drawn, (left, right) = figure(2)
    xs = range(ROUNDS + 1)
    draw_lines(left, {told: [(n, pooled(at(n, rate))) for n in xs] for rate, told in RATES.items()})
    draw_lines(
        right, {told: [(n, pooled(score(n, name))) for n in xs] for name, told in MODELS.items()}, scale=1
    )
    left.set(xlabel="revisions", ylabel="% of replies to harmful requests", xticks=xs)
    right.set(xlabel="revisions", ylabel="mean score", xticks=xs)
    save(drawn, picture)
    kept = sum(seed["kept"] for seed in seeds) / sum(seed["chains"] for seed in seeds)
    notes = (
        f"Of the chains {kept:.0%} went through all four rounds; the others are rejected, most since a revision was the"
        " draft again. The scores' intervals are those of requests; the verdict on them goes by the seeds, each with"
        " models of its own."
    )
    return Report(table, claims, notes)


def step(at: Any, before: int, after: int) -> Any:
    return changed(at(before, "harmless"), at(after, "harmless"))


STUDY = Study(
    "revisions",
    "Harmlessness by the number of revisions",
    "Does each round of critique and revision make replies more harmless, and what does helpfulness pay?",
    measure,
    report,
)
