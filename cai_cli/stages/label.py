"""SL-CAI + prompts (or existing pairs) + feedback model + constitution -> comparisons.jsonl: soft AI-feedback
labels.

    cai label --model sl-cai/ --prompts red-team.jsonl --feedback-model base/ --constitution article --out comparisons.jsonl

Paper section 4.1: two replies a prompt at T=1; the feedback model gets a multiple-choice question with one
principle drawn for the pair; the label is the softmax of the log-probabilities of the whole option strings `
(A)` and ` (B)`. With --cot it reasons first, and the label is clamped. Beside the rows lie a manifest with
the diagnostics and their picture, OUT.png. Deviations, marked in --help: both orders of the options are asked
and averaged (`--orders`), since small judges prefer a position; a pair for which the two options hold almost
no probability (`--min-mass`) is rejected; no demonstrations by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cai_cli.artifacts.chunks import Told
from cai_cli.artifacts.rows import RowArtifact, Settled
from cai_cli.console.messages import say, show_text
from cai_cli.console.options import (
    check_draws,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.open import check_engine
from cai_cli.engines.segments import SegmentSettings, attempts_at
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.cautions import CAUTIONED, label_cautions
from cai_cli.feedback.diagnostics import show
from cai_cli.feedback.judge import Inquiry, judge_pairs, masses_by_format, mean_mass
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.pairs import check_pairs, read_pairs
from cai_cli.feedback.replies import draw_replies
from cai_cli.feedback.self_judge import check_author, check_two_models
from cai_cli.feedback.settings import Options as Options
from cai_cli.models.devices import check_device
from cai_cli.models.templates import template_kwargs
from cai_cli.prompting.choices import option_labels
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.few_shot import NONE
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS
from cai_cli.prompting.solved_questions import load_comparison_demonstrations
from cai_cli.rows.prompt_files import read_prompts

if TYPE_CHECKING:
    from cai_cli.engines.base import Engine

CHUNK_BATCHES = 4
PREFLIGHT_PAIRS = 32


def run(options: Options) -> None:
    """Compare pairs of replies by a feedback model's log-probabilities (paper section 4.1).

    Example: cai label --model sl-cai/ --prompts red-team.jsonl --feedback-model base/ --out comparisons.jsonl
    """
    check_options(options)
    rule, inquiry = options.rule, inquiry_of(options)
    writing, judging = settings_of(options)
    check_models(options, writing, judging)
    artifact = RowArtifact("label", options, options.generation.shard)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    pairs = list(pairs_to_label(options))
    check_pairs(pairs, options.pairs or [])
    todo = artifact.remaining(pairs)
    if options.output.dry_run:
        dry_run(options, inquiry, next(pair for pair in [*todo, *pairs] if not pair.rejected), len(todo))
        return

    from cai_cli.engines.open import open_engine

    writer = open_engine(options.model, writing) if options.model else None
    judge = open_engine(options.feedback_model, judging, "--feedback-model")
    if writer and writer.model and judge.model and not options.allow_self_judge:
        check_two_models(writer.model, judge.model, options.feedback_model)
    preflight = todo[:PREFLIGHT_PAIRS] if options.min_mass > 0 and not artifact.accepted_ids else []

    def label(chunk: list[Pair], told: Told) -> list[Settled]:
        label_pairs(writer, judge, options, inquiry, chunk, told)
        if preflight and chunk[0] is preflight[0]:
            check_preflight(judge, options, inquiry, chunk)
        for pair in chunk:
            reject_low_mass(pair, options.min_mass)
        return [(pair.rejected or pair.to_comparison(rule).to_row(), pair.tokens) for pair in chunk]

    size, segments = (
        CHUNK_BATCHES * options.generation.batch_size,
        options.num_samples + 1,
    )  # replies and label
    # A model in this process takes batches, from one thread; a server beside it is asked about a chunk at once.
    at_once = min(engine.rows_at_once for engine in (writer, judge) if engine)
    artifact.work(todo, size, label, "pairs", segments, len(preflight), at_once)
    facts = (writer or judge).facts()
    from cai_cli.feedback.label_plot import summarise_labels

    def cautions(_: Path) -> list[str]:
        return label_cautions(*(artifact.manifest["summary"][name] for name in CAUTIONED))

    facts |= {"summary": lambda rows, _: summarise_labels(rows, options.output.out), "cautions": cautions}
    if artifact.finish(feedback=judge.facts(), **facts):
        if artifact.accepted_ids:
            show(artifact.manifest["summary"])
        artifact.tell_next(
            "cai train-pm --model PMP --comparisons",
            options.output.out,
            "--out",
            options.output.out.parent / "pm",
        )


def check_options(options: Options) -> None:
    if bool(options.prompts) == bool(options.pairs):
        raise UserError("give either --prompts (with --model) or --pairs", "see `cai label --help`")
    if options.prompts and not options.model:
        raise UserError(
            "--prompts needs --model, which writes the replies", "name the SL-CAI model directory"
        )
    if options.pairs and options.model:
        raise UserError("--pairs are replies already: --model has nothing to write", "leave --model out")
    if options.prompts:
        check_draws(options.num_samples, "--num-samples", options.generation.temperature, least=2)
    if options.hard and options.clamp not in (None, NONE):
        raise UserError(
            "--hard makes labels of 0 or 1 and --clamp keeps them from there", "leave one of them out"
        )


def check_models(options: Options, writing: EngineSettings, judging: EngineSettings) -> None:
    check_engine(options.feedback_model, judging, "--feedback-model")
    if options.model:
        check_engine(options.model, writing)
    # What a server calls its model says nothing of the weights, but for the same name at the same server.
    named = judging.engine == "openai" and not Path(options.feedback_model).is_dir()
    if not options.allow_self_judge and (not named or judging.base_url == writing.base_url):
        check_author(options.model, options.pairs or [], options.feedback_model)
    both = options.model and writing.engine == judging.engine == "vllm"
    if both and options.serving.gpu_memory_utilization > 0.5:
        told = "--engine vllm and --feedback-engine vllm: two models on one GPU, each with more than half of its memory"
        raise UserError(told, "--gpu-memory-utilization 0.45, or serve the judge on another one")


def inquiry_of(options: Options) -> Inquiry:
    """How pairs are asked about, all of it checked."""
    return Inquiry(
        constitution=load_constitution(options.constitution, ("comparison",), options.principles),
        seed=options.output.seed,
        orders=options.orders,
        principles_per_pair=options.principles_per_pair,
        labels=option_labels(options.option_format),
        form=options.form,
        demonstrations=tuple(load_comparison_demonstrations(options.few_shot, reasoned=options.cot)),
    )


def pairs_to_label(options: Options) -> Iterator[Pair]:
    if options.pairs:
        yield from read_pairs(options.pairs, options.rows.limit)
        return
    for prompt in read_prompts(options.prompts or [], options.rows.limit):
        yield Pair(f"{prompt.id}/0", prompt.id, prompt.prompt, prompt.kind)


def settings_of(options: Options) -> tuple[EngineSettings, EngineSettings]:
    """How the writer and the judge are opened."""
    writing = EngineSettings.of(options.hardware, options.generation, options.engines, options.serving)
    judging = replace(
        writing.of_judge(options.judges, options.output.seed),
        dtype=options.feedback_dtype,
        temperature=options.rationale_temperature,
        template_kwargs=template_kwargs(options.feedback_chat_template_kwargs),
        prefix_cache=options.prefix_cache,
    )
    return writing, judging


def label_pairs(
    writer: Engine | None,
    judge: Engine,
    options: Options,
    inquiry: Inquiry,
    pairs: list[Pair],
    told: Told | None = None,
) -> None:
    """Replies, where they are to be written, and the judge's answers about them."""
    keep = options.on_truncated == "keep"
    if writer:
        chat = writer.renderer.reply_form == "chat"
        attempts = attempts_at(options.generation.temperature, options.attempts)
        settings = SegmentSettings(
            options.generation.max_new_tokens, () if chat else TRANSCRIPT_STOPS, keep, attempts
        )
        draw_replies(writer, pairs, options.num_samples, settings, options.output.seed, chat, told)
    thinking = SegmentSettings(
        options.rationale_tokens, (), keep, attempts_at(options.rationale_temperature, options.attempts)
    )
    asked = [pair for pair in pairs if pair.rejected is None]
    judge_pairs(judge, inquiry, asked, judge.renderer.form() == "chat", thinking)


