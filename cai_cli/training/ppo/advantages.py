"""Rewards, advantages and KL for PPO: pure functions on (B, T) tensors of response positions, masks 1.0 where
real.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cai_cli.processes.collective import total
from cai_cli.training.ppo.settings import MOST_MOVE


def token_rewards(
    scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """(B, T): -kl_coef (log π - log π_ref) at each token, plus the sequence's score (B,) at its last real
    token.

    A row without a token has nothing to reward: zeros.
    """
    rewards = -kl_coef * (logprobs - reference_logprobs) * mask
    last = (mask.sum(-1).long() - 1).clamp(min=0)  # (B,), 0 in a row without a token: masked below
    return rewards.scatter_add(-1, last.unsqueeze(-1), scores.unsqueeze(-1)) * mask


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE: A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t, with V = 0 after the last token (arXiv
    1506.02438).

    All (B, T); values[t] is V of the state before token t. Returns advantages and returns (A + V), zero where
    masked.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards.size(1))):
        # Past a row's end the mask keeps both carried terms at zero.
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
        next_value = values[:, t] * mask[:, t]
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 (biased, as in arXiv 2403.17031) and, unless told otherwise, mean 0 over the real
    positions.

    Of several processes, over the real positions of all of them.
    """
    count = total(mask.sum())
    mean = total((values * mask).sum()) / count
    variance = total((((values - mean) ** 2) * mask).sum()) / count
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if shift_mean else scaled + mean) * mask


def sequence_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(B,) the k1 estimate of KL(π‖π_ref) of each sampled sequence: Σ_t log π - log π_ref, in nats."""
    return ((logprobs - reference_logprobs) * mask).sum(-1)


class KLController:
    """The KL coefficient: fixed, or adapted so that the sequence KL stays near a target (arXiv 1909.08593,
    section 2.2).
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000) -> None:
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        if self.target is not None:
            error = min(max(kl / self.target - 1, -MOST_MOVE), MOST_MOVE)
            self.coefficient *= 1 + error * episodes / self.horizon


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the real positions of all processes: 1 is a perfect value function, 0 a
    constant one.
    """
    count = total(mask.sum())

    def variance(of: Tensor) -> Tensor:
        mean = total((of * mask).sum()) / count
        return total((((of - mean) ** 2) * mask).sum()) / count

    return (1 - variance(returns - values) / variance(returns).clamp(min=1e-8)).item()
