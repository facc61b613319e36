"""Prompts + a language model -> samples.jsonl, by whichever command wants replies: n sampled ones to each prompt.

A file that a killed run has begun is gone on with, as every row artifact is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cai_cli.artifacts.chunks import Told
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.rows import RowArtifact, Settled
from cai_cli.console.messages import say, show_text
from cai_cli.console.options import (
    MODEL,
    DeviceOptions,
    EngineOptions,
    GenerationOptions,
    Needs,
    OutputOptions,
    Prompts,
    RowOptions,
    ServingOptions,
    check_draws,
    flag,
)
from cai_cli.engines.base import EngineSettings, Reads
from cai_cli.engines.open import check_engine, open_engine, open_reader
from cai_cli.engines.segments import Sampled, Segment, SegmentSettings, attempts_at, sample_segment
from cai_cli.models.devices import check_device
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS, reply_prompt
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.jsonl import Row
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import Event, Prompt, Sample, events_text

CHUNK_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    NEEDS: ClassVar[Needs] = {"attempts": ("temperature",)}

    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    generation: GenerationOptions
    output: OutputOptions
    rows: RowOptions
    model: Annotated[str, flag("Model", "The language model that replies."), MODEL]
    prompts: Prompts
    num_samples: Annotated[
        int, flag("Generation", "Replies to each prompt (paper: 2).", "-n", "--num-samples", min=1)
    ] = 2
    on_truncated: Annotated[
        Literal["reject", "keep"], flag("Generation", "What to do with replies cut off by --max-new-tokens.")
    ] = "reject"
    attempts: Annotated[int, flag("Generation", "Draws of a reply before it is rejected.", min=1)] = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """One reply to draw."""

    prompt: Prompt
    k: int

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/{self.k}"


def check(options: Options) -> EngineSettings:
    """How the model is opened. Raises UserError where it cannot be, before anything is touched."""
    check_draws(options.num_samples, "--num-samples", options.generation.temperature)
    settings = settings_of(options)
    check_engine(options.model, settings)
    return settings


def sample(options: Options) -> RowArtifact | None:
    """Draw the replies and write them to --out. None where nothing was left to do, or to be looked at only."""
    settings = check(options)
    artifact = RowArtifact("sample", options, options.generation.shard)
    if artifact.done:
        return None
    check_device(options.hardware.device, options.output.dry_run)
    prompts = read_prompts(options.prompts, options.rows.limit)
    slots = [Slot(prompt, k) for prompt in prompts for k in range(options.num_samples)]
    todo = artifact.remaining(slots)
    if options.output.dry_run:
        dry_run(options, slots[0], len(todo))
        return None
    engine = open_engine(options.model, settings)
    segment = reply_segment(options, engine.renderer)

    def reply(chunk: list[Slot], told: Told) -> list[Settled]:
        found = zip(chunk, sample_segment(engine, chunk, segment, told), strict=True)
        return [(outcome(slot, sampled), sampled.tokens) for slot, sampled in found]

    size = CHUNK_BATCHES * options.generation.batch_size
    artifact.work(todo, size, reply, at_once=engine.rows_at_once)
    return artifact if artifact.finish(**engine.facts()) else None


def settings_of(options: Options) -> EngineSettings:
    return EngineSettings.of(options.hardware, options.generation, options.engines, options.serving)


def outcome(slot: Slot, sampled: Sampled) -> Row | Rejected:
    if sampled.reason:
        row = {"prompt": slot.prompt.prompt, "hygiene": events_text(events_of(sampled))}
        return Rejected(slot.id, sampled.reason, sampled.detail, row)
    return to_record(slot, sampled).to_row()


def to_record(slot: Slot, sampled: Sampled) -> Sample:
    return Sample(
        id=slot.id,
        prompt=slot.prompt.prompt,
        completion=[message("assistant", sampled.text)],
        finish_reason=sampled.finish_reason,
        kind=slot.prompt.kind,
        thinking=sampled.thinking,
        hygiene=events_of(sampled),
        source=slot.prompt.source,
    )


def events_of(sampled: Sampled) -> list[Event]:
    return [(rule, "reply") for rule in sampled.events]


def reply_segment(options: Options, renderer: Reads) -> Segment[Slot]:
    """How a reply is drawn: through the chat template, or as a transcript where the model has none."""
    chat = renderer.reply_form == "chat"

    def prompt_of(slot: Slot) -> str | Conversation:
        return slot.prompt.prompt if chat else reply_prompt(slot.prompt.prompt)

    settings = SegmentSettings(
        options.generation.max_new_tokens,
        () if chat else TRANSCRIPT_STOPS,
        options.on_truncated == "keep",
        attempts_at(options.generation.temperature, options.attempts),
    )
    return Segment(
        "reply", prompt_of, lambda slot: (options.output.seed, slot.prompt.id, 0, "reply", slot.k), settings
    )


def dry_run(options: Options, slot: Slot, remaining: int) -> None:
    """Show the first prompt exactly as the model would get it."""
    renderer = open_reader(options.model, settings_of(options))
    show_text(renderer.show(reply_segment(options, renderer).prompt(slot)))
    say(f"{remaining} replies of at most {options.generation.max_new_tokens} tokens")
