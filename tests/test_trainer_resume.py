"""Trainers killed with SIGKILL: the same command again ends in the same bytes as a run that was never killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonlines
import pytest
from stack_exchange_dumps import answer, dump, question
from tiny import make_model

from cai_cli.conversation import message
from cai_cli.training.checkpoints import drop_unmarked_hf_checkpoints, load_checkpoint, save_checkpoint

READING = ["comparisons.jsonl.partial", "comparisons.rejects.jsonl"]
THINGS = ("bread", "a kite", "some soup", "a shelf", "a song", "a garden", "tea")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A tiny language model and preference model, and some rows for each trainer."""
    from cai_cli.models.load import load_pm, load_tokenizer
    from cai_cli.models.score import reset_head

    folder = tmp_path_factory.mktemp("resume")
    model = make_model(folder / "lm")
    pm = load_pm(str(model), "cpu")
    reset_head(pm, 0)
    pm.save_pretrained(folder / "pm")
    load_tokenizer(str(model)).save_pretrained(folder / "pm")
    prompts, samples, comparisons = [], [], []
    for n in range(320):
        prompt = [message("user", f"How do I make {THINGS[n % len(THINGS)]}, {'please, ' * (n % 5)}number {n}?")]
        good, bad = [message("assistant", "First, mix it. " * (1 + n % 3))], [message("assistant", "No. " * (1 + n % 4))]
        prompts.append({"id": f"p{n}", "prompt": prompt})
        samples.append({"id": f"p{n}/0", "prompt": prompt, "completion": good, "finish_reason": "stop"})
        row = {"id": f"p{n}/c", "prompt_id": f"p{n}", "prompt": prompt, "chosen": good, "rejected": bad}
        comparisons.append({**row, "probability": 0.5 + n % 50 / 100, "origin": "human", "source": "made-up"})
    files = {"prompts": prompts, "few": prompts[:16], "samples": samples, "comparisons": comparisons}
    for name, rows in files.items():
        with jsonlines.open(folder / f"{name}.jsonl", "w") as writer:
            writer.write_all(rows)
    return folder


COMMANDS = {
    "pmp": "pmp --model lm --posts posts.xml --max-pairs 320 --num-train-epochs 2 --lm-coef 0.5"
    " --save-steps 20 --logging-steps 5 --lr-scheduler-type cosine --learning-rate 1e-3",
    "train-pm": "train-pm --model lm --comparisons comparisons.jsonl --num-train-epochs 4"
    " --save-steps 10 --logging-steps 10 --lr-scheduler-type cosine --learning-rate 1e-3",
    "sft": "sft --model lm --data samples.jsonl --num-train-epochs 3 --save-steps 10 --logging-steps 10"
    " --lr-scheduler-type linear --learning-rate 1e-3 --gradient-accumulation-steps 2",
    "sft-packed": "sft --model lm --data samples.jsonl --num-train-epochs 3 --save-steps 5 --logging-steps 5"
    " --learning-rate 1e-3 --packing --max-length 192 --per-device-train-batch-size 2 --held-out 0.1",
    "sft-lora": "sft --model lm --data samples.jsonl --num-train-epochs 2 --save-steps 10 --logging-steps 10 --learning-rate 1e-3"
    " --lora --lora-r 4 --lora-dropout 0.1 --save-adapter --lr-scheduler-type cosine",
    "sft-qlora": "sft --model lm --data samples.jsonl --num-train-epochs 2 --save-steps 10 --logging-steps 10 --save-adapter"
    " --learning-rate 1e-3 --lora --lora-r 4 --lora-dropout 0.1 --quantize 4bit",
    "ppo": "ppo --model lm --pm pm --prompts prompts.jsonl --eval-prompts few.jsonl --eval-steps 20 --steps 24 --save-steps 3"
    " --rollout-batch-size 16 --max-new-tokens 12 --learning-rate 1e-3 --target-kl 1",
    "ppo-critic-beside": "ppo --model lm --pm pm --prompts prompts.jsonl --steps 24 --save-steps 3 --rollout-batch-size 16"
    " --max-new-tokens 12 --learning-rate 1e-3 --value-device cpu",
}
CHECKPOINTS = {
    "pmp": "step-*",
    "train-pm": "step-*",
    "sft": "checkpoint-*",
    "sft-packed": "checkpoint-*",
    "sft-lora": "checkpoint-*",
    "sft-qlora": "checkpoint-*",
    "ppo": "step-*",
    "ppo-critic-beside": "step-*",
}


