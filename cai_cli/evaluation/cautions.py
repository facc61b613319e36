"""What no error tells: labels, scores, targets or replies of which little can be learned. Lines for a
manifest's `warnings`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Sequence

from cai_cli.evaluation.refusals import is_refusal

MOSTLY = 0.9
UNDECIDED = 0.01  # a label this near 0.5 says nothing of which reply is better
ALIKE = 1e-6  # spread of scores that rounding may make, relative to their size
# Of a summary of labels, see `label_cautions`
CAUTIONED = ("undecided_rate", "same_position_rate", "mean_probability_a")
LEAST = 4  # fewer than these are alike by chance


def undecided_rate(probabilities: Sequence[float]) -> float | None:
    """Share of the labels that are 0.5, or as good as; None of no labels."""
    return (
        share([abs(probability - 0.5) < UNDECIDED for probability in probabilities])
        if probabilities
        else None
    )


def label_cautions(
    undecided: float | None, same_position: float | None = None, probability_a: float | None = None
) -> list[str]:
    """`undecided`: see `undecided_rate`; `same_position`: how often the judge took the same option in both
    orders; `probability_a`: its mean for the first option, which tells of a judge that was asked in one order
    only.
    """
    found = []
    if undecided is not None and undecided >= MOSTLY:
        found.append(f"{undecided:.0%} of the labels are 0.5: they say nothing of which reply is better")
    if same_position is not None and same_position >= MOSTLY:
        found.append(
            f"the judge takes the same option in both orders in {same_position:.0%} of the pairs: it reads the position"
        )
    elif same_position is None and probability_a is not None and not 1 - MOSTLY < probability_a < MOSTLY:
        found.append(
            f"the judge gives {probability_a:.0%} to the first option on average: it reads the position"
        )
    return found


def score_cautions(scores: Sequence[float]) -> list[str]:
    """`scores`: a preference model's, of different texts."""
    if len(scores) < LEAST or max(scores) - min(scores) > ALIKE * max(1.0, *map(abs, scores)):
        return []
    return [f"all {len(scores)} scores are {scores[0]:.4g}: the preference model tells no two texts apart"]


def rate_cautions(learning_rate: float, warmup_steps: int, steps: int) -> list[str]:
    """Of a run of `steps` steps: whether it learned at the rate that was asked for."""
    if learning_rate == 0:
        return ["--learning-rate 0: nothing was learned"]
    if warmup_steps >= steps:
        told = f"--warmup-steps {warmup_steps} of {steps} steps: the learning rate never came to its peak"
        return [f"{told}; lower it, or take fewer rows a step"]
    return []


def held_out_cautions(held_out: Collection[str], trained_on: Collection[str]) -> list[str]:
    """Ids of prompts: whether those that a run is measured on are among those that it learns from."""
    both = len(set(held_out) & set(trained_on))
    return (
        [f"{both} of {len(held_out)} --eval-prompts are in --prompts too: they are not held out"]
        if both
        else []
    )


class TargetTally:
    """What a model is trained to say, text by text; of a text that is most of all, one is held."""

    def __init__(self) -> None:
        self.count = self.refusals = 0
        self._hashes = array("q")
        self._text, self._lead = "", 0

    def add(self, text: str) -> None:
        self.count += 1
        self.refusals += is_refusal(text)
        self._hashes.append(hash(text))
        if self._lead == 0:  # Boyer and Moore: a text that is more than half of all is the one that is left
            self._text = text
        self._lead += 1 if text == self._text else -1

    def cautions(self) -> list[str]:
        found = []
        if self.count >= LEAST and self.refusals > 0.5 * self.count:
            refusals = self.refusals / self.count
            found.append(
                f"{refusals:.0%} of the completions refuse: the model learns to, whatever is asked; add helpful samples"
            )
        return found + same_text(self._text, self._hashes.count(hash(self._text)), self.count, "completions")


def reply_cautions(texts: Sequence[str], scores: Sequence[float], cut_off: Sequence[bool]) -> list[str]:
    """Of the last rollout's replies: texts, preference-model scores, and which were cut off by their length
    limit.
    """
    found = sameness(texts, "last replies") + score_cautions(scores)
    if len(cut_off) >= LEAST and share(cut_off) >= MOSTLY:
        found.append(
            f"{share(cut_off):.0%} of the last replies are cut off by --max-new-tokens: they never end"
        )
    return found


def sameness(texts: Sequence[str], name: str) -> list[str]:
    """Whether nearly all are one text."""
    text, count = Counter(texts).most_common(1)[0] if texts else ("", 0)
    return same_text(text, count, len(texts), name)


def same_text(text: str, count: int, total: int, name: str) -> list[str]:
    """Whether a text that is there `count` times is nearly all."""
    if total < LEAST or count < MOSTLY * total:
        return []
    return [f"{count} of {total} {name} are the same text, {text[:40]!r}"]


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
