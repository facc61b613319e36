"""The prompts of a PPO run: read, those that do not fit put aside by name, and mixed into the order of its
episodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai_cli.artifacts.rejects import Rejected, reasons_text
from cai_cli.console.messages import warn_all
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.cautions import held_out_cautions
from cai_cli.models.configs import context_length, load_config
from cai_cli.models.templates import UnfitRow
from cai_cli.processes.ranks import by_deepspeed, by_fsdp, world_size
from cai_cli.rows.prompt_files import Known, read_prompts
from cai_cli.rows.prompt_mix import mixed_prompts
from cai_cli.rows.records import Prompt
from cai_cli.rows.sources import parse_weight

if TYPE_CHECKING:
    from cai_cli.models.chat import Renderer
    from cai_cli.training.ppo.settings import Options

Source = tuple[list[Prompt], float]

SHORTER = "lower --max-new-tokens, or shorten the prompts"
CLOSING = 2  # tokens that close a reply for the preference model: an end of turn, and EOS


@dataclass(frozen=True, slots=True)
class RunPrompts:
    """`schedule`: the prompt of each episode of all steps; `held_out`: of the evaluations; `kept`: how many fit;
    `cautions`: what has been warned of.
    """

    schedule: list[Prompt]
    held_out: list[Prompt]
    kept: int
    rejected: list[Rejected]
    cautions: list[str]


def read_sources(options: Options) -> tuple[list[Source], list[Prompt]]:
    """The prompts of each of --prompts with its proportion, and those of --eval-prompts.

    A prompt that is in two sources counts in both; an id means one prompt in all of them.
    """
    known = Known()
    sources = [(read_prompts([source], known=known), parse_weight(source)[1]) for source in options.prompts]
    return sources, read_prompts(options.eval_prompts, known=known) if options.eval_prompts else []


def room(options: Options) -> int:
    """The most tokens of a prompt that leave room for a reply, both for the policy, which writes it, and for the
    preference model, which reads it closed.
    """
    writes = context_length(load_config(options.model))
    reads = context_length(load_config(options.pm, "--pm")) - CLOSING
    return min(writes, reads) - options.max_new_tokens


def run_prompts(
    options: Options, sources: list[Source], held_out: list[Prompt], renderer: Renderer, longest: int
) -> RunPrompts:
    """Those that have at most `longest` tokens."""
    rejected: list[Rejected] = []
    sources = [(fitting(prompts, renderer, longest, rejected), proportion) for prompts, proportion in sources]
    unmeasured: list[Rejected] = []
    measured = fitting(held_out, renderer, longest, unmeasured)
    if held_out and not measured:  # with them would go the scores, the guard and the best policy
        why = reasons_text(Counter(item.reason for item in unmeasured))
        raise RunError(f"--eval-prompts: none of its prompts can be used ({why})", SHORTER)
    rejected += unmeasured
    check_rejects(options, sources, rejected)
    check_held_out(measured)
    learned = [prompt.id for prompts, _ in sources for prompt in prompts]
    cautions = warn_all(held_out_cautions([prompt.id for prompt in measured], learned))
    schedule = mixed_prompts(sources, options.ppo.steps * options.ppo.rollout_batch_size, options.output.seed)
    return RunPrompts(schedule, measured, len(learned), rejected, cautions)


def fitting(
    prompts: list[Prompt], renderer: Renderer, longest: int, rejected: list[Rejected]
) -> list[Prompt]:
    """The prompts that leave room for a reply; the others are added to `rejected` by name, never cut."""
    kept = []
    for prompt in prompts:
        try:
            length = len(renderer.encode(prompt.prompt))
            if length > longest:
                raise UnfitRow(
                    "prompt_too_long",
                    f"{length} tokens, the context leaves {max(longest, 0)} before --max-new-tokens",
                )
        except UnfitRow as error:
            rejected.append(Rejected(prompt.id, error.reason, error.detail, prompt.to_row()))
            continue
        kept.append(prompt)
    return kept


def check_held_out(held_out: list[Prompt]) -> None:
    """Raise UserError where a process would have none while the others pass through a model that it holds a part of."""
    if (by_fsdp() or by_deepspeed()) and 0 < len(held_out) < world_size():
        told = (
            f"--eval-prompts: {len(held_out)} prompts for {world_size()} processes that hold a model together"
        )
        raise UserError(told, "give each process one")


def check_rejects(options: Options, sources: list[Source], rejected: list[Rejected]) -> None:
    """Stop where a source has nothing left, or too much of the prompts is gone."""
    why = reasons_text(Counter(item.reason for item in rejected))
    for name, (prompts, _) in zip(options.prompts, sources, strict=True):
        if not prompts:
            raise RunError(f"{name}: none of its prompts can be used ({why})", SHORTER)
    kept = sum(len(prompts) for prompts, _ in sources)
    rate = len(rejected) / (kept + len(rejected))
    if rate > options.max_reject_rate:
        told = f"{len(rejected)} of {kept + len(rejected)} prompts cannot be used ({why})"
        raise RunError(told, f"{SHORTER}; --max-reject-rate raises the bar (now {options.max_reject_rate:g})")
