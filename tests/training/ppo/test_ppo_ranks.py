"""Two processes under torchrun: the same rollouts, updates and files as one, up to rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ppo_setup import make_pair, write_prompts
from safetensors.torch import load_file

FLAGS = (
    "ppo --model lm --pm pm --prompts prompts.jsonl --eval-prompts held.jsonl --eval-steps 2 --steps 6 --save-steps 2 "
    "--rollout-batch-size 10 --num-mini-batches 2 --num-ppo-epochs 2 --max-new-tokens 8 --learning-rate 1e-3 --device cpu "
    "--whiten-rewards --sample-steps 2"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    write_prompts(folder / "held.jsonl", 5)
    return folder


def command(out: str, processes: int) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    return [sys.executable, *launcher, "-m", "cai_cli", *FLAGS.split(), "--out", out]


def run(folder: Path, out: str, processes: int) -> str:
    done = subprocess.run(
        command(out, processes), cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def rows(folder: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_two_processes_do_what_one_does(folder):
    run(folder, "one", 1)
    said = run(folder, "two", 2)
    assert said.count("steps is saved") == 1  # the first process talks
    for alone, together in zip(rows(folder / "one"), rows(folder / "two"), strict=True):
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-4)
    texts = [[row["completion"] for row in rows(folder / name, "samples")] for name in ("one", "two")]
    assert texts[0] == texts[1]
    start, one, two = (load_file(folder / name / "model.safetensors") for name in ("lm", "one", "two"))
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=5e-5), name
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3
