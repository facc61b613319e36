"""What comes of one rollout, and how long its parts took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from cai_cli.engines.base import Completion
from cai_cli.training.ppo.episodes import Episodes
from cai_cli.training.ppo.measures import Episode


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sampled replies of this process, and what is known of each episode of all processes (`table`, in batch
    order).

    logprobs, reference_logprobs, values: (B, T) of this process's episodes; rewards: (B,), before the KL
    penalty. `gap`: mean |log π - log π_rollout| where old log-probabilities were computed again.
    """

    completions: list[Completion]
    episodes: Episodes
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    table: list[Episode]
    gap: float | None = None

    @property
    def kl(self) -> float:
        """Mean KL of a reply to the reference, in nats."""
        return sum(episode.kl for episode in self.table) / len(self.table)


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self.last, 4)
        self.last = now
