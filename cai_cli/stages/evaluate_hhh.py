"""Multiple-choice files in the paper's format + a language or preference model -> accuracy and calibration
(.json, .png).

    cai evaluate hhh 438HHHEvaluations.jsonl HarmfulVsEthical.jsonl --model base/ --out hhh.json
    cai evaluate hhh 438HHHEvaluations.jsonl --pm pm/ --out hhh-pm.json

Paper sections 1.2 and 2. A language model answers by the log-probabilities of the options' labels, normalised
over the options, zero-shot, few-shot or after reasoning; a preference model by its scores of the two
transcripts. An item that cannot be asked (too long, no usable rationale) is counted by reason and listed, and
in no accuracy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import typer

from cai_cli.artifacts.chunks import chunks
from cai_cli.artifacts.rejects import reasons_text
from cai_cli.artifacts.results import ResultsFile
from cai_cli.console.messages import progress, say, show_text, table
from cai_cli.console.options import (
    DEMONSTRATIONS,
    INPUT,
    MODEL,
    RUNTIME,
    ChatTemplateKwargs,
    DeviceOptions,
    EngineOptions,
    Needs,
    OutputOptions,
    ServingOptions,
    check_draws,
    flag,
)
from cai_cli.console.side_by_side import short_names
from cai_cli.engines.base import Engine, EngineSettings, OptionRequest
from cai_cli.engines.open import check_engine
from cai_cli.engines.segments import Segment, SegmentSettings, attempts_at, sample_segment
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.multiple_choice import Item, item_prompt, measure, option_bins, read_items, softmax
from cai_cli.evaluation.overlap import find_overlap, tell_overlap
from cai_cli.evaluation.solved_items import Examples
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.models.templates import template_kwargs
from cai_cli.prompting.choices import FORMS, PLAIN, Form
from cai_cli.prompting.few_shot import NONE
from cai_cli.training.preference.reading import open_preference_model

CHUNK = 256
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    NEEDS: ClassVar[Needs] = {
        **dict.fromkeys(("chat_template_kwargs", "engine", "base_url"), ("model",)),
        **dict.fromkeys(("cot_form", "cot_samples", "rationale_tokens", "rationale_temperature"), ("cot",)),
    }

    hardware: DeviceOptions
    engines: EngineOptions
    serving: ServingOptions
    output: OutputOptions
    files: Annotated[
        list[Path], typer.Argument(help="Multiple-choice files: prompt, corrects, incorrects a row."), INPUT
    ]
    model: Annotated[
        str | None, flag("Model", "A language model, which answers by log-probabilities."), MODEL
    ] = None
    pm: Annotated[
        str | None,
        flag("Model", "A preference model instead: it scores text_correct and text_incorrect."),
        MODEL,
    ] = None
    chat_template_kwargs: ChatTemplateKwargs = None
    few_shot: Annotated[
        str,
        flag(
            "Feedback",
            "Solved questions in front: none, default (comparisons), a number (that many other items of the same file), or a "
            "file of solved items (.jsonl) or comparison demonstrations (.yaml, .json).",
        ),
        DEMONSTRATIONS,
    ] = NONE
    cot: Annotated[bool, flag("Feedback", "Let the model reason before it answers.", "--cot")] = False
    cot_form: Annotated[Literal["paper", "two-step"], flag("Feedback", "As for `cai label`.")] = "paper"
    cot_samples: Annotated[
        int, flag("Feedback", "Rationales an item, answers averaged (paper: 1, and 5).", min=1)
    ] = 1
    rationale_tokens: Annotated[int, flag("Feedback", "Longest rationale.", min=1)] = 512
    rationale_temperature: Annotated[
        float, flag("Feedback", "Temperature of rationales (paper: 1).", min=0.0)
    ] = 1.0
    limit: Annotated[int | None, flag("Data", "Take at most this many items of each file.", min=1)] = None
    batch_size: Annotated[
        int, flag("Generation", "Requests per forward pass; does not change results.", min=1), RUNTIME
    ] = 64

    @property
    def form(self) -> Form:
        return FORMS[self.cot_form] if self.cot else PLAIN


def run(options: Options) -> None:
    """Measure how often a model chooses the helpful, honest and harmless answer (paper section 2).

    Example: cai evaluate hhh HarmfulVsEthical.jsonl --model base/ --few-shot 5 --out hhh.json
    """
    if bool(options.model) == bool(options.pm):
        raise UserError(
            "give either --model or --pm",
            "a language model or a preference model, see `cai evaluate hhh --help`",
        )
    if options.pm and (options.cot or options.few_shot != NONE):
        raise UserError(
            "--pm reads scores: it takes no --cot and no --few-shot", "leave them out, or give --model"
        )
    check_draws(
        options.cot_samples, "--cot-samples", options.rationale_temperature, "--rationale-temperature"
    )
    if options.model:
        check_engine(options.model, settings_of(options))
    else:
        check_model(options.pm or "", "--pm", "preference model")
    groups = {
        str(path): list(islice(read_items(path, bool(options.pm)), options.limit)) for path in options.files
    }
    if empty := next((name for name, items in groups.items() if not items), None):
        raise UserError(f"{empty}: no items in it", "one {prompt, corrects, incorrects} a line")
    examples = Examples(options.few_shot, options.form, options.output.seed, groups)
    results = ResultsFile("evaluate hhh", options)
    if results.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    items = [item for group in groups.values() for item in group]
    if options.output.dry_run:
        dry_run(options, examples, items)
        return
    facts = score_replies(options, items) if options.pm else answer_all(options, examples, items)
    files = dict(zip(short_names(list(groups)), groups.values(), strict=True))
    measured = {name: measure(group) for name, group in files.items()}
    whole = measure(items)
    if not whole["scored"]:
        fewer = "give fewer --few-shot, or " if options.few_shot != NONE else ""
        told = f"none of the {len(items)} items could be asked ({reasons_text(Counter(whole['skipped']))})"
        raise RunError(told, f"{fewer}take a model with a longer context")
    results.start()
    draw(results.picture, options, files, whole)
    rows = [item.to_row() for item in items]
    model = str(options.model or options.pm)
    overlap = find_overlap((item.replies[0] for item in items if item.replies), model)
    results.finish(
        {"model": model, "overlap": overlap.to_row(), "all": whole, "files": measured, "items": rows},
        {"in": len(items), "out": whole["scored"], "rejected": whole["skipped"]},
        **facts,
    )
    show(measured, whole)
    if whole["skipped"]:
        say(f"not asked, and counted in {options.output.out}: {reasons_text(Counter(whole['skipped']))}")
    if overlap.prompts:  # files without transcripts hold no prompts to compare
        tell_overlap(overlap, model)


# Language models


def settings_of(options: Options) -> EngineSettings:
    """How the language model is opened."""
    own = EngineSettings(
        device=options.hardware.device,
        dtype=options.hardware.dtype,
        temperature=options.rationale_temperature,
        batch_size=options.batch_size,
        template_kwargs=template_kwargs(options.chat_template_kwargs),
    )
    return own.of_writer(options.engines, options.serving)


def answer_all(options: Options, examples: Examples, items: list[Item]) -> dict[str, Any]:
    """Fill in the items' probabilities; what the manifest keeps about the model."""
    from cai_cli.engines.open import open_engine

    engine = open_engine(str(options.model), settings_of(options))
    chat = engine.renderer.form() == "chat"
    with progress("evaluate hhh", len(items), unit="questions") as advance:
        for chunk in chunks(items, CHUNK):
            answer(engine, options, examples, chunk, chat)
            advance(len(chunk), "")
    return engine.facts()


