"""The scripts for Slurm, under stand-ins for its commands: a stage, one that is stopped and queued again, one that
fails, shards, and the order of the whole chain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import mistake, run_cai
from multiple_choice_rows import hhh_rows, put
from slurm import stand_in
from trainer_runs import COMMANDS, make_world, metrics

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
STAGE = str(SCRIPTS / "stage.sbatch")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("slurm"))


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    return stand_in(tmp_path / "bin")


def asked(slurm: dict[str, str]) -> list[str]:
    return (Path(slurm["PATH"].split(os.pathsep)[0]) / "slurm.log").read_text().splitlines()


def sbatch(slurm, world, *words: object) -> subprocess.Popen:
    command = ["sbatch", *map(str, words)]
    return subprocess.Popen(
        command, cwd=world, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_job_told_to_stop_is_queued_again_and_ends_in_the_same_bytes(slurm, world):
    words = (*COMMANDS["train-pm"].split(), "--save-steps", 1000, "--logging-steps", 7, "--device", "cpu")
    whole = sbatch(slurm, world, STAGE, *words, "--out", "whole")
    said = whole.communicate(timeout=280)[1]
    assert whole.returncode == 0, said
    job = sbatch(slurm, world, STAGE, *words, "--out", "cut")
    log = world / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        time.sleep(0.01)
    place = Path(slurm["PATH"].split(os.pathsep)[0])
    os.kill(int((place / "batch.pid").read_text()), signal.SIGTERM)  # to the batch script alone, as B: has it
    said = job.communicate(timeout=280)[1]
    assert job.returncode == 0, said
    assert asked(slurm)[-1] == f"requeue {int(slurm['FIRST_JOB']) + 2}" and "continuing from" in said
    assert metrics(world / "cut") == metrics(world / "whole")
    model = "model.safetensors"
    assert (world / "cut" / model).read_bytes() == (world / "whole" / model).read_bytes()


def test_one_that_fails_is_not_queued_again(slurm, world):
    job = sbatch(
        slurm, world, STAGE, "sample", "--model", "none", "--prompts", "few.jsonl", "--out", "x.jsonl"
    )
    said = job.communicate(timeout=120)[1]
    assert job.returncode != 0 and "none" in said
    assert not [line for line in asked(slurm) if line.startswith("requeue")]


def test_an_array_of_shards_is_the_whole_file(slurm, world):
    words = ("sample", "--model", "lm", "--prompts", "few.jsonl", "--max-new-tokens", 8)
    words = (*words, "--on-truncated", "keep", "--device", "cpu")
    job = sbatch(slurm, world, "--array", "0-1", STAGE, *words, "--out", "part.@.jsonl")
    said = job.communicate(timeout=280)[1]
    assert job.returncode == 0, said
    assert run_cai("merge", "part.0.jsonl", "part.1.jsonl", "--out", "all.jsonl", cwd=world).returncode == 0
    assert run_cai(*words, "--out", "alone.jsonl", cwd=world).returncode == 0
    assert (world / "all.jsonl").read_bytes() == (world / "alone.jsonl").read_bytes()


def test_the_chain_waits_for_what_it_reads(slurm, world):
    del slurm["RUNS"]
    configs = SCRIPTS.parent / "configs" / "eight-gpus"
    done = subprocess.run(
        [str(SCRIPTS / "chain.sh"), str(configs), "--gpus-per-node", "8"],
        cwd=world,
        env=slurm,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {line.split("stage.sbatch ")[1].split()[0]: line for line in asked(slurm)}
    numbers = {name: line.split()[1] for name, line in found.items()}
    waits = {
        name: line.split("afterok:")[1].split()[0].split(":")
        for name, line in found.items()
        if "afterok" in line
    }
    order = {"sft": ["revise", "sample"], "label": ["sft"], "train-pm": ["label", "pmp"], "ppo": ["train-pm"]}
    assert waits == {name: [numbers[each] for each in before] for name, before in order.items()}
    assert all((configs / f"{name}.yaml").exists() for name in found) and len(found) == 7


def test_tasks_that_know_nothing_of_each_other_are_refused(world, monkeypatch):
    """srun -n 4 cai ...: each would be alone, and do all of the work."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    words = (
        "sample",
        "--model",
        "lm",
        "--prompts",
        "few.jsonl",
        "--max-new-tokens",
        4,
        "--on-truncated",
        "keep",
    )
    done = run_cai(*words, "--out", "refused.jsonl", cwd=world)
    assert mistake(done, "srun starts 4 tasks", "--shard")
    assert mistake(run_cai(*COMMANDS["sft"].split(), "--out", "x", cwd=world), "srun starts 4 tasks")
    done = run_cai(*words, "--shard", "1/4", "--out", "part.jsonl", cwd=world)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "evaluate hhh hhh.jsonl --model lm --out x.json",
        "evaluate labels comparisons.jsonl comparisons.jsonl --out x.json",
        "evaluate elo samples.jsonl lm --prompts few.jsonl --judge pm --out x.json",
        "evaluate responses samples.jsonl --out x.json",
        "constitution test --feedback-model lm --pairs comparisons.jsonl --out x.json",
        "split few.jsonl --parts a=1,b=1 --out x",
        "merge part.jsonl --out x.jsonl",
        "export paper-chains few.jsonl --out x.jsonl",
        "export verl --model lm --pm pm --prompts few.jsonl --out x",
        "import policy lm --from-export lm --out x",
        "report few.jsonl --out x.html",
        "push lm org/name",
        "demo --out x",
    ],
    ids=lambda words: " ".join(words.split()[:2]),
)
def test_what_is_not_shared_out_takes_no_launcher(words, world, monkeypatch):
    """Each process would do all of it, and write the same files as the others."""
    put(world / "hhh.jsonl", hhh_rows(4))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    before = set(world.iterdir())
    mistake(run_cai(*words.split(), cwd=world, timeout=60), "2 processes were started, and", "by one")
    assert set(world.iterdir()) == before
