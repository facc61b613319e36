"""What lies in directories and files that a report can show, told apart by manifests, by first rows, by shape.

In: the paths of the command line. Out: `Found`. Nothing is read whole but manifests and results; what cannot be
read is a line in `problems`, not the end of the report. A directory is walked `DEEPEST` levels down, without
links, backups and checkpoints, until `MOST_FILES` have been looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import MODEL_MANIFEST, PARTIAL_MODEL_MANIFEST, manifest_path
from cai_cli.errors import UserError, first_line
from cai_cli.report.shapes import stage_of
from cai_cli.rows.json_text import load_json
from cai_cli.rows.jsonl import read_rows, read_whole
from cai_cli.rows.row_kinds import kind_of
from cai_cli.rows.storage import what_is_wrong

DEEPEST = 6
MOST_FILES = 2000
LARGEST_RESULTS = 64 << 20
PARTIAL = ".partial"
PARTIAL_MANIFEST = ".manifest.partial.json"
ROWS = (".jsonl", ".jsonl.gz")
METRICS = "metrics.jsonl"
NOT_SHOWN = (METRICS, "timings.jsonl")
NOT_ENTERED = ("checkpoints", "__pycache__")


@dataclass(slots=True)
class RowFile:
    """A file of rows; `kind`: see `rows.row_kinds`. `unfinished`: a command was at it, or still is."""

    path: Path
    name: str
    kind: str
    manifest: Manifest | None = None
    unfinished: bool = False

    @property
    def stage(self) -> str:
        return self.manifest["stage"] if self.manifest else ""


@dataclass(slots=True)
class ModelFolder:
    """A model directory with its manifest; `metrics` is None where there are none."""

    path: Path
    name: str
    manifest: Manifest
    metrics: Path | None = None
    unfinished: bool = False


@dataclass(slots=True)
class Result:
    """The JSON file of an evaluation; `stage`: the command that writes its like."""

    path: Path
    name: str
    stage: str
    content: dict[str, Any]
    manifest: Manifest | None = None
    unfinished: bool = False  # they are written at once


@dataclass(slots=True)
class Found:
    """What there is, each list in the order of names. `unfinished`: (name, stage) of what is not through."""

    base: Path
    rows: list[RowFile] = field(default_factory=list)
    models: list[ModelFolder] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    rejects: list[RowFile] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How much there is to show."""
        return len([*self.rows, *self.models, *self.results, *self.rejects, *self.unfinished])

    @property
    def artifacts(self) -> list[RowFile | ModelFolder | Result]:
        """Whatever may have a manifest."""
        return [*self.rows, *self.models, *self.results]

    def of_kind(self, *kinds: str) -> list[RowFile]:
        return [file for file in self.rows if file.kind in kinds]

    def of_stage(self, *stages: str) -> list[ModelFolder]:
        return [model for model in self.models if model.manifest["stage"] in stages]

    def results_of(self, stage: str) -> list[Result]:
        return [result for result in self.results if result.stage == stage]


def find(paths: list[Path]) -> Found:
    """All that can be shown. Raises UserError for a path that is not there, and where there is nothing."""
    for path in paths:
        if not path.exists():
            problem = what_is_wrong(path) or "no such file or directory"
            raise UserError(f"{path}: {problem}", "name the directory of a run, or files in it")
    found = Found(base_of(paths))
    seen: set[str] = set()
    for path in paths:
        for place in walk(path, found) if path.is_dir() else [path]:
            real = os.path.realpath(place)
            if real not in seen:
                seen.add(real)
                look(place, found, named=place == path)
    if not found.count:
        told = f": {found.problems[0][0]}: {found.problems[0][1]}" if found.problems else ""
        names = ", ".join(map(str, paths))
        raise UserError(
            f"{names}: nothing in it that a report shows{told}",
            "name what a stage wrote: revisions, samples, comparisons, model directories, results",
        )
    return found


def base_of(paths: list[Path]) -> Path:
    """What names are told from."""
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]  # noqa: PTH100 - as written
    return Path(os.path.commonpath(folders))


def walk(folder: Path, found: Found) -> Iterator[Path]:
    """The directory itself and all below it, each before what is in it, in the order of names."""
    count = 0
    for here, folders, files in os.walk(folder):
        deep = len(Path(here).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if is_entered(name)) if deep < DEEPEST else []
        yield Path(here)
        for name in sorted(files):
            if name.startswith("."):
                continue
            count += 1
            if count > MOST_FILES:
                found.problems.append((str(folder), f"only its first {MOST_FILES:,} files were looked at"))
                return
            yield Path(here) / name


