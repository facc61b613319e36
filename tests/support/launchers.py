"""How several processes are started: by torchrun, and by accelerate with FSDP or DeepSpeed on a CPU."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

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
# Beside gloo DeepSpeed would have a message through shared memory, which it compiles for minutes.
ZERO_ON_A_CPU = """
import deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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


def kill_all(process: subprocess.Popen[str]) -> None:
    """The launcher and the processes that it started, which have sessions of their own."""
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *workers):
        each.kill()
    psutil.wait_procs(workers)


def kill_one(process: subprocess.Popen[str]) -> None:
    """The second of the processes, as lack of memory would; the launcher ends the others."""
    workers = psutil.Process(process.pid).children(recursive=True)
    next(each for each in workers if each.environ().get("RANK") == "1").kill()
