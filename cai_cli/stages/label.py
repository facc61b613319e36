"""SL-CAI + prompts (or existing pairs) + feedback model + constitution -> comparisons.jsonl: soft AI-feedback labels.

    cai label --model sl-cai/ --prompts red-team.jsonl --feedback-model base/ --constitution article --out comparisons.jsonl

Paper section 4.1: two replies a prompt at T=1; the feedback model gets a multiple-choice question with one principle drawn
for the pair; the label is the softmax of the log-probabilities of the whole option strings ` (A)` and ` (B)`.
Deviations, marked in --help: both orders of the options are asked and averaged (`--orders`), since small judges prefer a
position; a pair for which the two options hold almost no probability (`--min-mass`) is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Literal

from cai_cli.artifact import Rejected
from cai_cli.constitution import Constitution, load_constitution
from cai_cli.conversation import Conversation
from cai_cli.engines.base import OptionRequest
from cai_cli.errors import RunError, UserError
from cai_cli.feedback import Pair, Question, first_is_a, read_pairs, summarise
from cai_cli.generation import Segment, SegmentSettings, attempts_at, chunks, sample_segment
from cai_cli.jsonl import read_records
from cai_cli.manifest import fingerprint_weights
from cai_cli.models.load import check_model
from cai_cli.options import CONSTITUTION, INPUT, MODEL, NOTED, GenerationOptions, RowOptions, flag
from cai_cli.prompt_files import read_prompts
from cai_cli.prompts import OPTION_LETTERS, TRANSCRIPT_STOPS, comparison_chat, comparison_prompt, option, reply_prompt
from cai_cli.records import Comparison
from cai_cli.row_artifact import RowArtifact
from cai_cli.talk import progress, say

if TYPE_CHECKING:
    from cai_cli.engines.transformers_engine import TransformersEngine

CHUNK_BATCHES = 4
PREFLIGHT_PAIRS = 32
IDENTICAL = "identical_replies"


@dataclass(frozen=True, kw_only=True)
class Options(RowOptions, GenerationOptions):
    model: Annotated[str | None, flag("Model", "SL-CAI, which writes both replies. Not with --pairs."), MODEL] = None
    prompts: Annotated[
        list[str] | None, flag("Data", "Prompts to reply to and compare (as for `cai sample`). Repeatable."), INPUT
    ] = None
    pairs: Annotated[list[str] | None, flag("Data", "Existing samples or comparisons to label instead. Repeatable."), INPUT] = (
        None
    )
    feedback_model: Annotated[str, flag("Model", "The judge (paper: a pretrained LM). Not the SL-CAI model."), MODEL]
    feedback_dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], flag("Model", "The judge's --dtype."), NOTED] = (
        "auto"
    )
    allow_self_judge: Annotated[bool, flag("Model", "Let a model judge its own replies.", "--allow-self-judge")] = False
    constitution: Annotated[str, flag("Data", "YAML file or shipped name: article, humanity, thorough."), CONSTITUTION] = (
        "article"
    )
    orders: Annotated[
        Literal["both", "random", "first"],
        flag("Feedback", "Option orders to ask: both, averaged (not in the paper); one drawn by key; first reply as (A)."),
    ] = "both"
    principles_per_pair: Annotated[int, flag("Feedback", "Principles asked about for each pair, averaged (paper: 1).", min=1)] = 1
    min_mass: Annotated[
        float,
        flag("Feedback", "Least mean probability on both options together; below it the pair is rejected.", min=0),
    ] = 0.1
    on_truncated: Annotated[
        Literal["reject", "keep"], flag("Generation", "What to do with replies cut off by --max-new-tokens.")
    ] = "reject"
    attempts: Annotated[int, flag("Generation", "Draws of a reply, or of a pair that came out identical.", min=1)] = 3


def run(options: Options) -> None:
    """Compare pairs of replies by a feedback model's log-probabilities (paper section 4.1).

    Example: cai label --model sl-cai/ --prompts red-team.jsonl --feedback-model base/ --out comparisons.jsonl
    """
    check_options(options)
    constitution = load_constitution(options.constitution, needs=("comparison",))
    artifact = RowArtifact("label", options, options.limit)
    if artifact.done:
        return
    pairs = list(pairs_to_label(options))
    if not pairs:
        raise UserError(f"{', '.join(options.pairs or [])}: no pairs in it", "a pair is two different replies to one prompt")
    todo = artifact.remaining(pairs)
    if options.dry_run:
        dry_run(options, constitution, todo or pairs)
        return

    from cai_cli.engines.transformers_engine import open_engine

    writer = open_engine(options.model, options) if options.model else None
    judge = open_judge(options)
    facts = (writer or judge).facts()
    preflight = PREFLIGHT_PAIRS if options.min_mass > 0 and not artifact.accepted_ids else 0
    with progress("label", artifact.share, artifact.share - len(todo)) as advance:
        for chunk in chunks(todo, CHUNK_BATCHES * options.batch_size):
            if writer:
                draw_replies(writer, options, chunk, artifact)
            replied = [pair for pair in chunk if pair.rejected is None]
            judge_pairs(judge, options, constitution, replied)
            if preflight and len(replied) >= preflight:
                check_preflight(options, replied[:preflight])
                preflight = 0
            for pair in chunk:
                rejected = pair.rejected or reject_by_mass(pair, options.min_mass)
                if rejected:
                    artifact.reject(rejected)
                else:
                    artifact.accept(pair.to_comparison().to_row())
            artifact.flush()
            advance(len(chunk), f"{len(artifact.rejected_ids)} rejected")
    if artifact.finish(feedback=judge.facts(), **facts):
        summarise(list(read_records(options.out, Comparison.from_row)))


def check_options(options: Options) -> None:
    if bool(options.prompts) == bool(options.pairs):
        raise UserError("give either --prompts (with --model) or --pairs", "see `cai label --help`")
    if options.prompts and not options.model:
        raise UserError("--prompts needs --model, which writes the replies", "name the SL-CAI model directory")
    if options.pairs and options.model:
        raise UserError("--pairs are replies already: --model has nothing to write", "leave --model out")
    check_model(options.feedback_model, "--feedback-model")
    if options.model:
        check_model(options.model)
        same = fingerprint_weights(options.model) == fingerprint_weights(options.feedback_model)
        if same and not options.allow_self_judge:
            raise UserError(
                f"--feedback-model {options.feedback_model}: holds the same weights as --model {options.model}",
                "let another model judge, or pass --allow-self-judge",
            )


def pairs_to_label(options: Options) -> Iterator[Pair]:
    if options.pairs:
        yield from read_pairs(options.pairs, options.limit)
        return
    for prompt in read_prompts(options.prompts or [], options.limit):
        yield Pair(f"{prompt.id}/0", prompt.id, prompt.prompt, prompt.kind)


def open_judge(options: Options) -> TransformersEngine:
    """The feedback model as an engine."""
    from cai_cli.engines.transformers_engine import open_engine

    return open_engine(options.feedback_model, replace(options, dtype=options.feedback_dtype), "--feedback-model")


# Replies


@dataclass(frozen=True, slots=True)
class Slot:
    """One of a pair's two replies, on a given try at making them differ."""

    pair: Pair
    k: int
    redraw: int = 0


