"""Rows of token ids and labels on disk, for `cai sft`: the targets of all sources in; out, datasets that hold nothing of
what is trained on and of what is held out (see `token_files`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected, why_none
from cai_cli.console.messages import tell_dropped, warn_all
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.cautions import TargetTally
from cai_cli.keys import shuffled
from cai_cli.models.chat import stop_ids, vocabulary_hash
from cai_cli.models.configs import longest_row
from cai_cli.models.templates import template_kwargs
from cai_cli.rows.sources import parse_weight
from cai_cli.rows.trl_rows import RowReader
from cai_cli.training.sft.data import Target, read_targets, tokenise
from cai_cli.training.token_files import (
    IDS,
    REJECTS,
    ArrowRows,
    Facts,
    Rejects,
    fingerprint,
    lengths_of,
    made_once_a_node,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.sft.settings import Options

ROWS, UNFIT = "rows.arrow", "unfit.jsonl"
TRAINED_ON = ["input_ids", "labels"]
# The fields of a TokenRow, in their order
SCHEMA = pa.schema({"input_ids": IDS, "labels": IDS, "kind": pa.string(), "held_out": pa.bool_()})


@dataclass(frozen=True, slots=True)
class Rows:
    """What a run learns from, what it is measured on by kind, and the tokens of the former; how many were rejected for
    which reason, and the file of those; what the targets warn of.
    """

    training: datasets.Dataset
    held_out: dict[str, datasets.Dataset]
    tokens: int
    rejected: Counter[str]
    rejects: Path
    cautions: list[str]

    def __len__(self) -> int:
        return len(self.training) + sum(map(len, self.held_out.values()))


def open_files(folder: Path, facts: Facts) -> Rows:
    rows = datasets.Dataset.from_file(str(folder / ROWS))
    of_both, kinds, apart = (
        rows.select_columns(TRAINED_ON),
        rows.data.column("kind"),
        rows.data.column("held_out"),
    )
    kept = ~np.asarray(apart, dtype=bool)
    return Rows(
        of_both.select(np.flatnonzero(kept)),
        {
            kind: of_both.select(np.flatnonzero(pc.and_(apart, pc.equal(kinds, kind))))
            for kind in sorted(pc.unique(kinds.filter(apart)).to_pylist())
        },
        int(lengths_of(rows.data.column("input_ids"))[kept].sum()),
        Counter(facts["rejected"]),
        folder / REJECTS,
        facts["cautions"],
    )


@contextmanager
def rows_once_a_node(
    artifact: ModelArtifact, options: Options, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Rows]:
    """The rows of a run, until it has ended. Raises UserError where the sources are empty, and RunError where no row
    can be trained on.
    """
    sources = [Path(parse_weight(source)[0]) for source in options.data]
    made_from = fingerprint(artifact, sources, vocabulary_hash(tokenizer), str(tokenizer.chat_template))
    facts: Facts = {}

    def write(folder: Path) -> Facts:
        return write_rows(folder, options, tokenizer)

    def read(folder: Path, found: Facts) -> Rows:
        facts.update(found)
        return open_files(folder, found)

    with made_once_a_node(artifact, made_from, write, read) as rows:
        empty = [f"{source}: no rows in it" for source in facts["empty"]]
        total = len(rows) + rows.rejected.total()
        if not total:
            raise UserError(", ".join(empty), "its stage may have rejected everything")
        warn_all(empty)
        if not len(rows.training):
            reasons = why_none(rows.rejected, options) or "all of it is held out"
            raise RunError(f"none of the {total} rows can be trained on", reasons)
        yield rows


def write_rows(folder: Path, options: Options, tokenizer: PreTrainedTokenizerBase) -> Facts:
    """Read the sources, in their order, into the files of a folder."""
    reader, tally = RowReader(), TargetTally()
    empty = []
    seed = options.output.seed
    most = longest_row(options.training.max_length, options.model)
    how = (stop_ids(tokenizer), most, template_kwargs(options.chat_template_kwargs))
    with (
        ArrowRows(folder / ROWS, SCHEMA) as rows,
        Rejects(folder / REJECTS) as rejects,
        Rejects(folder / UNFIT) as unfit,
    ):

        def targets(found: Iterable[Target | Rejected]) -> Iterator[Target]:
            for item in found:
                if isinstance(item, Rejected):
                    rejects.append(item)
                    continue
                tally.add(item.completion[0]["content"])
                yield item

        for source in options.data:
            before = tally.count + rejects.reasons.total()
            found = read_targets(source, options.targets, seed, options.train_on_thinking, reader)
            for row in tokenise(targets(found), tokenizer, *how, options.held_out, seed):
                if isinstance(row, Rejected):
                    unfit.append(row)
                else:
                    rows.append(row.ids, row.labels, row.kind, row.held_out)
            if tally.count + rejects.reasons.total() == before:
                empty.append(source)
    tell_dropped(reader.dropped)
    with (folder / UNFIT).open("rb") as more, (folder / REJECTS).open("ab") as file:
        shutil.copyfileobj(more, file)  # behind what is no target at all
    (folder / UNFIT).unlink()
    rejected = rejects.reasons + unfit.reasons
    return {"rejected": dict(rejected), "empty": empty, "cautions": tally.cautions()}


def packed_dataset(rows: datasets.Dataset, length: int, seed: int) -> datasets.Dataset:
    """Whole rows put into packs of at most `length` tokens (best fit decreasing), kinds mixed; `seq_lengths`
    tells them apart.
    """
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    return pack_dataset(rows.select(shuffled(range(len(rows)), seed, "packing")), length, "bfd")
