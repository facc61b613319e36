"""One step of PPO, as numbered steps: rollout, score, KL penalty, advantages, update. And all state that a step changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cai_cli.conversation import Conversation
from cai_cli.engines.base import Completion, Request
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.errors import RunError, UserError
from cai_cli.keys import key
from cai_cli.models.adapters import load_trainable_state, save_trained, trainable_state
from cai_cli.models.chat import require_template, template_hash, vocabulary_hash
from cai_cli.models.load import load_tokenizer
from cai_cli.models.packing import where_it_can
from cai_cli.ppo.episodes import Episodes, make_episodes, over_episodes, with_passes
from cai_cli.ppo.forward import response_logprobs, response_values
from cai_cli.ppo.measures import Episode, mean_rows
from cai_cli.ppo.models import load_pair, training_pass
from cai_cli.ppo.rewards import GoldPM, reward_shape, score_completions
from cai_cli.ppo.update import Learner, UpdateSettings, update
from cai_cli.records import Prompt
from cai_cli.talk import warn
from cai_cli.training.advantages import KLController, generalised_advantages, sequence_kl, token_rewards, whiten
from cai_cli.training.collective import gathered, own_part, total
from cai_cli.training.pairwise import autocast

if TYPE_CHECKING:
    from cai_cli.stages.ppo import Options

# |log π - log π_old| before an update. In float32 rollout and update differ by rounding; elsewhere old log-probabilities are
# computed again and the mean gap to the rollout's is watched.
FLOAT32_RATIO, GAP_WARNING, GAP_STOP = 1e-4, 0.02, 0.1


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sampled replies of this process, and what is known of each episode of all processes (`table`, in batch order).

    `gap`: mean |log π - log π_rollout| where old log-probabilities were computed again. `graphs`: what the learners ("policy",
    "value") gave, still to be differentiated, where their first minibatch can take it from here.
    """

    completions: list[Completion]
    episodes: Episodes
    table: list[Episode]
    gap: float | None = None
    graphs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kl(self) -> float:
        """Mean KL of a reply to the reference, in nats."""
        return sum(episode.kl for episode in self.table) / len(self.table)