def start(stage: str, out: str, world: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "cai_cli", *COMMANDS[stage].split(), "--out", out]
    return subprocess.Popen(command, cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(stage: str, out: str, world: Path) -> str:
    """Run to the end; stdout, which is for data, stays empty. Returns what was said."""
    process = start(stage, out, world)
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert printed == ""
    return said


def kill_after_a_checkpoint(stage: str, out: str, world: Path) -> None:
    kill_when(stage, out, world, lambda: any((world / out / "checkpoints").glob(f"{CHECKPOINTS[stage]}/complete")))


def kill_when(stage: str, out: str, world: Path, seen: Callable[[], bool]) -> None:
    """Start the stage and kill it as soon as something is seen of it."""
    process = start(stage, out, world)
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (world / out / "cai.json").exists()


def plant_half_written(stage: str, folder: Path) -> Path:
    """A newer checkpoint that a kill left without its mark."""
    half = folder / CHECKPOINTS[stage].replace("*", "00009999")
    half.mkdir()
    for name in ("state.pt", "model.safetensors"):
        (half / name).write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"global_step": 9999}')
    return half


def metrics(folder: Path) -> list[dict]:
    """Every line, but for how long it took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("seconds_")} for line in lines]


@pytest.fixture(scope="module")
def posts(world) -> Path:
    """A dump that takes a moment to read."""
    rows = []
    for number in range(1, 60_000, 3):
        rows += [question(number), answer(number + 1, number, 9), answer(number + 2, number, 0, Body=f"<p>No {number}.</p>")]
    return dump(world / "posts.xml", rows)


def test_pmp_killed_three_times_ends_in_the_same_bytes(posts, world):
    """While it reads the dump, right after a checkpoint, and between two later ones with a half-written one in the way."""
    stage, whole, folder = "pmp", world / "pmp-whole", world / "pmp-cut"
    finish(stage, "pmp-whole", world)
    partial = folder / "comparisons.jsonl.partial"
    kill_when(stage, "pmp-cut", world, lambda: partial.exists() and time.time() - partial.stat().st_mtime > 0.1)
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
            assert (world / cut / f"{name}.jsonl").read_bytes() == (world / whole / f"{name}.jsonl").read_bytes()
        evaluated = [row["step"] for row in metrics(world / whole) if "eval_score" in row]
        assert evaluated == [0, 20, 24]
    assert "already done" in finish(stage, cut, world)


# Checkpoints


def test_only_marked_checkpoints_count(tmp_path):
    import torch

    save_checkpoint(tmp_path, 5, {"weight": torch.ones(2), "step": 5})
    save_checkpoint(tmp_path, 10, {"weight": torch.zeros(2), "step": 10})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    (tmp_path / "step-00000015").mkdir()
    (tmp_path / "step-00000015/state.pt").write_bytes(b"half")
    step, state = load_checkpoint(tmp_path)
    assert (step, state["step"], state["weight"].tolist()) == (10, 10, [0.0, 0.0])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert load_checkpoint(tmp_path / "none") is None


def test_hf_checkpoints_without_our_mark_are_removed(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    assert drop_unmarked_hf_checkpoints(tmp_path / "none") is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}/complete").touch()
    assert drop_unmarked_hf_checkpoints(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()
