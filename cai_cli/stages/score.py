"""a preference model + rows with replies -> the same rows with its scores.

    cai score --pm pm/ samples.jsonl --out scored.jsonl

`score` is added to rows of one reply (samples, revisions, `messages`), `chosen_score` and `rejected_score` to
comparisons. Scores are the model's raw ones, read at the EOS that closes the text, as in training; only
differences of one model's scores mean anything. Rows longer than the model's context are rejected, never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_cli.artifacts.chunks import Told
from cai_cli.artifacts.manifest import device_facts
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.rows import RowArtifact, Settled
from cai_cli.console.messages import say, show_text, warn_all
from cai_cli.console.options import INPUT, MODEL, RUNTIME, DeviceOptions, OutputOptions, RowOptions, flag
from cai_cli.errors import RecordError, UserError
from cai_cli.evaluation.cautions import score_cautions
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.rows.conversation import (
    Conversation,
    TranscriptError,
    check_conversation,
    check_reply,
    from_transcript,
    message,
    prompt_id,
)
from cai_cli.rows.jsonl import Row, check_new, read_rows
from cai_cli.rows.prompt_files import conversation_of
from cai_cli.rows.seen import Seen
from cai_cli.training.preference.reading import open_preference_model, open_reading

CHUNK_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class StreamOptions(OutputOptions):
    """Rows go to stdout where no file is named."""

    out: Annotated[
        Path, flag("Output", "The file to write, with a manifest beside it; - is stdout."), RUNTIME
    ] = Path("-")


@dataclass(frozen=True, kw_only=True)
class Options:
    hardware: DeviceOptions
    output: StreamOptions
    rows: RowOptions
    file: Annotated[
        Path, typer.Argument(help="Samples, revisions, comparisons, or any JSONL with replies."), INPUT
    ]
    pm: Annotated[str, flag("Model", "The preference model."), MODEL]
    field: Annotated[
        str, flag("Output", "Name of the new field; comparisons get it after chosen_ and rejected_.")
    ] = "score"
    batch_size: Annotated[
        int, flag("Model", "Texts per forward pass; does not change scores.", min=1), RUNTIME
    ] = 32


@dataclass(frozen=True, slots=True)
class Item:
    """One row and the texts in it that are to be scored: name of the new field -> (prompt, reply)."""

    id: str
    row: Row
    texts: dict[str, tuple[Conversation, Conversation]]


def run(options: Options) -> None:
    """Add a preference model's scores to the rows of a file.

    Example: cai score --pm pm/ samples.jsonl --out scored.jsonl
    """
    check_model(options.pm, "--pm", "preference model")
    artifact = RowArtifact("score", options)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    items = read_items(options.file, options.field)[: options.rows.limit]
    todo = artifact.remaining(items)

    from cai_cli.models.templates import UnfitRow

    tokenizer, encode = open_reading(options.pm)
    if options.output.dry_run:
        dry_run(items, tokenizer, encode)
        return

    from cai_cli.models.score import score_all

    pm = open_preference_model(options.pm, options.hardware.device, options.hardware.dtype)
    added: list[float] = []
    texts_a_row = max((len(item.texts) for item in todo), default=1)

    def read(chunk: list[Item], told: Told) -> Iterator[Settled]:
        encoded: list[tuple[Item, list[list[int]]]] = []
        for item in chunk:
            try:
                encoded.append((item, [encode(prompt, reply) for prompt, reply in item.texts.values()]))
            except UnfitRow as error:
                yield Rejected(item.id, error.reason, error.detail, item.row), 0
        rows = [ids for _, texts in encoded for ids in texts]
        scores = iter(score_all(pm.model, rows, pm.pad, options.batch_size, told))
        for item, texts in encoded:
            found = {name: next(scores) for name in item.texts}
            added.extend(found.values())
            yield {**item.row, "id": item.id, **found}, sum(map(len, texts))

    artifact.work(todo, CHUNK_BATCHES * options.batch_size, read, segments=texts_a_row)
    if artifact.streaming:
        warn_all(score_cautions(added))
    facts = device_facts(str(pm.model.device), str(pm.model.dtype).removeprefix("torch."))
    artifact.finish(cautions=lambda rows: score_cautions(list(scores_in(rows, options.field))), **facts)


def scores_in(rows: Path, name: str) -> Iterator[float]:
    """The scores that were added to the rows of a file."""
    for _, row in read_rows(rows):
        yield from (row[field] for field in (name, f"chosen_{name}", f"rejected_{name}") if field in row)


def read_items(path: Path, name: str) -> list[Item]:
    """All rows of the file. Raises RecordError for one without a reply, with a repeated id, or that has the
    field already.
    """
    items: list[Item] = []
    seen = Seen()
    unnamed: Counter[str] = Counter()
    for line, row in read_rows(path):
        try:
            texts = texts_of(row, name)
            for field in texts:
                if field in row:
                    raise RecordError(field, "is there already", "name the new one with --field")
            given = row.get("id")
            if not isinstance(given, str) or not given:
                prompt = prompt_id(next(iter(texts.values()))[0])
                given = f"{prompt}/{unnamed[prompt]}"
                unnamed[prompt] += 1
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
        check_new(seen, given, path, line)
        items.append(Item(given, row, texts))
    return items


def texts_of(row: Row, name: str) -> dict[str, tuple[Conversation, Conversation]]:
    """The conversations of a row that end in a reply, by the name of the field that their score gets."""
    if "completion" in row:
        return {name: (conversation_of(row), reply_of(row["completion"], "completion"))}
    if "chosen" in row and "rejected" in row:
        return {f"{side}_{name}": side_of(row, side) for side in ("chosen", "rejected")}
    if "messages" in row:
        return {name: ending_in_reply(check_conversation(row["messages"], "messages"), "messages")}
    raise RecordError(
        "completion", "missing", "rows need prompt and completion, chosen and rejected, or messages"
    )


def side_of(row: Row, side: str) -> tuple[Conversation, Conversation]:
    """The prompt and the reply of one side of a comparison, which may hold the whole conversation."""
    value = row[side]
    if "prompt" in row and not (isinstance(value, list) and len(value) > 1):
        return conversation_of(row), reply_of(value, side)
    if not isinstance(value, str):
        return ending_in_reply(check_conversation(value, side), side)
    try:
        return ending_in_reply(from_transcript(value), side)
    except TranscriptError as error:
        raise RecordError(side, str(error), "give a prompt besides, or a transcript") from None


def ending_in_reply(turns: Conversation, field: str) -> tuple[Conversation, Conversation]:
    reply = check_reply(turns[-1:], f"{field}[-1:]")
    return check_conversation(turns[:-1], field, ends_with="user"), reply


def reply_of(value: Any, field: str) -> Conversation:
    return check_reply([message("assistant", value)] if isinstance(value, str) else value, field)


def dry_run(items: list[Item], tokenizer: Any, encode: Any) -> None:
    """Show the first row's texts exactly as the model reads them, with the token that is scored."""
    from cai_cli.models.templates import UnfitRow

    for name, (prompt, reply) in items[0].texts.items() if items else ():
        try:
            ids = encode(prompt, reply)
        except UnfitRow as error:
            raise UserError(
                f"the first row: {error.reason}: {error.detail}", "such rows are rejected"
            ) from None
        show_text(
            f"{name}: {tokenizer.decode(ids)!r}\n  scored token: {ids[-1]} {tokenizer.decode(ids[-1:])!r}"
        )
    say(f"{len(items)} rows, {sum(len(item.texts) for item in items)} texts to score")
