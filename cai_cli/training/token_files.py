"""Token ids on disk: made once a node, before training, as Arrow files that the node's processes map into memory
and none of them holds.

    <out>/checkpoints/tokens-<rank of the node's first process>/
        <name>.arrow    rows of ids, as `datasets.Dataset.from_file` reads them too
        rejects.jsonl   what was rejected on the way, in the order of the inputs
        whole.json      last: what the rows were made from, the size of each file, what else is to be known of them

They lie where checkpoints do, in the folder of the run: its user has made room there, and what removes the run
removes them. They are there until the model is: the same command after a kill reads them as they are. A
folder without its `whole.json` is never read, nor is one made from anything else; a run that fails before
its first step leaves none. Each node has its own, so that none waits for the disk of another, nor needs to see it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cai_cli.artifacts.models import TOKENS, ModelArtifact
from cai_cli.artifacts.rejects import Rejected
from cai_cli.keys import digest
from cai_cli.processes.ranks import barrier, local_rank, rank, wait_for
from cai_cli.rows.jsonl import dump_row, write_atomically

WHOLE, REJECTS = "whole.json", "rejects.jsonl"
# Of a record batch; held as Python's numbers until it is full
BATCH_ROWS, BATCH_IDS = 1000, 1 << 20

Facts = dict[str, Any]
Opened = TypeVar("Opened")
IDS = pa.list_(pa.int32())


# Once a node


@contextmanager
def made_once_a_node(
    artifact: ModelArtifact,
    made_from: str,
    write: Callable[[Path], Facts],
    read: Callable[[Path, Facts], Opened],
) -> Iterator[Opened]:
    """What `read(folder, facts)` makes of this node's folder of token files, until the work within has ended.

    `write(folder)` fills it and says what is to be known of it: in the first process of each node, where no earlier
    run has; the others wait. `made_from`: all that the ids depend on, see `fingerprint`. What fails within before the
    run is begun takes the folder with it. A dry run has one of its own for the moment.
    """
    if artifact.options.output.dry_run:
        with TemporaryDirectory() as scratch:
            yield read(Path(scratch), write(Path(scratch)))
        return
    first = local_rank() == 0
    folder = artifact.checkpoints / f"{TOKENS}{rank() - local_rank()}"
    try:
        if first and read_facts(folder, made_from) is None:
            fill(folder, made_from, write)
        facts = wait_for(lambda: read_facts(folder, made_from), str(folder))
        opened = read(folder, facts)
        barrier()  # none removes it before all have opened it
        yield opened
    except BaseException:
        if first and not artifact.begun:
            remove(folder, artifact)
        raise
    if first:
        remove(folder, artifact)


def fill(folder: Path, made_from: str, write: Callable[[Path], Facts]) -> None:
    """Make the folder anew. It has its name once all of it is on the disk."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    for left in (folder, temporary):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        facts = write(temporary)
        sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
        whole = {"made_from": made_from, "bytes": sizes, "facts": facts}
        write_atomically(temporary / WHOLE, json.dumps(whole, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.replace(folder)


def read_facts(folder: Path, made_from: str) -> Facts | None:
    """What is known of a folder that is whole and was made from this; None of any other."""
    try:
        whole = json.loads((folder / WHOLE).read_bytes())
        there = {name: (folder / name).stat().st_size for name in whole["bytes"]}
        same = whole["made_from"] == made_from and whole["bytes"] == there
        return whole["facts"] if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remove(folder: Path, artifact: ModelArtifact) -> None:
    """The folder, and those around it where nothing else was in them."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (artifact.checkpoints, artifact.folder):
        with suppress(OSError):
            path.rmdir()


def fingerprint(artifact: ModelArtifact, sources: Sequence[Path], *more: str) -> str:
    """Of what ids depend on: the run's inputs, options and model, when the files at `sources` were last written (the hash
    of a large one is of samples of it), the libraries, and `more`.
    """
    stamps = [(stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, sources)]
    manifest = artifact.manifest
    about = [manifest["version"], manifest["libraries"], manifest["identity"], stamps, *more]
    return digest(json.dumps(about, sort_keys=True)).hex()


# Rows


class ArrowRows:
    """An Arrow file in the making, of which one batch of rows is held. Use as a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._stream = path.open("wb")
        self._writer = pa.ipc.new_stream(self._stream, schema)
        self._held: list[Sequence[Any]] = []
        self._ids = 0

    def append(self, *values: Any) -> None:
        """A row, its values in the order of the schema."""
        self._held.append(values)
        self._ids += sum(len(value) for value in values if isinstance(value, list))
        if len(self._held) >= BATCH_ROWS or self._ids >= BATCH_IDS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._held, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=False)]
        if arrays:
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._held, self._ids = [], 0

    def __enter__(self) -> ArrowRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream as stream:
            if error is None:
                self._flush()
                self._writer.close()
                stream.flush()
                os.fsync(stream.fileno())


def open_rows(path: Path) -> pa.Table:
    """The rows of an Arrow file, mapped into memory: read from the disk as they are asked for."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def ids_of(cell: Any) -> list[int]:
    """One cell of a column of ids."""
    return cell.values.to_numpy().tolist()


def lengths_of(column: Any) -> Any:
    """How many ids each cell of a column has, as an array; the ids themselves are not read."""
    return np.concatenate([np.diff(chunk.offsets) for chunk in column.chunks] or [np.zeros(0, np.int32)])


class Rejects:
    """A file of what is rejected while ids are made, and how many there are of each reason. Use as a context
    manager.
    """

    def __init__(self, path: Path) -> None:
        self.reasons: Counter[str] = Counter()
        self._stream = path.open("w", encoding="utf-8")

    def append(self, rejected: Rejected) -> None:
        self.reasons[rejected.reason] += 1
        self._stream.write(dump_row(rejected.to_row()) + "\n")

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