def draw_replies(writer: TransformersEngine, options: Options, pairs: list[Pair], artifact: RowArtifact) -> None:
    """Fill in both replies of each pair; where they came out the same, the second one is drawn again."""
    segment = reply_segment(options, chat=writer.renderer.tokenizer.chat_template is not None)
    slots = [Slot(pair, k) for pair in pairs for k in (0, 1)]
    for redraw in range(1, attempts_at(options.temperature, options.attempts) + 1):
        for slot, sampled in zip(slots, sample_segment(writer, slots, segment), strict=True):
            artifact.tokens += sampled.tokens
            if sampled.reason:
                detail = f"reply {slot.k}: last attempt {sampled.text[:200]!r}"
                slot.pair.rejected = Rejected(slot.pair.id, sampled.reason, detail, {"prompt": slot.pair.prompt})
            else:
                slot.pair.replies[slot.k] = sampled.text
        same = [pair for pair in pairs if pair.rejected is None and pair.replies[0] == pair.replies[1]]
        slots = [Slot(pair, 1, redraw) for pair in same]
        if not slots:
            return
    for pair in same:
        pair.rejected = Rejected(pair.id, IDENTICAL, pair.replies[0][:200], {"prompt": pair.prompt})


def reply_segment(options: Options, chat: bool) -> Segment[Slot]:
    def prompt_of(slot: Slot) -> str | Conversation:
        return slot.pair.prompt if chat else reply_prompt(slot.pair.prompt)

    settings = SegmentSettings(
        options.max_new_tokens,
        () if chat else TRANSCRIPT_STOPS,
        options.on_truncated == "keep",
        attempts_at(options.temperature, options.attempts),
    )

    def key_of(slot: Slot) -> tuple[str | int, ...]:
        return (options.seed, slot.pair.prompt_id, 0, "pair", slot.k, slot.redraw)

    return Segment("reply", prompt_of, key_of, settings)


