"""Every way to write an artifact, killed before each of its file operations: the same command again ends in
the same files.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from stack_exchange_dumps import answer, dump, question

from cai_cli.artifacts.locks import give_all_back
from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected
from cai_cli.artifacts.rows import RowArtifact
from cai_cli.console.groups import build
from cai_cli.console.options import OutputOptions, RowOptions
from cai_cli.rows.conversation import message
from cai_cli.stages import demo, evaluate_labels, export, imports, merge, pmp, split

KILLED, FAILED = 9, 1
# Of the os module; a file opened to be written counts, too
CHANGES = ("replace", "rename", "unlink", "mkdir", "rmdir")
CLOCK = ("started", "seconds")


def kill_before(operation: int) -> None:
    """From here on, end this process as kill -9 does before its n-th change to a file."""
    left = operation

    def counted(real: Callable, counts: Callable[..., bool] = lambda *_: True) -> Callable:
        @functools.wraps(real)
        def change(*arguments, **settings):
            nonlocal left
            if counts(*arguments, *settings.values()):
                left -= 1
                if left <= 0:
                    os._exit(KILLED)
            return real(*arguments, **settings)

        return change

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    io.open = counted(io.open, lambda file, mode="r", *rest: any(letter in mode for letter in "wa+"))


def in_a_process(work: Callable[[], None], operation: int | None = None) -> int:
    """Run it in a fork, killed before the n-th operation; returns the exit code."""
    child = os.fork()
    if not child:
        code = FAILED
        try:
            sys.stderr = io.StringIO()
            if operation:
                kill_before(operation)
            work()
            give_all_back()
            code = 0
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, object]:
    """Every file by its path, manifests without what the clock says."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif ".manifest." in path.name or path.name.startswith("cai."):
            found[name] = {
                key: value for key, value in json.loads(path.read_text()).items() if key not in CLOCK
            }
        else:
            found[name] = path.read_bytes()
    return found


def check_all_kills(work: Callable[[], None], folder: Path, start: Path) -> int:
    """Kill before each operation in turn, each time from `start`; returns how many there were."""
    shutil.copytree(start, folder)
    assert in_a_process(work) == 0
    whole = contents(folder)
    operation = 0
    while True:
        operation += 1
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        ended = in_a_process(work, operation)
        if ended == 0:
            assert contents(folder) == whole
            return operation - 1
        assert ended == KILLED, f"operation {operation}"
        assert in_a_process(work) == 0, f"killed before operation {operation}"
        assert contents(folder) == whole, f"killed before operation {operation}"


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def say(role: str, text: str) -> list[dict]:
    return [message(role, text)]


def comparison(number: int, probability: float) -> dict:
    prompt, good, bad = say("user", f"q{number}"), say("assistant", "yes"), say("assistant", "no")
    row = {"id": f"p{number}/0", "prompt_id": f"p{number}", "prompt": prompt, "chosen": good, "rejected": bad}
    return {**row, "probability": probability, "origin": "ai"}


def revision(number: int) -> dict:
    names = ("critique_request", "critique", "revision_request")
    steps = [{"principle": "harm", **dict.fromkeys(names, "It harms."), "revision": "No, sorry."}]
    texts = {"completion": say("assistant", "No, sorry."), "initial": say("assistant", "Sure.")}
    return {"id": f"a/{number}", "prompt": say("user", f"q{number}"), **texts, "rounds": steps}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rows = [
        {"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"} if n % 5 else {"transcript": n}
        for n in range(40)
    ]
    write(folder / "attempts.jsonl", rows)
    write(folder / "prompts.jsonl", [{"id": f"p{n}", "prompt": say("user", f"q{n}")} for n in range(40)])
    write(folder / "ai.jsonl", [comparison(n, 0.6 + n % 4 / 10) for n in range(20)])
    write(folder / "human.jsonl", [comparison(n, 1.0) for n in range(20)])
    write(folder / "revisions.jsonl", [revision(n) for n in range(5)])
    posts = []
    for n in range(1, 60, 3):
        posts += [question(n), answer(n + 1, n, 9), answer(n + 2, n, 0)]
    dump(folder / "posts.xml", posts)
    return folder


