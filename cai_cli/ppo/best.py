"""Which policy of a run is the best one, and when a gold preference model says that the run has gone too far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, variance
from typing import Any

from cai_cli.ppo.measures import Episode

PATIENCE = 2  # Measurements in a row that must show the gold score fallen.
ERRORS = 2.0  # Standard errors of the difference below which a fall is noise.


@dataclass(slots=True)
class Best:
    """The measurement with the highest score (the gold one where there is one) among those within the KL budget."""

    step: int = -1
    score: float = -math.inf

    def offer(self, step: int, episodes: list[Episode], budget: float) -> bool:
        """Take the measurement if it is better than what there is; True if it was taken."""
        golds = [e.gold for e in episodes if e.gold is not None]
        score = fmean(golds or [e.score for e in episodes])
        if fmean(e.kl for e in episodes) > budget or score <= self.score:
            return False
        self.step, self.score = step, score
        return True


@dataclass(slots=True)
class Level:
    """A mean score with the variance of that mean."""

    mean: float = -math.inf
    error: float = 0.0

    @classmethod
    def of(cls, scores: list[float]) -> Level:
        return cls(fmean(scores), variance(scores) / len(scores) if len(scores) > 1 else 0.0)


@dataclass(slots=True)
class Guard:
    """Over-optimisation: the gold score falls from its best while the trained-on PM's score is above what it was then.

    A fall counts when it is larger than two standard errors, PATIENCE measurements in a row.
    """

    gold: Level = field(default_factory=Level)
    score: float = 0.0
    step: int = 0
    falls: int = 0

    def watch(self, step: int, episodes: list[Episode]) -> str | None:
        """Take in a measurement; returns why to stop, or None."""
        known = [e for e in episodes if e.gold is not None]
        if not known:
            return None
        gold = Level.of([e.gold for e in known if e.gold is not None])
        score = fmean(e.score for e in known)
        if gold.mean >= self.gold.mean:
            self.gold, self.score, self.step, self.falls = gold, score, step, 0
            return None
        fallen = self.gold.mean - gold.mean > ERRORS * math.sqrt(gold.error + self.gold.error)
        self.falls = self.falls + 1 if fallen and score > self.score else 0
        if self.falls < PATIENCE:
            return None
        return (
            f"the gold score fell from {self.gold.mean:.3f} (step {self.step}) to {gold.mean:.3f} "
            f"while the PM's rose from {self.score:.3f} to {score:.3f}"
        )

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Guard:
        return cls(**{**state, "gold": Level(**state["gold"])})
