"""Two processes, with copies of the models and with parts of them: the same rollouts, updates and files as one, up to
rounding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forks
import launchers
import pytest
import torch
from catching import catch
from conftest import run_cai
from launchers import ACCELERATE, DDP, NEEDS_DEEPSPEED, ON_A_CPU, ZERO, ZERO_ON_A_CPU, kill_all, kill_one
from ppo_setup import make_pair, write_prompts
from safetensors.torch import load_file

from cai_cli.errors import UserError
from cai_cli.rows.records import Prompt
from cai_cli.training.ppo.prompts import check_held_out

FLAGS = (
    "ppo --model lm --pm pm --prompts prompts.jsonl --eval-prompts held.jsonl --eval-steps 2 --steps 6 --save-steps 2 "
    "--rollout-batch-size 10 --num-mini-batches 2 --num-ppo-epochs 2 --max-new-tokens 8 --learning-rate 1e-3 --device cpu "
    "--whiten-rewards --sample-steps 2 --per-device-train-batch-size 2"
)
WAYS = {"parts": ACCELERATE, "zero2": ZERO[2], "zero3": ZERO[3]}
each_way = pytest.mark.parametrize(
    "way", [pytest.param(way, marks=NEEDS_DEEPSPEED if way.startswith("zero") else ()) for way in WAYS]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    write_prompts(folder / "held.jsonl", 5)
    (folder / "fsdp.py").write_text(ON_A_CPU)
    (folder / "zero.py").write_text(ZERO_ON_A_CPU)
    alone(folder, "one")
    return folder


def alone(folder: Path, out: str, *more: str) -> str:
    done = run_cai(*FLAGS.split(), *more, "--out", out, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def start(folder: Path, out: str, launcher: list[str], *more: str) -> forks.Command:
    return launchers.start(launcher, [*FLAGS.split(), *more, "--out", out], folder)


def finish(process: forks.Command) -> str:
    written, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert written == ""
    return said


def rows(folder: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def assert_the_same(folder: Path, out: str) -> None:
    for alone, together in zip(rows(folder / "one"), rows(folder / out), strict=True):
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-4)
    texts = [[row["completion"] for row in rows(folder / name, "samples")] for name in ("one", out)]
    assert texts[0] == texts[1]
    start, one, two = (load_file(folder / name / "model.safetensors") for name in ("lm", "one", out))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=5e-5), name
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3


def test_two_processes_with_copies_do_what_one_does(folder: Path) -> None:
    said = finish(launchers.start_anew(DDP, [*FLAGS.split(), "--out", "copies"], folder))
    assert said.count("steps is saved") == 1  # the first process talks
    assert_the_same(folder, "copies")


@each_way
def test_two_processes_with_parts_do_what_one_does(folder: Path, way: str) -> None:
    """Killed after a checkpoint, all at once or one of them, the same command ends in the bytes of the uninterrupted
    run, and one process goes on with what two began.
    """
    finish(start(folder, way, WAYS[way]))
    assert_the_same(folder, way)
    cut, begun = f"cut-{way}", f"begun-{way}"
    sealed = lambda: list((folder / cut).glob("checkpoints/step-*/complete"))  # noqa: E731
    kill = kill_all if way == "parts" else kill_one
    catch(lambda: start(folder, cut, WAYS[way]), folder / cut, sealed, send=kill)
    assert len(list((folder / cut).glob("checkpoints/step-00000002/part-*.pt"))) == 2
    shutil.copytree(folder / cut, folder / begun)
    assert "continuing from step" in finish(start(folder, cut, WAYS[way]))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folder / cut / name).read_bytes() == (folder / way / name).read_bytes(), name

    assert "continuing from step" in alone(folder, begun)
    assert_the_same(folder, begun)


@pytest.fixture(scope="module")
def adapters(folder: Path) -> tuple[str, ...]:
    flags = ("--lora", "--lora-r", "4", "--load-best-model-at-end")
    alone(folder, "lora-one", *flags)
    return flags


@each_way
def test_adapters_on_one_backbone_learn_in_parts(folder: Path, adapters: tuple[str, ...], way: str) -> None:
    """And of the policies measured the best one is put back from its file and saved."""
    finish(start(folder, f"lora-{way}", WAYS[way], *adapters))
    one, two = (load_file(folder / name / "model.safetensors") for name in ("lora-one", f"lora-{way}"))
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=5e-5), name


@pytest.mark.parametrize("asked", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_each_process_is_to_have_a_held_out_prompt(monkeypatch, asked: str) -> None:
    """Or it would not pass through a model that the others wait to pass through."""
    one = [Prompt("p1", [], None)]
    check_held_out(one)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_held_out(one)
    monkeypatch.setenv(asked, "true")
    check_held_out([]), check_held_out(one * 2)
    with pytest.raises(
        UserError, match=r"--eval-prompts: 1 prompts for 2 processes that .* \(give each process one\)"
    ):
        check_held_out(one)
