"""Keyed sampling: the uniforms of a key, and a draw by inverse CDF."""

from __future__ import annotations

import numpy as np
import torch

from cai_cli.models.devices import exact_place


def uniforms(keys: list[int], count: int, device: torch.device) -> torch.Tensor:
    """(len(keys), count) float64 in [0, 1): the first `count` uniforms of each key's Philox stream; on the CPU
    for a device without float64.
    """
    rows = [np.random.Generator(np.random.Philox(key=key)).random(count) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(exact_place(device))


def inverse_cdf(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw by inverse CDF in float64. logits (B, V), uniform (B,) -> token (B,), its log-probability (B,)
    float32, where the logits are.

    In float64 and with the draw fixed beforehand, a change of batch shape moves a result only where the
    logits' rounding (about 1e-6) straddles the draw. Temperature 0 takes the most likely token.
    """
    device, place = logits.device, exact_place(logits.device)
    logits = logits.to(place).double()
    if temperature == 0:
        logprobs = torch.log_softmax(logits, dim=-1)
        token = logprobs.argmax(dim=-1, keepdim=True)
    else:
        logprobs = torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        cumulative = logprobs.exp().cumsum(dim=-1)
        draw = uniform.to(place).unsqueeze(-1) * cumulative[:, -1:]
        # right=True passes over tokens of probability 0, whose cumulative value equals their neighbour's.
        token = torch.searchsorted(cumulative, draw, right=True).clamp(max=logits.size(-1) - 1)
    chosen = logprobs.gather(-1, token).squeeze(-1).float()
    return token.squeeze(-1).to(device), chosen.to(device)
