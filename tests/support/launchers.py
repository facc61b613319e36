"""How several processes are started: by torchrun, and by accelerate with FSDP on a CPU."""

from __future__ import annotations

import subprocess

import psutil

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
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cai_cli"]
# As for `accelerate launch --use_fsdp ... -m cai_cli`, with what runs on a CPU.
ACCELERATE = [
    *("-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--main_process_port=0", "--use_fsdp", "--fsdp_version=2"),
    *("--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP", "fsdp.py"),
]


def kill_all(process: subprocess.Popen[str]) -> None:
    """The launcher and the processes that it started, which have sessions of their own."""
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *workers):
        each.kill()
    psutil.wait_procs(workers)
