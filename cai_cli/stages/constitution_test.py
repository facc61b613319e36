"""A judge + a constitution + pairs -> whether the judge listens to it: how labels move with each principle
(.json, .png).

    cai constitution test --feedback-model judge/ --constitution article --pairs pairs.jsonl --out listens.json

Each pair is judged under every principle; under none, a question that names nothing to choose by, in two
wordings (see `prompting.prompts`); and under the principle's opposite, a comparison text that its file may
give. Always in both orders of the options, averaged, without reasoning. What is measured, and what counts
as listening, is in `evaluation.steering`. --against asks about a second constitution's principles, too, and
compares the mean labels of both: those that `cai label` gives on average. Not in the paper; small judges
often do not listen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cai_cli.artifacts.chunks import chunks
from cai_cli.artifacts.places import rejects_path
from cai_cli.artifacts.rejects import counted, put_aside, reasons_text
from cai_cli.artifacts.results import ResultsFile
from cai_cli.console.messages import progress, say, show_text, table, warn_all
from cai_cli.console.options import (
    CONSTITUTION,
    DEMONSTRATIONS,
    INPUT,
    MODEL,
    RUNTIME,
    Device,
    FeedbackEngineOptions,
    OutputOptions,
    Principles,
    ServingOptions,
    flag,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.open import check_engine
from cai_cli.errors import RunError
from cai_cli.feedback.judge import Inquiry
from cai_cli.feedback.labels import Pair
from cai_cli.feedback.pairs import check_pairs, read_pairs
from cai_cli.feedback.settings import (
    FeedbackChatTemplateKwargs,
    FeedbackDtype,
    OptionFormat,
    PrefixCache,
    judge_settings,
)
from cai_cli.models.devices import check_device
from cai_cli.prompting.choices import option_labels
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.few_shot import NONE
from cai_cli.prompting.prompts import NO_PRINCIPLE, NO_PRINCIPLE_REWORDED
from cai_cli.prompting.solved_questions import load_comparison_demonstrations

if TYPE_CHECKING:
    from cai_cli.feedback.steering import Examined

CHUNK_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    judges: FeedbackEngineOptions
    serving: ServingOptions
    feedback_model: Annotated[str, flag("Model", "The judge, as for `cai label`."), MODEL]
    feedback_dtype: FeedbackDtype = "auto"
    feedback_chat_template_kwargs: FeedbackChatTemplateKwargs = None
    device: Device = "auto"
    constitution: Annotated[
        str, flag("Data", "The constitution to test, as for `cai label`."), CONSTITUTION
    ] = "article"
    principles: Principles = None
    against: Annotated[
        str | None,
        flag("Data", "Another constitution, all of it: how far its mean labels are from the first one's."),
        CONSTITUTION,
    ] = None
    pairs: Annotated[
        list[str],
        flag("Data", "Samples, comparisons or hh-rlhf rows, as for `cai label`; 100 or more. Repeatable."),
        INPUT,
    ]
    limit: Annotated[int | None, flag("Data", "Take at most this many pairs.", min=1)] = None
    option_format: OptionFormat = "(A)"
    few_shot: Annotated[
        str,
        flag("Feedback", "Solved questions in front, as for `cai label`: none, default, or a file."),
        DEMONSTRATIONS,
    ] = NONE
    prefix_cache: PrefixCache = True
    batch_size: Annotated[
        int, flag("Generation", "Questions per forward pass; does not change labels.", min=1), RUNTIME
    ] = 64


def run(options: Options) -> None:
    """Measure whether a judge listens to a constitution.

    Each pair is judged under every principle, in both orders; under none, with the question "Which of these
    assistant responses do you choose? Choose one of the responses." and, to see what wording alone does, with
    "Please pick one of the assistant's two responses below."; and under a principle's `opposite` where the
    file gives one. For each principle: how many labels change sides against none and how far they move, beyond
    what wording does; how often it agrees with the others; how often its opposite turns the label. Intervals are
    bootstrapped over prompts. A table, a JSON file, a picture beside it, and advice where the judge does not
    listen. Not in the paper.

    Example: cai constitution test --feedback-model base/ --pairs comparisons.jsonl --out article.json
    """
    check_engine(options.feedback_model, settings_of(options), "--feedback-model")
    inquiries = inquiries_of(options)
    results = ResultsFile("constitution test", options)
    if results.done:
        return
    check_device(options.device, options.output.dry_run)
    pairs = list(read_pairs(options.pairs, options.limit))
    check_pairs(pairs, options.pairs)
    if options.output.dry_run:
        dry_run(options, inquiries, pairs)
        return
    judged, about_judge = judge_all(options, inquiries, [pair for pair in pairs if pair.rejected is None])
    rejected = [pair.rejected for pair in [*pairs, *map(whole, judged)] if pair.rejected]
    judged = [both for both in judged if whole(both).rejected is None]
    if not judged:
        why = reasons_text(Counter(counted(rejected)))
        told = f"none of the {len(pairs)} pairs could be asked about ({why})"
        raise RunError(told, "give shorter pairs, or a judge with a longer context")

    from cai_cli.feedback.steering import examine

    found = examine(judged, inquiries, options.output.seed)
    problem = found.facts["shortcoming"]
    advice = [f"{problem['told']}: {remedy(problem['name'], options)}"] if problem else []
    results.start()
    put_aside(rejected, "pairs", rejects_path(results.out))
    draw(results.picture, options, found)
    counts = {"in": len(pairs), "out": len(judged), "rejected": counted(rejected)}
    texts = {"no_principle": NO_PRINCIPLE, "no_principle_reworded": NO_PRINCIPLE_REWORDED}
    measured = {
        "feedback_model": options.feedback_model,
        "counts": counts,
        **texts,
        **found.facts,
        "advice": advice,
    }
    results.finish({**measured, "pairs": found.rows}, counts, **about_judge, warnings=advice)
    show(found.facts, options)
    warn_all(advice)
    if not advice:
        say("the judge listens")


def inquiries_of(options: Options) -> list[Inquiry]:
    """How pairs are asked about: under the constitution, and under the one it is compared with."""
    from cai_cli.feedback.steering import all_sides

    constitution = load_constitution(options.constitution, ("comparison",), options.principles)
    inquiry = Inquiry(
        constitution=constitution,
        seed=options.output.seed,
        labels=option_labels(options.option_format),
        demonstrations=tuple(load_comparison_demonstrations(options.few_shot)),
        every=all_sides(constitution),
    )
    if not options.against:
        return [inquiry]
    other = load_constitution(options.against, ("comparison",))
    return [inquiry, replace(inquiry, constitution=other, every=other.principles)]


def settings_of(options: Options) -> EngineSettings:
    """How the judge is opened."""
    return judge_settings(
        options.judges,
        options.serving,
        options.device,
        options.feedback_dtype,
        options.feedback_chat_template_kwargs,
        options.batch_size,
        options.output.seed,
        options.prefix_cache,
    )


def judge_all(
    options: Options, inquiries: list[Inquiry], pairs: list[Pair]
) -> tuple[list[list[Pair]], dict[str, Any]]:
    """Each pair with its answers, once for each inquiry; and what the manifest keeps about the judge."""
    from cai_cli.engines.open import open_engine
    from cai_cli.feedback.steering import ask_all

    judge = open_engine(options.feedback_model, settings_of(options), "--feedback-model")
    judged: list[list[Pair]] = []
    size = max(1, CHUNK_BATCHES * options.batch_size // questions_of(inquiries))
    with progress("constitution test", len(pairs), unit="pairs") as advance:
        for chunk in chunks(pairs, size):
            answers = [ask_all(judge, inquiry, chunk) for inquiry in inquiries]
            judged += map(list, zip(*answers, strict=True))
            advance(len(chunk), "")
    return judged, judge.facts()


def questions_of(inquiries: list[Inquiry]) -> int:
    """How many questions are asked about a pair, each principle in both orders."""
    return sum(2 * len(inquiry.every) for inquiry in inquiries)


def whole(both: list[Pair]) -> Pair:
    """A pair as all inquiries see it: rejected where one of them could not ask."""
    return next((pair for pair in both if pair.rejected), both[0])


def remedy(name: str, options: Options) -> str:
    """The next step where a judge does not listen, by what keeps it from that."""
    few_shot = "--few-shot default, " if options.few_shot == NONE else ""
    larger = f"try {few_shot}a larger judge"
    if name == "mass":
        return f"try {few_shot}another --option-format, or a judge that follows instructions"
    if name == "prompts":
        return "give more pairs"
    if name == "position":
        return f"{larger}, or `cai label --cot` with one that follows instructions"
    return f"{larger}, or principles that ask about one quality each: `Which response is ...?`"


# Showing


def draw(path: Path, options: Options, found: Examined) -> None:
    from cai_cli.evaluation.steering_plot import draw_steering

    facts = found.facts
    title = (
        f"{Path(options.feedback_model).name} under {facts['constitution']}: {facts['pairs_judged']} pairs"
    )
    against = (facts["against"]["constitution"], *found.means) if options.against else None
    draw_steering(facts, path, title, against)


def show(facts: dict[str, Any], options: Options) -> None:
    """Shares in %, moves of labels in points, hundredths of a probability; all with 95 % intervals."""
    principles, none = facts["principles"], facts["reworded"]
    rows = [
        [name, item["effect"], *(percent(item, field) for field in ("flips", "shift", "beyond"))]
        for name, item in principles.items()
    ]
    rows.append(["(none, reworded)", "", percent(none, "flips"), percent(none, "shift"), ""])
    columns = ["principle", "effect", "changes\nsides, %", "moves labels,\npoints", "beyond\nrewording"]
    table(f"{facts['constitution']}: labels against those under no principle", columns, rows)
    rows = []
    for name, item in principles.items():
        opposite = item.get("opposite", {})
        rows.append(
            [name, percent(item, "agreement"), percent(opposite, "turned"), percent(opposite, "apart")]
        )
    columns = ["principle", "same side as\nothers, %", "turned by its\nopposite, %", "away from it,\npoints"]
    table(f"{facts['constitution']}: principles against each other and their opposites", columns, rows)
    position = percent(facts["position"], "same_position_rate")
    say(f"same option in both orders: {position} %; mass on the options: {facts['mean_mass']:.3f}")
    if options.against:
        other = facts["against"]
        told = f"{percent(other, 'changed_sides')} % of the pairs change sides"
        told += f", labels are {percent(other, 'distance')} points apart"
        say(f"{facts['constitution']} against {other['constitution']}: {told}")
        say(
            f"furthest apart: {', '.join(pair['id'] for pair in other['most_moved'])} (texts in {options.output.out})"
        )


def percent(facts: dict[str, Any], name: str) -> str:
    """`31 (24–38)`, with a decimal below 10; a dash where there is nothing to take it over."""
    if facts.get(name) is None:
        return "–"
    numbers = [100 * number for number in (facts[name], *facts[f"{name}_interval"])]
    digits = 0 if max(map(abs, numbers)) >= 10 else 1
    value, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in numbers)
    return f"{value} ({low}{' to ' if numbers[1] < 0 else '–'}{high})"


def dry_run(options: Options, inquiries: list[Inquiry], pairs: list[Pair]) -> None:
    """Show the first question exactly as the judge would get it."""
    from cai_cli.engines.open import open_reader

    renderer = open_reader(options.feedback_model, settings_of(options), "--feedback-model")
    usable = [pair for pair in pairs if pair.rejected is None]
    question = next(inquiries[0].questions(usable[0]))
    show_text(renderer.show(inquiries[0].prompt(question, renderer.form() == "chat")))
    say(f"{len(usable)} pairs, {questions_of(inquiries)} questions each")
