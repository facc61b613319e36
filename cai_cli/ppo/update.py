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
from cai_cli.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean


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
    Raises RunError where a loss is not finite; the weights are then as before the minibatch.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    size = len(episodes.ids) // s.minibatches
    for epoch in range(s.epochs):
        generator = torch.Generator().manual_seed(key(s.seed, "minibatches", step, epoch) % (1 << 63))
        order = torch.randperm(len(episodes.ids), generator=generator).to(episodes.ids.device)
        for minibatch in order.split(size):
            real = episodes.response_mask[minibatch].sum()
            chosen = episodes.select(minibatch)
            for micro in like_length(chosen, s.microbatch):
                part = chosen.select(micro)
                index = minibatch[micro]
                width = part.response_mask.size(1)
                stats = backward(policy, value, part, advantages[index, :width], returns[index, :width], real, s)
                for name, number in stats.items():
                    measured[name].append(number)
            if not math.isfinite(measured["loss"][-1]):
                optimizer.zero_grad(set_to_none=True)
                raise RunError(f"the loss is {measured['loss'][-1]} at step {step}", "lower --learning-rate; the checkpoint is kept")
            for name, model in (("policy_grad_norm", policy), ("value_grad_norm", value)):
                limit = s.max_grad_norm or math.inf
                measured[name].append(torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    first = measured.pop("log_ratio")[0]
    return {"first_log_ratio": first, **{name: sum(numbers) / len(numbers) for name, numbers in measured.items()}}


def backward(
    policy: Any, value: Any, part: Episodes, advantages: Tensor, returns: Tensor, real: Tensor, s: UpdateSettings
) -> dict[str, float]:
    """Add the gradients of one micro-batch, weighted by its share of the minibatch's `real` response tokens."""
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
    return {
        "loss": (policy_loss + s.value_coef * value_loss).item(),
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "policy_clipped": policy_clipped.item(),
        "value_clipped": value_clipped.item(),
        "update_kl": ratio_kl.item(),
        "log_ratio": log_ratio.abs().max().item(),
    }
