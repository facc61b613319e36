"""Log-probabilities and values of response tokens: no logits for prompts or padding, never all of a
vocabulary at once.

Rows are prompt + response, padded on the right. Under causal attention what follows a token does not reach
it, so no mask is needed, as a trial of the architecture confirms (`compute/shortcuts.py`); where rows are
packed the padding is not computed at all. The state before response token t of a row whose prompt has
p tokens is that of column p+t-1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cai_cli.compute.logit_chunks import in_chunks
from cai_cli.compute.packed_rows import real_tokens, states_at
from cai_cli.compute.shortcuts import difference, row_states, shortcuts_of, trial_rows, trunk_states
from cai_cli.models.score import score_head


def response_states(model: Any, ids: Tensor, prompt_lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States (N, D) before each of the N real response tokens, and those tokens (N,)."""
    rows, columns, lengths = places_before(prompt_lengths, mask)
    states = states_at(model, ids, lengths, rows, columns, masked=False)
    return states, ids[rows, columns + 1]


def places_before(prompt_lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N,) and columns (N,) of what stands before each response token, and the rows' lengths (B,)."""
    # The N real response tokens row by row, in which order masked_scatter puts results back
    rows, steps = mask.nonzero(as_tuple=True)
    return rows, prompt_lengths[rows] + steps - 1, prompt_lengths + mask.sum(-1).long()


def all_logits(model: Any, ids: Tensor, _: Tensor | None = None) -> Tensor:
    """(B, W, V)."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def token_logprobs(head: Any, states: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """(N,) float32 log-probabilities of tokens (N,) given states (N, D), under the sampling temperature."""

    def part(some_states: Tensor, some_tokens: Tensor) -> Tensor:
        logits = head(some_states).float()
        if temperature not in (0, 1):
            logits = logits / temperature
        return torch.log_softmax(logits, dim=-1).gather(-1, some_tokens.unsqueeze(-1)).squeeze(-1)

    return torch.cat(in_chunks(part, states, tokens, head.weight.size(0)))


def response_logprobs(
    model: Any, ids: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """(B, T) float32 log-probabilities of the response tokens, zero where `mask` is."""
    if has_plain_head(model):
        states, tokens = response_states(model, ids, prompt_lengths, mask)
        found = token_logprobs(model.get_output_embeddings(), states, tokens, temperature)
    else:
        rows, columns, lengths = places_before(prompt_lengths, mask)
        real = real_tokens(ids, lengths)
        logits = row_states(model, ids, real, masked=False, compute=all_logits)[rows, columns]
        found = token_logprobs(LogitsAsTheyAre(logits.size(-1)), logits, ids[rows, columns + 1], temperature)
    return torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask.bool(), found)


def response_values(model: Any, ids: Tensor, prompt_lengths: Tensor, mask: Tensor) -> Tensor:
    """(B, T) float32 values of the states before each response token, zero where `mask` is."""
    states, _ = response_states(model, ids, prompt_lengths, mask)
    head = score_head(model)
    found = head(states.to(head.weight.dtype)).squeeze(-1).float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask.bool(), found)


class LogitsAsTheyAre:
    """Stands in for an output layer where the logits are there already."""

    def __init__(self, size: int) -> None:
        self.weight = torch.empty(size, 0)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits


def has_plain_head(model: Any) -> bool:
    """Whether logits are the output layer on the last hidden state and no more; some architectures scale or
    cap them.
    """

    def attempt() -> tuple[Tensor, Tensor]:
        ids = torch.tensor(trial_rows(model, [24]), device=model.device)
        head = model.get_output_embeddings()
        if head is None:
            raise NotImplementedError("no output layer")
        return head(trunk_states(model, ids, None)), all_logits(model, ids)

    return shortcuts_of(model).allows("the output layer alone", lambda: difference(model, attempt))
