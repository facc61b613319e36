"""Episodes: sampled replies as tensors, and the passes over them that need no gradient.

B episodes, W the longest prompt + response, T the longest response. Rows of `ids` are prompt and response,
padded on the right (see `forward.py`); everything about response tokens is (B, T), its column 0 the first
token of each response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cai_cli.compute.batches import like_size, right_pad
from cai_cli.engines.base import Completion
from cai_cli.keys import key
from cai_cli.training.parallel import Passes

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import PPOOptions


@dataclass(frozen=True, slots=True)
class Episodes:
    """ids (B, W); prompt_lengths (B,); mask (B, T), 1.0 at the response's tokens."""

    ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of prompt and response."""
        return self.prompt_lengths + self.mask.sum(-1).long()

    def select(self, index: Tensor | list[int]) -> Episodes:
        """The episodes of `index`, without the columns that only padded the others."""
        mask = self.mask[index]
        width = int(mask.sum(-1).max()) if len(index) else 0
        longest = int(self.lengths[index].max()) if len(index) else 0
        return Episodes(self.ids[index, :longest], self.prompt_lengths[index], mask[:, :width])


def make_episodes(completions: list[Completion], pad: int, device: Any) -> Episodes:
    ids, _ = right_pad([c.prompt_ids + c.token_ids for c in completions], pad, device)
    lengths = torch.tensor([len(c.token_ids) for c in completions], device=device)
    columns = torch.arange(max(len(c.token_ids) for c in completions), device=device)
    prompt_lengths = torch.tensor([len(c.prompt_ids) for c in completions], device=device)
    return Episodes(ids, prompt_lengths, (columns < lengths.unsqueeze(-1)).float())


def sampled_logprobs(completions: list[Completion], episodes: Episodes) -> Tensor:
    """(B, T): the log-probabilities that each token was drawn with, zero beyond the response."""
    width = episodes.mask.size(1)
    rows = [
        (c.logprobs or [0.0] * len(c.token_ids)) + [0.0] * (width - len(c.token_ids)) for c in completions
    ]
    return torch.tensor(rows, dtype=torch.float32, device=episodes.mask.device)


def over_episodes(
    episodes: Episodes, compute: Callable[[Episodes], Tensor], batch_size: int, passes: Passes
) -> Tensor:
    """(B, T) of what `compute` gives for micro-batches of like length, without gradients, in `passes` of a model."""
    result = torch.zeros_like(episodes.mask)
    with passes.no_grad():
        for index, counts in passes.even(like_size(episodes.lengths.tolist(), batch_size), []):
            part = episodes.select(index) if counts else one_token(episodes)
            found = compute(part)
            if counts:
                result[index, : part.mask.size(1)] = found
    return result


def one_token(like: Episodes) -> Episodes:
    """An episode that counts for nothing: a reply of one token, for a pass that other processes wait for."""
    ids = like.ids.new_zeros(1, 2)
    return Episodes(ids, like.prompt_lengths.new_ones(1), like.mask.new_ones(1, 1))


def minibatches(ppo: PPOOptions, seed: int, step: int, count: int) -> Iterator[Tensor]:
    """For each minibatch of each epoch of a step, which of the `count` episodes of all processes are in it: the same
    however many processes share them. Episode e is row e // W of process e % W.
    """
    for epoch in range(ppo.num_ppo_epochs):
        generator = torch.Generator().manual_seed(key(seed, "minibatches", step, epoch) % (1 << 63))
        yield from torch.randperm(count, generator=generator).split(count // ppo.num_mini_batches)
