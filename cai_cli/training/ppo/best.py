"""Which policy of a run is the best one, and when a gold preference model says that the run has gone too far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import chain
from statistics import fmean, variance
from typing import Any, Literal

from cai_cli.training.ppo.measures import Episode

PATIENCE = 2  # Measurements in a row that must show the gold score fallen.
ERRORS = 2.0  # Standard errors of the difference below which a fall is noise.


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends before its last step. gold: the policy goes on past what a gold PM likes; kl: it is too
    far from the reference; not_finite: its outputs are no numbers any more.
    """

    kind: Literal["gold", "kl", "not_finite"]
    text: str


@dataclass(slots=True)
class Best:
    """The measurement with the highest score (the gold one where there is one) among those within the KL
    budget.
    """

    step: int = -1
    score: float = -math.inf

    def offer(self, step: int, episodes: list[Episode], budget: float) -> bool:
        """Take the measurement if it is better than what there is; True if it was taken."""
        golds = [e.gold for e in episodes if e.gold is not None]
        score = fmean(golds or [e.score for e in episodes])
        if not (
            fmean(e.kl for e in episodes) <= budget and score > self.score
        ):  # nor where one of them is NaN
            return False
        self.step, self.score = step, score
        return True


@dataclass(slots=True)
class Guard:
    """Over-optimisation: the gold score falls from its best while the trained-on PM's score is above what it
    was then.

    A fall counts when it is larger than two standard errors, PATIENCE measurements in a row. `golds`: the
    gold scores of each prompt at the best measurement.
    """

    golds: dict[str, list[float]] = field(default_factory=dict)
    score: float = 0.0
    step: int = 0
    falls: int = 0

    def watch(self, step: int, episodes: list[Episode]) -> Stop | None:
        """Take in a measurement; returns why to stop, or None."""
        golds: dict[str, list[float]] = {}
        for episode in episodes:
            if episode.gold is not None:
                golds.setdefault(episode.prompt_id, []).append(episode.gold)
        if not golds:
            return None
        score = fmean(e.score for e in episodes if e.gold is not None)
        before, now = mean(self.golds), mean(golds)
        if now >= before:
            self.golds, self.score, self.step, self.falls = golds, score, step, 0
            return None
        fallen = before - now > ERRORS * error_of_difference(self.golds, golds)
        self.falls = self.falls + 1 if fallen and score > self.score else 0
        if self.falls < PATIENCE:
            return None
        fell = f"the gold score fell from {before:.3f} (step {self.step}) to {now:.3f}"
        return Stop("gold", f"{fell} while the PM's rose from {self.score:.3f} to {score:.3f}")

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Guard:
        return cls(**state)


def mean(scores: dict[str, list[float]]) -> float:
    return fmean(chain(*scores.values())) if scores else -math.inf


def error_of_difference(before: dict[str, list[float]], now: dict[str, list[float]]) -> float:
    """Standard error of the difference of two means: between the replies to the same prompts where both
    measured the same ones.

    What prompts are worth differs more than what two policies make of one, so that pairs show smaller falls.
    """
    if before.keys() == now.keys():
        return error([fmean(before[prompt]) - fmean(now[prompt]) for prompt in now])
    return math.hypot(*(error(list(chain(*scores.values()))) for scores in (before, now)))


def error(values: list[float]) -> float:
    """Standard error of their mean; 0 for one value."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else 0.0
