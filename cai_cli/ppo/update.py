"""The PPO update: K epochs of minibatches over one rollout's episodes."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.ppo.episodes import Episodes, like_length, response_logprobs, response_values
from cai_cli.talk import warn
from cai_cli.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean

# Largest |log π - log π_old| before an update: worth a warning; a fault. In float32 it is rounding, about 1e-6.
RATIO_WARNING, RATIO_STOP = 0.02, 0.1


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    seed: int
    epochs: int
    minibatches: int
    microbatch: int
    clip_range: float
    value_clip_range: float
    value_coef: float
    max_grad_norm: float
    temperature: float


def update(
    policy: Any,
    value: Any,
    optimizer: Any,
    schedule: Any,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    step: int,
    s: UpdateSettings,
) -> dict[str, float]:
    """Improve policy and value in place on (B, T) advantages and returns; means of what was measured.

    `first_log_ratio`: largest |log π - log π_old| of the first minibatch, before any change: 0 up to rounding.
    Raises RunError where that is too large, or where a loss or gradient is not finite; the weights are then as before the
    minibatch.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    first_log_ratio = None
    size = len(episodes.ids) // s.minibatches
    for epoch in range(s.epochs):
        generator = torch.Generator().manual_seed(key(s.seed, "minibatches", step, epoch) % (1 << 63))
        order = torch.randperm(len(episodes.ids), generator=generator).to(episodes.ids.device)
        for minibatch in order.split(size):
            real = episodes.response_mask[minibatch].sum()
            chosen = episodes.select(minibatch)
            totals: dict[str, float] = defaultdict(float)
            log_ratios = []
            for micro in like_length(chosen, s.microbatch):
                part = chosen.select(micro)
                index = minibatch[micro]
                width = part.response_mask.size(1)
                stats, log_ratio = backward(policy, value, part, advantages[index, :width], returns[index, :width], real, s)
                log_ratios.append(log_ratio)
                for name, number in stats.items():
                    totals[name] += number
            for name, model in (("policy_grad_norm", policy), ("value_grad_norm", value)):
                limit = s.max_grad_norm or math.inf
                totals[name] = torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
            if first_log_ratio is None:
                first_log_ratio = max(log_ratios)
                check_ratio(first_log_ratio)
            for name, number in totals.items():
                if not math.isfinite(number):
                    optimizer.zero_grad(set_to_none=True)
                    raise RunError(f"{name} is {number} at step {step}", "lower --learning-rate; the checkpoint is kept")
                measured[name].append(number)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    means = {name: sum(numbers) / len(numbers) for name, numbers in measured.items()}
    return {"first_log_ratio": first_log_ratio or 0.0, **means}


def check_ratio(log_ratio: float) -> None:
    """Rollout and update must agree on the log-probabilities before anything is changed."""
    advice = "compute in float32 (--dtype float32)"
    if log_ratio > RATIO_STOP:
        raise RunError(f"rollout and update differ by {log_ratio:.3g} in log-probability", advice)
    if log_ratio > RATIO_WARNING:
        warn(f"rollout and update differ by {log_ratio:.3g} in log-probability: {advice}")


def backward(
    policy: Any, value: Any, part: Episodes, advantages: Tensor, returns: Tensor, real: Tensor, s: UpdateSettings
) -> tuple[dict[str, float], float]:
    """Add the gradients of one micro-batch, weighted by its share of the minibatch's `real` response tokens.

    Returns its part of the minibatch's measures, weighted alike, and its largest |log π - log π_old|.
    """
    mask = part.response_mask
    share = mask.sum() / real
    logprobs = response_logprobs(policy, part.ids, part.mask, mask.size(1), s.temperature)
    policy_loss, policy_clipped = clipped_policy_loss(logprobs, part.logprobs, advantages, mask, s.clip_range)
    values = response_values(value, part.ids, part.mask, mask.size(1))
    value_loss, value_clipped = clipped_value_loss(values, part.values, returns, mask, s.value_clip_range)
    (share * policy_loss).backward()
    (share * s.value_coef * value_loss).backward()
    with torch.no_grad():
        log_ratio = (logprobs - part.logprobs) * mask
        ratio_kl = masked_mean(log_ratio.exp() - 1 - log_ratio, mask)
        measured = {
            "loss": policy_loss + s.value_coef * value_loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "policy_clipped": policy_clipped,
            "value_clipped": value_clipped,
            "update_kl": ratio_kl,
        }
        numbers = (torch.stack(list(measured.values())) * share).tolist()
    return dict(zip(measured, numbers, strict=True)), log_ratio.abs().max().item()
