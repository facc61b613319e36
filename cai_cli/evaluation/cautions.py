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
LOW_MASS = 0.5  # of a judge's probability on what it is asked to choose from
LENGTH_CHOSEN = 0.6  # share of pairs in which the longer reply is chosen, from the low end of its interval on
LENGTH_TIED = 0.5  # correlation of score and length
CUT_OFF = 0.5  # share of a file's replies
REJECTED = 0.05  # share of a command's rows


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


def mass_cautions(mean_mass: float | None) -> list[str]:
    """Of a judge's answers."""
    if mean_mass is None or mean_mass >= LOW_MASS:
        return []
    return [f"the options hold {mean_mass:.0%} of the judge's probability: its labels mean little"]


def length_cautions(longer: float | None, interval: Sequence[float] | None) -> list[str]:
    """Of labels: how often the longer reply is the chosen one, where two differ in length."""
    if longer is None or interval is None or interval[0] < LENGTH_CHOSEN:
        return []
    low, high = (round(100 * end) for end in interval)
    return [f"the longer reply is chosen in {longer:.0%} ({low}–{high}) of the pairs: length pays"]


def matched_cautions(accuracy: Sequence[float] | None, matched: Sequence[float] | None) -> list[str]:
    """`accuracy`, `matched`: the intervals of a preference model's, over all pairs and after length matching."""
    if not accuracy or not matched or accuracy[0] <= 0.5 or matched[0] > 0.5:
        return []
    told = f"better than a coin ({accuracy[0]:.0%}–{accuracy[1]:.0%}), but not once lengths are matched"
    return [f"{told} ({matched[0]:.0%}–{matched[1]:.0%}): length pays"]


def chance_cautions(accuracy: float | None, interval: Sequence[float] | None) -> list[str]:
    """Of a preference model on held-out pairs."""
    if accuracy is None or interval is None or interval[0] > 0.5:
        return []
    low, high = (round(100 * end) for end in interval)
    return [
        f"right in {accuracy:.0%} ({low}–{high}) of the held-out pairs: no better than a coin, as far as they tell"
    ]


def tied_cautions(correlations: Sequence[float]) -> list[str]:
    """`correlations`: of score and length in each step of PPO; the last tenth counts."""
    last = correlations[-max(1, len(correlations) // 10) :]
    mean = sum(last) / len(last) if last else 0.0
    return (
        [f"score and length go together (correlation {mean:.2f} at the end): length pays"]
        if mean >= LENGTH_TIED
        else []
    )


def cut_off_cautions(cut_off: int, count: int) -> list[str]:
    """Of a file of replies."""
    if not count or cut_off <= CUT_OFF * count:
        return []
    return [f"{cut_off / count:.0%} of the replies are cut off: raise --max-new-tokens"]


def near_cautions(near: int, count: int) -> list[str]:
    """Of final revisions that still are their draft (`hygiene.is_near`)."""
    if not near:
        return []
    return [
        f"{near} of {count} final revisions are their draft but for a word or two: they teach what was to be mended"
    ]


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
