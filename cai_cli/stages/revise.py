"""prompts + helpful-only LM + constitution -> revisions.jsonl: draft, then N rounds of critique and revision.

    cai revise --model helpful-only/ --prompts red-team.jsonl --constitution article --out revisions.jsonl

Paper section 3.1. Each round draws one principle with replacement, by key (seed, id, round), and sees only
the prompt and the latest revision. Deviations: a segment that comes out empty, cut off or in the wrong role,
or a revision that is the draft again but for an opening or a word or two, is drawn again, then the prompt is
rejected (rules in `hygiene`); so an unrevised draft never becomes a training target. Demonstrations stand in
front of critiques and revisions alone: the draft is the helpful-only model's own (a small instruction model
refused 2 % of red-team prompts by itself and 23 % behind them). The paper does not say where its own stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cai_cli.artifacts.chunks import Told
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.rows import RowArtifact, Settled
from cai_cli.console.messages import say, show_text
from cai_cli.console.options import (
    CONSTITUTION,
    DEMONSTRATIONS,
    MODEL,
    DeviceOptions,
    EngineOptions,
    GenerationOptions,
    Needs,
    OutputOptions,
    Principles,
    Prompts,
    RowOptions,
    ServingOptions,
    check_draws,
    flag,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.open import check_engine
from cai_cli.engines.segments import Segment, SegmentSettings, attempts_at, sample_segment
from cai_cli.evaluation.revisions import show, summarise
from cai_cli.models.devices import check_device
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.few_shot import (
    AUTO,
    DEFAULT,
    NONE,
    demonstration_turns,
    few_shot_prefix,
    load_critique_demonstrations,
    without_critique,
)
from cai_cli.prompting.hygiene import CRITIQUE, REVISION, UNREVISED, check_critique, check_revision, is_near
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import (
    TRANSCRIPT_STOPS,
    critique_chat,
    critique_prompt,
    direct_revision_chat,
    direct_revision_prompt,
    reply_prompt,
    revision_chat,
    revision_prompt,
)
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import Event, Prompt, Revision, Round, events_text

if TYPE_CHECKING:
    from cai_cli.engines.base import Engine, Reads

CHUNK_BATCHES = 4  # Prompts are worked on in chunks of this many batches; rows are on disk after each.


@dataclass(frozen=True, kw_only=True)
class Options:
    NEEDS: ClassVar[Needs] = {"attempts": ("temperature",)}

    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    generation: GenerationOptions
    output: OutputOptions
    rows: RowOptions
    model: Annotated[str, flag("Model", "The helpful-only language model."), MODEL]
    prompts: Prompts
    constitution: Annotated[
        str, flag("Data", "YAML file or shipped name: article, humanity, thorough."), CONSTITUTION
    ] = "article"
    principles: Principles = None
    rounds: Annotated[int, flag("Generation", "Rounds of critique and revision (paper: 4).", min=1)] = 4
    critique: Annotated[
        bool,
        flag("Generation", "Critique before each revision, or revise directly.", "--critique/--no-critique"),
    ] = True
    num_samples: Annotated[
        int, flag("Generation", "Chains for each prompt.", "-n", "--num-samples", min=1)
    ] = 1
    rendering: Annotated[
        Literal["auto", "transcript", "chat"],
        flag("Generation", "auto: chat where the model's own chat template is not the transcript one."),
    ] = "auto"
    few_shot: Annotated[
        str,
        flag(
            "Generation",
            "Demonstrations in front of critique and revision, never of the draft: default, none, or a file such as the paper's; "
            "auto: default in transcripts only.",
        ),
        DEMONSTRATIONS,
    ] = AUTO
    on_truncated: Annotated[
        Literal["reject", "keep"], flag("Generation", "What to do with text cut off by --max-new-tokens.")
    ] = "reject"
    attempts: Annotated[
        int,
        flag(
            "Generation",
            "Draws of a text that comes out empty, cut off, confused or unrevised, before a reject.",
            min=1,
        ),
    ] = 3
    check_roles: Annotated[
        bool,
        flag(
            "Generation",
            "Reject what reads like the wrong role (English rules).",
            "--check-roles/--no-check-roles",
        ),
    ] = True


@dataclass
class Chain:
    """A prompt on its way: the latest response, the rounds behind it, or why it ended."""

    id: str
    prompt: Prompt
    initial: str = ""
    response: str = ""
    principle: Principle | None = None  # of the round under way
    critique: str = ""  # of the round under way; empty where critiques are skipped
    rounds: list[Round] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    thinking: dict[str, str] = field(default_factory=dict)  # by segment
    rejected: Rejected | None = None
    tokens: int = 0

    @property
    def drawn(self) -> Principle:
        assert self.principle is not None, "a round starts by drawing a principle"
        return self.principle


def run(options: Options) -> None:
    """Critique and revise a model's replies under a constitution (paper section 3.1).

    A revision that is the draft again, but for an opening, a word or two or what was added, is drawn again
    and then rejected: nothing unrevised becomes a training target (not in the paper, of whose 264 published
    revisions one would be rejected).

    Example: cai revise --model helpful-only/ --prompts red-team.jsonl --constitution article --out
    revisions.jsonl
    """
    check_draws(options.num_samples, "--num-samples", options.generation.temperature)
    settings = EngineSettings.of(options.hardware, options.generation, options.engines, options.serving)
    check_engine(options.model, settings)
    constitution = load_constitution(options.constitution, ("critique", "revision"), options.principles)
    artifact = RowArtifact("revise", options, options.generation.shard)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    prompts = read_prompts(options.prompts, options.rows.limit)
    chains = [Chain(f"{prompt.id}/{k}", prompt) for prompt in prompts for k in range(options.num_samples)]
    todo = artifact.remaining(chains)
    if options.output.dry_run:
        dry_run(options, constitution, chains, len(todo))
        return

    from cai_cli.engines.open import open_engine

    engine = open_engine(options.model, settings)
    texts = Texts(options, engine.renderer)
    started = time.monotonic()
    segments = 1 + options.rounds * (2 if options.critique else 1)

    def revise(chunk: list[Chain], told: Told) -> list[Settled]:
        revise_chunk(engine, texts, options, constitution, chunk, told)
        return [(chain.rejected or to_record(chain).to_row(), chain.tokens) for chain in chunk]

    size = CHUNK_BATCHES * options.generation.batch_size
    artifact.work(todo, size, revise, segments=segments, at_once=engine.rows_at_once)
    seconds = round(time.monotonic() - started, 3)
    if artifact.finish(summary=summarise, generation_seconds=seconds, **engine.facts()):
        if artifact.accepted_ids:
            show(artifact.manifest)
        artifact.tell_next(
            "cai sft --model BASE --data", options.output.out, "--out", options.output.out.parent / "sl-cai"
        )


def revise_chunk(
    engine: Engine,
    texts: Texts,
    options: Options,
    constitution: Constitution,
    chains: list[Chain],
    told: Told | None = None,
) -> None:
    """Draft, then the rounds, for a chunk of chains at once; each chain ends revised or rejected."""
    common = SegmentSettings(
        options.generation.max_new_tokens,
        texts.stops,
        options.on_truncated == "keep",
        attempts_at(options.generation.temperature, options.attempts),
    )

    def key_of(segment: str) -> Callable[[Chain], tuple[str | int, ...]]:
        return lambda chain: (options.output.seed, chain.id, len(chain.rounds) + 1, segment)

    # 1. The draft.
    for chain, text in sample_alive(
        engine, chains, Segment("draft", texts.draft, key_of("initial"), common), told
    ):
        chain.initial = chain.response = text

    def confused_critique(chain: Chain, text: str) -> str | None:
        return check_critique(text, chain.response) if options.check_roles else None

    def confused_or_unrevised(chain: Chain, text: str) -> str | None:
        if options.check_roles:
            return check_revision(text, chain.initial, chain.critique)
        return UNREVISED if is_near(text, chain.initial) else None

    for number in range(1, options.rounds + 1):
        for chain in chains:
            chain.principle = constitution.draw(options.output.seed, "principle", chain.id, number)
        # 2. The critique.
        if options.critique:
            name = f"critique {number}"
            segment = Segment(name, texts.critique, key_of("critique"), common, CRITIQUE, confused_critique)
            for chain, text in sample_alive(engine, chains, segment, told):
                chain.critique = text
        # 3. The revision, spliced in place of the response.
        name = f"revision {number}"
        segment = Segment(name, texts.revision, key_of("revision"), common, REVISION, confused_or_unrevised)
        for chain, text in sample_alive(engine, chains, segment, told):
            request = chain.drawn.critique if options.critique else ""
            thoughts = (chain.thinking.get(f"critique {number}", ""), chain.thinking[name])
            chain.rounds.append(
                Round(chain.drawn.id, request, chain.critique, chain.drawn.revision, text, *thoughts)
            )
            chain.response = text


def sample_alive(
    engine: Engine, chains: list[Chain], segment: Segment[Chain], told: Told | None = None
) -> list[tuple[Chain, str]]:
    """The segment's text for each chain still alive; chains without a text worth keeping are marked rejected."""
    alive = [chain for chain in chains if chain.rejected is None]
    kept = []
    for chain, sampled in zip(alive, sample_segment(engine, alive, segment, told), strict=True):
        chain.tokens += sampled.tokens
        chain.events += [(rule, segment.name) for rule in sampled.events]
        if sampled.reason is None:
            kept.append((chain, sampled.text))
            chain.thinking[segment.name] = sampled.thinking
        else:
            row = {
                "prompt": chain.prompt.prompt,
                "rounds_done": len(chain.rounds),
                "hygiene": events_text(chain.events),
            }
            detail = f"{segment.name}: {sampled.detail}"
            chain.rejected = Rejected(chain.id, sampled.reason, detail, row)
    return kept


