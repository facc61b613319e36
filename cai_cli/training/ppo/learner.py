"""What learns from a rollout: a model with its optimiser, in K epochs of minibatches over the episodes.

Policy and value learn apart from each other, each from its own losses: they share no weight and no optimiser.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cai_cli.compute.batches import like_size
from cai_cli.compute.packed_rows import training_pass
from cai_cli.compute.products import fast_products
from cai_cli.errors import RunError
from cai_cli.models.devices import training_dtype
from cai_cli.models.finite import advice, check_weights
from cai_cli.processes.collective import everywhere, gathered, total
from cai_cli.processes.ranks import rank, world_size
from cai_cli.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean
from cai_cli.training.modes import autocast
from cai_cli.training.optimiser import make_optimizer, make_schedule
from cai_cli.training.parallel import Passes
from cai_cli.training.parts import Kept
from cai_cli.training.ppo.episodes import Episodes, minibatches, one_token, over_episodes
from cai_cli.training.ppo.forward import response_logprobs, response_values
from cai_cli.training.ppo.models import Pair
from cai_cli.training.zero import prepared

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import ModelOptions, PPOOptions


class Learner(ABC):
    """The learning half of a pair. Subclasses say what it gives for each response token, and what its loss
    is.
    """

    name: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]  # what `loss` returns

    def __init__(
        self,
        ppo: PPOOptions,
        pair: Pair,
        seed: int,
        models: ModelOptions,
        learning_rate: float,
        steps: int,
    ) -> None:
        """`steps`: how often it will improve."""
        self.ppo = ppo
        self.seed, self.bf16 = seed, models.bf16
        self.pair = pair
        self.model = pair.learner
        # An eps of 1e-5 tempers the first steps (arXiv 2403.17031).
        learns = partial(make_optimizer, learning_rate=learning_rate, eps=1e-5)
        hardware = models.hardware
        dtype = training_dtype(hardware.dtype, models.bf16, models.adapters.lora)
        self.parallel = pair.passes = prepared(self.model, learns, hardware.device, dtype)
        updates = ppo.num_ppo_epochs * ppo.num_mini_batches
        optimizer, warmup = self.parallel.optimizer, ppo.warmup_steps * updates
        self.schedule = make_schedule(ppo.lr_scheduler_type, optimizer, warmup, steps * updates)
        self.graph: Tensor | None = None
        self.first_gap = 0.0

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    @property
    def weight(self) -> float:
        """Of its loss."""
        return 1.0

    @property
    def pass_rows(self) -> int:
        """Rows of a pass without gradients."""
        return 4 * self.ppo.per_device_train_batch_size

    @abstractmethod
    def outputs(self, part: Episodes, passes: Passes | None = None) -> Tensor:
        """(B, T) float32: what this model, or another of its kind, gives for each response token."""

    @abstractmethod
    def loss(self, outputs: Tensor, old: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The loss and what else is measured of (B, T): scalars, in the order of `measures`."""

    def in_one_pass(self, episodes: Episodes) -> bool:
        """Whether one micro-batch is a whole epoch, on every process: then the first takes over the pass of
        `first_outputs`, with its graph. Not in parts, which other passes gather and give back in between.
        """
        if self.ppo.num_mini_batches > 1 or self.parallel.in_parts:
            return False
        return max(gathered([len(episodes.ids)])) <= self.ppo.per_device_train_batch_size

    def first_outputs(self, episodes: Episodes, improves: bool = True) -> Tensor:
        """(B, T): the outputs before it `improves`, if it does: else a graph would be held for nothing."""
        if not improves or not self.in_one_pass(episodes):
            return over_episodes(episodes, self.outputs, self.pass_rows, self.parallel)
        with fast_products(self.model), training_pass(self.model):
            self.graph = self.outputs(episodes)
        return self.graph.detach()

    def improve(
        self,
        episodes: Episodes,
        old: Tensor,
        target: Tensor,
        count: int,
        step: int,
        check: Callable[[float], None] | None = None,
    ) -> dict[str, float]:
        """Improve the model in place on this process's part of the `count` episodes of all; means of what was
        measured.

        old, target (B, T): the outputs before, and what the loss takes beside them. `first_gap` becomes the
        largest |outputs - old| of the first minibatch, before anything changes; `check` sees it and may stop
        the run. Raises RunError where a loss or gradient is not finite; the weights are then as before that
        minibatch.
        """
        graph, self.graph = self.graph, None
        measured: dict[str, list[float]] = defaultdict(list)
        for number, index in enumerate(self.minibatches(count, step, episodes.ids.device)):
            # Response tokens of the whole minibatch, on all processes: each micro-batch's mean is weighted by its
            # part of them, so that the sum is the minibatch's mean, however it is cut.
            real = total(episodes.mask[index].sum()).clamp(min=1)
            chosen = episodes.select(index)
            sums = torch.zeros(len(self.measures), device=index.device)
            largest = torch.zeros((), device=index.device)
            sizes = like_size(chosen.lengths.tolist(), self.ppo.per_device_train_batch_size)
            # Those with a response token among them
            micros = self.parallel.learning([micro for micro in sizes if bool(chosen.mask[micro].any())], [])
            for place, (micro, counts) in enumerate(micros):
                with self.parallel.one_pass(last=place == len(micros) - 1):
                    if not counts:
                        self.backward_nothing(episodes)
                        continue
                    # part: micro-batch rows, cut to their longest response; where (b,): their rows in (B, T) tables
                    part, where = chosen.select(micro), index[micro]
                    width = part.mask.size(1)
                    share = part.mask.sum() / real
                    # The pass before the update, with its graph: backward goes through it instead of a second one.
                    known = None if graph is None else graph[where, :width]
                    found, gap = self.backward(part, old[where, :width], target[where, :width], share, known)
                sums += found
                largest = torch.maximum(largest, gap)
            graph = None
            numbers = dict(zip(self.measures, total(sums).tolist(), strict=True))
            if number == 0:
                self.first_gap = max(gathered([largest.item()]))
                if check:
                    check(self.first_gap)
            numbers[f"{self.name}_grad_norm"] = self.parallel.clip(self.ppo.max_grad_norm)
            for name, value in numbers.items():
                if not math.isfinite(value):
                    raise RunError(
                        f"{name} is {value} at step {step}",
                        advice(self.model, step + number, self.bf16),
                    )
                measured[name].append(value)
            self.parallel.step()
            self.schedule.step()
        return {name: sum(found) / len(found) for name, found in measured.items()}

    def minibatches(self, count: int, step: int, device: Any) -> Iterator[Tensor]:
        """For each minibatch of each epoch, which of this process's episodes are in it."""
        for minibatch in minibatches(self.ppo, self.seed, step, count):
            mine = minibatch[minibatch % world_size() == rank()]
            yield (mine // world_size()).to(device)

    def backward(
        self, part: Episodes, old: Tensor, target: Tensor, share: Tensor, outputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of one micro-batch, weighted by its `share` of the minibatch's response tokens.

        Returns its part of the minibatch's measures, and its largest |outputs - old|.
        """
        with fast_products(self.model), training_pass(self.model):
            if outputs is None:
                outputs = self.outputs(part)
            found = torch.stack(self.loss(outputs, old, target, part.mask))
            self.parallel.backward(share * self.weight * found[0])
        return share * found.detach(), ((outputs.detach() - old) * part.mask).abs().max()

    def backward_nothing(self, episodes: Episodes) -> None:
        """A pass that adds nothing, for those of other processes that wait for it."""
        with fast_products(self.model), training_pass(self.model):
            self.parallel.backward(0 * self.outputs(one_token(episodes)).sum())

    def computing(self) -> Any:
        return autocast(self.model.device.type, self.bf16)

    def kept(self) -> Kept:
        """This process's slices of the weights that learn and of the optimiser's. Raises RunError where one is not
        finite.
        """
        kept = self.parallel.kept()
        check = partial(check_weights, kept["model"], f"the {self.name}")
        if self.parallel.in_parts:
            everywhere(check)
        else:  # by the first process alone
            check()
        return kept

    def load(self, parts: list[Kept], schedule: dict[str, Any]) -> None:
        self.schedule.load_state_dict(schedule)
        self.parallel.put_back(parts)


class PolicyLearner(Learner):
    """Log-probabilities, improved by advantages. Measures too how far the policy has moved from the
    rollout's: a KL in nats.
    """

    name = "policy"
    measures = ("policy_loss", "policy_clipped", "update_kl")

    def __init__(
        self,
        ppo: PPOOptions,
        pair: Pair,
        seed: int,
        models: ModelOptions,
        learning_rate: float,
        steps: int,
        temperature: float,
    ) -> None:
        """`temperature`: at which replies are sampled; log-probabilities are those under it."""
        super().__init__(ppo, pair, seed, models, learning_rate, steps)
        self.temperature = temperature

    def outputs(self, part: Episodes, passes: Passes | None = None) -> Tensor:
        passes = passes or self.parallel
        with self.computing(), fast_products(passes.model):
            given = (part.ids, part.prompt_lengths, part.mask, self.temperature)
            found: Tensor = passes.run(response_logprobs, *given)
            return found

    def loss(self, outputs: Tensor, old: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        loss, clipped = clipped_policy_loss(outputs, old, target, mask, self.ppo.clip_range)
        log_ratio = ((outputs - old) * mask).detach()
        return loss, clipped, masked_mean(log_ratio.exp() - 1 - log_ratio, mask)


class ValueLearner(Learner):
    """Values, improved towards returns."""

    name = "value"
    measures = ("value_loss", "value_clipped")

    @property
    def weight(self) -> float:
        return self.ppo.value_coef

    def outputs(self, part: Episodes, passes: Passes | None = None) -> Tensor:
        passes = passes or self.parallel
        with self.computing(), fast_products(passes.model):
            found: Tensor = passes.run(response_values, part.ids, part.prompt_lengths, part.mask)
            return found

    def loss(self, outputs: Tensor, old: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return clipped_value_loss(outputs, old, target, mask, self.ppo.value_clip_range)
