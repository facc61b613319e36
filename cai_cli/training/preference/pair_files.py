"""Pairs of token ids on disk, for `cai pmp` and `cai train-pm`: comparisons in, one by one; out, what is trained
on and what is held out, as sequences that hold nothing (see `token_files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected, why_none
from cai_cli.errors import RunError
from cai_cli.models.chat import vocabulary_hash
from cai_cli.rows.records import Comparison
from cai_cli.rows.splits import is_held_out
from cai_cli.training.preference.pairs import TokenPair, tokenise
from cai_cli.training.preference.reading import Encode
from cai_cli.training.token_files import (
    IDS,
    REJECTS,
    ArrowRows,
    Facts,
    Rejects,
    fingerprint,
    ids_of,
    lengths_of,
    made_once_a_node,
    open_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINING, HELD_OUT = "training.arrow", "held_out.arrow"
# The fields of a TokenPair, in their order
SCHEMA = pa.schema(
    {
        "chosen": IDS,
        "rejected": IDS,
        "probability": pa.float64(),
        "weight": pa.float64(),
        "origin": pa.string(),
        "kind": pa.string(),
    }
)


class PairFile(Sequence[TokenPair]):
    """The pairs of a file, each read when it is asked for. `lengths`: of the longer reply of each."""

    def __init__(self, path: Path) -> None:
        rows = open_rows(path)
        self._columns = [rows.column(name) for name in SCHEMA.names]
        self.lengths: Any = np.maximum(*(lengths_of(column) for column in self._columns[:2]))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> TokenPair: ...

    @overload
    def __getitem__(self, place: slice) -> list[TokenPair]: ...

    def __getitem__(self, place: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(place, slice):
            return [self[n] for n in range(len(self))[place]]
        chosen, rejected, *others = (column[place] for column in self._columns)
        return TokenPair(ids_of(chosen), ids_of(rejected), *(cell.as_py() for cell in others))

    @property
    def probabilities(self) -> list[float]:
        return self._columns[SCHEMA.get_field_index("probability")].to_pylist()


def longest(pairs: Sequence[TokenPair]) -> Sequence[int]:
    """The length of the longer reply of each pair; a file knows them without reading its pairs."""
    return pairs.lengths if isinstance(pairs, PairFile) else [pair.longest for pair in pairs]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a run learns from, and what it is measured on; how many were rejected for which reason, and the file
    of those.
    """

    training: PairFile
    held_out: PairFile
    rejected: Counter[str]
    rejects: Path


@contextmanager
def pairs_once_a_node(
    artifact: ModelArtifact,
    weighted: Iterable[tuple[Comparison, float]],
    sources: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
) -> Iterator[Pairs]:
    """The pairs of a run, until it has ended. `weighted` are the rows of the files at `sources`, and read only where
    this process is to write them. Raises RunError where there is none to train on.
    """
    options = artifact.options
    share, seed = options.held_out, options.output.seed
    made_from = fingerprint(artifact, sources, vocabulary_hash(tokenizer), str(tokenizer.chat_template))

    def write(folder: Path) -> Facts:
        return write_pairs(folder, tokenise(weighted, encode), share, seed)

    def read(folder: Path, facts: Facts) -> Pairs:
        files = PairFile(folder / TRAINING), PairFile(folder / HELD_OUT)
        return Pairs(*files, Counter(facts["rejected"]), folder / REJECTS)

    with made_once_a_node(artifact, made_from, write, read) as pairs:
        if not pairs.training and not pairs.held_out:
            told = f"none of the {pairs.rejected.total()} pairs can be trained on"
            raise RunError(told, why_none(pairs.rejected, options))
        if not pairs.training:
            hint = "lower --held-out, or give comparisons of more prompts"
            told = f"all {len(pairs.held_out)} pairs fell into the held-out part: none is left to train on"
            raise RunError(told, hint)
        yield pairs


def write_pairs(
    folder: Path, outcomes: Iterable[tuple[Comparison, TokenPair] | Rejected], share: float, seed: int
) -> Facts:
    """Divide by a hash of the first human turn, so that no prompt is on both sides; returns how many were rejected
    for which reason.
    """
    with (
        ArrowRows(folder / TRAINING, SCHEMA) as training,
        ArrowRows(folder / HELD_OUT, SCHEMA) as held_out,
        Rejects(folder / REJECTS) as rejects,
    ):
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                rejects.append(outcome)
                continue
            comparison, pair = outcome
            file = held_out if is_held_out(comparison.prompt, share, seed) else training
            file.append(*(getattr(pair, name) for name in SCHEMA.names))
    return {"rejected": dict(rejects.reasons)}
