"""The tree of what an artifact came from, and what is stale or gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.console.groups import build, changed
from cai_cli.stages.revise import Options


@pytest.fixture(scope="module")
def chain(cai, tmp_path_factory, helpful) -> Path:
    """attempts.jsonl -> data/prompts.jsonl -> splits/, and revisions made of a split, a model and a
    constitution.

    The revisions are a manifest only: no model is run for a test of manifests.
    """
    folder = tmp_path_factory.mktemp("chain")
    rows = [{"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"} for n in range(20)]
    (folder / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(helpful, folder / "runs" / "models" / "helpful")
    (folder / "runs" / "mine.yaml").write_text(
        "principles:\n- {id: a, critique: What is wrong?, revision: Say it right., comparison: Which is right?}\n"
    )
    for words in (
        "import red-team attempts.jsonl --out runs/data/prompts.jsonl --seed 7",
        "split runs/data/prompts.jsonl --parts sft=1,rl=1 --out runs/splits",
    ):
        done = cai(*words.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    write_revisions(folder)
    return folder


def write_revisions(folder: Path) -> None:
    """What `cai revise` would leave."""
    runs, here = folder / "runs", Path.cwd()
    os.chdir(folder)
    try:
        options = build(
            Options,
            model="runs/models/helpful",
            prompts=["runs/splits/sft.jsonl:0.5", "hf:org/name:test"],
            constitution="runs/mine.yaml",
            out=runs / "revisions.jsonl",
        )
        manifest = begin_manifest("revise", options, Path("runs"))
        manifest["models"] += begin_manifest("revise", changed(options, model="org/model"), Path("runs"))[
            "models"
        ]
        write_manifest(
            Path("runs/revisions.manifest.json"), {**manifest, "counts": {"in": 9, "out": 8, "rejected": {}}}
        )
        Path("runs/revisions.jsonl").write_text("{}\n")
    finally:
        os.chdir(here)


@pytest.fixture
def copy(chain, tmp_path) -> Path:
    """The chain at another place: its manifests name each other by relative paths."""
    return shutil.copytree(chain, tmp_path / ("a long name " * 8).strip())


def tree(cai, folder: Path, artifact: str = "runs/revisions.jsonl") -> tuple[list[str], str]:
    done = cai("lineage", artifact, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines()], done.stderr.strip()


def test_the_tree(cai, copy):
    rows = len((copy / "runs" / "splits" / "sft.jsonl").read_text().splitlines())
    lines, told = tree(cai, copy)
    assert lines == [
        "runs/revisions.jsonl  cai revise, seed 0, 8 rows",
        f"├── prompts runs/splits/sft.jsonl  cai split, seed 0, {rows} rows",
        "│   └── prompts runs/data/prompts.jsonl  cai import, seed 7, 20 rows",
        "│       └── file attempts.jsonl",
        "├── prompts hf:org/name:test",
        "├── model runs/models/helpful",
        "├── model org/model",
        "└── constitution runs/mine.yaml",
    ]
    assert told == ""


def test_paths_elsewhere_are_told_in_full(cai, copy, tmp_path):
    lines, _ = tree(cai, tmp_path, str(copy / "runs" / "data" / "prompts.jsonl"))
    assert lines[1].endswith(f"file {(copy / 'attempts.jsonl').relative_to(tmp_path)}")
    inside = copy / "runs" / "models"
    assert cai("lineage", copy / "runs" / "data" / "prompts.jsonl", cwd=inside).stdout.count(str(copy)) == 2


def change(path: Path) -> None:
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("tamper", "line", "state"),
    [
        (lambda runs: change(runs.parent / "attempts.jsonl"), "file attempts.jsonl", "stale"),
        (lambda runs: change(runs / "splits" / "sft.jsonl"), "prompts runs/splits/sft.jsonl", "stale"),
        (lambda runs: change(runs / "mine.yaml"), "constitution runs/mine.yaml", "stale"),
        (
            lambda runs: change(runs / "models" / "helpful" / "config.json"),
            "model runs/models/helpful",
            "stale: config.json has other content",
        ),
        (
            lambda runs: change(runs / "models" / "helpful" / "chat_template.jinja"),
            "model runs/models/helpful",
            "stale: chat_template.jinja has other content",
        ),
        (
            lambda runs: (runs / "models" / "helpful" / "vocab.json").write_text("{}"),
            "model runs/models/helpful",
            "stale: vocab.json is new",
        ),
        (
            lambda runs: (runs / "models" / "helpful" / "generation_config.json").unlink(),
            "model runs/models/helpful",
            "stale: generation_config.json is gone",
        ),
        (lambda runs: (runs.parent / "attempts.jsonl").unlink(), "file attempts.jsonl", "missing"),
        (lambda runs: (runs / "splits" / "sft.jsonl").unlink(), "prompts runs/splits/sft.jsonl", "missing"),
        (lambda runs: (runs / "mine.yaml").unlink(), "constitution runs/mine.yaml", "missing"),
        (lambda runs: shutil.rmtree(runs / "models"), "model runs/models/helpful", "missing"),
    ],
)
def test_what_changed_or_went_is_marked_and_nothing_else(cai, copy, tamper, line, state):
    tamper(copy / "runs")
    lines, told = tree(cai, copy)
    marked = [entry for entry in lines if entry.endswith("  missing") or "  stale" in entry]
    assert len(marked) == 1 and line in marked[0] and marked[0].endswith(f"  {state}")
    assert told == f"1 {state.partition(':')[0]}"


def test_names_do_not_make_a_thing_stale(cai, copy):
    shutil.move(copy / "runs", copy / "stale missing")
    for path in (copy / "stale missing").rglob("*.manifest.json"):
        path.write_text(path.read_text().replace("../runs/", "../stale missing/"))
    _, told = tree(cai, copy, "stale missing/revisions.jsonl")
    assert told == ""


def test_what_has_no_manifest(cai, copy, tmp_path):
    mistake(
        cai("lineage", tmp_path / "nix.jsonl"), "nix.jsonl: no such file or directory", "nix.manifest.json"
    )
    mistake(cai("lineage", copy / "attempts.jsonl"), "attempts.jsonl: has no manifest")
    mistake(cai("lineage", copy / "runs" / "models" / "helpful"), "helpful: has no manifest", "cai.json")
