"""Pairs of replies -> what a feedback model says about them: questions drawn by key, rationales where asked
for, options scored.

Deviations from the paper, which asks one question a pair in one order: both orders of the options by default,
and more principles a pair on request (the paper's "ensemble of 16" is one random principle a label, over the
data set).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from cai_cli.engines.base import Engine, OptionRequest
from cai_cli.engines.segments import Segment, SegmentSettings, sample_segment
from cai_cli.feedback.labels import Answer, Pair, Question
from cai_cli.keys import uniform
from cai_cli.models.templates import UnfitRow
from cai_cli.prompting.choices import (
    COMMON_FORMATS,
    PLAIN,
    Form,
    Prompt,
    Solved,
    ask,
    option_labels,
    reasoned_question,
)
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import comparison_question
from cai_cli.prompting.solved_questions import ComparisonDemonstration, Demonstration, solve

# Draws of the demonstrations' principles and letters in a run. A pair takes one of them by key: enough for
# variety, few enough for many pairs to share the work on them.
FEW_SHOT_DRAWS = 8


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """How pairs are asked about. `orders`: both, random or first; `labels`: of the two options; `every`: what
    each pair is asked about in turn, instead of draws from the constitution.
    """

    constitution: Constitution
    seed: int = 0
    orders: str = "both"
    principles_per_pair: int = 1
    labels: tuple[str, ...] = ("(A)", "(B)")
    form: Form = PLAIN
    demonstrations: tuple[Demonstration, ...] = ()
    every: tuple[Principle, ...] = ()

    def questions(self, pair: Pair) -> Iterator[Question]:
        """The questions about a pair, all drawn by (seed, pair, number)."""
        for number, principle in enumerate(self.principles(pair)):
            if self.orders == "both":
                orders = [True, False]
            elif self.orders == "first":
                orders = [True]
            else:
                orders = [first_is_a(self.seed, pair.id, number)]
            for first_as_a in orders:
                yield Question(pair, principle, first_as_a, number)

    def principles(self, pair: Pair) -> Iterator[Principle]:
        """Uniform draws, none a second time before all have been asked about; or all of `every`."""
        if self.every:
            yield from self.every
            return
        left: list[Principle] = []
        for number in range(self.principles_per_pair):
            left = left or list(self.constitution.principles)
            yield left.pop(int(uniform(self.seed, "comparison", pair.id, number) * len(left)))

    def solved(self, pair: Pair) -> list[Solved]:
        """The demonstrations in front of the pair's questions."""
        draw = int(uniform(self.seed, "few-shot draw", pair.id) * FEW_SHOT_DRAWS)
        return solve(self.demonstrations, self.constitution, self.labels, self.form, self.seed, draw)

    def prompt(self, question: Question, chat: bool) -> Prompt:
        """What the judge gets: up to the option, or where the form reasons and the question has no rationale
        yet, up to that.
        """
        prompt, (first, second) = question.pair.prompt, question.replies
        if self.form is PLAIN:
            text = comparison_question(prompt, first, second, question.principle.comparison, self.labels)
        else:
            text = reasoned_question(prompt, (first, second), question.principle.comparison, self.labels)
        return ask(text, self.form, self.solved(question.pair), chat, question.rationale)

    def request(self, question: Question, chat: bool) -> OptionRequest:
        return OptionRequest(self.prompt(question, chat), tuple(f" {label}" for label in self.labels))


def first_is_a(seed: int, pair_id: str, number: int) -> bool:
    """The order drawn for a question under `--orders random`."""
    return uniform(seed, "order", pair_id, number) < 0.5


def judge_pairs(
    judge: Engine, inquiry: Inquiry, pairs: list[Pair], chat: bool, thinking: SegmentSettings
) -> None:
    """Ask every question about every pair and keep the answers in the pairs, or why there are none.

    `thinking`: how rationales are sampled, where the form reasons.
    """
    questions = [question for pair in pairs for question in inquiry.questions(pair)]
    if inquiry.form is not PLAIN:
        reason(judge, inquiry, questions, chat, thinking)
        questions = [question for question in questions if question.pair.rejected is None]
    for question, scores in zip(
        questions, judge.score([inquiry.request(q, chat) for q in questions]), strict=True
    ):
        if isinstance(scores, UnfitRow):
            question.pair.reject(scores.reason, scores.detail)
        else:
            question.pair.answers.append(Answer(question, *scores))


def reason(
    judge: Engine, inquiry: Inquiry, questions: list[Question], chat: bool, thinking: SegmentSettings
) -> None:
    """Sample a rationale for each question."""

    def key_of(question: Question) -> tuple[str | int, ...]:
        return (inquiry.seed, question.pair.id, question.number, "rationale", int(question.first_as_a))

    settings = replace(thinking, stop=() if chat else inquiry.form.stop)
    segment = Segment("rationale", lambda question: inquiry.prompt(question, chat), key_of, settings)
    for question, sampled in zip(questions, sample_segment(judge, questions, segment), strict=True):
        question.pair.tokens += sampled.tokens
        if sampled.reason:
            question.pair.reject(f"rationale_{sampled.reason}", sampled.detail)
        else:
            question.rationale = sampled.text


def mean_mass(pairs: list[Pair]) -> float | None:
    """Mean probability on the options; None where no pair was judged."""
    judged = [pair.mass for pair in pairs if pair.rejected is None]
    return fmean(judged) if judged else None


def masses_by_format(judge: Engine, inquiry: Inquiry, pairs: list[Pair], chat: bool) -> dict[str, float]:
    """What the options would hold if they were marked in other ways and answered without reasoning, for
    advice.
    """
    found = {}
    for option_format in COMMON_FORMATS:
        asked = replace(
            inquiry, labels=option_labels(option_format), demonstrations=adaptable(inquiry), form=PLAIN
        )
        fresh = [
            Pair(pair.id, pair.prompt_id, pair.prompt, replies=pair.replies) for pair in pairs if pair.answers
        ]
        judge_pairs(judge, asked, fresh, chat, SegmentSettings(1))
        found[option_format] = mean_mass(fresh) or 0.0
    return found


def adaptable(inquiry: Inquiry) -> tuple[Demonstration, ...]:
    """The demonstrations that can be put in another option format and without reasoning."""
    return tuple(item for item in inquiry.demonstrations if isinstance(item, ComparisonDemonstration))
