"""From option log-probabilities to labels. No torch.

A label is the mean over judgements of the softmax of the two option log-probabilities (Constitutional AI,
arXiv 2212.08073, section 4.1), clamped after averaging where rationales were sampled, or made hard for
comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

from cai_cli.artifacts.rejects import Rejected
from cai_cli.errors import UserError
from cai_cli.prompting.principles import Principle
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.records import Comparison, Judgement


@dataclass
class Pair:
    """Two replies to one prompt on their way to a comparison."""

    id: str
    prompt_id: str
    prompt: Conversation
    kind: str | None = None
    replies: list[str] = field(default_factory=lambda: ["", ""])
    answers: list[Answer] = field(default_factory=list)
    rejected: Rejected | None = None
    tokens: int = 0  # sampled for its replies and rationales

    @property
    def probability_first(self) -> float:
        """Mean over judgements of the probability that the first reply is preferred; rounded, so that a tie
        is one.
        """
        return round(fmean(answer.probability_first for answer in self.answers), 12)

    @property
    def mass(self) -> float:
        """Mean over judgements of the probability on both options together."""
        return fmean(answer.mass for answer in self.answers)

    def reject(self, reason: str, detail: str = "") -> None:
        replies = {"replies": self.replies} if any(self.replies) else {}
        self.rejected = Rejected(self.id, reason, detail, {"prompt": self.prompt, **replies})

    def to_comparison(self, rule: Rule | None = None) -> Comparison:
        """The pair as a record. A tie goes to the first reply."""
        probability = (rule or Rule()).apply(self.probability_first)
        first_chosen = probability >= 0.5
        chosen, rejected = self.replies if first_chosen else reversed(self.replies)
        return Comparison(
            id=self.id,
            prompt_id=self.prompt_id,
            prompt=self.prompt,
            chosen=[message("assistant", chosen)],
            rejected=[message("assistant", rejected)],
            probability=max(probability, 1 - probability),
            origin="ai",
            kind=self.kind,
            judgements=[answer.to_judgement(first_chosen) for answer in self.answers],
        )


@dataclass(slots=True)
class Question:
    """One multiple-choice question: a principle, and whether the first reply stands as the first option.

    `number`: of the principle among those asked about for the pair; `rationale`: what the judge wrote before
    it answered.
    """

    pair: Pair
    principle: Principle
    first_as_a: bool
    number: int = 0
    rationale: str | None = None

    @property
    def replies(self) -> tuple[str, str]:
        first, second = self.pair.replies
        return (first, second) if self.first_as_a else (second, first)


@dataclass(frozen=True, slots=True)
class Answer:
    """The log-probabilities of the two options, (A) and (B) in the paper's letters."""

    question: Question
    logprob_a: float
    logprob_b: float

    @property
    def probability_first(self) -> float:
        a, b = self.logprob_a, self.logprob_b
        return softmax_first(a, b) if self.question.first_as_a else softmax_first(b, a)

    @property
    def mass(self) -> float:
        return math.exp(self.logprob_a) + math.exp(self.logprob_b)

    def to_judgement(self, first_chosen: bool) -> Judgement:
        return Judgement(
            principle=self.question.principle.id,
            order="chosen_first" if self.question.first_as_a == first_chosen else "rejected_first",
            logprob_a=self.logprob_a,
            logprob_b=self.logprob_b,
            mass=self.mass,
            rationale=self.question.rationale,
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of an averaged probability: `clamp` (low, high) keeps it between them, `hard` makes it 0
    or 1.
    """

    clamp: tuple[float, float] | None = None
    hard: bool = False

    def apply(self, probability: float) -> float:
        if self.hard:
            return 0.5 if probability == 0.5 else float(probability > 0.5)
        if self.clamp is None:
            return probability
        low, high = self.clamp
        return min(max(probability, low), high)


def parse_clamp(text: str) -> tuple[float, float] | None:
    """`0.4:0.6` -> (0.4, 0.6); "none" -> None. Raises UserError."""
    if text == "none":
        return None
    hint = "LOW:HIGH as in 0.4:0.6, or none"
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UserError(f"--clamp {text}: not two numbers", hint) from None
    if not 0 <= low < 0.5 < high <= 1 or abs(low + high - 1) > 1e-9:
        raise UserError(f"--clamp {text}: expected bounds on both sides of 0.5 and as far from it", hint)
    return low, high


def softmax_first(a: float, b: float) -> float:
    """Probability of the first of two options, from their log-probabilities."""
    top = max(a, b)
    return math.exp(a - top) / (math.exp(a - top) + math.exp(b - top))