class Trainer:
    """Policy and value learn; reference and preference model are frozen. Every process of a launch has all four."""

    def __init__(self, options: Options, longest: int) -> None:
        """`longest`: tokens of the longest row there can be."""
        self.options = options
        self.tokenizer = load_tokenizer(options.model)
        require_template(self.tokenizer, f"--model {options.model}")
        self.check_agreement(load_tokenizer(options.pm, "--pm"))
        self.pad, self.eos = int(self.tokenizer.pad_token_id), int(self.tokenizer.eos_token_id)
        self.shape = reward_shape(options)
        self.policy = load_pair(options, "CAUSAL_LM", self.tokenizer, longest)
        self.value = load_pair(options, "SEQ_CLS", self.tokenizer, longest)
        self.size = 4 * options.per_device_train_batch_size  # Rows of a pass without gradients.
        self.gold = GoldPM(options.gold_pm, options.device, options.dtype, self.size) if options.gold_pm else None
        self.engine = TransformersEngine(self.policy.learner, self.tokenizer, options.temperature, options.batch_size)
        # A reply's log-probabilities are those of the pass that is trained only where both compute in float32.
        self.recompute = options.bf16 or self.policy.learner.dtype != torch.float32 or bool(options.quantize)
        per_step = options.num_ppo_epochs * options.num_mini_batches
        policy_steps = max(1, options.steps - options.critic_warmup_steps)
        value_rate = options.learning_rate if options.value_learning_rate is None else options.value_learning_rate
        schedule, warmup = options.schedule, options.warmup_steps * per_step
        self.learners = {
            "policy": Learner(self.policy.learner, options.learning_rate, schedule, warmup, policy_steps * per_step),
            "value": Learner(self.value.learner, value_rate, schedule, warmup, options.steps * per_step),
        }
        self.warned = False
        self.kl = KLController(options.kl_coef, options.target_kl, options.kl_horizon)
        self.settings = UpdateSettings(
            seed=options.seed,
            epochs=options.num_ppo_epochs,
            minibatches=options.num_mini_batches,
            microbatch=options.per_device_train_batch_size,
            clip_range=options.clip_range,
            value_clip_range=options.value_clip_range,
            value_coef=options.value_coef,
            max_grad_norm=options.max_grad_norm,
            temperature=options.temperature,
            bf16=options.bf16,
        )

    def check_agreement(self, pm_tokenizer: Any) -> None:
        """Policy and preference model read the same ids in the same template, or the scores mean nothing."""
        for name, of in (("vocabulary", vocabulary_hash), ("chat template", template_hash)):
            if of(self.tokenizer) != of(pm_tokenizer):
                raise UserError(
                    f"--pm {self.options.pm}: its {name} is not that of --model {self.options.model}",
                    "train the preference model from the same base model as the policy",
                )

    # One step

    def rollout(self, number: int, prompts: list[Prompt], clock: Clock) -> Rollout:
        """Steps 1 and 2 on one reply to each prompt: what was sampled, and what the frozen models and the value say of it."""
        options = self.options
        torch.manual_seed(key(options.seed, "step", number) % (1 << 63))  # Ours is keyed; for a model that draws by itself.

        # 1. Rollout: one sampled reply for each prompt, with its log-probabilities.
        completions = self.sample([prompt.prompt for prompt in prompts], ("rollout", number))
        clock.lap("generate")

        # 2. Score: the PM reads prompt and reply closed by EOS; then the reference's log-probabilities, and the values.
        scores = self.scores(completions)
        golds = self.gold_scores(own_part(prompts), completions) if self.gold and not options.eval_prompts else []
        rewards = [self.shape(score, c.finish_reason) for score, c in zip(scores, completions, strict=True)]
        episodes = make_episodes(completions, rewards, self.pad, self.policy.learner.device)
        with self.autocast():
            reference = self.reference_logprobs(episodes)
            passes = {"value": self.first_pass(episodes, self.value.learner, self.value_of)}
            if self.recompute:
                passes["policy"] = self.first_pass(episodes, self.policy.learner, self.logprobs_of)
        values = passes["value"].detach()
        again = passes["policy"].detach() if self.recompute else None
        gap = None if again is None else self.gap(episodes, again)
        episodes = with_passes(episodes, reference, values, again)
        kls = sequence_kl(episodes.logprobs, episodes.reference_logprobs, episodes.mask).tolist()
        clock.lap("score")
        graphs = {name: tensor for name, tensor in passes.items() if tensor.requires_grad}
        return Rollout(completions, episodes, self.table(own_part(prompts), completions, scores, kls, golds), gap, graphs)

    def learn(self, number: int, rollout: Rollout, clock: Clock) -> dict[str, float]:
        """Steps 3 to 5: policy and value improve on the rollout. Returns what goes into metrics.jsonl."""
        options, episodes = self.options, rollout.episodes
        mask = episodes.mask

        # 3. KL penalty at each token, the reward at the last one.
        rewards = token_rewards(episodes.rewards, episodes.logprobs, episodes.reference_logprobs, mask, self.kl.coefficient)
        if options.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)

        # 4. Advantages.
        advantages, returns = generalised_advantages(rewards, episodes.values, mask, options.gamma, options.lam)
        explained = explained_variance(returns, episodes.values, mask)
        advantages = whiten(advantages, mask)

        # 5. Update policy and value; while the critic warms up, the value alone.
        warm = number >= options.critic_warmup_steps
        policy = self.learners["policy"] if warm else None
        rate = self.learners["policy"].learning_rate
        batch = (episodes, advantages, returns, len(rollout.table))
        stats = update(policy, self.learners["value"], *batch, number, self.settings, self.check_ratio, rollout.graphs)
        clock.lap("update")

        row = {
            **mean_rows(rollout.table),
            "kl_coef": self.kl.coefficient,
            "reward": total(episodes.rewards.sum()).item() / len(rollout.table),
            "explained_variance": explained,
            "learning_rate": rate,
            **({"logprob_gap": rollout.gap} if rollout.gap is not None else {}),
            **stats,
        }
        self.kl.update(rollout.kl, len(rollout.table))
        return row

    # What the steps are made of

    def sample(self, prompts: list[Conversation], purpose: tuple[str | int, ...]) -> list[Completion]:
        """This process's part of one reply to each prompt, keyed by (seed, purpose, place in the batch)."""
        seed, length = self.options.seed, self.options.max_new_tokens
        requests = [Request(prompt, key(seed, *purpose, n), length) for n, prompt in enumerate(prompts)]
        # On a CPU the small products of single tokens are faster in float32.
        with nullcontext() if self.policy.learner.device.type == "cpu" else self.autocast():
            return self.engine.generate(own_part(requests))

    def scores(self, completions: list[Completion]) -> list[float]:
        with self.value.frozen() as pm, where_it_can(pm), self.autocast():
            return score_completions(pm, completions, self.eos, self.pad, self.size)

    def gold_scores(self, prompts: list[Prompt], completions: list[Completion]) -> list[float | None]:
        assert self.gold is not None
        with self.autocast():
            return self.gold.score([prompt.prompt for prompt in prompts], [c.text for c in completions])

    def reference_logprobs(self, episodes: Episodes) -> Tensor:
        with self.policy.frozen() as reference:
            return over_episodes(episodes, lambda part: self.logprobs_of(part, reference), self.size)

    def first_pass(self, episodes: Episodes, model: Any, compute: Callable[[Episodes], Tensor]) -> Tensor:
        """(B, T) of what a learner gives before the update; with its graph where one micro-batch is the whole minibatch.

        The first epoch then has it already.
        """
        if self.settings.minibatches > 1 or len(episodes.ids) > self.settings.microbatch:
            return over_episodes(episodes, compute, self.size)
        with training_pass(model):
            return compute(episodes)

    def logprobs_of(self, part: Episodes, model: Any = None) -> Tensor:
        model = model or self.policy.learner
        with where_it_can(model):
            return response_logprobs(model, part.ids, part.prompt_lengths, part.mask, self.options.temperature)

    def value_of(self, part: Episodes) -> Tensor:
        with where_it_can(self.value.learner):
            return response_values(self.value.learner, part.ids, part.prompt_lengths, part.mask)

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.policy.learner.device.type, self.options.bf16)

    def table(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        scores: list[float],
        kls: list[float],
        golds: list[float | None],
    ) -> list[Episode]:
        """What is known of each episode of all processes, in the order of the batch."""
        golds = golds or [None] * len(prompts)
        rows = zip(prompts, completions, scores, kls, golds, strict=True)
        return gathered([Episode(p.id, p.kind, c.text, len(c.token_ids), c.finish_reason, s, k, g) for p, c, s, k, g in rows])

    def evaluate(self, prompts: list[Prompt]) -> list[Episode]:
        """One reply to each held-out prompt, the same draws every time, scored."""
        mine = own_part(prompts)
        completions = self.sample([prompt.prompt for prompt in prompts], ("eval",))
        if not mine:
            return gathered([])
        scores = self.scores(completions)
        golds = self.gold_scores(mine, completions) if self.gold else []
        episodes = make_episodes(completions, scores, self.pad, self.policy.learner.device)
        with self.autocast():
            kl = sequence_kl(episodes.logprobs, self.reference_logprobs(episodes), episodes.mask)
        return self.table(mine, completions, scores, kl.tolist(), golds)

    # Checks

    def gap(self, episodes: Episodes, again: Tensor) -> float:
        """Rollout and update must agree on the log-probabilities, on average over the tokens, before anything is changed."""
        differences = (episodes.logprobs - again).abs() * episodes.mask
        gap = (total(differences.sum()) / total(episodes.mask.sum())).item()
        self.judge(gap, "on average over the tokens", GAP_WARNING)
        return gap

    def check_ratio(self, log_ratio: float) -> None:
        """Before the first minibatch changes anything, its ratios are 1: in float32 up to rounding."""
        if not self.recompute:
            self.judge(log_ratio, "at a token", FLOAT32_RATIO)

    def judge(self, gap: float, where: str, warning: float) -> None:
        """Stop where rollout and update are at odds; warn, the first time, where they are not quite one."""
        told = f"rollout and update differ by {gap:.3g} in log-probability {where}"
        advice = "compute in float32: --dtype float32, without --bf16"
        if gap > GAP_STOP:
            raise RunError(told, advice)
        if gap > warning and not self.warned:
            self.warned = True
            warn(f"{told}: {advice}")

    # State

    def state(self) -> dict[str, Any]:
        """Everything that training changed; draws and the data's order are functions of the step's number."""
        return {
            "policy": trainable_state(self.policy.learner),
            "value": trainable_state(self.value.learner),
            "learners": {name: learner.state() for name, learner in self.learners.items()},
            "kl_coef": self.kl.coefficient,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.load_policy(state["policy"])
        load_trainable_state(self.value.learner, state["value"])
        for name, learner in self.learners.items():
            learner.load(state["learners"][name])
        self.kl.coefficient = state["kl_coef"]

    def load_policy(self, state: dict[str, Tensor]) -> None:
        load_trainable_state(self.policy.learner, state)

    def save_policy(self, folder: Path) -> None:
        save_trained(self.policy.whole, self.tokenizer, folder, self.options, self.options.model, "CAUSAL_LM")


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the real positions of all processes: 1 is a perfect value function, 0 a constant one."""
    count = total(mask.sum())

    def variance(of: Tensor) -> Tensor:
        mean = total((of * mask).sum()) / count
        return total((((of - mean) ** 2) * mask).sum()) / count

    return (1 - variance(returns - values) / variance(returns).clamp(min=1e-8)).item()


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self.last, 4)
        self.last = now
