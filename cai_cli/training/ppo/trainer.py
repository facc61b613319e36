"""One step of PPO, as numbered steps: rollout, score, KL penalty, advantages, update. And all state that a
step changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cai_cli.console.messages import warn
from cai_cli.engines.base import Completion, Request
from cai_cli.errors import RunError
from cai_cli.keys import key
from cai_cli.models.adapters import save_trained, trainable_state
from cai_cli.models.finite import check_weights
from cai_cli.models.templates import require_template
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.processes.collective import everywhere, gathered, own_part, total
from cai_cli.processes.ranks import world_size
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.records import Prompt
from cai_cli.training.checkpoints import load_weights
from cai_cli.training.parts import Kept, read_parts, whole_weights
from cai_cli.training.ppo.advantages import (
    KLController,
    explained_variance,
    generalised_advantages,
    sequence_kl,
    token_rewards,
    whiten,
)
from cai_cli.training.ppo.checks import check_agreement
from cai_cli.training.ppo.critic import VALUE, CriticProcess, LocalCritic
from cai_cli.training.ppo.episodes import Episodes, make_episodes, over_episodes, sampled_logprobs
from cai_cli.training.ppo.learner import PolicyLearner
from cai_cli.training.ppo.measures import Episode, mean_rows
from cai_cli.training.ppo.models import load_pair
from cai_cli.training.ppo.rewards import GoldPM, reward_shape
from cai_cli.training.ppo.rollout import Clock, Rollout
from cai_cli.training.ppo.sampler import open_sampler
from cai_cli.training.run_facts import peak_memory

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import Options

# |log π - log π_old| before an update. In float32 rollout and update differ by rounding; elsewhere old
# log-probabilities are computed again and the mean gap to the rollout's is watched.
POLICY = "policy"  # in the parts of a checkpoint
FLOAT32_RATIO, GAP_WARNING, GAP_STOP = 1e-4, 0.02, 0.1


class Trainer:
    """Policy and value learn; reference and preference model are frozen. Every process of a launch has all
    four.

    The critic holds value and preference model, here or in a process of its own (--value-device).
    """

    def __init__(self, options: Options, longest: int) -> None:
        """`longest`: tokens of the longest row there can be."""
        self.options = options
        self.tokenizer = load_tokenizer(options.model)
        require_template(self.tokenizer, f"--model {options.model}")
        check_agreement(options, self.tokenizer, load_tokenizer(options.pm, "--pm"))
        self.pad = int(self.tokenizer.pad_token_id)
        self.shape = reward_shape(options.reward, options.pm)
        models, ppo, reward, seed = options.models, options.ppo, options.reward, options.output.seed
        critic = CriticProcess if models.value_device else LocalCritic
        self.critic: LocalCritic | CriticProcess = critic(options, longest)
        self.policy = load_pair(models, options.model, "CAUSAL_LM", self.tokenizer, longest, seed)
        self.learner = PolicyLearner(
            ppo,
            self.policy,
            seed,
            models,
            ppo.learning_rate,
            max(1, ppo.steps - ppo.critic_warmup_steps),
            options.temperature,
        )
        self.gold: GoldPM | None = None
        if options.gold_pm:
            device, dtype = models.hardware.device, models.hardware.dtype
            self.gold = GoldPM(options.gold_pm, device, dtype, self.learner.pass_rows)
        self.engine = open_sampler(options, self.policy.learner, self.tokenizer)
        # A reply's log-probabilities are those of the pass that is trained only where both compute in
        # float32, and by the same code.
        float32 = self.policy.learner.dtype == torch.float32 and options.engine == "transformers"
        self.recompute = models.bf16 or not float32 or bool(models.adapters.quantize)
        self.warned = self.told_thoughts = False
        self.kl = KLController(reward.kl_coef, reward.target_kl, reward.kl_horizon)
        self.critic.await_models()

    # One step

    def rollout(self, number: int, prompts: list[Prompt], clock: Clock) -> Rollout:
        """Steps 1 and 2 on one reply to each prompt: what was sampled, and what the frozen models and the
        value say of it.
        """
        options = self.options
        # Ours is keyed; for a model that draws by itself.
        torch.manual_seed(key(options.output.seed, "step", number) % (1 << 63))

        # 1. Rollout: one sampled reply for each prompt, with its log-probabilities.
        completions = self.sample([prompt.prompt for prompt in prompts], ("rollout", number))
        self.tell_thoughts(completions)
        clock.lap("generate")

        # 2. Score: the PM reads prompt and reply closed by EOS, and the value function; then the reference's
        # log-probabilities.
        with self.sharing_threads():
            judged = self.critic.call("score_and_value", completions)
            episodes = make_episodes(completions, self.pad, self.policy.learner.device)
            reference = self.reference_logprobs(episodes)
            logprobs, gap = sampled_logprobs(completions, episodes), None
            improves = number >= options.ppo.critic_warmup_steps
            # Beside a critic there is time for what the update would begin with.
            begins = self.critic.apart and improves and self.learner.in_one_pass(episodes)
            if self.recompute or begins:
                again = self.learner.first_outputs(episodes, improves)
                if self.recompute:
                    logprobs, gap = again, self.gap(logprobs, again, episodes.mask)
            golds = (
                self.gold_scores(own_part(prompts), completions)
                if self.gold and not options.eval_prompts
                else []
            )
            scores, found = judged()
        values = torch.from_numpy(found).to(episodes.mask.device)
        shaped = [
            self.shape(score, completion) for score, completion in zip(scores, completions, strict=True)
        ]
        rewards = torch.tensor(shaped, dtype=torch.float32, device=episodes.mask.device)
        kls = sequence_kl(logprobs, reference, episodes.mask).tolist()
        clock.lap("score")
        table = self.table(own_part(prompts), completions, scores, kls, golds)
        return Rollout(completions, episodes, logprobs, reference, values, rewards, table, gap)

    def learn(self, number: int, rollout: Rollout, clock: Clock) -> dict[str, float]:
        """Steps 3 to 5: policy and value improve on the rollout. Returns what goes into metrics.jsonl."""
        options, episodes = self.options, rollout.episodes
        mask, count = episodes.mask, len(rollout.table)

        # 3. KL penalty at each token, the reward at the last one.
        given = (rollout.rewards, rollout.logprobs, rollout.reference_logprobs, mask)
        rewards = token_rewards(*given, self.kl.coefficient)
        if options.reward.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)

        # 4. Advantages.
        advantages, returns = generalised_advantages(
            rewards, rollout.values, mask, options.ppo.gamma, options.ppo.lam
        )
        explained = explained_variance(returns, rollout.values, mask)
        advantages = whiten(advantages, mask)

        # 5. Update policy and value; while the critic warms up, the value alone.
        rate, stats = self.learner.learning_rate, dict[str, float]()
        with self.sharing_threads():
            learned = self.critic.call("learn", returns.cpu().numpy(), count, number)
            if number >= options.ppo.critic_warmup_steps:
                stats = self.learner.improve(
                    episodes, rollout.logprobs, advantages, count, number, self.check_ratio
                )
                stats["first_log_ratio"] = self.learner.first_gap
            stats |= learned()
        clock.lap("update")

        row = {
            **mean_rows(rollout.table),
            "kl_coef": self.kl.coefficient,
            "reward": total(rollout.rewards.sum()).item() / count,
            "explained_variance": explained,
            "learning_rate": rate,
            **({"logprob_gap": rollout.gap} if rollout.gap is not None else {}),
            **stats,
        }
        self.kl.update(rollout.kl, count)
        return row

    # What the steps are made of

    def sample(self, prompts: list[Conversation], purpose: tuple[str | int, ...]) -> list[Completion]:
        """This process's part of one reply to each prompt, keyed by (seed, purpose, place in the batch)."""
        seed, length = self.options.output.seed, self.options.max_new_tokens
        requests = [Request(prompt, key(seed, *purpose, n), length) for n, prompt in enumerate(prompts)]
        self.engine.follow(self.policy.learner)
        # On a CPU the small products of single tokens are faster in float32.
        plain = self.options.engine == "vllm" or self.policy.learner.device.type == "cpu"
        with nullcontext() if plain else self.learner.computing():
            return self.learner.parallel.whole(lambda _: self.engine.generate(own_part(requests)))

    def tell_thoughts(self, completions: list[Completion]) -> None:
        """Warn, the first time, of replies that begin with thoughts: they are scored and trained on."""
        if not self.told_thoughts and any(completion.thinking for completion in completions):
            self.told_thoughts = True
            warn("replies hold thoughts, which --pm reads as part of them: see --chat-template-kwargs")

    def gold_scores(self, prompts: list[Prompt], completions: list[Completion]) -> list[float | None]:
        assert self.gold is not None
        with self.learner.computing():
            return self.gold.score([prompt.prompt for prompt in prompts], [c.text for c in completions])

    def reference_logprobs(self, episodes: Episodes) -> Tensor:
        with self.policy.frozen() as reference:
            outputs = lambda part: self.learner.outputs(part, reference)  # noqa: E731
            return over_episodes(episodes, outputs, self.learner.pass_rows, reference)

    @contextmanager
    def sharing_threads(self) -> Iterator[None]:
        """Within, threads of this CPU are left to a critic that computes on it in a process of its own."""
        threads = torch.get_num_threads()
        if self.critic.threads:
            torch.set_num_threads(max(1, threads - self.critic.threads))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

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
        return gathered(
            [
                Episode(p.id, p.kind, c.text, len(c.token_ids), c.finish_reason, s, k, g)
                for p, c, s, k, g in rows
            ]
        )

    def evaluate(self, prompts: list[Prompt]) -> list[Episode]:
        """One reply to each held-out prompt, the same draws every time, scored."""
        mine = own_part(prompts)
        completions = self.sample([prompt.prompt for prompt in prompts], ("eval",))
        if not mine:
            return gathered([])
        with self.sharing_threads():
            scored = self.critic.call("score", completions)
            golds = self.gold_scores(mine, completions) if self.gold else []
            episodes = make_episodes(completions, self.pad, self.policy.learner.device)
            logprobs, reference = sampled_logprobs(completions, episodes), self.reference_logprobs(episodes)
            scores = scored()
        kl = sequence_kl(logprobs, reference, episodes.mask)
        return self.table(mine, completions, scores, kl.tolist(), golds)

    # Checks

    def gap(self, sampled: Tensor, again: Tensor, mask: Tensor) -> float:
        """Rollout and update must agree on the log-probabilities, on average over the tokens, before anything
        is changed.
        """
        gap = (total(((sampled - again).abs() * mask).sum()) / total(mask.sum())).item()
        self.stop_or_warn(gap, "on average over the tokens", GAP_WARNING)
        return gap

    def check_ratio(self, log_ratio: float) -> None:
        """Before the first minibatch changes anything, its ratios are 1: in float32 up to rounding."""
        if not self.recompute:
            self.stop_or_warn(log_ratio, "at a token", FLOAT32_RATIO)

    def stop_or_warn(self, gap: float, where: str, warning: float) -> None:
        """Stop where rollout and update are at odds; warn, the first time, where they are not quite one."""
        told = f"rollout and update differ by {gap:.3g} in log-probability {where}"
        advice = "compute in float32: --dtype float32, without --bf16 and --quantize"
        if not self.recompute:
            advice = "it is not the dtype: another pass of this architecture gives other outputs; try --attn-implementation eager"
        if gap > GAP_STOP:
            raise RunError(told, advice)
        if gap > warning and not self.warned:
            self.warned = True
            warn(f"{told}: {advice}")

    # State

    def state(self) -> dict[str, Any]:
        """What training changed; draws and the data's order are functions of the step's number. Weights that are in
        parts are not in it (`part`), nor is a whole critic's state (`save_critic`).
        """
        policy: dict[str, Any] = {"parts": self.parts, "schedule": self.learner.schedule.state_dict()}
        if not self.parts:
            policy["whole"] = self.learner.kept()
        value = {"parts": self.parts, "schedule": self.critic.call("schedule")()}
        return {POLICY: policy, VALUE: value, "kl_coef": self.kl.coefficient}

    @property
    def parts(self) -> int:
        """In how many parts the models are; 0 where each process has copies."""
        return world_size() if self.learner.parallel.in_parts else 0

    def part(self) -> dict[str, Kept]:
        """This process's slices of policy and value."""
        return {POLICY: self.learner.kept(), VALUE: self.critic.call("kept")()}

    def save_critic(self, folder: Path) -> None:
        self.critic.call("save", folder)()

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Go on from this state and the parts, or the critic's state, in `folder`."""
        policy = state[POLICY]
        self.learner.load(read_parts(folder, POLICY, policy), policy["schedule"])
        self.kl.coefficient = state["kl_coef"]
        self.critic.call("load", folder, state[VALUE])()

    def peak_memory(self) -> dict[str, float]:
        """Of this process, and of the critic's if it has its own: MiB."""
        of_critic = {"critic_peak_mb": self.critic.call("peak_memory")()} if self.critic.apart else {}
        return {"peak_mb": peak_memory(self.policy.learner.device), **of_critic}

    def close(self) -> None:
        """End the critic's process, if it has one."""
        self.critic.close()

    def policy_weights(self) -> dict[str, Tensor]:
        """The policy's weights that learn, whole on the first process; every process takes part. Raises RunError
        where they are not finite.
        """
        policy = self.policy.learner
        gathered_here = whole_weights(policy, learned=True)
        weights = trainable_state(policy) if gathered_here is None else gathered_here
        everywhere(lambda: check_weights(weights, "the policy"))
        return weights

    def load_policy(self, parts: list[dict[str, Tensor]]) -> None:
        self.learner.parallel.put_weights(parts)

    def load_policy_of(self, checkpoint: Path) -> None:
        """The policy of a checkpoint without its optimiser."""
        state = load_weights(checkpoint)["trainer"][POLICY]
        self.load_policy([kept["model"] for kept in read_parts(checkpoint, POLICY, state)])

    def save_policy(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """`weights`: all of a policy in parts, as `whole_weights` gives them."""
        options = self.options
        whole, adapters = self.policy.whole, options.models.adapters
        save_trained(whole, self.tokenizer, folder, adapters, options.model, "CAUSAL_LM", weights)
