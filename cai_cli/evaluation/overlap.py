"""Whether a model was made from the prompts it is evaluated on: its manifests are walked, and the files they
name are read.

Prompts are compared as splits group them, by the letters and digits of their first human turn, so that
near-duplicates and later turns of the same conversation count. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_cli.artifacts.ancestry import source_path, unnested
from cai_cli.artifacts.fingerprints import fingerprint_file
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import MODEL_MANIFEST, manifest_path
from cai_cli.console.messages import say, warn
from cai_cli.errors import CaiError, RecordError
from cai_cli.rows.conversation import Conversation, first_human_turn
from cai_cli.rows.jsonl import read_lines, read_rows
from cai_cli.rows.prompt_files import conversation_of
from cai_cli.rows.sources import PIPED, input_file
from cai_cli.rows.splits import group_key
from cai_cli.rows.storage import is_input

Source = tuple[Path, str | None]
NAMED = 3  # files that a line of talk names
NOT_TRAINED_ON = ("chat_template", "eval_prompts")  # inputs of trainers that are no training data


@dataclass(slots=True)
class Overlap:
    """What the evaluation shares with what the model was made from.

    `files`: a file of the model's lineage -> how many of the evaluation's prompts are in it. `unread`: what
    could not be compared, and why. `known` is False where the model has no manifest, so that nothing is known
    of it.
    """

    prompts: int
    shared: int = 0
    known: bool = True
    files: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def to_row(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "in_lineage": self.shared,
            "lineage_known": self.known,
            "files": self.files,
            "unread": self.unread,
        }


def find_overlap(prompts: Iterable[Conversation], *models: str) -> Overlap:
    """Compare the prompts of an evaluation with the files in the lineage of each of `models` (paths)."""
    wanted = {group_key(first_human_turn(prompt)) for prompt in prompts}
    overlap = Overlap(len(wanted))
    seen: set[tuple[str, bool]] = set()
    found: set[str] = set()
    for model in models:
        if read_manifest(manifest_path(Path(model))) is None:
            overlap.known = False
            continue
        for path, problem in unnested(sources_of(Path(model), seen)):
            if not problem:
                try:
                    groups = wanted & {group_key(turn) for turn in first_turns(path)}
                except CaiError as error:
                    problem = f"{path} (cannot be read: {error.message})"
                else:
                    found |= groups
                    if groups:
                        overlap.files[str(path)] = len(groups)
            if problem:
                overlap.unread.append(problem)
    overlap.shared = len(found)
    return overlap


def sources_of(
    artifact: Path, seen: set[tuple[str, bool]], trained_on: bool = True
) -> Iterator[Source | Iterator[Any]]:
    """(file of prompts, None) or (file, why it cannot be compared), for all that the artifact comes from (see
    `unnested`).

    `trained_on`: the artifact's inputs are to be compared, as those of a model are. A file that a model was
    trained on holds the prompts that got there, so what it was made from itself is compared only where it is
    not at hand; the models that made it are looked into either way.
    """
    known = (os.path.realpath(artifact), trained_on)
    if known in seen:
        return
    seen.add(known)
    place = manifest_path(artifact)
    manifest = read_manifest(place)
    if manifest is None:
        return
    for model in manifest["models"]:
        yield sources_of(source_path(artifact, model), seen)
    if (
        place.name == MODEL_MANIFEST and manifest["stage"] == "pmp"
    ):  # its pairs are kept with it; a dump is no file of prompts
        pairs = place.parent / "comparisons.jsonl"
        yield pairs, None if pairs.is_file() else f"{pairs} (gone)"
        return
    for item in manifest["inputs"]:
        if item["option"] in NOT_TRAINED_ON:
            continue
        if item["path"] == PIPED or input_file(item["path"]) is None:
            if trained_on:
                where = (
                    "what came over stdin"
                    if item["path"] == PIPED
                    else f"{item['path']} (a data set on the Hub)"
                )
                yield Path(item["path"]), where
            continue
        path = source_path(artifact, item)
        problem = None
        if trained_on:
            problem = problem_of(path, item["sha256"])
            yield path, problem
        yield sources_of(path, seen, trained_on=problem is not None)


def problem_of(path: Path, sha256: str) -> str | None:
    """Why a file cannot be compared any more, if so."""
    if not is_input(path):
        return f"{path} (gone)"
    return None if fingerprint_file(path) == sha256 else f"{path} (has changed since)"


def first_turns(path: Path) -> Iterator[str]:
    """The first human turn of each row that has one: our files, transcripts, or plain lines of text."""
    if path.name.removesuffix(".gz").endswith(".txt"):
        yield from (line for _, line in read_lines(path) if line.strip())
        return
    for _, row in read_rows(path):
        try:
            yield first_human_turn(conversation_of(row))
        except RecordError:  # a row that is no conversation was not trained on either
            continue


def tell_overlap(overlap: Overlap, model: str) -> None:
    """Say what the reader of the figures has to know."""
    if not overlap.known:
        say(f"{model} has no {MODEL_MANIFEST}: whether it was trained on these prompts is not known")
    if overlap.shared:
        files = sorted(overlap.files.items(), key=lambda pair: -pair[1])
        named = ", ".join(f"{count} in {name}" for name, count in files[:NAMED])
        more = f" and {len(files) - NAMED} more files" if len(files) > NAMED else ""
        warn(
            f"{overlap.shared} of the {overlap.prompts} prompts are in the lineage of {model}: {named}{more}"
        )
    if overlap.unread:
        named = ", ".join(overlap.unread[:NAMED])
        more = f" and {len(overlap.unread) - NAMED} more" if len(overlap.unread) > NAMED else ""
        say(f"in the lineage of {model}, but not at hand to compare prompts with: {named}{more}")
