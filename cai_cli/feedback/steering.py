"""A judge asked about each pair under every principle, under none and under the opposites -> arrays of labels
for `evaluation.steering`.

All questions about a pair are asked at once, in both orders of the options, so that what they have in common
is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cai_cli.console.messages import visible
from cai_cli.engines.base import Engine
from cai_cli.engines.segments import SegmentSettings
from cai_cli.evaluation.bootstrap import Array
from cai_cli.evaluation.steering import Labels, compare, measure, most_moved, positions, shortcoming
from cai_cli.feedback.judge import Inquiry, judge_pairs
from cai_cli.feedback.labels import Pair, softmax_first
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import NO_PRINCIPLE, NO_PRINCIPLE_REWORDED

DIGITS = 6  # of a label in the results
LONGEST_SHOWN = 400  # characters of a text among the pairs that moved most


def all_sides(constitution: Constitution) -> tuple[Principle, ...]:
    """What a pair is asked about: the principles, none in two wordings, and the opposites that there are."""
    none = [Principle("", "", "", text) for text in (NO_PRINCIPLE, NO_PRINCIPLE_REWORDED)]
    opposites = [replace(item, comparison=item.opposite) for item in with_opposite(constitution)]
    return (*constitution.principles, *none, *opposites)


def with_opposite(constitution: Constitution) -> list[Principle]:
    return [principle for principle in constitution.principles if principle.opposite]


def ask_all(judge: Engine, inquiry: Inquiry, pairs: list[Pair]) -> list[Pair]:
    """Copies of the pairs with the judge's answers, or why there are none."""
    fresh = [replace(pair, answers=[]) for pair in pairs]
    judge_pairs(judge, inquiry, fresh, judge.renderer.form() == "chat", SegmentSettings(1))
    return fresh


@dataclass(frozen=True)
class Answered:
    """What was answered about N pairs to Q questions each: `labels` (Q, N); `took_first` (2, Q, N): whether
    the first option was taken, with the first reply there and with the second; their means.
    """

    labels: Array
    took_first: Array
    mean_probability_a: float
    mean_mass: float


def tabulate(pairs: list[Pair], questions: int) -> Answered:
    """The answers about pairs that were asked about everything, in both orders."""
    probabilities = np.zeros((2, questions, len(pairs)))
    took_first = np.zeros((2, questions, len(pairs)))
    first, masses = [], []
    for n, pair in enumerate(pairs):
        for answer in pair.answers:
            place = (int(not answer.question.first_as_a), answer.question.number, n)
            probabilities[place] = answer.probability_first
            took_first[place] = answer.logprob_a >= answer.logprob_b
            first.append(softmax_first(answer.logprob_a, answer.logprob_b))
            masses.append(answer.mass)
    # Rounded as a pair's own label is, so that a tie is one
    labels = np.round(probabilities.mean(axis=0), 12)
    return Answered(labels, took_first, float(np.mean(first)), float(np.mean(masses)))


def labels_of(constitution: Constitution, answered: Answered, pairs: list[Pair]) -> Labels:
    """Which row is whose; see `all_sides`."""
    count = len(constitution.principles)
    return Labels(
        names=[principle.id for principle in constitution.principles],
        asked=answered.labels[:count],
        empty=answered.labels[count],
        reworded=answered.labels[count + 1],
        opposites={
            principle.id: answered.labels[count + 2 + n]
            for n, principle in enumerate(with_opposite(constitution))
        },
        prompts=[pair.prompt_id for pair in pairs],
    )


@dataclass(frozen=True)
class Examined:
    """`facts`: all numbers; `rows`: each pair's labels; `means` (N,): of each constitution's principles."""

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    means: list[Array]


def examine(judged: list[list[Pair]], inquiries: list[Inquiry], seed: int) -> Examined:
    """What the answers say of the judge. `judged`: each pair once for each inquiry, the first with
    `all_sides` of a constitution, a second with the principles of the one to compare it with.
    """
    ours, *others = (list(pairs) for pairs in zip(*judged, strict=True))
    constitution = inquiries[0].constitution
    answered = tabulate(ours, len(inquiries[0].every))
    labels = labels_of(constitution, answered, ours)
    facts = {
        "constitution": constitution.name,
        "pairs_judged": len(ours),
        **measure(labels, seed),
        "position": positions(answered.took_first, labels.prompts, seed)
        | {"mean_probability_a": answered.mean_probability_a},
        "mean_mass": answered.mean_mass,
    }
    facts["shortcoming"] = shortcoming(facts)
    means, rows = [labels.asked.mean(axis=0)], rows_of(labels, ours)
    for inquiry, pairs in zip(inquiries[1:], others, strict=True):
        theirs = tabulate(pairs, len(inquiry.every)).labels.mean(axis=0)
        means.append(theirs)
        moved = [
            shown(ours[n]) | {"label": float(means[0][n]), "label_against": float(theirs[n])}
            for n in most_moved(means[0], theirs)
        ]
        facts["against"] = {
            "constitution": inquiry.constitution.name,
            **compare(means[0], theirs, labels.prompts, seed),
            "most_moved": moved,
        }
        for row, label in zip(rows, theirs, strict=True):
            row["against"] = round(float(label), DIGITS)
    return Examined(facts, rows, means)


def rows_of(labels: Labels, pairs: list[Pair]) -> list[dict[str, Any]]:
    """P(first reply) of each pair, under all that it was asked about."""

    def at(values: Array, n: int) -> float:
        return round(float(values[n]), DIGITS)

    return [
        {
            "id": pair.id,
            "prompt_id": pair.prompt_id,
            "labels": {name: at(row, n) for name, row in zip(labels.names, labels.asked, strict=True)},
            "none": at(labels.empty, n),
            "none_reworded": at(labels.reworded, n),
            "opposites": {name: at(row, n) for name, row in labels.opposites.items()},
        }
        for n, pair in enumerate(pairs)
    ]


def shown(pair: Pair) -> dict[str, Any]:
    """A pair for a reader of the results: what a terminal would obey is spelled out, long texts are cut."""
    first, second = (cut(reply) for reply in pair.replies)
    return {"id": pair.id, "prompt": cut(pair.prompt[-1]["content"]), "first": first, "second": second}


def cut(text: str) -> str:
    return visible(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…", keep="\n")
