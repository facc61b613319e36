"""Keyed sampling as a logits processor, and stop strings as a stopping criterion, for transformers' `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria


def uniforms(keys: list[int], count: int, device: torch.device) -> torch.Tensor:
    """(len(keys), count) float64 in [0, 1): the first `count` uniforms of each key's Philox stream."""
    rows = [np.random.Generator(np.random.Philox(key=key)).random(count) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(device)


def inverse_cdf(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw by inverse CDF in float64. logits (B, V), uniform (B,) -> token (B,), its log-probability (B,) float32.

    In float64 and with the draw fixed beforehand, a change of batch shape moves a result only where the logits'
    rounding (about 1e-6) straddles the draw. Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        token = logprobs.argmax(dim=-1, keepdim=True)
    else:
        logprobs = torch.log_softmax(logits.double() / temperature, dim=-1)
        cumulative = logprobs.exp().cumsum(dim=-1)
        draw = uniform.unsqueeze(-1) * cumulative[:, -1:]
        # right=True passes over tokens of probability 0, whose cumulative value equals their neighbour's.
        token = torch.searchsorted(cumulative, draw, right=True).clamp(max=logits.size(-1) - 1)
    return token.squeeze(-1), logprobs.gather(-1, token).squeeze(-1).float()


class KeyedSampler(LogitsProcessor):
    """Leaves only the drawn token, so that greedy `generate` follows it. `logprobs`: one (B,) tensor a step."""

    def __init__(self, keys: list[int], max_new_tokens: int, temperature: float, device: torch.device) -> None:
        self.uniforms = uniforms(keys, max_new_tokens, device)
        self.temperature = temperature
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token, logprob = inverse_cdf(scores, self.uniforms[:, len(self.logprobs)], self.temperature)
        self.logprobs.append(logprob)
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(-1, token.unsqueeze(-1), 0.0)  # type: ignore[return-value]


class StopStrings(StoppingCriteria):
    """Ends a row once its decoded tail holds one of its stop strings. `ends`: the tokens it had then, or None."""

    def __init__(self, tokenizer: Any, stops: list[tuple[str, ...]], prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.prompt_length = prompt_length
        # A stop string of n characters spans at most n tokens plus one that starts before it.
        self.window = max((len(stop) for row in stops for stop in row), default=0) + 1
        self.ends: list[int | None] = [None] * len(stops)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        start = max(self.prompt_length, input_ids.size(1) - self.window)
        waiting = [row for row, end in enumerate(self.ends) if end is None and self.stops[row]]
        tails = self.tokenizer.batch_decode(input_ids[waiting, start:], skip_special_tokens=True) if waiting else []
        for row, tail in zip(waiting, tails, strict=True):
            if any(stop in tail for stop in self.stops[row]):
                self.ends[row] = input_ids.size(1) - self.prompt_length
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)  # type: ignore[return-value]
