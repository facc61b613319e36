"""Episodes: sampled replies, their log-probabilities, scores and values, as padded tensors.

B episodes, P the longest prompt, T the longest response. Prompts are padded on the left and responses on the right, so the
response columns line up: `ids[:, P:]`. The state before response token t ends at column P+t-1, so logits and values for the
T response tokens are read at columns P-1 ... P+T-2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cai_cli.engines.base import LENGTH, Completion
from cai_cli.engines.batches import left_pad
from cai_cli.models.chat import close_with_eos
from cai_cli.models.score import position_scores, right_pad, score_all


@dataclass(frozen=True, slots=True)
class Episodes:
    """ids, mask (B, P+T); response_mask, logprobs, reference_logprobs, values (B, T); scores (B,), before the KL penalty."""

    ids: Tensor
    mask: Tensor
    response_mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    scores: Tensor

    @property
    def prompt_width(self) -> int:
        return self.ids.size(1) - self.response_mask.size(1)

    def select(self, index: Tensor) -> Episodes:
        """The episodes of `index`, without the columns that only padded the others."""
        response_mask = self.response_mask[index]
        width = int(response_mask.sum(-1).max())
        mask = self.mask[index]
        start = int(mask.argmax(-1).min())
        end = self.prompt_width + width
        return Episodes(
            ids=self.ids[index, start:end],
            mask=mask[:, start:end],
            response_mask=response_mask[:, :width],
            logprobs=self.logprobs[index, :width],
            reference_logprobs=self.reference_logprobs[index, :width],
            values=self.values[index, :width],
            scores=self.scores[index],
        )


def response_logprobs(model: Any, ids: Tensor, mask: Tensor, width: int, temperature: float) -> Tensor:
    """(B, T) float32 log-probabilities of the last `width` columns of `ids` under the sampling temperature.

    No logits are made for prompt tokens.
    """
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=width + 1)
    logits = output.logits[:, :-1].float()
    if temperature not in (0, 1):
        logits = logits / temperature
    # Gather before normalising: one (B, T) result instead of a second (B, T, V) tensor.
    chosen = logits.gather(-1, ids[:, -width:].unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def response_values(model: Any, ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """(B, T) values of the states before each response token."""
    return position_scores(model, ids, mask)[:, -width - 1 : -1]


@torch.no_grad()
def make_episodes(
    completions: list[Completion], reference: Any, value: Any, scores: list[float], temperature: float, pad: int, batch_size: int
) -> Episodes:
    """Tensors of a rollout, with the reference's log-probabilities and the values, computed in batches of like length."""
    device = reference.device
    prompts, prompt_mask = left_pad([c.prompt_ids for c in completions], pad, device)
    responses, response_mask = right_pad([c.token_ids for c in completions], pad, device)
    width = responses.size(1)
    logprobs = torch.tensor(
        [(c.logprobs or []) + [0.0] * (width - len(c.token_ids)) for c in completions], device=device, dtype=torch.float32
    )
    empty = torch.zeros_like(logprobs)
    episodes = Episodes(
        ids=torch.cat([prompts, responses], dim=1),
        mask=torch.cat([prompt_mask, response_mask], dim=1),
        response_mask=response_mask.float(),
        logprobs=logprobs,
        reference_logprobs=empty,
        values=empty.clone(),
        scores=torch.tensor(scores, device=device),
    )
    reference_logprobs, values = empty.clone(), empty.clone()
    for index in like_length(episodes, batch_size):
        part = episodes.select(index)
        columns = part.response_mask.size(1)
        found = response_logprobs(reference, part.ids, part.mask, columns, temperature)
        reference_logprobs[index, :columns] = found * part.response_mask
        values[index, :columns] = response_values(value, part.ids, part.mask, columns) * part.response_mask
    return replace(episodes, reference_logprobs=reference_logprobs, values=values)


def like_length(episodes: Episodes, batch_size: int) -> list[Tensor]:
    """Indices of micro-batches, episodes of similar length together."""
    order = episodes.mask.sum(-1).argsort(stable=True)
    return list(order.split(batch_size))


def score_completions(
    pm: Any, completions: list[Completion], eos: int, pad: int, missing_eos_penalty: float, batch_size: int
) -> tuple[list[float], list[float]]:
    """(PM scores, rewards): the PM reads prompt and response closed by EOS; a reply cut off by length pays the penalty."""
    rows = [close_with_eos(c.prompt_ids + c.token_ids, eos) for c in completions]
    scores = score_all(pm, rows, pad, batch_size)
    rewards = [
        score - (missing_eos_penalty if completion.finish_reason == LENGTH else 0.0)
        for score, completion in zip(scores, completions, strict=True)
    ]
    return scores, rewards
