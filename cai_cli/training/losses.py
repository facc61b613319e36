"""Losses: tensors in, tensors out. B sequences, P pairs, T response positions; masks are 1.0 where a position
counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def soft_pairwise_loss(chosen_scores: Tensor, rejected_scores: Tensor, probability: Tensor) -> Tensor:
    """(P,) cross-entropy of the Bradley-Terry model against soft labels.

    -p log σ(Δ) - (1-p) log σ(-Δ), Δ = chosen score - rejected score; p = 1 gives the usual log(1 + e^-Δ). The
    formula is written out in RLAIF (arXiv 2309.00267) section 2.2.1; the CAI paper trains on the same soft
    labels.
    """
    difference = chosen_scores - rejected_scores
    return -(probability * logsigmoid(difference) + (1 - probability) * logsigmoid(-difference))


def centring_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """(P,) squared sum of a pair's scores: only differences matter to the pairwise loss, this one holds their
    mean at zero.

    As in TRL's `center_rewards_coefficient` (arXiv 2312.09244).
    """
    return (chosen_scores + rejected_scores) ** 2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that count: scalar."""
    return (values * mask).sum() / mask.sum()


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, negated, and the share of positions where the clip binds; all inputs (B, T).

    max(-A r, -A clip(r, 1-ε, 1+ε)) with r = exp(logp - old logp) (arXiv 1707.06347, equation 7).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return masked_mean(torch.maximum(unclipped, clipped), mask), masked_mean(
        (clipped > unclipped).float(), mask
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """0.5 max((V-R)², (clip(V, V_old±ε)-R)²) and the share of positions where the clip binds; all inputs (B,
    T).
    """
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * masked_mean(torch.maximum(unclipped, clipped), mask), masked_mean(
        (clipped > unclipped).float(), mask
    )
