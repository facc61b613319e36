"""SIGTERM to several processes, all at once or only one of them: they stop after the same step, and end in
the same bytes.
"""

from __future__ import annotations

import signal
from pathlib import Path

import forks
import launchers
import pytest
from catching import catch
from launchers import ACCELERATE, ON_A_CPU, TORCHRUN, ranks
from trainer_runs import COMMANDS, make_world, metrics

FLAGS = {
    "train-pm": ("--save-steps", "1000", "--logging-steps", "7"),
    "sft": ("--save-steps", "1000", "--logging-steps", "7"),
    "ppo": ("--save-steps", "1000", "--steps", "12", "--sample-steps", "1"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = make_world(tmp_path_factory.mktemp("stop-ranks"))
    (world / "fsdp.py").write_text(ON_A_CPU)
    return world


def start(stage: str, out: str, world: Path, fsdp: bool) -> forks.Command:
    words = [*COMMANDS[stage].split(), *FLAGS[stage], "--device", "cpu", "--out", out]
    return launchers.start(ACCELERATE if fsdp else TORCHRUN, words, world)


def finish(stage: str, out: str, world: Path, fsdp: bool) -> str:
    process = start(stage, out, world, fsdp)
    said = process.communicate(timeout=280)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize(
    ("stage", "to", "fsdp"),
    [("train-pm", "launcher", False), ("train-pm", "second", False), ("sft", "second", False), ("sft", "launcher", True),
     ("ppo", "second", False)],
)  # fmt: skip
def test_processes_told_to_stop_write_one_checkpoint_and_end_in_the_same_bytes(stage, to, fsdp, world):
    kind = f"{stage}-{to}-{fsdp}"
    whole, cut = world / f"{stage}-whole-{fsdp}", world / f"{kind}-cut"
    if not whole.exists():
        finish(stage, whole.name, world, fsdp)

    def send(launcher: forks.Command) -> None:
        (ranks(launcher)[1] if to == "second" else launcher).send_signal(signal.SIGTERM)

    logged = lambda: (cut / "metrics.jsonl").read_bytes().count(b"\n") >= 1  # noqa: E731
    _, said = catch(lambda: start(stage, cut.name, world, fsdp), cut, logged, send=send)
    assert not (cut / "cai.json").exists()
    assert len(list((cut / "checkpoints").glob("*-*/complete"))) >= 1, said
    assert "continuing from" in finish(stage, cut.name, world, fsdp)
    assert metrics(cut) == metrics(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