@dataclass(frozen=True, kw_only=True)
class Made:
    """Options of rows that are made on the spot."""

    output: OutputOptions
    rows: RowOptions


@dataclass(frozen=True, kw_only=True)
class MadeModel:
    output: OutputOptions


@dataclass(frozen=True, slots=True)
class Number:
    id: str


def make_rows(options: Made) -> None:
    artifact = RowArtifact("sample", options)
    if artifact.done:
        return
    for item in artifact.remaining([Number(f"{n}") for n in range(options.rows.limit or 12)]):
        if int(item.id) % 4 == 3:
            artifact.reject(Rejected(item.id, "every_fourth"))
        else:
            artifact.accept({"id": item.id})
        artifact.flush()
    artifact.finish()


def make_model(options: MadeModel) -> None:
    artifact = ModelArtifact("sft", options)
    if artifact.done:
        return
    artifact.start()
    artifact.checkpoints.mkdir(exist_ok=True)
    (artifact.checkpoints / "state").write_text("1")
    artifact.finish(lambda folder: [(folder / name).write_text("weights") for name in ("a", "b")])  # type: ignore[arg-type]


def rank_files(folder: Path) -> None:
    """What two processes had written when they were killed."""
    for rank in (0, 1):
        mine = [n for n in range(8) if n % 2 == rank]
        write(folder / f"x.jsonl.rank{rank}.partial", [{"id": f"{n}"} for n in mine if n % 4 != 3])
        rejects = [Rejected(f"{n}", "every_fourth").to_row() for n in mine if n % 4 == 3]
        write(folder / f"x.rejects.jsonl.rank{rank}.partial", rejects)
    (folder / "x.jsonl.rank1.through").write_text("0")
    write_manifest(
        folder / "x.manifest.partial.json",
        begin_manifest("sample", build(Made, out=folder / "x.jsonl"), folder),
    )


