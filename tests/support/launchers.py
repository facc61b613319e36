"""How several processes are started: by torchrun, and by accelerate with FSDP or DeepSpeed on a CPU.

`start` forks the launcher from a process that has torch imported (`forks.py`), and the launcher its workers: what they
are told, watched by and ended by is its own. `start_anew` is for the tests that show that it is the same without.
"""

from __future__ import annotations

import atexit
import multiprocessing.context
import os
import runpy
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import forks
import psutil
import pytest

ON_A_CPU = """
from accelerate.state import PartialState
from accelerate.utils import DistributedType

start = PartialState.__init__

def start_on_a_cpu(self, *args, **settings):
    first = not self.initialized
    start(self, *args, **settings)
    if first and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

PartialState.__init__ = start_on_a_cpu
from cai_cli.__main__ import main
main()
"""
# Beside gloo DeepSpeed would have a message through shared memory, which it compiles for minutes; and once it has put
# together a small weight, or one that is soon needed again, it leaves it so.
ZERO_ON_A_CPU = """
import deepspeed
import deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

initialize = deepspeed.initialize
LEFT = ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_max_live_parameters")

def initialize_tiny(config, **given):
    return initialize(config=config | {"zero_optimization": config["zero_optimization"] | dict.fromkeys(LEFT, 0)}, **given)

deepspeed.initialize = initialize_tiny
from cai_cli.__main__ import main
main()
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cai_cli"]
# A machine's GPUs are not seen: parts would be put there, whatever --device says.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
# The launch files that are shipped, with what differs on a CPU: `accelerate launch --config_file ... -m cai_cli`.
SHIPPED = Path(__file__).parents[2] / "scripts/accelerate"
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0", "--config_file"]
ACCELERATE = [*LAUNCH, str(SHIPPED / "fsdp2.yaml"), "fsdp.py"]
DDP = [*LAUNCH, str(SHIPPED / "ddp.yaml"), "-m", "cai_cli"]
ZERO = {stage: [*LAUNCH, str(SHIPPED / "zero3.yaml"), f"--zero_stage={stage}", "zero.py"] for stage in (2, 3)}
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="needs DeepSpeed: pip install --no-build-isolation deepspeed",
)


def start(launcher: list[str], words: list[str], folder: Path) -> forks.Command:
    """Two processes of `cai WORDS`, under way in the folder."""
    if not forks.as_the_server():
        return start_anew(launcher, words, folder)
    return forks.Forked([*launcher, *words], folder, more=NO_GPU)


def start_anew(launcher: list[str], words: list[str], folder: Path) -> subprocess.Popen[str]:
    """The same in processes that import all for themselves."""
    environment = os.environ | NO_GPU | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    command = [sys.executable, *launcher, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def launch(words: list[str]) -> None:
    """Be `python -m WORDS`, torchrun or accelerate's launcher, in this process; its workers are forks of it."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def fork(_: object, arguments: tuple[str, ...], environment: dict[str, str]) -> Worker:
        worker = Worker(target=work, args=(arguments, environment))
        worker.start()
        os.setpgid(worker.pid, worker.pid)  # the launcher ends it as a group
        return worker

    subprocess_handler.SubprocessHandler._popen = fork
    run_module(words)


class Worker(multiprocessing.context.ForkProcess):
    """What the launcher asks of a subprocess.Popen."""

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self.name, timeout or 0)
        return self.exitcode


def work(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Be `python -u -m MODULE ...` or `python -u FILE ...`."""
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # which the launcher listens to
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [word for word in arguments[1:] if word not in ("-u", "-m")]
    try:
        if "-m" in arguments:
            run_module(words)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def run_module(words: list[str]) -> None:
    """`python -m WORDS`, also of one that is imported already, which runpy would warn of."""
    package = hasattr(sys.modules.get(words[0]), "__path__")
    sys.modules.pop(f"{words[0]}.__main__" if package else words[0], None)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def ranks(process: forks.Command) -> list[psutil.Process]:
    """The workers of a launcher, in the order in which it started them."""
    return sorted(psutil.Process(process.pid).children(), key=lambda worker: worker.pid)


def kill_all(process: forks.Command) -> None:
    """The launcher and the processes that it started, which are groups of their own."""
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *workers):
        each.kill()
    psutil.wait_procs(workers)


def kill_one(process: forks.Command) -> None:
    """The second of the processes, as lack of memory would; the launcher ends the others."""
    ranks(process)[1].kill()
