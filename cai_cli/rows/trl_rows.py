"""Rows of comparisons and samples: ours, and TRL's as they are, which have no ids, probability, origin or
finish reason.

    preference          {"prompt", "chosen", "rejected"}, or without the prompt, which then stands in front of both replies
    prompt-completion   {"prompt", "completion"}
    language modelling  {"messages"}, the last reply being the completion; {"conversations"} of ShareGPT too

Each text or turns. A pair of TRL's is a human's with probability 1. Ids are made from the prompt: `<prompt
id>/row<k>`, which are no ids of our samples (`<prompt id>/<k>`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cai_cli.rows.conversation import check_conversation, message, prompt_id
from cai_cli.rows.foreign_turns import (
    Refused,
    common_start,
    is_transcript,
    read_conversation,
    read_pair,
    read_reply,
)
from cai_cli.rows.records import Comparison, Sample, optional_kind, optional_text, text_field
from cai_cli.rows.row_kinds import COMPARISONS, CONVERSATIONS, SAMPLES, Row, kind_taken
from cai_cli.rows.seen import Seen


@dataclass(slots=True)
class RowReader:
    """Reads the rows of all files of a command, so that the ids it makes do not repeat."""

    dropped: Counter[str] = field(default_factory=Counter)
    made: Seen = field(default_factory=Seen)

    def comparison(self, row: Row) -> Comparison:
        """Raises RecordError."""
        kind_taken(row, COMPARISONS)
        if "probability" in row or "origin" in row:
            return Comparison.from_row(row)
        prompt_cell, chosen_cell, rejected_cell = row.get("prompt"), row["chosen"], row["rejected"]
        plain = all(
            isinstance(cell, str) and not is_transcript(cell) for cell in (chosen_cell, rejected_cell)
        )
        if plain and row.keys() == {"chosen", "rejected"}:
            prompt_cell = common_start(chosen_cell, rejected_cell)
            if not prompt_cell:
                raise Refused("missing_field", "no prompt: the two texts do not start alike")
            chosen_cell, rejected_cell = (
                text.lstrip()[len(prompt_cell) :] for text in (chosen_cell, rejected_cell)
            )
        names = ("prompt", "chosen", "rejected")
        prompt, chosen, rejected = read_pair(prompt_cell, chosen_cell, rejected_cell, names, self.dropped)
        identity = prompt_id(prompt)
        return Comparison(
            id=self.id_of(row, identity),
            prompt_id=optional_text(row, "prompt_id") or identity,
            prompt=prompt,
            chosen=[message("assistant", chosen)],
            rejected=[message("assistant", rejected)],
            probability=1.0,
            origin="human",
            kind=optional_kind(row),
            source=source_of(row),
        )

    def sample(self, row: Row) -> Sample:
        """Raises RecordError."""
        kind_taken(row, SAMPLES, CONVERSATIONS)
        if "finish_reason" in row:
            return Sample.from_row(row)
        if "completion" in row:
            turns, reply = read_reply(row["completion"], "completion", self.dropped)
            if not turns and row.get("prompt") is not None:
                turns = read_conversation(row["prompt"], "prompt", self.dropped)
        else:
            name = "messages" if "messages" in row else "conversations"
            turns, reply = read_reply(row[name], name, self.dropped)
        prompt = check_conversation(turns, "prompt", ends_with="user")
        completion = check_conversation([message("assistant", reply)], "completion")
        return Sample(
            id=self.id_of(row, prompt_id(prompt)),
            prompt=prompt,
            completion=completion,
            finish_reason="stop",
            kind=optional_kind(row),
            source=source_of(row),
        )

    def id_of(self, row: Row, prompt_identity: str) -> str:
        """The row's own id, as text, or the next one of its prompt."""
        given = row.get("id")
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        if given is not None:
            return text_field(row, "id")
        return f"{prompt_identity}/row{self.made.count(prompt_identity)}"


def source_of(row: Row) -> str | None:
    """The name of a data set, where the field holds one: rows of others may keep something else there."""
    return row["source"] if isinstance(row.get("source"), str) and row["source"] else None
