"""SL-CAI + preference model + prompts -> RL-CAI: proximal policy optimisation against the preference model.

    cai ppo --model sl-cai/ --pm pm/ --prompts red-team.jsonl --prompts helpful.jsonl --eval-prompts held-out.jsonl --out rl-cai/
    torchrun --nproc-per-node 4 -m cai_cli ppo ...        each process rolls out and learns from its part of the batch

Paper section 4.2, with the settings of arXiv 2204.05862 (section 4.1, appendix B.1) and the details of arXiv
2403.17031. The policy starts from SL-CAI, which is also the reference of the KL penalty; the value function
starts from the preference model. A step's numbered parts are in `training/ppo/trainer.py`. Deviations: the KL
coefficient defaults to 0.05, not 0.001, since a per-token penalty of that size keeps small policies from
collapsing; the score lands on the last generated token; replies cut off by length pay
`--missing-eos-penalty`; the run stops where the KL exceeds `--max-kl`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected, reasons_text
from cai_cli.console.messages import say, show_text, tell_next, warn_all
from cai_cli.console.options import check_training_dtype
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.cautions import held_out_cautions
from cai_cli.models.devices import check_attention, check_device
from cai_cli.models.paths import check_model
from cai_cli.processes.ranks import check_quantize, world_size
from cai_cli.rows.prompt_files import Known, read_prompts
from cai_cli.rows.prompt_mix import mixed_prompts
from cai_cli.rows.records import Prompt
from cai_cli.rows.sources import parse_weight
from cai_cli.training.ppo.sampler import check_sampler
from cai_cli.training.ppo.settings import Options as Options
from cai_cli.training.trackers import check_trackers

if TYPE_CHECKING:
    from cai_cli.models.chat import Renderer


def run(options: Options) -> None:
    """Train the policy against the preference model (paper section 4.2).

    Example: cai ppo --model sl-cai/ --pm pm/ --prompts red-team.jsonl --prompts helpful.jsonl --out rl-cai/
    """
    check_options(options)
    check_quantize(options.models.adapters.quantize)
    artifact = ModelArtifact("ppo", options)
    if artifact.done:
        return
    check_device(options.models.hardware.device, options.output.dry_run)
    check_attention(options.models.attn_implementation, options.output.dry_run)
    # A prompt that is in two sources counts in both; an id means one prompt in all of them.
    known = Known()
    sources = [(read_prompts([source], known=known), parse_weight(source)[1]) for source in options.prompts]
    eval_prompts = read_prompts(options.eval_prompts, known=known) if options.eval_prompts else []

    from cai_cli.models.chat import Renderer
    from cai_cli.models.configs import context_length, load_config
    from cai_cli.models.tokenizers import load_tokenizer

    renderer = Renderer(load_tokenizer(options.model), f"--model {options.model}")
    room = context_length(load_config(options.model)) - options.max_new_tokens
    rejected: list[Rejected] = []
    sources = [(fitting(prompts, renderer, room, rejected), proportion) for prompts, proportion in sources]
    eval_prompts = fitting(eval_prompts, renderer, room, rejected)
    check_rejects(options, sources, rejected)
    learned = [prompt.id for prompts, _ in sources for prompt in prompts]
    shared = warn_all(held_out_cautions([prompt.id for prompt in eval_prompts], learned))
    schedule = mixed_prompts(sources, options.ppo.steps * options.ppo.rollout_batch_size, options.output.seed)
    if options.output.dry_run:
        dry_run(options, renderer, schedule, rejected)
        return

    from cai_cli.training.ppo.run import optimise

    optimise(artifact, options, renderer, schedule, eval_prompts, len(learned), rejected, shared)
    tell_next(
        "cai sample --model",
        options.output.out,
        "--prompts",
        "TEST.jsonl",
        "--out",
        options.output.out.parent / "replies.jsonl",
    )


def check_options(options: Options) -> None:
    check_model(options.model, role="language model")
    check_model(options.pm, "--pm", "preference model")
    if options.gold_pm:
        check_model(options.gold_pm, "--gold-pm", "preference model")
    check_training_dtype(options.models.hardware.dtype)
    check_value_device(options)
    check_sampler(options)
    if options.ppo.rollout_batch_size < world_size():
        told = f"--rollout-batch-size {options.ppo.rollout_batch_size}: there are {world_size()} processes"
        raise UserError(told, "give each at least one episode")
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
    if options.reward.target_kl is not None and options.reward.target_kl <= 0:
        raise UserError(
            f"--target-kl {options.reward.target_kl:g}: a policy that learns has some KL",
            "give nats a reply, such as 6",
        )
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
    check_trackers(options.report.report_to)


def check_value_device(options: Options) -> None:
    """Raise UserError where the critic's process could not do its work."""
    device = options.models.value_device
    if device is None:
        return
    from cai_cli.models.devices import pick_device

    pick_device(device, "--value-device")
    if world_size() > 1:
        told = f"--value-device {device}: there are {world_size()} processes, each with a critic of its own"
        raise UserError(told, "give it to a run of one process, or leave it out")


def fitting(prompts: list[Prompt], renderer: Renderer, room: int, rejected: list[Rejected]) -> list[Prompt]:
    """The prompts that leave room for a reply; the others are added to `rejected` by name, never cut."""
    from cai_cli.models.templates import UnfitRow

    kept = []
    for prompt in prompts:
        try:
            length = len(renderer.encode(prompt.prompt))
            if length > room:
                raise UnfitRow(
                    "prompt_too_long",
                    f"{length} tokens, the context leaves {max(room, 0)} before --max-new-tokens",
                )
        except UnfitRow as error:
            rejected.append(Rejected(prompt.id, error.reason, error.detail, prompt.to_row()))
            continue
        kept.append(prompt)
    return kept


def check_rejects(
    options: Options, sources: list[tuple[list[Prompt], float]], rejected: list[Rejected]
) -> None:
    """Stop where a source has nothing left, or too much of the prompts is gone."""
    why = reasons_text(Counter(item.reason for item in rejected))
    hint = "lower --max-new-tokens, or shorten the prompts"
    for name, (prompts, _) in zip(options.prompts, sources, strict=True):
        if not prompts:
            raise RunError(f"{name}: none of its prompts can be used ({why})", hint)
    kept = sum(len(prompts) for prompts, _ in sources)
    rate = len(rejected) / (kept + len(rejected))
    if rate > options.max_reject_rate:
        told = f"{len(rejected)} of {kept + len(rejected)} prompts cannot be used ({why})"
        raise RunError(told, f"{hint}; --max-reject-rate raises the bar (now {options.max_reject_rate:g})")


def dry_run(options: Options, renderer: Renderer, schedule: list[Prompt], rejected: list[Rejected]) -> None:
    """Show the first prompt exactly as the policy would get it, and the amount of work and memory."""
    from cai_cli.training.ppo.models import held_bytes

    show_text(renderer.show(schedule[0].prompt))
    steps, batch = options.ppo.steps, options.ppo.rollout_batch_size
    tokens = sum(len(renderer.encode(prompt.prompt)) for prompt in schedule[:batch])
    most, distinct = batch * options.max_new_tokens, len({prompt.id for prompt in schedule})
    held = held_bytes(options.models, options.model, options.pm) / 1e9
    say(
        f"{steps} steps of {batch} episodes, {distinct} distinct prompts; about {tokens} prompt tokens a step "
        f"and at most {most} of replies; {len(rejected)} prompts would be rejected"
    )
    say(f"the four models with gradients and optimiser: about {held:.2f} GB, and activations")