# Judgements


def judge_pairs(judge: TransformersEngine, options: Options, constitution: Constitution, pairs: list[Pair]) -> None:
    """Ask every question about every pair and keep the answers in the pairs."""
    questions = [question for pair in pairs for question in questions_about(pair, options, constitution)]
    chat = judge.renderer.has_own_template
    scores = judge.score([question_request(question, chat) for question in questions])
    for question, pair_scores in zip(questions, scores, strict=True):
        pair = question.pair
        if pair_scores is None:
            pair.rejected = Rejected(pair.id, "question_too_long", "", {"prompt": pair.prompt})
            continue
        logprob_a, logprob_b = pair_scores
        pair.answers.append((question, logprob_a, logprob_b))


def questions_about(pair: Pair, options: Options, constitution: Constitution) -> Iterator[Question]:
    """Principles are drawn by key (seed, id, number); orders by `--orders`."""
    for number in range(options.principles_per_pair):
        principle = constitution.draw(options.seed, "comparison", pair.id, number)
        if options.orders == "both":
            orders = [True, False]
        elif options.orders == "first":
            orders = [True]
        else:
            orders = [first_is_a(options.seed, pair.id, number)]
        for first_as_a in orders:
            yield Question(pair, principle, first_as_a)


def question_request(question: Question, chat: bool) -> OptionRequest:
    reply_a, reply_b = question.replies
    render = comparison_chat if chat else comparison_prompt
    text = render(question.pair.prompt, reply_a, reply_b, question.principle.comparison)
    return OptionRequest(text, tuple(option(letter) for letter in OPTION_LETTERS))


def reject_by_mass(pair: Pair, min_mass: float) -> Rejected | None:
    if pair.mass >= min_mass:
        return None
    detail = f"the options hold {pair.mass:.2g} of the probability"
    return Rejected(pair.id, "low_mass", detail, {"prompt": pair.prompt, "replies": pair.replies})


def check_preflight(options: Options, pairs: list[Pair]) -> None:
    """Stop early where the judge does not answer with an option at all."""
    mass = mean([pair.mass for pair in pairs if pair.rejected is None] or [1.0])
    if mass < options.min_mass:
        raise RunError(
            f"{options.feedback_model}: over the first {len(pairs)} pairs only {mass:.2g} of the probability is on the options",
            "this judge does not take the question's form: try another model, or --min-mass 0 to label all the same",
        )


def dry_run(options: Options, constitution: Constitution, pairs: list[Pair]) -> None:
    """Show the first question exactly as the judge would get it."""
    from cai_cli.models.chat import Renderer
    from cai_cli.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(options.feedback_model, "--feedback-model"), "--feedback-model")
    pair = pairs[0]
    if not pair.replies[0]:
        pair.replies = ["[the model's first reply]", "[the model's second reply]"]
    questions = list(questions_about(pair, options, constitution))
    print(renderer.render(question_request(questions[0], renderer.has_own_template).prompt))  # noqa: T201
    say(f"{len(pairs)} pairs, {len(questions)} questions each")
