r"""The paper's multiple-choice items -> questions for a language model, and how well its answers do. No
torch.

A row, as published with Constitutional AI (438HHHEvaluations, HarmfulVsEthical, HarmfulnessClassification):
    {"prompt": "... Options:\n (A) ...\n (B) ...\nThe answer is:", "corrects": [" (B)"], "incorrects": [" (A)"],
     "text_correct": "\n\nHuman: ...\n\nAssistant: ...", "text_incorrect": ...}
where the last two, with both replies as transcripts, are for preference models and not in every file.
Source: arXiv 2212.08073, section 2 and appendix B; metrics as in section 4.3 and figure 9 (calibration).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cai_cli.errors import RecordError
from cai_cli.evaluation.calibration import Bin, reliability_bins, wilson
from cai_cli.prompting.choices import PLAIN, A, Form, H, Prompt, Solved, ask
from cai_cli.prompting.prompts import ANSWER_CUE
from cai_cli.rows.conversation import ASSISTANT, HUMAN, Conversation, TranscriptError, from_transcript
from cai_cli.rows.jsonl import Row, read_rows
from cai_cli.rows.records import text_field
from cai_cli.rows.row_kinds import ITEMS, kind_taken

CUE = f"\n{ANSWER_CUE}"


@dataclass(slots=True)
class Item:
    """One question. `options`: the label strings with their leading space, sorted; `correct`: the places of
    right ones.

    `replies`: prompt, right and wrong reply for a preference model, where the row has them.
    `probabilities`: what was measured, one for each option; `skipped`: why nothing was.
    """

    path: Path
    line: int
    prompt: str
    options: tuple[str, ...]
    correct: frozenset[int]
    replies: tuple[Conversation, Conversation, Conversation] | None = None
    probabilities: list[float] = field(default_factory=list)
    mass: float | None = None
    rationales: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def question(self) -> str:
        """The prompt without the cue that asks for the answer."""
        return self.prompt.removesuffix(CUE)

    @property
    def answer(self) -> str:
        return self.options[min(self.correct)].strip()

    @property
    def probability_right(self) -> float:
        return sum(self.probabilities[n] for n in self.correct)

    @property
    def right(self) -> float:
        """1 where the likeliest option is a right one; where several are equally likely, the share of right
        ones.
        """
        top = [n for n, p in enumerate(self.probabilities) if p == max(self.probabilities)]
        return sum(n in self.correct for n in top) / len(top)

    def to_row(self) -> Row:
        row: Row = {
            "file": self.path.name,
            "line": self.line,
            "correct": [self.options[n].strip() for n in sorted(self.correct)],
        }
        if self.skipped:
            return {**row, "skipped": self.skipped}
        row["probabilities"] = dict(
            zip((option.strip() for option in self.options), self.probabilities, strict=True)
        )
        row["mass"] = self.mass
        return {**row, "rationales": self.rationales} if self.rationales else row


def read_items(path: Path, with_replies: bool = False) -> Iterator[Item]:
    """The items of a file. `with_replies`: the two transcripts are needed. Raises RecordError with file, line
    and field.
    """
    for line, row in read_rows(path):
        try:
            if not {"corrects", "incorrects"} & row.keys():
                kind_taken(row, ITEMS)
            item = parse_item(path, line, row)
            if with_replies and "text_correct" not in row:
                raise RecordError(
                    "text_correct",
                    "missing",
                    "a preference model scores transcripts: ask this file of a --model",
                )
            if with_replies or "text_correct" in row:
                item.replies = parse_replies(row)
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        yield item


def parse_item(path: Path, line: int, row: Row) -> Item:
    corrects, incorrects = (option_list(row, name) for name in ("corrects", "incorrects"))
    options = sorted(corrects + incorrects)
    if twice := [option for option, count in Counter(options).items() if count > 1]:
        raise RecordError("incorrects", f"the option {twice[0]!r} is there twice, or right and wrong at once")
    right = frozenset(n for n, option in enumerate(options) if option in corrects)
    return Item(path, line, text_field(row, "prompt"), tuple(options), right)


def option_list(row: Row, name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise RecordError(name, 'expected a non-empty list of options such as [" (A)"]')
    for n, option in enumerate(value):
        if not isinstance(option, str) or not option.strip():
            raise RecordError(f"{name}[{n}]", "expected text such as ' (A)'")
    return value


def parse_replies(row: Row) -> tuple[Conversation, Conversation, Conversation]:
    """The prompt that both transcripts share, the right and the wrong reply."""
    found = []
    for name in ("text_correct", "text_incorrect"):
        try:
            turns = from_transcript(text_field(row, name))
        except TranscriptError as error:
            raise RecordError(name, str(error)) from None
        if len(turns) < 2 or turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
            raise RecordError(name, "expected a transcript that ends in a reply of the assistant")
        found.append(turns)
    if found[0][:-1] != found[1][:-1]:
        raise RecordError(
            "text_incorrect", "its conversation before the last reply is not that of text_correct"
        )
    return found[0][:-1], found[0][-1:], found[1][-1:]


def item_prompt(
    item: Item, form: Form, solved: Sequence[Solved], chat: bool, rationale: str | None = None
) -> Prompt:
    """The prompt as published where nothing stands before it; in a form that reasons its conversation is of
    H: and A:.
    """
    return ask(shown(item.question, form, chat), form, solved, chat, rationale)


def shown(question: str, form: Form, chat: bool) -> str:
    if form.name == "paper" and not chat:  # the question is itself a turn of the human
        question = question.strip().replace(HUMAN, H).replace(ASSISTANT, A)
    return question.strip() if chat else question


def solved_items(items: Sequence[Item], chat: bool) -> list[Solved]:
    return [Solved(shown(item.question, PLAIN, chat), item.answer) for item in items]


def softmax(logprobs: Sequence[float]) -> list[float]:
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


# What the answers are worth


def measure(items: Sequence[Item]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, calibration and counts of the items that were answered."""
    scored = [item for item in items if item.probabilities]
    confidence = [max(item.probabilities) for item in scored]
    right = [item.right for item in scored]
    skipped = Counter(item.skipped for item in items if item.skipped)
    facts: dict[str, Any] = {
        "items": len(items),
        "scored": len(scored),
        "skipped": dict(sorted(skipped.items())),
    }
    if not scored:
        return facts
    masses = [item.mass for item in scored if item.mass is not None]
    return facts | {
        "accuracy": fmean(right),
        "interval": wilson(sum(right), len(right)),
        "chance": fmean(len(item.correct) / len(item.options) for item in scored),
        "mean_probability_right": fmean(item.probability_right for item in scored),
        "calibration_error": bin_error(reliability_bins(confidence, right)),
        "calibration_error_options": bin_error(option_bins(scored)),
        "mean_mass": fmean(masses) if masses else None,
        "correct_options": counts(item.answer for item in scored),
        "predicted_options": counts(
            item.options[item.probabilities.index(max(item.probabilities))].strip() for item in scored
        ),
    }


def counts(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def option_bins(items: Sequence[Item]) -> list[Bin]:
    """Every option of every item: its probability against whether it is right, as in the paper's figure 9."""
    scored = [item for item in items if item.probabilities]
    predicted = [p for item in scored for p in item.probabilities]
    return reliability_bins(
        predicted, [float(n in item.correct) for item in scored for n in range(len(item.options))]
    )


def bin_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of predicted and observed, weighted by the bins' counts."""
    return sum(cell.count * abs(cell.predicted - cell.target) for cell in bins) / sum(
        cell.count for cell in bins
    )
