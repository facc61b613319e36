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

from typing import TYPE_CHECKING

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected
from cai_cli.console.messages import say, show_text, tell_next
from cai_cli.errors import UserError
from cai_cli.models.devices import check_attention, check_device
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.ranks import check_quantize, world_size
from cai_cli.rows.records import Prompt
from cai_cli.training.ppo.checks import check_options
from cai_cli.training.ppo.prompts import read_sources, room, run_prompts
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
    check_run(options)
    artifact = ModelArtifact("ppo", options)
    if artifact.done:
        return
    check_device(options.models.hardware.device, options.output.dry_run)
    check_attention(options.models.attn_implementation, options.output.dry_run)
    sources, held_out = read_sources(options)

    from cai_cli.models.chat import Renderer
    from cai_cli.models.tokenizers import load_tokenizer

    words = template_kwargs(options.chat_template_kwargs)
    renderer = Renderer(load_tokenizer(options.model), f"--model {options.model}", words)
    prompts = run_prompts(options, sources, held_out, renderer, room(options))
    if options.output.dry_run:
        dry_run(options, renderer, prompts.schedule, prompts.rejected)
        return

    from cai_cli.training.ppo.run import optimise

    optimise(artifact, options, renderer, prompts)
    tell_next(
        "cai sample --model",
        options.output.out,
        "--prompts",
        "TEST.jsonl",
        "--out",
        options.output.out.parent / "replies.jsonl",
    )


def check_run(options: Options) -> None:
    """Raise UserError for what this machine's processes could not do."""
    check_quantize(options.models.adapters.quantize)
    check_value_device(options)
    check_sampler(options)
    if options.ppo.rollout_batch_size < world_size():
        told = f"--rollout-batch-size {options.ppo.rollout_batch_size}: there are {world_size()} processes"
        raise UserError(told, "give each at least one episode")
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


def dry_run(options: Options, renderer: Renderer, schedule: list[Prompt], rejected: list[Rejected]) -> None:
    """Show the first prompt exactly as the policy would get it, and the amount of work and memory."""
    from cai_cli.training.memory.told import tell_ppo

    show_text(renderer.show(schedule[0].prompt))
    steps, batch = options.ppo.steps, options.ppo.rollout_batch_size
    lengths = [len(renderer.encode(prompt.prompt)) for prompt in schedule]
    tokens = sum(lengths[:batch])
    most, distinct = batch * options.max_new_tokens, len({prompt.id for prompt in schedule})
    say(
        f"{steps} steps of {batch} episodes, {distinct} distinct prompts; about {tokens} prompt tokens a step "
        f"and at most {most} of replies; {len(rejected)} prompts would be rejected"
    )
    tell_ppo(options, lengths)
