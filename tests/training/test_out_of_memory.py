"""A trainer that runs out of memory ends in one line that says what takes less, and its checkpoints stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_runs import COMMANDS, finish, make_world

from cai_cli.console.memory_hints import memory_error, what_helps
from cai_cli.errors import RunError, UserError, lacks_memory

# The command after a number, in which of its optimisers' steps more is asked for than there can be.
SHORT = """
import sys, torch
from cai_cli.__main__ import main

step, left = torch.optim.AdamW.step, int(sys.argv.pop(1))

def asks_for_more(self, *given, **more):
    global left
    left -= 1
    if not left:
        torch.empty(1 << 50)
    return step(self, *given, **more)

torch.optim.AdamW.step = asks_for_more
main()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize(
    ("stage", "steps", "flags", "helps", "left_out"),
    [
        (
            "train-pm",
            15,
            "--gradient-checkpointing",
            ["--lora", "--per-device-train-batch-size 4 (now 8)"],
            ["--gradient-checkpointing", "--quantize"],
        ),
        ("sft-lora", 15, "", ["--quantize 4bit", "--gradient-checkpointing"], ["--lora,", "several GPUs"]),
        ("ppo", 40, "", ["--lora", "--gradient-checkpointing", "--batch-size 64"], ["--quantize"]),
    ],
)
def test_lack_of_memory_is_one_line_and_the_run_goes_on_from_its_checkpoint(
    world, stage, steps, flags, helps, left_out
):
    words = [*COMMANDS[stage].split(), "--device", "cpu", *flags.split(), "--out", stage]
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(steps), *words],
        cwd=world,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1] == line
    assert "out of memory: 4503599.63 GB more could not be had" in line
    _, _, hint = line.partition(" — ")
    assert all(flag in hint for flag in helps), hint
    assert not any(flag in hint for flag in left_out), hint
    assert "--if-changed restart" in hint  # --lora makes another model
    assert list((world / stage / "checkpoints").iterdir())
    assert "continuing from" in finish(stage, stage, world, "--device", "cpu", *flags.split())


def test_lack_of_memory_is_told_from_other_errors():
    lacking = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a capacity of"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ]
    assert all(lacks_memory(error) for error in lacking)
    made = ValueError("a pass failed")
    made.__cause__ = lacking[1]
    assert lacks_memory(made)
    others = [RuntimeError("shape mismatch"), OSError(28, "No space left on device"), KeyError("memory")]
    assert not any(lacks_memory(error) for error in others)
    circle = RuntimeError("one")
    circle.__context__ = RuntimeError("other")
    circle.__context__.__context__ = circle
    assert not lacks_memory(circle)


def test_only_what_is_not_taken_yet_helps(monkeypatch):
    taken = {"lora": True, "quantize": "4bit", "gradient_checkpointing": True, "device": "cpu"}
    taken["per_device_train_batch_size"] = 1
    assert what_helps(taken) == "take a machine with more memory; --dry-run tells how much"
    assert "several GPUs" in what_helps(taken | {"quantize": None, "device": "auto"})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "several GPUs" not in what_helps(taken | {"quantize": None, "device": "auto"})
    assert "--quantize" not in what_helps(taken | {"quantize": None, "device": "auto"})  # FSDP cannot hold it
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    told = what_helps(taken | {"quantize": None, "device": "auto"})
    assert "several GPUs" in told and "--quantize" not in told
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert "several GPUs" not in what_helps(taken | {"quantize": None, "device": "auto"})
    assert what_helps({"batch_size": 64}) == "--batch-size 32 (now 64) takes less"


def test_errors_that_are_told_already_are_left_alone():
    assert memory_error(ValueError("no"), None) is None
    assert not lacks_memory(UserError("--lora: no")) and not lacks_memory(RunError("the loss is nan"))
