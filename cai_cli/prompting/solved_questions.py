r"""Solved comparison questions to put in front of a feedback model's own: few-shot demonstrations of multiple
choice.

In: a shipped set (`default`), `none`, or a file: our YAML (cai_cli/prompting/demonstrations), or the paper's
JSON as published: RLMadisonFewShotPrompts.json {prompt, corrects, incorrects} and, with reasoning,
RLMadisonPrecogFewShotPrompts.json {prompt with a `{}` for the principle}. Out: questions with answers, and
rationales where the form reasons.
Errors: UserError that names the file, the demonstration and the field.
Source: Constitutional AI (arXiv 2212.08073), section 4.1: each example draws a principle of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai_cli.errors import UserError
from cai_cli.keys import Part, shuffled, uniform
from cai_cli.prompting.choices import PLAIN, Form, Solved, reasoned_question
from cai_cli.prompting.few_shot import DEFAULT, NONE, find_demonstrations, numbered, read_prompt, read_text
from cai_cli.prompting.principles import Constitution
from cai_cli.prompting.prompts import OPTION_LABELS, comparison_question
from cai_cli.rows.conversation import Conversation

COMPARISON_SET, REASONED_SET = "comparison", "comparison_cot"
SLOT = "{}"
WRITTEN = re.compile(
    r"\s*Human: ?(?P<question>.*)\n\nAssistant: Let's think step.by.step:(?P<rationale>.*)"
    r"\n\nHuman:\s*So the answer is: (?P<answer>\([AB]\))\s*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ComparisonDemonstration:
    """Two responses, and why one is better: in `rationale`, {better} and {worse} stand for the options'
    labels.
    """

    prompt: Conversation
    better: str
    worse: str
    rationale: str
    place: str


@dataclass(frozen=True, slots=True)
class WrittenDemonstration:
    """A published demonstration whose order and letters are fixed; the principle goes into the question's
    `{}`.
    """

    question: str
    rationale: str
    answer: str
    place: str


Demonstration = ComparisonDemonstration | WrittenDemonstration


def load_comparison_demonstrations(
    name_or_path: str = DEFAULT, reasoned: bool = False
) -> list[Demonstration]:
    """The demonstrations of a set or a file. `reasoned`: take the default set that holds rationales, and ask
    for them.
    """
    if name_or_path == NONE:
        return []
    path = find_demonstrations(name_or_path, REASONED_SET if reasoned else COMPARISON_SET)
    demonstrations = [parse_demonstration(item, place) for place, item in numbered(path)]
    for demonstration in demonstrations:
        if reasoned and not demonstration.rationale:
            raise UserError(
                f"{demonstration.place}: field `rationale`: missing, and --cot shows reasoning",
                "or --few-shot none",
            )
        if not reasoned and isinstance(demonstration, WrittenDemonstration):
            raise UserError(f"{demonstration.place}: shows reasoning before the answer", "use it with --cot")
    return demonstrations


def solve(
    demonstrations: Sequence[Demonstration],
    constitution: Constitution,
    labels: Sequence[str],
    form: Form,
    *draw_key: Part,
) -> list[Solved]:
    """The demonstrations as solved questions. Every one draws its own principle (paper section 4.1)."""
    solved = []
    for number, (demonstration, place) in enumerate(
        zip(demonstrations, balanced_places(len(demonstrations), *draw_key), strict=True)
    ):
        principle = constitution.draw("few-shot principle", *draw_key, number).comparison
        if isinstance(demonstration, WrittenDemonstration):
            solved.append(solve_written(demonstration, principle, labels))
        else:
            solved.append(solve_comparison(demonstration, principle, labels, form, place))
    return solved


def balanced_places(count: int, *draw_key: Part) -> list[int]:
    """Where the better responses stand: first as often as second, give or take one, in an order drawn by key.

    Independent coin flips over a handful of examples would often show the model one letter only.
    """
    start = int(uniform("few-shot start", *draw_key) * 2)
    return shuffled([(start + n) % 2 for n in range(count)], "few-shot letters", *draw_key)


def solve_written(demonstration: WrittenDemonstration, principle: str, labels: Sequence[str]) -> Solved:
    if tuple(labels) != OPTION_LABELS:
        raise UserError(
            f"{demonstration.place}: is written with the options (A) and (B)", "leave --option-format at (A)"
        )
    # Replaced, not formatted: the texts may hold other braces.
    question = demonstration.question.replace(SLOT, f"{principle} Options:", 1)
    return Solved(question, demonstration.answer, demonstration.rationale)


def solve_comparison(
    demonstration: ComparisonDemonstration, principle: str, labels: Sequence[str], form: Form, place: int
) -> Solved:
    """The better response at `place` (0 or 1)."""
    replies = [demonstration.worse, demonstration.worse]
    replies[place] = demonstration.better
    better, worse = labels[place], labels[1 - place]
    if form is PLAIN:
        return Solved(
            comparison_question(demonstration.prompt, replies[0], replies[1], principle, labels), better
        )
    rationale = demonstration.rationale.replace("{better}", better).replace("{worse}", worse)
    return Solved(reasoned_question(demonstration.prompt, replies, principle, labels), better, rationale)


def parse_demonstration(item: Any, place: str) -> Demonstration:
    """Our fields `prompt`, `better`, `worse` and `rationale`; or the paper's `prompt`, `corrects` and
    `incorrects` (lists of one); or the paper's `prompt` alone, with everything in it.
    """
    if not isinstance(item, dict):
        raise UserError(f"{place}: expected the fields prompt, better, worse")
    if set(item) == {"prompt"} and isinstance(item["prompt"], str) and SLOT in item["prompt"]:
        return parse_written(item["prompt"], place)
    texts = []
    for name, published in (("better", "corrects"), ("worse", "incorrects")):
        answers = item.get(published)
        if name not in item and isinstance(answers, list):
            if len(answers) != 1:
                raise UserError(f"{place}: field `{published}`: expected one answer, got {len(answers)}")
            item = {**item, name: answers[0]}
        texts.append(read_text(item, name, place))
    rationale = read_text(item, "rationale", place) if "rationale" in item else ""
    return ComparisonDemonstration(
        read_prompt(item.get("prompt"), place), texts[0], texts[1], rationale, place
    )


def parse_written(text: str, place: str) -> WrittenDemonstration:
    match = WRITTEN.fullmatch(text)
    if not match:
        hint = (
            "Human: question with {}, Assistant: Let's think step by step: ..., Human: So the answer is: (A)"
        )
        raise UserError(
            f"{place}: field `prompt`: not a solved question with its reasoning", f"expected {hint}"
        )
    return WrittenDemonstration(match["question"].strip(), match["rationale"], match["answer"], place)