def is_entered(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".bak") and name not in NOT_ENTERED


def look(path: Path, found: Found, named: bool) -> None:
    """Put what lies at the path where it belongs; `named`: on the command line, so that it should be something."""
    name = Path(os.path.relpath(path, found.base)).as_posix()
    name = found.base.name or str(found.base) if name == "." else name
    before = found.count
    try:
        if path.is_dir():
            look_at_model(path, name, found)
        elif path.name.endswith((PARTIAL, PARTIAL_MANIFEST)):
            look_at_unfinished(path, name, found)
        elif path.name.endswith(ROWS) and path.name not in NOT_SHOWN:
            look_at_rows(path, name, found)
        elif path.name == MODEL_MANIFEST and named:
            look_at_model(path.parent, name, found)
        elif path.suffix == ".json" and (named or not is_model(path.parent)):
            look_at_results(path, name, found)
    except (UserError, OSError) as error:
        found.problems.append((name, told_of(error, path)))
        return
    if named and not path.is_dir() and found.count == before:
        found.problems.append((name, "is nothing that a report shows"))


def is_model(folder: Path) -> bool:
    """Whether what lies there is a model's: its JSON files are no results, and may be large."""
    return (folder / "config.json").is_file() or (folder / MODEL_MANIFEST).is_file()


def told_of(error: Exception, path: Path) -> str:
    """What is wrong with a file, without its name, which stands beside it."""
    text = error.message if isinstance(error, UserError) else first_line(error)
    return text.removeprefix(f"{path}: ").replace(f"{path}:", "line ", 1)


def look_at_model(folder: Path, name: str, found: Found) -> None:
    finished = read_manifest(folder / MODEL_MANIFEST)
    manifest = finished or read_manifest(folder / PARTIAL_MODEL_MANIFEST)
    if manifest is None:
        return
    metrics = folder / METRICS
    model = ModelFolder(folder, name, manifest, metrics if metrics.is_file() else None, finished is None)
    if model.unfinished:
        found.unfinished[name] = manifest["stage"]
    found.models.append(model)


def look_at_unfinished(path: Path, name: str, found: Found) -> None:
    """Rows of a command that was cut off, or is at work: `rows.jsonl.partial`, `rows.manifest.partial.json`."""
    if path.name.endswith(PARTIAL_MANIFEST):
        out = name.removesuffix(PARTIAL_MANIFEST)
        manifest = read_manifest(path)
        if manifest is not None and not any(known.startswith(f"{out}.") for known in found.unfinished):
            found.unfinished[out] = manifest["stage"]
        return
    artifact = path.with_name(path.name.removesuffix(PARTIAL))
    if not artifact.name.endswith(ROWS):
        return
    manifest = read_manifest(manifest_path(artifact).with_suffix(".partial.json"))
    name = name.removesuffix(PARTIAL)
    found.unfinished.pop(name.removesuffix(".gz").removesuffix(".jsonl"), None)
    found.unfinished[name] = manifest["stage"] if manifest else ""
    if kind := first_kind(path, unfinished=True):
        found.rows.append(RowFile(path, name, kind, manifest, unfinished=True))


def look_at_rows(path: Path, name: str, found: Found) -> None:
    if path.name == "rejects.jsonl" or path.name.endswith(".rejects.jsonl"):
        found.rejects.append(RowFile(path, name, "rejects"))
        return
    if kind := first_kind(path):
        found.rows.append(RowFile(path, name, kind, read_manifest(manifest_path(path))))


def first_kind(path: Path, unfinished: bool = False) -> str | None:
    """Of which kind the first row is; None for a file without rows, or of rows of another kind."""
    for _, row in read_rows(path, unfinished):
        kind = kind_of(row)
        return kind.name if kind else None
    return None


def look_at_results(path: Path, name: str, found: Found) -> None:
    """A JSON file, where it is one of an evaluation: its manifest says so, or its shape."""
    if path.name.endswith(".manifest.json") or path.name == MODEL_MANIFEST:
        return
    manifest = read_manifest(manifest_path(path))
    if manifest is None and path.stat().st_size > LARGEST_RESULTS:
        return
    try:
        content = load_json(read_whole(path, LARGEST_RESULTS).decode("utf-8-sig"))
    except (ValueError, UserError):
        if manifest is None:  # any tool's
            return
        raise UserError(f"{path}: is no JSON any more", "make it again") from None
    if isinstance(content, dict) and (stage := stage_of(manifest, content)):
        found.results.append(Result(path, name, stage, content, manifest))