class Texts:
    """The prompts of the loop in the chosen rendering."""

    def __init__(self, options: Options, renderer: Reads) -> None:
        self.chat = renderer.form(options.rendering) == "chat"
        self.stops = () if self.chat else TRANSCRIPT_STOPS
        self.skip_critique = not options.critique
        name = options.few_shot if options.few_shot != AUTO else NONE if self.chat else DEFAULT
        demonstrations = load_critique_demonstrations(name)
        if self.skip_critique:  # no critiques in front where none is asked for
            demonstrations = [without_critique(text) for text in demonstrations]
        self.few_shot = few_shot_prefix(demonstrations)
        self.few_shot_turns = [turn for text in demonstrations for turn in demonstration_turns(text)]

    def asked(self, prompt: Conversation) -> Conversation:
        """A chat that asks for a critique or revision, with the demonstrations behind its system turn."""
        system = 1 if prompt[0]["role"] == "system" else 0
        return [*prompt[:system], *self.few_shot_turns, *prompt[system:]]

    def draft(self, chain: Chain) -> str | Conversation:
        """Without demonstrations: what they revise into would be what the model answers at once."""
        return chain.prompt.prompt if self.chat else reply_prompt(chain.prompt.prompt)

    def critique(self, chain: Chain) -> str | Conversation:
        if self.chat:
            return self.asked(critique_chat(chain.prompt.prompt, chain.response, chain.drawn.critique))
        return critique_prompt(chain.prompt.prompt, chain.response, chain.drawn.critique, self.few_shot)

    def revision(self, chain: Chain) -> str | Conversation:
        prompt, response, drawn = chain.prompt.prompt, chain.response, chain.drawn
        if self.skip_critique:
            if self.chat:
                return self.asked(direct_revision_chat(prompt, response, drawn.revision))
            return direct_revision_prompt(prompt, response, drawn.revision, self.few_shot)
        if self.chat:
            return self.asked(revision_chat(prompt, response, drawn.critique, chain.critique, drawn.revision))
        return revision_prompt(
            prompt, response, drawn.critique, chain.critique, drawn.revision, self.few_shot
        )


def to_record(chain: Chain) -> Revision:
    return Revision(
        id=chain.id,
        prompt=chain.prompt.prompt,
        completion=[message("assistant", chain.response)],
        initial=[message("assistant", chain.initial)],
        rounds=chain.rounds,
        kind=chain.prompt.kind,
        initial_thinking=chain.thinking["draft"],
        hygiene=chain.events,
    )


def dry_run(options: Options, constitution: Constitution, chains: list[Chain], remaining: int) -> None:
    """Show the first critique request exactly as the model would get it, with a stand-in for the reply."""
    from cai_cli.engines.open import open_reader

    settings = EngineSettings.of(options.hardware, options.generation, options.engines, options.serving)
    renderer = open_reader(options.model, settings)
    texts = Texts(options, renderer)
    chain = chains[0]
    chain.principle = constitution.draw(options.output.seed, "principle", chain.id, 1)
    chain.response, chain.critique = "[the model's reply]", "[the model's critique]"
    shown = texts.critique(chain) if options.critique else texts.revision(chain)
    show_text(renderer.show(shown))
    calls = remaining * (1 + options.rounds * (2 if options.critique else 1))
    say(f"{remaining} chains, {calls} requests of at most {options.generation.max_new_tokens} tokens")
