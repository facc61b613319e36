"""`cai ppo --value-device`: a critic in a process of its own. Its numbers: test_ppo_options.py; kills:
test_trainer_resume.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from ppo_setup import make_pair, options_for, write_prompts

from cai_cli.errors import UserError
from cai_cli.stages import ppo
from cai_cli.training.ppo.critic import CriticProcess, critic_threads


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    return *make_pair(folder), write_prompts(folder / "prompts.jsonl")


def children(process: int) -> dict[int, str]:
    """Process id and command line of each child process."""
    pids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}


def start(files, out: Path) -> subprocess.Popen:
    model, pm, prompts = files
    flags = f"--model {model} --pm {pm} --prompts {prompts} --out {out} --steps 10000 --rollout-batch-size 8 --max-new-tokens 6"
    command = [
        sys.executable,
        "-m",
        "cai_cli",
        "ppo",
        *flags.split(),
        "--device",
        "cpu",
        "--value-device",
        "cpu",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not ((metrics := out / "metrics.jsonl").exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def critic_of(process: subprocess.Popen) -> int:
    [critic] = [pid for pid, command in children(process.pid).items() if "spawn_main" in command]
    return critic


def is_over(process: int) -> bool:
    """Ended, though nobody may have asked yet how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_critic_ends_with_the_run(files, tmp_path, how):
    """Killed, or stopped by a signal that reaches both processes, as Ctrl-C and that of `timeout` do."""
    process = start(files, tmp_path / "out")
    critic = critic_of(process)
    if how == signal.SIGKILL:
        process.send_signal(how)
    else:
        os.killpg(process.pid, how)
    said = process.communicate(timeout=60)[1]  # returns when nobody holds its stderr
    assert is_over(critic)
    assert "Traceback" not in said
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)


@needs_proc
def test_a_critic_that_dies_ends_the_run_in_one_line(files, tmp_path):
    process = start(files, tmp_path / "out")
    os.kill(critic_of(process), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith(
        "error: the process of --value-device has died — look for a lack of memory"
    )
    assert "Traceback" not in said


def test_what_the_critic_cannot_do_is_said_as_here(files, tmp_path):
    """Errors come from the other process as they are, with the next step."""
    model, _, prompts = files
    critic = CriticProcess(
        options_for(model, tmp_path / "nothing", prompts, tmp_path / "out", value_device="cpu"), 64
    )
    with closing(critic), pytest.raises(UserError, match="nothing: no such directory"):
        critic.call("score", [])()


def test_threads_of_one_cpu_are_shared(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert critic_threads("cpu", "cpu") == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert critic_threads("cuda", "cpu") == critic_threads("cuda:0", "cuda:1") == 0


def test_devices_that_are_not_there_and_several_processes_are_refused(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--value-device nowhere: unknown"):
        ppo.run(options_for(*files, tmp_path / "out", value_device="nowhere"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--value-device cuda:1: no CUDA device here"):
            ppo.run(options_for(*files, tmp_path / "out", value_device="cuda:1"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--value-device cpu: there are 2 processes"):
        ppo.run(options_for(*files, tmp_path / "out", value_device="cpu"))