def reject_low_mass(pair: Pair, min_mass: float) -> None:
    if pair.rejected is None and pair.mass < min_mass:
        pair.reject("low_mass", f"the options hold {pair.mass:.2g} of the probability")


def check_preflight(judge: Engine, options: Options, inquiry: Inquiry, pairs: list[Pair]) -> None:
    """Stop early where the judge does not answer with an option at all, and say what it would answer with."""
    mass = mean_mass(pairs)
    if mass is None or mass >= options.min_mass:
        return
    found = masses_by_format(judge, inquiry, pairs, judge.renderer.form() == "chat")
    best = max(found, key=lambda name: found[name])
    hint = f"no option format does better ({best} holds {found[best]:.2g}): try --few-shot default or another model"
    if found[best] >= options.min_mass and best != options.option_format:
        hint = f"--option-format '{best}' puts {found[best]:.2g} on them"
    raise RunError(
        f"{options.feedback_model}: over the first {len(pairs)} pairs only {mass:.2g} of the probability is on the options",
        f"{hint}; --min-mass 0 labels all the same",
    )


def dry_run(options: Options, inquiry: Inquiry, pair: Pair, remaining: int) -> None:
    """Show the first question exactly as the judge would get it."""
    from cai_cli.engines.open import open_reader

    renderer = open_reader(options.feedback_model, settings_of(options)[1], "--feedback-model")
    if not pair.replies[0]:
        pair.replies = ["[the model's first reply]", "[the model's second reply]"]
    questions = list(inquiry.questions(pair))
    show_text(renderer.show(inquiry.prompt(questions[0], renderer.form() == "chat")))
    say(f"{remaining} pairs, {len(questions)} questions each")
