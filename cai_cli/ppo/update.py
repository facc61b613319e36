"""The PPO update: K epochs of minibatches over one rollout's episodes, for policy and value each with its own optimiser."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.ppo.episodes import Episodes, like_length
from cai_cli.ppo.forward import response_logprobs, response_values
from cai_cli.ppo.models import training_pass
from cai_cli.ranks import rank, world_size
from cai_cli.training.collective import gathered, sum_gradients, total
from cai_cli.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean
from cai_cli.training.pairwise import autocast

NAMES = ("policy_loss", "policy_clipped", "update_kl", "value_loss", "value_clipped")


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
    bf16: bool = False


class Learner:
    """A model with its optimiser and learning-rate schedule."""

    def __init__(self, model: Any, learning_rate: float, schedule: str, warmup: int, updates: int) -> None:
        self.model = model
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=learning_rate,
            betas=(0.9, 0.95),
            eps=1e-5,  # PyTorch adds it after the bias correction; 1e-5 tempers the first steps (arXiv 2403.17031).
            weight_decay=0.0,
            fused=self.parameters[0].device.type in ("cpu", "cuda"),
        )
        self.schedule = get_scheduler(schedule, self.optimizer, warmup, updates)

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def gradient_norm(self, limit: float) -> Tensor:
        """Sum the gradients of all processes and clip them; returns their norm before clipping."""
        sum_gradients(self.parameters)
        return torch.nn.utils.clip_grad_norm_(self.parameters, limit or math.inf)

    def step(self) -> None:
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def update(
    policy: Learner | None,
    value: Learner,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    count: int,
    step: int,
    s: UpdateSettings,
    check_ratio: Callable[[float], None] | None = None,
    graphs: dict[str, Tensor] | None = None,
) -> dict[str, float]:
    """Improve policy and value in place; means of what was measured. Without a policy, the value alone learns.

    episodes, advantages and returns (B, T) are this process's part of the `count` episodes of all. `first_log_ratio`: largest
    |log π - log π_old| of the first minibatch, before any change; `check_ratio` sees it and may stop. `graphs`: log-probabilities
    ("policy") and values (B, T) that the first minibatch need not compute. Raises RunError where a loss or gradient is not
    finite; the weights are then as before that minibatch.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    first_log_ratio: float | None = None
    device = episodes.ids.device
    for index in minibatches(count, step, s, device):
        real = total(episodes.mask[index].sum()).clamp(min=1)
        chosen = episodes.select(index)
        sums = torch.zeros(len(NAMES), device=device)
        largest = torch.zeros((), device=device)
        for micro in like_length(chosen.lengths, s.microbatch) if len(index) else ():
            part, where = chosen.select(micro), index[micro]
            width = part.mask.size(1)
            if width == 0:
                continue  # Not one response token among them.
            share = part.mask.sum() / real
            known = {name: graph[where, :width] for name, graph in (graphs or {}).items()}
            value_stats = value_backward(value.model, part, returns[where, :width], share, s, known.get("value"))
            policy_stats = torch.zeros(3, device=device)
            if policy is not None:
                batch = (part, advantages[where, :width], share, s, known.get("policy"))
                policy_stats, log_ratio = policy_backward(policy.model, *batch)
                largest = torch.maximum(largest, log_ratio)
            sums[:3] += policy_stats
            sums[3:] += value_stats
        graphs = None
        numbers = dict(zip(NAMES, total(sums).tolist(), strict=True))
        if policy is None:
            numbers = {name: number for name, number in numbers.items() if name.startswith("value")}
        else:
            numbers["policy_grad_norm"] = policy.gradient_norm(s.max_grad_norm).item()
        numbers["value_grad_norm"] = value.gradient_norm(s.max_grad_norm).item()
        if first_log_ratio is None:
            first_log_ratio = max(gathered([largest.item()]))
            if check_ratio:
                check_ratio(first_log_ratio)
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise RunError(f"{name} is {number} at step {step}", "lower --learning-rate; the last checkpoint is kept")
            measured[name].append(number)
        if policy is not None:
            policy.step()
        value.step()
    means = {name: sum(found) / len(found) for name, found in measured.items()}
    return {"first_log_ratio": first_log_ratio or 0.0, **means}


def minibatches(count: int, step: int, s: UpdateSettings, device: Any) -> Iterator[Tensor]:
    """For each minibatch of each epoch, which of this process's episodes are in it.

    The order is drawn over the episodes of all processes, of which this one has every W-th: so the minibatches are the same
    however many processes share them.
    """
    for epoch in range(s.epochs):
        generator = torch.Generator().manual_seed(key(s.seed, "minibatches", step, epoch) % (1 << 63))
        order = torch.randperm(count, generator=generator)
        for minibatch in order.split(count // s.minibatches):
            mine = minibatch[minibatch % world_size() == rank()]
            yield (mine // world_size()).to(device)


def policy_backward(
    model: Any, part: Episodes, advantages: Tensor, share: Tensor, s: UpdateSettings, logprobs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add the policy's gradients of one micro-batch, weighted by its `share` of the minibatch's response tokens.

    Returns its part of the minibatch's (loss, clipped, KL to the old policy), and its largest |log π - log π_old|.
    """
    with training_pass(model):
        if logprobs is None:
            with autocast(part.ids.device.type, s.bf16):
                logprobs = response_logprobs(model, part.ids, part.prompt_lengths, part.mask, s.temperature)
        loss, clipped = clipped_policy_loss(logprobs, part.logprobs, advantages, part.mask, s.clip_range)
        (share * loss).backward()
    with torch.no_grad():
        log_ratio = (logprobs - part.logprobs) * part.mask
        moved = masked_mean(log_ratio.exp() - 1 - log_ratio, part.mask)
        return share * torch.stack([loss, clipped, moved]), log_ratio.abs().max()


def value_backward(
    model: Any, part: Episodes, returns: Tensor, share: Tensor, s: UpdateSettings, values: Tensor | None = None
) -> Tensor:
    """The same for the value: its part of the minibatch's (loss, clipped)."""
    with training_pass(model):
        if values is None:
            with autocast(part.ids.device.type, s.bf16):
                values = response_values(model, part.ids, part.prompt_lengths, part.mask)
        loss, clipped = clipped_value_loss(values, part.values, returns, part.mask, s.value_clip_range)
        (share * s.value_coef * loss).backward()
    with torch.no_grad():
        return share * torch.stack([loss, clipped])
