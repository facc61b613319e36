"""Prompts + a language model -> samples, n sampled replies to each prompt: the work of `cai sample`, and of what else
needs a model's replies. Its options are those of `cai sample`, so that either can go on with what the other began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cai_cli.artifacts.chunks import Told
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.rows import RowArtifact, Settled
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
    flag,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.open import open_engine
from cai_cli.engines.segments import Sampled, Segment, SegmentSettings, attempts_at, sample_segment
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS, reply_prompt
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.jsonl import Row
from cai_cli.rows.records import Event, Prompt, Sample, events_text

if TYPE_CHECKING:
    from cai_cli.engines.base import Reads

CHUNK_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `cai sample`."""

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


def slots_of(prompts: list[Prompt], count: int) -> list[Slot]:
    return [Slot(prompt, k) for prompt in prompts for k in range(count)]


def write_samples(artifact: RowArtifact, options: Options, todo: list[Slot]) -> bool:
    """Draw the replies that are missing and finish the file; whether this process wrote it."""
    engine = open_engine(options.model, settings_of(options))
    segment = segment_of(options, engine.renderer)

    def reply(chunk: list[Slot], told: Told) -> list[Settled]:
        found = zip(chunk, sample_segment(engine, chunk, segment, told), strict=True)
        return [(outcome(slot, sampled), sampled.tokens) for slot, sampled in found]

    size = CHUNK_BATCHES * options.generation.batch_size
    artifact.work(todo, size, reply, at_once=engine.rows_at_once)
    return artifact.finish(**engine.facts())


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


def segment_of(options: Options, renderer: Reads) -> Segment[Slot]:
    """How `cai sample` draws."""
    drawing, keep = options.generation, options.on_truncated == "keep"
    limit, temperature = drawing.max_new_tokens, drawing.temperature
    return reply_segment(renderer, options.output.seed, temperature, limit, keep, options.attempts)


def reply_segment(
    renderer: Reads, seed: int, temperature: float, limit: int, keep_cut_off: bool, attempts: int
) -> Segment[Slot]:
    """How a reply of at most `limit` tokens is drawn: through the chat template, or as a transcript where the model
    has none.
    """
    chat = renderer.reply_form == "chat"

    def prompt_of(slot: Slot) -> str | Conversation:
        return slot.prompt.prompt if chat else reply_prompt(slot.prompt.prompt)

    stops = () if chat else TRANSCRIPT_STOPS
    settings = SegmentSettings(limit, stops, keep_cut_off, attempts_at(temperature, attempts))
    return Segment("reply", prompt_of, lambda slot: (seed, slot.prompt.id, 0, "reply", slot.k), settings)
