"""Trainers told to stop by SIGTERM: a checkpoint after the step under way, and the same command ends in the
same bytes.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from catching import catch
from trainer_runs import COMMANDS, finish, make_world, metrics, start

# No checkpoint but those of the signal, which comes anywhere in a logging window.
WINDOWS = ("--save-steps", "1000", "--logging-steps", "7")
FLAGS = {
    "train-pm": WINDOWS,
    "sft": WINDOWS,
    "sft-packed": (*WINDOWS, "--gradient-accumulation-steps", "2"),
    "sft-lora": WINDOWS,
    "ppo": ("--save-steps", "1000", "--steps", "16", "--sample-steps", "1", "--eval-steps", "5"),
    "ppo-critic-beside": ("--save-steps", "1000", "--steps", "16"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("stops"))


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def stop(stage: str, out: str, world: Path, more: int) -> int:
    """Send SIGTERM once that many more lines of metrics are there; returns the step of the checkpoint."""
    before = lines(world / out)
    begin = lambda: start(stage, out, world, *FLAGS[stage])  # noqa: E731
    process, said = catch(begin, world / out, lambda: lines(world / out) >= before + more, signal.SIGTERM)
    assert process.returncode == 143 and "Traceback" not in said, said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1, said
    assert not (world / out / "cai.json").exists()
    sealed = list((world / out / "checkpoints").glob("*/complete"))
    return max(int(file.parent.name.rsplit("-", 1)[1]) for file in sealed)


@pytest.mark.parametrize("stage", FLAGS)
def test_a_trainer_told_to_stop_twice_ends_in_the_same_bytes(stage, world):
    whole, cut = f"{stage}-whole", f"{stage}-cut"
    finish(stage, whole, world, *FLAGS[stage])
    steps = [stop(stage, cut, world, more) for more in (1, 2)]
    assert 0 < steps[0] < steps[1]
    assert f"continuing from {'checkpoint-' if stage.startswith('sft') else 'step '}{steps[1]}" in finish(
        stage, cut, world, *FLAGS[stage]
    )
    assert metrics(world / cut) == metrics(world / whole)
    names = ["model.safetensors", "README.md", "metrics.jsonl", "samples.jsonl"]
    for name in filter(lambda name: (world / whole / name).exists(), names):
        assert (world / cut / name).read_bytes() == (world / whole / name).read_bytes(), name
    facts = [json.loads((world / out / "cai.json").read_text()) for out in (cut, whole)]
    for name in ("train_loss", "held_out", "evaluation", "saved_step"):
        assert facts[0].get(name) == facts[1].get(name), name


def test_the_loss_of_a_run_too_short_to_log_one_is_the_same_after_a_stop(world):
    assert "sft" in COMMANDS
    flags = ("--logging-steps", "1000", "--save-steps", "10")
    finish("sft", "short-whole", world, *flags)
    sealed = lambda: any((world / "short-cut/checkpoints").glob("*/complete"))  # noqa: E731
    process, _ = catch(
        lambda: start("sft", "short-cut", world, *flags), world / "short-cut", sealed, signal.SIGTERM
    )
    assert process.returncode == 143
    finish("sft", "short-cut", world, *flags)
    facts = [json.loads((world / out / "cai.json").read_text()) for out in ("short-cut", "short-whole")]
    assert facts[0]["train_loss"] == facts[1]["train_loss"]
