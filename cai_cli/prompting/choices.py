r"""Multiple-choice questions as a model gets them: options' labels, solved examples in front, reasoning
before the answer.

Each in two renderings: *transcript* (plain text, for base and HH-style models) and *chat* (turns for a chat
template). What is scored is the label with the space before it, ` (A)`, encoded together with the question.

Three forms:
    PLAIN      the question, then "The answer is:" (Constitutional AI, arXiv 2212.08073, section 4.1, as in the article)
    PAPER_COT  "Let's think step by step:", a rationale, "So the answer is:" (same section; laid out as in the published
               RLMadisonPrecogFewShotPrompts.json, where a turn of the human asks for the answer)
    TWO_STEP   first a rationale is asked for, then the question's normal ending (RLAIF, arXiv 2309.00267, section 2.1.2)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cai_cli.errors import UserError
from cai_cli.prompting.prompts import ANSWER_CUE, TRANSCRIPT_STOPS
from cai_cli.rows.conversation import ASSISTANT, HUMAN, Conversation, message, split_system

Prompt = str | Conversation

LETTERED = re.compile(r"(?<![A-Za-z0-9])[Aa1](?![A-Za-z0-9])")
COMMON_FORMATS = ("(A)", "A", "A.", "(1)", "1")

THINK_CUE = "Let's think step by step:"
SO_CUE = "So the answer is:"
EXPLAIN = "Explain which of the options is the best answer, and why."
RATIONALE_CUE = "Rationale:"
DECIDE = "Which option is it, then?"
H, A = "\n\nH:", "\n\nA:"


@dataclass(frozen=True, slots=True)
class Form:
    """The transcript of a question: opening, question, think, rationale, answer, label, closing. `think`: ""
    for no reasoning.
    """

    name: str
    opening: str
    think: str
    answer: str
    closing: str
    stop: tuple[str, ...] = ()


PLAIN = Form("plain", "", "", f"\n{ANSWER_CUE}", "\n\n")
PAPER_COT = Form(
    "paper",
    f"{HUMAN} ",
    f"{ASSISTANT} {THINK_CUE}",
    f"{HUMAN}\n{SO_CUE}",
    "",
    (*TRANSCRIPT_STOPS, H, f"\n{SO_CUE}"),
)
TWO_STEP = Form(
    "two-step",
    "",
    f"\n\n{EXPLAIN}\n\n{RATIONALE_CUE}",
    f"\n\n{ANSWER_CUE}",
    "\n\n",
    (*TRANSCRIPT_STOPS, f"\n{ANSWER_CUE}", "\n\nConsider the following conversation"),
)
FORMS = {form.name: form for form in (PLAIN, PAPER_COT, TWO_STEP)}


@dataclass(frozen=True, slots=True)
class Solved:
    """A question with its answer, and the reasoning that leads to it or ""."""

    question: str
    answer: str
    rationale: str = ""


def option_labels(option_format: str, count: int = 2) -> tuple[str, ...]:
    """`(A)` -> ("(A)", "(B)"); `1.` -> ("1.", "2."). Raises UserError for a format without one A, a or 1 to
    count from.
    """
    marks = list(LETTERED.finditer(option_format))
    if len(marks) != 1 or option_format.strip() != option_format:
        hint = f"it holds one A, a or 1 to count from: {', '.join(COMMON_FORMATS)}"
        raise UserError(f"--option-format {option_format!r}: not a way to mark options", hint)
    mark = marks[0]
    head, tail = option_format[: mark.start()], option_format[mark.end() :]
    return tuple(f"{head}{chr(ord(mark.group()) + n)}{tail}" for n in range(count))


def reasoned_question(
    prompt: Conversation, replies: Sequence[str], principle: str, labels: Sequence[str]
) -> str:
    """The question in the layout of the published chain-of-thought examples.

    Turns are H: and A:, since the question itself stands in a turn of the human.
    """
    head = "Consider the following conversation between a human (H) and an assistant (A):"
    system, turns = split_system(prompt)
    texts = [turn["content"] for turn in turns]
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    talk = "".join(
        f"{H if turn['role'] == 'user' else A} {text}" for turn, text in zip(turns, texts, strict=True)
    )
    options = "".join(f"\n {label} [[[{reply}]]]" for label, reply in zip(labels, replies, strict=True))
    return f"{head}{talk}\n\n{principle} Options:{options}"


def ask(
    question: str, form: Form, solved: Sequence[Solved], chat: bool, rationale: str | None = None
) -> Prompt:
    """The prompt that a label follows; where the form reasons and no rationale is given, the one that a
    rationale follows.
    """
    if chat:
        before = [
            turn
            for example in solved
            for turn in chat_turns(example.question, form, example.rationale, example.answer)
        ]
        return [*before, *chat_turns(question, form, rationale)]
    return "".join(transcript_of(example, form) for example in solved) + unfinished(question, form, rationale)


def transcript_of(example: Solved, form: Form) -> str:
    return f"{unfinished(example.question, form, example.rationale)} {example.answer}{form.closing}"


def unfinished(question: str, form: Form, rationale: str | None) -> str:
    """The transcript of a question up to where its label, or its rationale, is to follow."""
    head = f"{form.opening}{question}{form.think}"
    if not form.think:
        return f"{head}{form.answer}"
    return head if rationale is None else f"{head}{apart(rationale)}{form.answer}"


def apart(text: str) -> str:
    """With a space in front, unless it brings its own, as some of the published rationales do."""
    return text if text[:1].isspace() else f" {text}"


def chat_turns(question: str, form: Form, rationale: str | None, answer: str = "") -> Conversation:
    """The turns of a question, the last one of the assistant left open where no answer is given."""
    tail = f" {answer}" if answer else ""
    if not form.think:
        return [message("user", question), message("assistant", f"{ANSWER_CUE}{tail}")]
    if form is PAPER_COT:
        reasoning = THINK_CUE if rationale is None else f"{THINK_CUE}{apart(rationale)}\n\n{SO_CUE}{tail}"
        return [message("user", question), message("assistant", reasoning)]
    asked = [message("user", f"{question}\n\n{EXPLAIN}")]
    if rationale is None:
        return asked
    return [
        *asked,
        message("assistant", rationale.strip()),
        message("user", DECIDE),
        message("assistant", f"{ANSWER_CUE}{tail}"),
    ]
