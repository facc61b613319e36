"""The four models of PPO and one step of it: rollout, score, KL, advantages, update."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_scheduler

from cai_cli.conversation import Conversation
from cai_cli.engines.base import LENGTH, OVERLONG, Completion, Request
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.errors import RunError, UserError
from cai_cli.keys import key
from cai_cli.models.chat import require_template, template_hash, vocabulary_hash
from cai_cli.models.load import load_lm, load_pm, load_tokenizer, training_dtype
from cai_cli.ppo.episodes import make_episodes, score_completions
from cai_cli.ppo.update import UpdateSettings, update
from cai_cli.records import Prompt
from cai_cli.training.advantages import KLController, generalised_advantages, sequence_kl, token_rewards, whiten
from cai_cli.training.checkpoints import load_checkpoint, save_checkpoint
from cai_cli.training.pairwise import disable_dropout

if TYPE_CHECKING:
    from cai_cli.stages.ppo import Options


class Trainer:
    """Policy and value learn; reference and preference model are frozen."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tokenizer = load_tokenizer(options.model)
        require_template(self.tokenizer, f"--model {options.model}")
        self.check_agreement(load_tokenizer(options.pm, "--pm"))
        self.pad, self.eos = int(self.tokenizer.pad_token_id), int(self.tokenizer.eos_token_id)
        dtype = training_dtype(options.dtype)
        self.policy = load_lm(options.model, options.device, dtype, tokenizer=self.tokenizer)
        self.pm = load_pm(options.pm, options.device, dtype, tokenizer=self.tokenizer)
        self.reference = copy.deepcopy(self.policy)
        self.value = copy.deepcopy(self.pm)
        for model in (self.reference, self.pm):
            model.requires_grad_(False)
        for model in (self.policy, self.value):
            disable_dropout(model)
        self.engine = TransformersEngine(self.policy, self.tokenizer, options.temperature, options.batch_size)
        self.reference.generation_config = self.policy.generation_config
        groups: list[dict[str, Any]] = [
            {"params": self.policy.parameters()},
            {"params": self.value.parameters(), "lr": options.value_learning_rate or options.learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            betas=(0.9, 0.95),
            eps=1e-5,  # PyTorch adds it after the bias correction; 1e-5 tempers the first steps (arXiv 2403.17031).
            weight_decay=0.0,
        )
        updates = options.steps * options.num_ppo_epochs * options.num_mini_batches
        self.schedule = get_scheduler("linear", self.optimizer, 0, updates)
        self.kl = KLController(options.kl_coef, options.target_kl)
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
        )

    def check_agreement(self, pm_tokenizer: Any) -> None:
        """Policy and preference model read the same ids in the same template, or the scores mean nothing."""
        for name, of in (("vocabulary", vocabulary_hash), ("chat template", template_hash)):
            if of(self.tokenizer) != of(pm_tokenizer):
                raise UserError(
                    f"--pm {self.options.pm}: its {name} is not that of --model {self.options.model}",
                    "train the preference model from the same base model as the policy",
                )

    def step(self, number: int, prompts: list[Prompt]) -> dict[str, float]:
        """One step of PPO on one reply to each prompt; returns what goes into metrics.jsonl."""
        options = self.options
        clock = Clock()

        # 1. Rollout: one sampled reply for each prompt, with its log-probabilities.
        completions = self.sample([prompt.prompt for prompt in prompts], ("rollout", number))
        clock.lap("generate")

        # 2. Score: the PM reads prompt and reply closed by EOS; then the reference's log-probabilities, and the values.
        size = 4 * options.per_device_train_batch_size
        scores, rewards = score_completions(self.pm, completions, self.eos, self.pad, options.missing_eos_penalty, size)
        episodes = make_episodes(completions, self.reference, self.value, rewards, options.temperature, self.pad, size)
        clock.lap("score")

        # 3. KL penalty at each token, the score at the last one.
        mask = episodes.response_mask
        kl = sequence_kl(episodes.logprobs, episodes.reference_logprobs, mask).mean().item()
        token_level = token_rewards(episodes.scores, episodes.logprobs, episodes.reference_logprobs, mask, self.kl.coefficient)

        # 4. Advantages.
        advantages, returns = generalised_advantages(token_level, episodes.values, mask, options.gamma, options.lam)
        advantages = whiten(advantages, mask)

        # 5. Update policy and value.
        stats = update(
            self.policy, self.value, self.optimizer, self.schedule, episodes, advantages, returns, number, self.settings
        )
        clock.lap("update")

        row = {
            "score": mean(scores),
            "kl": kl,
            "kl_coef": self.kl.coefficient,
            "length": mean(len(c.token_ids) for c in completions),
            "missing_eos": mean(c.finish_reason == LENGTH for c in completions),
            "learning_rate": self.schedule.get_last_lr()[0],
            **stats,
            **clock.seconds,
        }
        self.kl.update(kl, len(prompts))
        return row

    def sample(self, prompts: list[Conversation], purpose: tuple[str | int, ...]) -> list[Completion]:
        """One reply for each prompt, keyed by (seed, purpose, place in the batch)."""
        requests = [
            Request(prompt, key(self.options.seed, *purpose, n), self.options.max_new_tokens) for n, prompt in enumerate(prompts)
        ]
        completions = self.engine.generate(requests)
        for prompt, completion in zip(prompts, completions, strict=True):
            if completion.finish_reason == OVERLONG:
                raise RunError(
                    f"a prompt of {len(completion.prompt_ids)} tokens leaves no room for {self.options.max_new_tokens} more: "
                    f"{prompt[-1]['content'][:80]!r}",
                    f"the model's context is {self.engine.context}; drop the prompt or lower --max-new-tokens",
                )
        return completions

    def evaluate(self, prompts: list[Prompt]) -> dict[str, float]:
        """Mean score and length of one reply for each held-out prompt, the same draws every time; by kind too."""
        completions = self.sample([prompt.prompt for prompt in prompts], ("eval",))
        size = 4 * self.options.per_device_train_batch_size
        scores, _ = score_completions(self.pm, completions, self.eos, self.pad, 0.0, size)
        row = {"eval_score": mean(scores), "eval_length": mean(len(c.token_ids) for c in completions)}
        for kind in sorted({prompt.kind for prompt in prompts if prompt.kind}):
            row[f"eval_score_{kind}"] = mean(s for s, prompt in zip(scores, prompts, strict=True) if prompt.kind == kind)
        return row

    # State

    def save(self, folder: Path, step: int) -> None:
        state = {
            "policy": self.policy.state_dict(),
            "value": self.value.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "kl_coef": self.kl.coefficient,
        }
        save_checkpoint(folder, step, state)

    def resume(self, folder: Path) -> int:
        """Take up the last complete checkpoint, if any; returns the step to go on from."""
        found = load_checkpoint(folder)
        if found is None:
            return 0
        step, state = found
        self.policy.load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.kl.coefficient = state["kl_coef"]
        return step

    def save_policy(self, folder: Path) -> None:
        self.policy.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[f"seconds_{name}"] = round(now - self.last, 4)
        self.last = now
