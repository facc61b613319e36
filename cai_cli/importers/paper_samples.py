r"""The paper's published model samples (`*_HRLHF.jsonl`, `*_HHRLHF.jsonl`, `*_RLMADISON*.jsonl`) -> samples.

A published row: `rl_prompt` (transcript with a cue), `sampled_answers`, a list of {`sampled_string`,
`pm_scores` [{`pm_score`}]}, `comparison_dataset` and in some files `comparison_model`, the reply of the model
that was compared with.

Each answer is a sample of its own, without the space in front and the human's turn behind it (`\n\nHuman:`,
or half of that); an answer without such a turn was cut off. `pm_scores` are numbers in a field of that name,
and what else a row says stands beside them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.errors import RecordError
from cai_cli.importers.formats import Format
from cai_cli.importers.public_files import expect_fields, read_public_rows
from cai_cli.importers.reject import Reject, Row, text_of
from cai_cli.rows.conversation import ASSISTANT, Conversation, check_reply, message, prompt_id
from cai_cli.rows.foreign_turns import Refused, parse_transcript
from cai_cli.rows.records import Sample

# A line with which somebody else's turn begins, or what there is of it where the answer ends.
NEXT_TURN = re.compile(r"[\r\n][ \t]*(?:Human|Assistant)(?::|\s*\Z)")


@dataclass(frozen=True, slots=True)
class PublishedSample:
    """A sample, and what the published row says of it besides."""

    sample: Sample
    besides: Row

    @property
    def id(self) -> str:
        return self.sample.id

    def to_row(self) -> Row:
        row = self.sample.to_row()
        return row | {name: value for name, value in self.besides.items() if name not in row}


def import_samples(
    path: Path, *, kind: str | None = None, source: str | None = None
) -> Iterator[PublishedSample | Reject]:
    """One sample an answer, with the id `<prompt id>/<k>`, k counting the answers to one prompt.

    An answer that is none is a Reject of its own, a row whose prompt cannot be read one for all its answers.
    """
    counts: Counter[str] = Counter()
    for item in expect_fields(path, read_public_rows(path), "rl_prompt", "sampled_answers"):
        if isinstance(item, Reject):
            yield item
            continue
        line, row = item
        try:
            prompt, answers = prompt_of(row), answers_of(row)
        except RecordError as error:
            yield rejected(line, row, error)
            continue
        shared = {name: value for name, value in row.items() if name not in ("rl_prompt", "sampled_answers")}
        identity = prompt_id(prompt)
        for number, answer in enumerate(answers):
            place = f"{identity}/{counts[identity]}"
            counts[identity] += 1
            try:
                yield sample_of_answer(place, prompt, answer, shared, kind, source)
            except RecordError as error:
                yield rejected(
                    line, {**row, "sampled_answers": [answer]}, error, f"sampled_answers[{number}]"
                )


def rejected(line: int, row: Row, error: RecordError, part: str = "") -> Reject:
    if isinstance(error, Refused):
        return Reject(line, error.reason, row, error.detail, part)
    return Reject(line, "malformed", row, str(error), part)


def prompt_of(row: Row) -> Conversation:
    prompt = parse_transcript(
        text_of(row, "rl_prompt").rstrip().removesuffix(ASSISTANT.strip()).rstrip(), whole=False
    )
    if prompt[-1]["role"] != "user":
        raise Refused("not_a_prompt", "field `rl_prompt`: does not end in a human turn")
    return prompt


def answers_of(row: Row) -> list[Any]:
    answers = row.get("sampled_answers")
    if not isinstance(answers, list) or not answers:
        raise Refused("no_answers", "field `sampled_answers`: expected a list of answers")
    return answers


def sample_of_answer(
    identity: str, prompt: Conversation, answer: Any, shared: Row, kind: str | None, source: str | None
) -> PublishedSample:
    """Raises RecordError for what is no answer."""
    if not isinstance(answer, dict):
        raise Refused("not_an_answer", f"expected an object, got {type(answer).__name__}")
    said = text_of(answer, "sampled_string")
    turn = NEXT_TURN.search(said)
    text = said[: turn.start() if turn else len(said)].strip()
    if not text:
        raise Refused("empty_text", "field `sampled_string`")
    besides = {name: value for name, value in answer.items() if name not in ("sampled_string", "pm_scores")}
    if "pm_scores" in answer:
        besides["pm_scores"] = scores_of(answer["pm_scores"])
    reply = check_reply([message("assistant", text)], "sampled_string")
    return PublishedSample(
        Sample(identity, prompt, reply, "stop" if turn else "length", kind, source=source),
        {**shared, **besides},
    )


def scores_of(found: Any) -> list[float]:
    """The numbers of [{"pm_score": number}, ...]."""
    scores = []
    for item in found if isinstance(found, list) else [None]:
        score = item.get("pm_score") if isinstance(item, dict) else item
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise Refused("not_a_number", "field `pm_scores`: expected a list of {pm_score: number}")
        scores.append(float(score))
    return scores


FORMATS = {
    "paper-samples": Format(
        "its *RLHF and *_RLMADISON files, with their PM scores",
        {"samples": lambda asked: import_samples(asked.path, kind=asked.kind, **asked.source)},
    )
}
