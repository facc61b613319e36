"""Trainers killed with SIGKILL: the same command again ends in the same bytes as a run that was never killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stack_exchange_dumps import answer, dump, question
from trainer_runs import CHECKPOINTS, COMMANDS, finish, kill_when, make_world, metrics

READING = ["comparisons.jsonl.partial", "comparisons.rejects.jsonl"]
THINGS = ("bread", "a kite", "some soup", "a shelf", "a song", "a garden", "tea")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("resume"))


def kill_after_a_checkpoint(stage: str, out: str, world: Path) -> None:
    """sft in its second epoch, whose order a Trainer draws from what the first has left of its random state."""
    name = "checkpoint-30" if stage == "sft" else CHECKPOINTS[stage]
    kill_when(stage, out, world, lambda: any((world / out / "checkpoints").glob(f"{name}/complete")))


def plant_half_written(stage: str, folder: Path) -> Path:
    """A newer checkpoint that a kill left without its mark."""
    half = folder / CHECKPOINTS[stage].replace("*", "00009999")
    half.mkdir()
    for name in ("state.pt", "model.safetensors"):
        (half / name).write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"global_step": 9999}')
    return half


@pytest.fixture(scope="module")
def posts(world) -> Path:
    """A dump that takes a moment to read."""
    rows = []
    for number in range(1, 60_000, 3):
        rows += [
            question(number),
            answer(number + 1, number, 9),
            answer(number + 2, number, 0, Body=f"<p>No {number}.</p>"),
        ]
    return dump(world / "posts.xml", rows)


def test_pmp_killed_three_times_ends_in_the_same_bytes(posts, world):
    """While it reads the dump, right after a checkpoint, and between two later ones with a half-written one
    in the way.
    """
    stage, whole, folder = "pmp", world / "pmp-whole", world / "pmp-cut"
    finish(stage, "pmp-whole", world)
    partial = folder / "comparisons.jsonl.partial"
    kill_when(
        stage, "pmp-cut", world, lambda: partial.exists() and time.time() - partial.stat().st_mtime > 0.1
    )
    assert sorted(file.name for file in folder.iterdir()) == READING
    kill_after_a_checkpoint(stage, "pmp-cut", world)
    pairs = folder / "comparisons.jsonl"
    assert pairs.read_bytes() == (whole / "comparisons.jsonl").read_bytes()
    made = pairs.stat().st_mtime_ns
    (kept,) = (folder / "checkpoints").glob("*/complete")
    half = plant_half_written(stage, folder / "checkpoints")
    later = int(kept.parent.name.removeprefix("step-")) + 10
    kill_when(stage, "pmp-cut", world, lambda: any(row["step"] == later for row in metrics(folder)))
    assert not half.exists()
    said = finish(stage, "pmp-cut", world)
    assert "continuing from step" in said
    assert pairs.stat().st_mtime_ns == made, "the dump is not read again"
    for name in ("model.safetensors", "metrics.jsonl", "README.md"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in whole.iterdir())
    assert "already done" in finish(stage, "pmp-cut", world)


@pytest.mark.parametrize("stage", [stage for stage in COMMANDS if stage != "pmp"])
def test_a_killed_trainer_ends_in_the_same_bytes(stage, world):
    whole, cut = f"{stage}-whole", f"{stage}-cut"
    finish(stage, whole, world)
    kill_after_a_checkpoint(stage, cut, world)
    half = plant_half_written(stage, world / cut / "checkpoints")
    said = finish(stage, cut, world)
    assert "continuing from" in said
    assert not half.exists()
    weights = (world / whole / "model.safetensors").read_bytes()
    assert (world / cut / "model.safetensors").read_bytes() == weights
    assert weights != (world / "lm/model.safetensors").read_bytes()
    assert metrics(world / cut) == metrics(world / whole)
    assert len(metrics(world / whole)) > 4
    assert not (world / cut / "checkpoints").exists()
    if stage == "ppo":
        for name in ("metrics", "samples"):
            assert (world / cut / f"{name}.jsonl").read_bytes() == (
                world / whole / f"{name}.jsonl"
            ).read_bytes()
        evaluated = [row["step"] for row in metrics(world / whole) if "eval_score" in row]
        assert evaluated == [0, 20, 24]
    assert "already done" in finish(stage, cut, world)
