"""Revisions and samples -> rows of token ids and labels to finetune on: targets, proportions, held-out part.

Loss is on the completion only: labels are -100 on the prompt. What cannot be trained on is rejected by name,
never cut.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.errors import RecordError
from cai_cli.keys import uniform
from cai_cli.prompting.hygiene import UNREVISED, is_near, share_kept
from cai_cli.rows.conversation import Conversation, message
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import check_new, dump_row, read_rows
from cai_cli.rows.records import Revision, Sample
from cai_cli.rows.row_kinds import CONVERSATIONS, REVISIONS, SAMPLES, kind_taken
from cai_cli.rows.seen import Seen
from cai_cli.rows.sources import parse_weight
from cai_cli.rows.splits import is_held_out
from cai_cli.rows.trl_rows import RowReader

if TYPE_CHECKING:
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
    whole = int(proportion)
    part = proportion - whole
    seen = Seen()
    begins = array("q")  # where each target lies in `kept`: it may be taken again, and in another order
    draws = array("d")  # by id: the file may be named by another path, or lie elsewhere
    with TemporaryFile() as kept:
        for line, row in read_rows(Path(path)):
            try:
                name, found = targets_of(row, which, thinking, reader)
            except RecordError as error:
                raise error.at(f"{path}:{line}") from None
            check_new(seen, name, Path(path), line)
            for item in found:
                if isinstance(item, Rejected):
                    yield item
                    continue
                begins.append(kept.tell())
                if part:
                    draws.append(uniform(seed, "proportion", item.id))
                kept.write(dump_row(asdict(item)).encode() + b"\n")

        def target(number: int, times: int) -> Target:
            kept.seek(begins[number])
            return again(Target(**load_json(kept.readline().decode())), times)

        for times in range(whole):
            yield from (target(number, times) for number in range(len(begins)))
        if part:
            order = sorted(range(len(begins)), key=lambda n: draws[n])
            yield from (target(n, whole) for n in order[: round(part * len(begins))])


def check_kinds(sources: list[str], which: str) -> None:
    """Raise RecordError where the first row of a source is of another kind, or malformed."""
    for source in sources:
        path = Path(parse_weight(source)[0])
        for line, row in islice(read_rows(path), 1):
            try:
                targets_of(row, which, False, RowReader())
            except RecordError as error:
                raise error.at(f"{path}:{line}") from None


def targets_of(
    row: dict[str, Any], which: str, thinking: bool, reader: RowReader
) -> tuple[str, list[Target | Rejected]]:
    """The id of a row, and what it gives to train on."""
    if kind_taken(row, REVISIONS, SAMPLES, CONVERSATIONS) == REVISIONS:
        return str(row["id"]), list(revision_targets(row, which, thinking))
    sample = reader.sample(row)
    return sample.id, [sample_target(sample, thinking)]


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
    targets: Iterable[Target],
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    max_length: int,
    template_kwargs: dict[str, Any],
    held_out: float = 0.0,
    seed: int = 0,
) -> Iterator[TokenRow | Rejected]:
    """Ids and labels of each target that fits `max_length` tokens and whose prompt is a prefix of the whole."""
    from cai_cli.models.chat import encode_pair, thinking_format
    from cai_cli.models.templates import UnfitRow

    thinking = thinking_format(tokenizer)
    for target in targets:
        completion = [message("assistant", thinking.join(target.thinking, target.completion[0]["content"]))]
        try:
            prompt_ids, completion_ids = encode_pair(
                tokenizer, target.prompt, completion, stops, **template_kwargs
            )
            length = len(prompt_ids) + len(completion_ids)
            if length > max_length:
                raise UnfitRow("too_long", f"{length} tokens, at most {max_length} fit")
        except UnfitRow as error:
            row = {"prompt": target.prompt, "completion": target.completion}
            yield Rejected(target.id, error.reason, error.detail, row)
            continue
        labels = [-100] * len(prompt_ids) + completion_ids
        apart = is_held_out(target.prompt, held_out, seed)
        yield TokenRow(prompt_ids + completion_ids, labels, target.kind, apart)