@dataclass(slots=True)
class Question:
    """One asking of an item."""

    item: Item
    sample: int
    rationale: str | None = None


def answer(engine: Engine, options: Options, examples: Examples, items: list[Item], chat: bool) -> None:
    from cai_cli.models.templates import UnfitRow

    samples = options.cot_samples if options.cot else 1
    questions = [Question(item, n) for item in items for n in range(samples)]
    if options.cot:
        reason(engine, options, examples, questions, chat)
    asked = [question for question in questions if question.item.skipped is None]
    requests = [
        OptionRequest(
            item_prompt(q.item, options.form, examples.before(q.item, chat), chat, q.rationale),
            q.item.options,
        )
        for q in asked
    ]
    found: dict[int, list[list[float]]] = {}
    for question, scores in zip(asked, engine.score(requests), strict=True):
        if isinstance(scores, UnfitRow):
            question.item.skipped = scores.reason.removeprefix("question_")
        else:
            found.setdefault(id(question.item), []).append(scores)
    for item in items:
        if item.skipped is None:
            scored = found[id(item)]
            item.probabilities = [fmean(values) for values in zip(*map(softmax, scored), strict=True)]
            item.mass = fmean(sum(map(math.exp, scores)) for scores in scored)


def reason(
    engine: Engine, options: Options, examples: Examples, questions: list[Question], chat: bool
) -> None:
    attempts = attempts_at(options.rationale_temperature, ATTEMPTS)
    settings = SegmentSettings(options.rationale_tokens, () if chat else options.form.stop, True, attempts)

    def prompt_of(question: Question) -> Any:
        return item_prompt(question.item, options.form, examples.before(question.item, chat), chat)

    def key_of(question: Question) -> tuple[str | int, ...]:
        return (options.output.seed, question.item.prompt, 0, "rationale", question.sample)

    segment = Segment("rationale", prompt_of, key_of, settings)
    for question, sampled in zip(questions, sample_segment(engine, questions, segment), strict=True):
        if sampled.reason:
            question.item.skipped = f"rationale_{sampled.reason}"
        else:
            question.rationale = sampled.text
            question.item.rationales.append(sampled.text)


