"""What a reply is worth: the preference model's score, shaped into a reward; and a gold model's score beside
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.engines.base import LENGTH, Completion
from cai_cli.errors import UserError
from cai_cli.models.chat import close_with_eos
from cai_cli.models.score import score_all
from cai_cli.models.templates import UnfitRow
from cai_cli.rows.conversation import Conversation, message
from cai_cli.training.parallel import Passes
from cai_cli.training.preference.reading import open_preference_model

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import RewardOptions


def score_completions(
    pm: Passes, completions: list[Completion], eos: int, pad: int, batch_size: int
) -> list[float]:
    """The PM's score of each reply: it reads prompt and response closed by EOS."""
    rows = [close_with_eos(c.prompt_ids + c.token_ids, eos) for c in completions]
    return score_all(pm.model, rows, pad, batch_size, enter=pm)


@dataclass(frozen=True, slots=True)
class RewardShape:
    """reward = clip((score - mean) / deviation) - penalty of a reply that its length limit cut off."""

    mean: float = 0.0
    deviation: float = 1.0
    clip: float | None = None
    missing_eos_penalty: float = 0.0

    def __call__(self, score: float, completion: Completion) -> float:
        reward = (score - self.mean) / self.deviation
        if self.clip is not None:
            reward = min(max(reward, -self.clip), self.clip)
        return reward - (self.missing_eos_penalty if completion.finish_reason == LENGTH else 0.0)


def reward_shape(reward: RewardOptions, pm: str) -> RewardShape:
    """The shape that the flags ask for. Raises UserError where the PM's mean and deviation are asked for and
    not known.
    """
    mean: Any = 0.0
    deviation: Any = 1.0
    if reward.normalise_scores:
        facts = read_manifest(manifest_path(Path(pm))) or {}
        mean, deviation = facts.get("score_mean"), facts.get("score_deviation")
        if mean is None or not deviation:
            raise UserError(
                f"--normalise-scores: {pm} keeps no mean and deviation of its scores",
                "`cai train-pm --held-out` writes them into its cai.json; or leave the flag out",
            )
    return RewardShape(mean, deviation, reward.score_clip, reward.missing_eos_penalty)


class GoldPM:
    """A second preference model that only measures. It may have another vocabulary and template: it gets the
    text anew.
    """

    def __init__(self, path: str, device: str, dtype: str, batch_size: int) -> None:
        self.pm = open_preference_model(path, device, dtype, "--gold-pm")
        self.pm.model.requires_grad_(False)
        self.batch_size = batch_size

    def score(self, prompts: list[Conversation], replies: list[str]) -> list[float | None]:
        """Scores in order; None where the text does not fit this model's context or template."""
        rows: dict[int, list[int]] = {}
        for n, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            try:
                rows[n] = self.pm.encode(prompt, [message("assistant", reply)])
            except UnfitRow:
                continue
        found: list[float | None] = [None] * len(prompts)
        if rows:
            scores = score_all(self.pm.model, list(rows.values()), self.pm.pad, self.batch_size)
            for n, score in zip(rows, scores, strict=True):
                found[n] = score
        return found
