"""`train-pm` in two processes, with copies of the model and with parts of it, against one with twice the batches."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import forks
import launchers
import pytest
import torch
from catching import catch
from conftest import run_cai
from launchers import ACCELERATE, DDP, NEEDS_DEEPSPEED, ON_A_CPU, ZERO, ZERO_ON_A_CPU, kill_one
from pairwise_runs import COMMAND, write_comparisons
from safetensors.torch import load_file

ONE = ("--gradient-accumulation-steps", "2")
WAYS = {"copies": DDP, "parts": ACCELERATE, "zero2": ZERO[2], "zero3": ZERO[3]}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = write_comparisons(tmp_path_factory.mktemp("ranks"))
    (folder / "fsdp.py").write_text(ON_A_CPU)
    (folder / "zero.py").write_text(ZERO_ON_A_CPU)
    assert alone(folder, *ONE, "--out", "one").returncode == 0
    return folder


def alone(files: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_cai(*COMMAND.split(), "--device", "cpu", *arguments, cwd=files)


def start(files: Path, launcher: list[str], *arguments: str) -> forks.Command:
    return launchers.start(launcher, [*COMMAND.split(), "--device", "cpu", *arguments], files)


def finish(files: Path, launcher: list[str], *arguments: str) -> str:
    process = start(files, launcher, *arguments)
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return said


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def assert_the_same(files: Path, out: str) -> None:
    one, many = (load_file(files / name / "model.safetensors") for name in ("one", out))
    base = load_file(files / "lm/model.safetensors")
    assert one.keys() == many.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, many[name], atol=1e-4), name
        assert name not in base or not torch.allclose(weight, base[name], atol=2e-3), name
    assert losses(files / out) == pytest.approx(losses(files / "one"), abs=1e-4)
    manifests = [json.loads((files / name / "cai.json").read_text()) for name in ("one", out)]
    assert manifests[0]["evaluation"].keys() == manifests[1]["evaluation"].keys() == {"all", "ai", "human"}
    assert manifests[0]["score_mean"] == pytest.approx(manifests[1]["score_mean"], abs=1e-3)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=NEEDS_DEEPSPEED if way.startswith("zero") else ()) for way in WAYS]
)
def test_two_processes_do_what_one_does_with_twice_the_batches(files: Path, way: str) -> None:
    """One of them killed after a checkpoint, all end; the same command ends in the bytes of the uninterrupted run, and
    one process goes on with what two began.
    """
    finish(files, WAYS[way], "--out", way)
    assert_the_same(files, way)
    cut, begun = f"cut-{way}", f"begun-{way}"
    sealed = lambda: list((files / cut).glob("checkpoints/step-*/complete"))  # noqa: E731
    catch(lambda: start(files, WAYS[way], "--out", cut), files / cut, sealed, send=kill_one)
    assert len(list((files / cut).glob("checkpoints/step-*/part-*.pt"))) == (0 if way == "copies" else 2)
    shutil.copytree(files / cut, files / begun)
    assert "continuing from step" in finish(files, WAYS[way], "--out", cut)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (files / cut / name).read_bytes() == (files / way / name).read_bytes(), name

    refused = alone(files, "--out", begun)
    assert refused.returncode == 2 and "--gradient-accumulation-steps have to make 2" in refused.stderr
    done = alone(files, *ONE, "--out", begun)
    assert done.returncode == 0 and "continuing from step" in done.stderr, done.stderr
    assert_the_same(files, begun)
