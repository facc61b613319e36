"""SL-CAI + preference model + prompts -> RL-CAI: proximal policy optimisation against the preference model.

    cai ppo --model sl-cai/ --pm pm/ --prompts red-team.jsonl --prompts helpful.jsonl --out rl-cai/

Paper section 4.2, with the settings of arXiv 2204.05862 (section 4.1, appendix B.1) and the details of arXiv 2403.17031.
The policy starts from SL-CAI, which is also the reference of the KL penalty; the value function is a copy of the preference
model that is trained along. Deviations: the KL coefficient defaults to 0.05, not 0.001, since a per-token penalty of that
size keeps small policies from collapsing; the score lands on the last generated token; replies cut off by length pay
`--missing-eos-penalty`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cai_cli.artifact import ModelArtifact
from cai_cli.errors import UserError
from cai_cli.manifest import parse_weight
from cai_cli.models.load import check_model
from cai_cli.options import INPUT, MODEL, RUNTIME, DeviceOptions, OutputOptions, flag
from cai_cli.prompt_files import read_prompts
from cai_cli.prompt_mix import mixed_prompts
from cai_cli.records import Prompt
from cai_cli.talk import progress, say, warn


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions, OutputOptions):
    model: Annotated[str, flag("Model", "SL-CAI: where the policy starts, and the reference."), MODEL]
    pm: Annotated[str, flag("Model", "The preference model; the value function starts from it too."), MODEL]
    prompts: Annotated[
        list[str], flag("Data", "Prompts (as for `cai sample`), FILE[:proportion of the batch]. Repeatable."), INPUT
    ]
    eval_prompts: Annotated[list[str] | None, flag("Data", "Held-out prompts, sampled and scored every --eval-steps."), INPUT] = (
        None
    )
    steps: Annotated[int, flag("Optimisation", "Rollouts, each followed by an update.", min=1)] = 200
    rollout_batch_size: Annotated[int, flag("Optimisation", "Episodes a step.", min=1)] = 128
    num_ppo_epochs: Annotated[int, flag("Optimisation", "Passes over each rollout (paper's K: 1 to 4).", min=1)] = 2
    num_mini_batches: Annotated[int, flag("Optimisation", "Optimiser steps a pass.", min=1)] = 2
    per_device_train_batch_size: Annotated[int, flag("Optimisation", "Episodes per forward and backward pass.", min=1)] = 32
    learning_rate: Annotated[float, flag("Optimisation", "Of the policy; falls linearly to 0.", min=0.0)] = 1e-6
    value_learning_rate: Annotated[
        float | None, flag("Optimisation", "Of the value function; --learning-rate if not given.", min=0.0)
    ] = None
    max_grad_norm: Annotated[float, flag("Optimisation", "Gradient clipping, policy and value apart; 0: off.", min=0.0)] = 1.0
    kl_coef: Annotated[float, flag("PPO", "Weight of the per-token KL penalty (paper: 0.001).", min=0.0)] = 0.05
    target_kl: Annotated[
        float | None, flag("PPO", "Adapt the coefficient so that the KL a reply stays near this (nats).", min=0.0)
    ] = None
    max_kl: Annotated[float, flag("PPO", "Stop when the mean KL a reply exceeds this (nats).", min=0.0)] = 50.0
    clip_range: Annotated[float, flag("PPO", "Clip range of the policy ratio.", min=0.0)] = 0.2
    value_clip_range: Annotated[float, flag("PPO", "Clip range of the value.", min=0.0)] = 0.2
    value_coef: Annotated[float, flag("PPO", "Weight of the value loss.", min=0.0)] = 0.1
    gamma: Annotated[float, flag("PPO", "Discount (paper: 1).", min=0.0, max=1.0)] = 1.0
    lam: Annotated[float, flag("PPO", "GAE's lambda.", min=0.0, max=1.0)] = 0.95
    missing_eos_penalty: Annotated[float, flag("PPO", "Taken off the score of a reply cut off by length.", min=0.0)] = 1.0
    max_new_tokens: Annotated[int, flag("Generation", "Longest reply (paper: 128).", min=1)] = 128
    temperature: Annotated[float, flag("Generation", "Sampling temperature (paper: 1).", min=0.01)] = 1.0
    batch_size: Annotated[int, flag("Generation", "Requests per forward pass; does not change texts.", min=1), RUNTIME] = 128
    eval_steps: Annotated[int, flag("Output", "Steps between evaluations on --eval-prompts.", min=1)] = 10
    save_steps: Annotated[int, flag("Output", "Steps between checkpoints; a killed run goes on from the last.", min=1)] = 20


def run(options: Options) -> None:
    """Train the policy against the preference model (paper section 4.2).

    Example: cai ppo --model sl-cai/ --pm pm/ --prompts red-team.jsonl --prompts helpful.jsonl --out rl-cai/
    """
    check_options(options)
    artifact = ModelArtifact("ppo", options)
    if artifact.done:
        return
    sources = [(read_prompts([source]), parse_weight(source)[1]) for source in options.prompts]
    schedule = mixed_prompts(sources, options.steps * options.rollout_batch_size, options.seed)
    eval_prompts = read_prompts(options.eval_prompts) if options.eval_prompts else []
    if options.dry_run:
        dry_run(options, schedule)
        return

    from cai_cli.ppo.trainer import Trainer
    from cai_cli.training.facts import model_facts
    from cai_cli.training.pairwise import MetricsFile

    trainer = Trainer(options)
    artifact.start()
    step = trainer.resume(artifact.checkpoints)
    if step:
        say(f"{options.out}: continuing from step {step}")
    stopped, final = None, {}
    with progress("ppo", options.steps, step) as advance, MetricsFile(artifact.metrics_file, step) as metrics:
        if eval_prompts and step == 0:
            metrics.write({"step": 0, **trainer.evaluate(eval_prompts)})
        while step < options.steps and stopped is None:
            prompts = schedule[step * options.rollout_batch_size : (step + 1) * options.rollout_batch_size]
            row = trainer.step(step, prompts)
            step += 1
            if row["kl"] > options.max_kl:
                stopped = f"KL {row['kl']:.1f} is above --max-kl {options.max_kl:g} at step {step}"
                warn(f"{stopped}: stopping here")
            if eval_prompts and (step % options.eval_steps == 0 or step == options.steps or stopped):
                final = trainer.evaluate(eval_prompts)
                row |= final
            metrics.write({"step": step, **row})
            advance(1, f"score {row['score']:.2f}, KL {row['kl']:.2f}, {row['length']:.0f} tokens")
            if step % options.save_steps == 0 and step < options.steps:
                trainer.save(artifact.checkpoints, step)
    artifact.finish(
        trainer.save_policy,
        steps_done=step,
        stopped=stopped,
        kl_coef=trainer.kl.coefficient,
        evaluation=final,
        **model_facts(trainer.policy, trainer.tokenizer),
    )


def check_options(options: Options) -> None:
    check_model(options.model)
    check_model(options.pm, "--pm")
    if options.rollout_batch_size % options.num_mini_batches:
        raise UserError(
            f"--rollout-batch-size {options.rollout_batch_size} is not divisible by --num-mini-batches "
            f"{options.num_mini_batches}",
            "change one of them",
        )
    if options.target_kl == 0:
        raise UserError("--target-kl 0: a policy that learns has some KL", "give the nats a reply may have, such as 6")


def dry_run(options: Options, schedule: list[Prompt]) -> None:
    """Show the first prompt exactly as the policy would get it, and the amount of work."""
    from cai_cli.models.chat import Renderer
    from cai_cli.models.load import load_tokenizer

    print(Renderer(load_tokenizer(options.model)).render(schedule[0].prompt))  # noqa: T201
    distinct = len({prompt.id for prompt in schedule})
    say(f"{options.steps} steps of {options.rollout_batch_size} episodes, {distinct} distinct prompts")