# Preference models


def score_replies(options: Options, items: list[Item]) -> dict[str, Any]:
    """Probabilities by the difference of the two scores, as the preference model was trained to mean them."""
    from cai_cli.artifacts.manifest import device_facts
    from cai_cli.models.score import score_all
    from cai_cli.models.templates import UnfitRow, template_hash

    pm = open_preference_model(str(options.pm), options.hardware.device, options.hardware.dtype)
    rows: list[list[int]] = []
    scored: list[Item] = []
    for item in items:
        prompt, right, wrong = item.replies or ([], [], [])
        try:
            encoded = [pm.encode(prompt, reply) for reply in (right, wrong)]
        except UnfitRow as error:
            item.skipped = error.reason
            continue
        rows += encoded
        scored.append(item)
    scores = score_all(pm.model, rows, pm.pad, options.batch_size)
    for n, item in enumerate(scored):
        item.options, item.correct = ("text_correct", "text_incorrect"), frozenset([0])
        item.probabilities = softmax([scores[2 * n], scores[2 * n + 1]])
    dtype = str(pm.model.dtype).removeprefix("torch.")
    return {**device_facts(str(pm.model.device), dtype), "chat_template": template_hash(pm.tokenizer)}


# Showing


def draw(path: Path, options: Options, files: dict[str, list[Item]], whole: dict[str, Any]) -> None:
    from cai_cli.evaluation.plots import draw_reliability, plain

    asked = {name: items for name, items in files.items() if any(item.probabilities for item in items)}
    series = {name: option_bins(items) for name, items in asked.items()}
    low, high = whole["interval"]
    title = f"{Path(options.model or options.pm or '').name}: accuracy {whole['accuracy']:.1%} ({low:.1%}–{high:.1%})"
    draw_reliability(series, path, plain(title))


def show(measured: dict[str, dict[str, Any]], whole: dict[str, Any]) -> None:
    rows = list(cells(measured)) if len(measured) == 1 else [*cells(measured), *cells({"all": whole})]
    table(
        "multiple choice",
        ["file", "items", "accuracy", "95 % interval", "chance", "calibration error", "mass"],
        rows,
    )
    for name, facts in measured.items():
        if "correct_options" in facts and set(facts["correct_options"]) != {"text_correct"}:
            letters = sorted(facts["correct_options"] | facts["predicted_options"])
            counted = [
                [
                    letter,
                    str(facts["correct_options"].get(letter, 0)),
                    str(facts["predicted_options"].get(letter, 0)),
                ]
                for letter in letters
            ]
            table(f"{name}: options", ["option", "right", "chosen"], counted)


def cells(measured: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    for name, facts in measured.items():
        if not facts["scored"]:
            yield [name, f"0 of {facts['items']}", "–", "–", "–", "–", "–"]
            continue
        low, high = facts["interval"]
        count = (
            str(facts["scored"])
            if facts["scored"] == facts["items"]
            else f"{facts['scored']} of {facts['items']}"
        )
        mass = "–" if facts["mean_mass"] is None else f"{facts['mean_mass']:.3f}"
        rest = [f"{facts['chance']:.1%}", f"{facts['calibration_error']:.3f}", mass]
        yield [name, count, f"{facts['accuracy']:.1%}", f"{low:.1%}–{high:.1%}", *rest]


def dry_run(options: Options, examples: Examples, items: list[Item]) -> None:
    """Show the first question exactly as the model would get it."""
    if options.pm:
        say(f"{len(items)} pairs of transcripts to score")
        return
    from cai_cli.engines.open import open_reader

    renderer = open_reader(str(options.model), settings_of(options))
    chat = renderer.form() == "chat"
    show_text(renderer.show(item_prompt(items[0], options.form, examples.before(items[0], chat), chat)))
    say(f"{len(items)} items; options {', '.join(option.strip() for option in items[0].options)}")
