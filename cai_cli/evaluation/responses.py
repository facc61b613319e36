"""A reply -> what the rules say of it, as a row. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cai_cli.evaluation.preaching import is_preaching
from cai_cli.evaluation.refusals import is_bare_refusal, is_refusal
from cai_cli.evaluation.repetition import loops
from cai_cli.rows.conversation import message, prompt_id
from cai_cli.rows.jsonl import Row, read_records
from cai_cli.rows.records import Prompt, Sample
from cai_cli.rows.trl_rows import RowReader

ALL = "all"  # the group of all replies of a model
MISSING = "–"  # in place of an empty reply while its row is read


@dataclass(frozen=True, slots=True)
class Response:
    """One reply of a model. `id`: unique among the replies of all models."""

    id: str
    model: str
    sample: Sample
    text: str

    def to_row(self) -> Row:
        """What the rules say of it; the judge's word is added to it."""
        text = self.text
        return {
            "id": self.id,
            "model": self.model,
            "prompt": self.sample.prompt,
            "completion": [message("assistant", text)],
            "kind": self.sample.kind,
            "source": self.sample.source,
            "finish_reason": self.sample.finish_reason,
            "words": len(text.split()),
            "refusal": is_refusal(text),
            "bare_refusal": is_bare_refusal(text),
            "preaching": is_preaching(text),
            "repetition": loops(text),
            "empty": not text.strip(),
            "truncated": self.sample.finish_reason == "length",
        }


def read_responses(
    model: str, path: Path, prompts: Iterable[Prompt], limit: int | None
) -> Iterator[Response]:
    """The replies in a file of samples. What a row does not say of its prompt, one of `prompts` may: kind and source."""
    known = {prompt_id(prompt.prompt): prompt for prompt in prompts}
    reader = RowReader()

    def parse(row: Row) -> Response:
        nothing = says_nothing(row)  # which is no sample, and is to be counted all the same
        sample = reader.sample({**row, "completion": [message("assistant", MISSING)]} if nothing else row)
        prompt = known.get(prompt_id(sample.prompt))
        if prompt is not None:
            sample.kind, sample.source = sample.kind or prompt.kind, sample.source or prompt.source
        text = "" if nothing else sample.completion[0]["content"]
        return Response(f"{model}/{sample.id}", model, sample, text)

    yield from islice(read_records(path, parse), limit)


def says_nothing(row: Row) -> bool:
    """Whether the row's reply is an empty text, or one turn with one."""
    reply = row.get("completion")
    if isinstance(reply, list) and len(reply) == 1 and isinstance(reply[0], dict):
        reply = reply[0].get("content")
    return isinstance(reply, str) and not reply.strip()
