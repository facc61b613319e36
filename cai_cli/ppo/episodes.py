"""Episodes: sampled replies as tensors, and the passes over them that need no gradient.

B episodes, W the longest prompt + response, T the longest response. Rows of `ids` are prompt and response, padded on the right
(see `forward.py`); everything about response tokens is (B, T), its column 0 the first token of each response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cai_cli.engines.base import Completion
from cai_cli.models.score import right_pad


@dataclass(frozen=True, slots=True)
class Episodes:
    """ids (B, W); prompt_lengths (B,); mask, logprobs, reference_logprobs, values (B, T); rewards (B,), before the KL penalty."""

    ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    rewards: Tensor

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of prompt and response."""
        return self.prompt_lengths + self.mask.sum(-1).long()

    def select(self, index: Tensor) -> Episodes:
        """The episodes of `index`, without the columns that only padded the others."""
        mask = self.mask[index]
        width = int(mask.sum(-1).max()) if len(index) else 0
        longest = int(self.lengths[index].max()) if len(index) else 0
        return Episodes(
            ids=self.ids[index, :longest],
            prompt_lengths=self.prompt_lengths[index],
            mask=mask[:, :width],
            logprobs=self.logprobs[index, :width],
            reference_logprobs=self.reference_logprobs[index, :width],
            values=self.values[index, :width],
            rewards=self.rewards[index],
        )


def make_episodes(completions: list[Completion], rewards: list[float], pad: int, device: Any) -> Episodes:
    """Tensors of a rollout; reference log-probabilities and values are zeros still."""
    ids, _ = right_pad([c.prompt_ids + c.token_ids for c in completions], pad, device)
    lengths = torch.tensor([len(c.token_ids) for c in completions], device=device)
    width = max(len(c.token_ids) for c in completions)
    known = [(c.logprobs or [0.0] * len(c.token_ids)) + [0.0] * (width - len(c.token_ids)) for c in completions]
    logprobs = torch.tensor(known, dtype=torch.float32, device=device)
    empty = torch.zeros_like(logprobs)
    return Episodes(
        ids=ids,
        prompt_lengths=torch.tensor([len(c.prompt_ids) for c in completions], device=device),
        mask=(torch.arange(width, device=device) < lengths.unsqueeze(-1)).float(),
        logprobs=logprobs,
        reference_logprobs=empty,
        values=empty.clone(),
        rewards=torch.tensor(rewards, dtype=torch.float32, device=device),
    )


@torch.inference_mode()
def over_episodes(episodes: Episodes, compute: Callable[[Episodes], Tensor], batch_size: int) -> Tensor:
    """(B, T) of what `compute` gives for micro-batches of like length."""
    result = torch.zeros_like(episodes.logprobs)
    for index in like_length(episodes.lengths, batch_size):
        part = episodes.select(index)
        result[index, : part.mask.size(1)] = compute(part)
    return result


def with_passes(episodes: Episodes, reference_logprobs: Tensor, values: Tensor, logprobs: Tensor | None = None) -> Episodes:
    """The episodes with what was computed for them, as ordinary tensors that gradients may be taken beside."""
    found = {"reference_logprobs": reference_logprobs.clone(), "values": values.clone()}
    if logprobs is not None:
        found["logprobs"] = logprobs.clone()
    return replace(episodes, **found)


def like_length(lengths: Tensor, batch_size: int) -> list[Tensor]:
    """Indices of micro-batches of at most `batch_size` rows, rows of like length together, the longest first."""
    order = lengths.argsort(descending=True, stable=True)
    count = -(-len(order) // batch_size)
    return list(order.tensor_split(count)) if count else []