def small_world(folder: Path, seed: int, constitution: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(constitution, folder / "constitution.yaml")
    for name in ("a", "b"):
        (folder / name).write_text(str(seed))


Scenario = tuple[Callable[[Path, Path], None] | None, Callable[[Path, Path], None]]
AGAIN = {"seed": 1, "if_changed": "restart"}


def shards(inputs: Path, out: Path) -> None:
    for index in range(2):
        rows = [{"id": f"{n}"} for n in range(3 * index, 3 * index + 3)]
        path = write(out / f"s{index}.jsonl", rows)
        write(out / f"s{index}.rejects.jsonl", [Rejected(f"r{index}", "empty").to_row()])
        manifest = begin_manifest("sample", build(Made, out=path), out)
        manifest["options"]["shard"] = f"{index}/2"
        counts = {"in": 4, "out": 3, "rejected": {"empty": 1}}
        write_manifest(
            out / f"s{index}.manifest.json", {**manifest, "counts": counts, "tokens": 0, "seconds": 0}
        )


def merge_shards(out: Path, **changes) -> None:
    merge.run(
        build(merge.Options, shards=[out / "s0.jsonl", out / "s1.jsonl"], out=out / "x.jsonl", **changes)
    )


def import_rows(inputs: Path, out: Path, **changes) -> None:
    file = out / "x.jsonl" if "split" not in changes else out / "parts"
    imports.run(
        build(imports.Options, format="red-team", file=inputs / "attempts.jsonl", out=file, **changes)
    )


def split_rows(inputs: Path, out: Path, parts: str = "a=0.5,b=0.5", **changes) -> None:
    split.run(
        build(
            split.Options, prompts=[str(inputs / "prompts.jsonl")], parts=parts, out=out / "parts", **changes
        )
    )


def export_rows(inputs: Path, out: Path, **changes) -> None:
    export.run(
        build(
            export.Options,
            file=inputs / "revisions.jsonl",
            out=out / "x.jsonl",
            **changes,
        )
    )


def evaluate(inputs: Path, out: Path, **changes) -> None:
    ai, human = inputs / "ai.jsonl", inputs / "human.jsonl"
    evaluate_labels.run(build(evaluate_labels.Options, ai=ai, human=human, out=out / "x.json", **changes))


def draw_pairs(inputs: Path, out: Path, **changes) -> None:
    pmp.run(build(pmp.Options, posts=[str(inputs / "posts.xml")], data_only=True, out=out / "pmp", **changes))


def prepare_demo(inputs: Path, out: Path) -> None:
    import cai_cli.microworld.files as files

    files.write_world = small_world
    demo.run(demo.Options(out=out / "demo", inputs_only=True))


SCENARIOS: dict[str, Scenario] = {
    "rows": (None, lambda _, out: make_rows(build(Made, out=out / "x.jsonl"))),
    "rows restarted": (
        lambda _, out: make_rows(build(Made, out=out / "x.jsonl")),
        lambda _, out: make_rows(build(Made, out=out / "x.jsonl", **AGAIN)),
    ),
    "rows with a raised limit": (
        lambda _, out: make_rows(build(Made, out=out / "x.jsonl", limit=6)),
        lambda _, out: make_rows(build(Made, out=out / "x.jsonl", limit=12)),
    ),
    "rows of two processes": (
        lambda _, out: rank_files(out),
        lambda _, out: make_rows(build(Made, out=out / "x.jsonl")),
    ),
    "model": (None, lambda _, out: make_model(build(MadeModel, out=out / "m"))),
    "model restarted": (
        lambda _, out: make_model(build(MadeModel, out=out / "m")),
        lambda _, out: make_model(build(MadeModel, out=out / "m", **AGAIN)),
    ),
    "import": (None, import_rows),
    "import restarted": (import_rows, lambda inputs, out: import_rows(inputs, out, **AGAIN)),
    "import --split": (None, lambda inputs, out: import_rows(inputs, out, split="a=0.5,b=0.5")),
    "import --split with a raised limit": (
        lambda inputs, out: import_rows(inputs, out, split="a=0.5,b=0.5", limit=9),
        lambda inputs, out: import_rows(inputs, out, split="a=0.5,b=0.5"),
    ),
    "import --split restarted": (
        lambda inputs, out: import_rows(inputs, out, split="a=0.5,b=0.5"),
        lambda inputs, out: import_rows(inputs, out, split="a=0.3,c=0.7", if_changed="restart"),
    ),
    "split": (None, split_rows),
    "split restarted": (
        split_rows,
        lambda inputs, out: split_rows(inputs, out, "a=0.3,c=0.7", if_changed="restart"),
    ),
    "merge": (shards, lambda _, out: merge_shards(out)),
    "export": (None, export_rows),
    "export restarted": (export_rows, lambda inputs, out: export_rows(inputs, out, **AGAIN)),
    "evaluate labels restarted": (evaluate, lambda inputs, out: evaluate(inputs, out, **AGAIN)),
    "pmp --data-only": (None, draw_pairs),
    "pmp --data-only restarted": (draw_pairs, lambda inputs, out: draw_pairs(inputs, out, **AGAIN)),
    "demo --inputs-only": (None, prepare_demo),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_any_change_to_a_file_the_same_command_ends_in_the_same_files(name, inputs, tmp_path):
    before, work = SCENARIOS[name]
    folder, start = tmp_path / "out", tmp_path / "start"
    folder.mkdir()
    if before:
        assert in_a_process(lambda: before(inputs, folder)) == 0
    folder.rename(start)
    assert check_all_kills(lambda: work(inputs, folder), folder, start) > 3
