"""Pairs of replies and what a feedback model answered about them: soft labels and their diagnostics. No torch.

A label is the mean over judgements of the softmax of the two option log-probabilities (paper section 4.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean

from cai_cli.artifact import Rejected
from cai_cli.constitution import Principle
from cai_cli.conversation import Conversation, message
from cai_cli.errors import RecordError, UserError
from cai_cli.jsonl import read_rows
from cai_cli.keys import uniform
from cai_cli.manifest import parse_weight
from cai_cli.records import Comparison, Judgement, Sample
from cai_cli.talk import say, table


@dataclass
class Pair:
    """Two replies to one prompt on their way to a comparison."""

    id: str
    prompt_id: str
    prompt: Conversation
    kind: str | None = None
    replies: list[str] = field(default_factory=lambda: ["", ""])
    answers: list[tuple[Question, float, float]] = field(default_factory=list)
    rejected: Rejected | None = None

    @property
    def probability_first(self) -> float:
        """Mean over judgements of the probability that the first reply is preferred; rounded, so that a tie is one."""
        first = [softmax_first(a, b) if question.first_as_a else softmax_first(b, a) for question, a, b in self.answers]
        return round(mean(first), 12)

    @property
    def mass(self) -> float:
        """Mean over judgements of the probability on both options together."""
        return mean(math.exp(a) + math.exp(b) for _, a, b in self.answers)

    def to_comparison(self) -> Comparison:
        """The pair as a record. A tie goes to the first reply."""
        first_chosen = self.probability_first >= 0.5
        judgements = [
            Judgement(
                principle=question.principle.id,
                order="chosen_first" if question.first_as_a == first_chosen else "rejected_first",
                logprob_a=a,
                logprob_b=b,
                mass=math.exp(a) + math.exp(b),
            )
            for question, a, b in self.answers
        ]
        chosen, rejected = self.replies if first_chosen else reversed(self.replies)
        return Comparison(
            id=self.id,
            prompt_id=self.prompt_id,
            prompt=self.prompt,
            chosen=[message("assistant", chosen)],
            rejected=[message("assistant", rejected)],
            probability=max(self.probability_first, 1 - self.probability_first),
            origin="ai",
            kind=self.kind,
            judgements=judgements,
        )


@dataclass(frozen=True)
class Question:
    """One multiple-choice question: a principle, and whether the first reply stands as option (A)."""

    pair: Pair
    principle: Principle
    first_as_a: bool

    @property
    def replies(self) -> tuple[str, str]:
        first, second = self.pair.replies
        return (first, second) if self.first_as_a else (second, first)


def softmax_first(a: float, b: float) -> float:
    """Probability of the first of two options, from their log-probabilities."""
    top = max(a, b)
    return math.exp(a - top) / (math.exp(a - top) + math.exp(b - top))


def first_is_a(seed: int, pair_id: str, number: int) -> bool:
    """The order drawn for a question under `--orders random`."""
    return uniform(seed, "order", pair_id, number) < 0.5


def read_pairs(sources: list[str], limit: int | None) -> Iterator[Pair]:
    """Pairs from comparisons (chosen and rejected), or from samples (the first two different replies to a prompt)."""
    seen: set[str] = set()
    for source in sources:
        path = Path(parse_weight(source)[0])
        for pair in pairs_of_file(path):
            if pair.id in seen:
                raise UserError(f"{path}: there is a pair {pair.id!r} already", "ids are unique over all --pairs")
            seen.add(pair.id)
            yield pair
            if limit is not None and len(seen) == limit:
                return


def pairs_of_file(path: Path) -> Iterator[Pair]:
    waiting: dict[str, Sample] = {}
    paired: set[str] = set()
    for line, row in read_rows(path):
        try:
            if "chosen" in row:
                yield pair_of_comparison(Comparison.from_row(row))
                continue
            sample = Sample.from_row(row)
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        prompt_id = sample.id.rsplit("/", maxsplit=1)[0]
        first = waiting.setdefault(prompt_id, sample)
        if prompt_id not in paired and first.completion != sample.completion:
            paired.add(prompt_id)
            replies = [first.completion[0]["content"], sample.completion[0]["content"]]
            yield Pair(f"{prompt_id}/0", prompt_id, sample.prompt, sample.kind, replies)
    if unpaired := len(waiting) - len(paired):
        say(f"{path}: {unpaired} prompts have no two different replies and make no pair")


def pair_of_comparison(comparison: Comparison) -> Pair:
    """The two replies in an order drawn by id, so that the first one is not always the one somebody chose."""
    replies = [comparison.chosen[0]["content"], comparison.rejected[0]["content"]]
    if uniform("pair", comparison.id) < 0.5:
        replies.reverse()
    return Pair(comparison.id, comparison.prompt_id, comparison.prompt, comparison.kind, replies)


# Diagnostics


def same_position_rate(comparisons: list[Comparison]) -> float | None:
    """Share of (pair, principle) asked in both orders where the judge took the same letter both times."""
    same, total = 0, 0
    for comparison in comparisons:
        letters: dict[str, set[tuple[str, bool]]] = defaultdict(set)
        for judgement in comparison.judgements:
            letters[judgement.principle].add((judgement.order, judgement.logprob_a >= judgement.logprob_b))
        for answers in letters.values():
            if {order for order, _ in answers} == {"chosen_first", "rejected_first"} and len(answers) == 2:
                total += 1
                same += len({took_a for _, took_a in answers}) == 1
    return same / total if total else None


def diagnostics(comparisons: list[Comparison]) -> dict[str, float | None]:
    """Numbers that tell whether labels can be trusted."""
    judged = [judgement for comparison in comparisons for judgement in comparison.judgements]
    longer = [
        len(comparison.chosen[0]["content"]) > len(comparison.rejected[0]["content"])
        for comparison in comparisons
        if len(comparison.chosen[0]["content"]) != len(comparison.rejected[0]["content"])
    ]
    return {
        "same_position_rate": same_position_rate(comparisons),
        "mean_probability_a": mean(softmax_first(j.logprob_a, j.logprob_b) for j in judged),
        "mean_mass": mean(judgement.mass for judgement in judged),
        "mean_probability": mean(comparison.probability for comparison in comparisons),
        "longer_chosen": mean(longer) if longer else None,
    }


def summarise(comparisons: list[Comparison]) -> None:
    """Print the diagnostics, the histogram of confidence and the mean label by principle."""
    names = {
        "same_position_rate": "same letter in both orders",
        "mean_probability_a": "mean P(A)",
        "mean_mass": "mean mass on the options",
        "mean_probability": "mean probability of chosen",
        "longer_chosen": "longer reply chosen",
    }
    values = diagnostics(comparisons)
    rows = [[name, "–" if values[key] is None else f"{values[key]:.3f}"] for key, name in names.items()]
    table(f"label: {len(comparisons)} pairs", ["", ""], rows)
    edges = [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0]
    counts = [
        sum(low <= c.probability < high or (high == 1.0 and c.probability == 1.0) for c in comparisons)
        for low, high in pairwise(edges)
    ]
    bins = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]
    shares = [f"{count / len(comparisons):.1%}" for count in counts]
    table("confidence", ["probability of chosen", "pairs"], [list(pair) for pair in zip(bins, shares, strict=True)])
    by_principle: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        for judgement in comparison.judgements:
            by_principle[judgement.principle].append(judgement.probability_chosen)
    rows = [[name, str(len(p)), f"{mean(x >= 0.5 for x in p):.1%}", f"{mean(p):.3f}"] for name, p in sorted(by_principle.items())]
    table("by principle", ["principle", "questions", "agrees with the label", "mean P(chosen)"], rows)
