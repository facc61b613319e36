"""Revisions and samples -> rows of token ids and labels to finetune on: targets, proportions, held-out part,
packing.

Loss is on the completion only: labels are -100 on the prompt. What cannot be trained on is rejected by name,
never cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.errors import RecordError
from cai_cli.keys import shuffled
from cai_cli.prompting.hygiene import UNREVISED, is_near, share_kept
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.jsonl import check_new, read_rows
from cai_cli.rows.records import Revision, Sample
from cai_cli.rows.row_kinds import CONVERSATIONS, REVISIONS, SAMPLES, kind_taken
from cai_cli.rows.seen import Seen
from cai_cli.rows.sources import parse_weight
from cai_cli.rows.splits import is_held_out
from cai_cli.rows.trl_rows import RowReader

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

OTHER = "other"  # the kind of rows that have none


@dataclass(frozen=True, slots=True)
class Target:
    """One prompt and completion to train on; `kind` is harmful, helpful or other; `thinking` comes before the
    completion.
    """

    id: str
    prompt: Conversation
    completion: Conversation
    kind: str = OTHER
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Ids and labels of one target."""

    ids: list[int]
    labels: list[int]
    kind: str
    held_out: bool


def read_targets(
    source: str, which: str, seed: int, thinking: bool = False, reader: RowReader | None = None
) -> Iterator[Target | Rejected]:
    """The targets of one file, `FILE[:proportion]`, told apart by their fields; a malformed row stops with
    its place.

    An id is there once in a file; two files may share ids, as samples of the same prompts do, and both are
    trained on. `which`: each chain's "final" revision, or "all" of them. `thinking`: with what a reasoning
    model thought in front. `reader`: one for all files, since it makes ids for rows without.
    """
    reader = reader or RowReader()
    path, proportion = parse_weight(source)
    found: list[Target | Rejected] = []
    seen = Seen()
    for line, row in read_rows(Path(path)):
        try:
            if kind_taken(row, REVISIONS, SAMPLES, CONVERSATIONS) == REVISIONS:
                found += revision_targets(row, which, thinking)
                name = str(row["id"])
            else:
                sample = reader.sample(row)
                found.append(sample_target(sample, thinking))
                name = sample.id
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        check_new(seen, name, Path(path), line)
    yield from (item for item in found if isinstance(item, Rejected))
    targets = [item for item in found if isinstance(item, Target)]
    whole = int(proportion)
    for times in range(whole):
        yield from (again(target, times) for target in targets)
    part = shuffled(targets, seed, "proportion", path)[: round((proportion - whole) * len(targets))]
    yield from (again(target, whole) for target in part)


def again(target: Target, times: int) -> Target:
    """The target as it is taken for another time, under an id of its own."""
    return replace(target, id=f"{target.id}#{times}") if times else target


def revision_targets(row: dict[str, Any], which: str, thinking: bool) -> Iterator[Target | Rejected]:
    """The chosen revisions of a chain. One that is the draft again is a reject, however it got into the file."""
    chain = Revision.from_row(row)
    numbered = list(enumerate(chain.rounds, start=1))
    for number, step in numbered if which == "all" else numbered[-1:]:
        identity = f"{chain.id}/{number}" if which == "all" else chain.id
        text = step.revision if which == "all" else chain.completion[0]["content"]
        draft = chain.initial[0]["content"]
        if is_near(text, draft):
            told = f"revision {number} keeps {share_kept(text, draft):.0%} of the draft's words"
            yield Rejected(
                identity, UNREVISED, told, {"prompt": chain.prompt, "draft": draft, "revision": text}
            )
            continue
        thoughts = step.revision_thinking if thinking else ""
        yield Target(identity, chain.prompt, [message("assistant", text)], chain.kind or OTHER, thoughts)


def sample_target(sample: Sample, thinking: bool) -> Target:
    return Target(
        sample.id, sample.prompt, sample.completion, sample.kind or OTHER, sample.thinking if thinking else ""
    )


def tokenise(
    targets: list[Target],
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    max_length: int,
    template_kwargs: dict[str, Any],
    held_out: float = 0.0,
    seed: int = 0,
) -> tuple[list[TokenRow], list[Rejected]]:
    """Ids and labels of each target that fits `max_length` tokens and whose prompt is a prefix of the whole."""
    from cai_cli.models.chat import encode_pair, thinking_format
    from cai_cli.models.templates import UnfitRow

    rows, rejected = [], []
    thinking = thinking_format(tokenizer)
    for target in targets:
        completion = [message("assistant", thinking.join(target.thinking, target.completion[0]["content"]))]
        try:
            prompt_ids, completion_ids = encode_pair(
                tokenizer, target.prompt, completion, stops, **template_kwargs
            )
            length = len(prompt_ids) + len(completion_ids)
            if length > max_length:
                raise UnfitRow("too_long", f"{length} tokens, --max-length is {max_length}")
        except UnfitRow as error:
            row = {"prompt": target.prompt, "completion": target.completion}
            rejected.append(Rejected(target.id, error.reason, error.detail, row))
            continue
        labels = [-100] * len(prompt_ids) + completion_ids
        apart = is_held_out(target.prompt, held_out, seed)
        rows.append(TokenRow(prompt_ids + completion_ids, labels, target.kind, apart))
    return rows, rejected


def dataset_of(rows: list[TokenRow]) -> Dataset:
    import datasets

    return datasets.Dataset.from_list([{"input_ids": row.ids, "labels": row.labels} for row in rows])


def packed_dataset(rows: list[TokenRow], length: int, seed: int) -> Dataset:
    """Whole rows put into packs of at most `length` tokens (best fit decreasing), kinds mixed; `seq_lengths`
    tells them apart.
    """
    import datasets
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    return pack_dataset(dataset_of(shuffled(rows, seed, "packing")), length, "bfd")
