"""What is wrong with the options of PPO whoever runs it, before anything is loaded: `cai ppo` here, or the engine
that `cai export` writes for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cai_cli.console.options import check_training_dtype
from cai_cli.errors import UserError
from cai_cli.models.paths import check_model
from cai_cli.training.ppo.settings import MOST_MOVE
from cai_cli.training.preference.reading import format_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.ppo.settings import Options


def check_options(options: Options) -> None:
    """Raise UserError where models cannot play their parts, or settings do not go together."""
    check_model(options.model, role="language model", trains=True)
    check_model(options.pm, "--pm", "preference model", trains=True)  # the value model starts from it
    if format_of(options.pm) == "qa":
        told = f"--pm {options.pm}: `cai pmp` taught it questions and answers, and replies are chats"
        raise UserError(told, "train it on with `cai train-pm`, or pretrain it with --format chat")
    if options.gold_pm:
        check_model(options.gold_pm, "--gold-pm", "preference model")
    check_training_dtype(options.models.hardware.dtype)
    batch, parts = options.ppo.rollout_batch_size, options.ppo.num_mini_batches
    if batch % parts:
        raise UserError(
            f"--rollout-batch-size {batch} is not divisible by --num-mini-batches {parts}",
            "change one of them",
        )
    if options.ppo.critic_warmup_steps >= options.ppo.steps:
        warmup, steps = options.ppo.critic_warmup_steps, options.ppo.steps
        told = f"--critic-warmup-steps {warmup}: of --steps {steps} none is left for the policy"
        raise UserError(told, "lower it, or raise --steps")
    check_kl_target(options)
    if options.track.load_best_model_at_end and not (options.eval_prompts or options.gold_pm):
        told = "--load-best-model-at-end: nothing is held out to find the best policy by"
        raise UserError(told, "give --eval-prompts, or a --gold-pm that measures")
    adapters = options.models.adapters
    if adapters.lora_dropout:
        told = f"--lora-dropout {adapters.lora_dropout:g}: PPO needs the same log-probabilities twice"
        raise UserError(told, "leave it at 0")
    if adapters.lora and options.models.frozen_dtype != "auto":
        raise UserError(
            "--frozen-dtype: with --lora frozen and trained model are one backbone",
            "use --dtype, or --quantize",
        )


def check_kl_target(options: Options) -> None:
    """Raise UserError where the coefficient could not be moved towards the target, or past 0 to a bonus."""
    reward, batch = options.reward, options.ppo.rollout_batch_size
    if reward.target_kl is None:
        return
    if reward.target_kl <= 0:
        told = f"--target-kl {reward.target_kl:g}: a policy that learns has some KL"
        raise UserError(told, "give nats a reply, such as 6")
    if reward.kl_coef == 0:
        told = "--target-kl with --kl-coef 0: the coefficient is moved by shares of itself, and stays 0"
        raise UserError(told, "give one to begin with, such as 0.05")
    if MOST_MOVE * batch >= reward.kl_horizon:
        told = f"--kl-horizon {reward.kl_horizon}: a step of {batch} episodes could turn the coefficient negative"
        raise UserError(told, f"give more than {MOST_MOVE * batch:g}, such as 10000")


def check_agreement(options: Options, own: PreTrainedTokenizerBase, pms: PreTrainedTokenizerBase) -> None:
    """Policy and preference model read the same ids in the same template, or the scores mean nothing."""
    from cai_cli.models.chat import vocabulary_hash
    from cai_cli.models.templates import template_hash

    for name, of in (("vocabulary", vocabulary_hash), ("chat template", template_hash)):
        if of(own) != of(pms):
            raise UserError(
                f"--pm {options.pm}: its {name} is not that of --model {options.model}",
                "train the preference model from the same base model as the policy",
            )
