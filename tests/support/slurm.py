"""Stand-ins for Slurm's commands on a machine without it: jobs run one after the other, at once, on this machine, with
two processes for GPUs. What they were asked is in `slurm.log` beside them.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

SBATCH = """
import os, subprocess, sys
from pathlib import Path
words, given, place = sys.argv[1:], {}, Path(__file__).parent
while words[0].startswith("-"):
    name, _, value = words.pop(0).partition("=")
    bare = name in ("--parsable", "--requeue")
    given[name] = value or ("" if bare else words.pop(0))
log = place / "slurm.log"
number = 1 + sum(line.startswith("sbatch") for line in log.read_text().splitlines()) if log.exists() else 1
with log.open("a") as file:
    print("sbatch", number, given.get("--dependency", ""), *words, file=file)
job = {"SLURM_JOB_ID": str(int(os.environ["FIRST_JOB"]) + number)}
job |= {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "localhost"}
first, _, last = given.get("--array", "").partition("-")
tasks = [{"SLURM_ARRAY_TASK_ID": str(n), "SLURM_ARRAY_TASK_COUNT": str(int(last) + 1)}
         for n in range(int(first), int(last) + 1)] if last else [{}]
codes = []
for task in tasks if "RUNS" in os.environ else []:
    queued = place / f"queued.{job['SLURM_JOB_ID']}"
    queued.touch()
    while queued.exists():
        queued.unlink()
        process = subprocess.Popen(["bash", *words], env={**os.environ, **job, **task})
        (place / "batch.pid").write_text(str(process.pid))
        codes.append(process.wait())
print(number, flush=True)
sys.exit(codes[-1] if codes else 0)
"""
SRUN = """
import os, sys
from pathlib import Path
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
Path(__file__).parent.joinpath("step.pid").write_text(str(os.getpid()))
os.execvp(sys.executable, [sys.executable, "-m", "torch.distributed.run", *words[1:]])  # torchrun
"""
SCONTROL = """
import sys
from pathlib import Path
if sys.argv[1] == "show":
    print(sys.argv[3])
else:
    place = Path(__file__).parent
    place.joinpath(f"queued.{sys.argv[2]}").touch()
    with place.joinpath("slurm.log").open("a") as file:
        print(*sys.argv[1:], file=file)
"""
SCANCEL = """
import psutil, signal
from pathlib import Path
step = psutil.Process(int(Path(__file__).parent.joinpath("step.pid").read_text()))
for process in [step, *step.children(recursive=True)]:
    process.send_signal(signal.SIGTERM)
"""


def stand_in(folder: Path) -> dict[str, str]:
    """Write the commands into `folder`; the environment that finds them there."""
    folder.mkdir()
    for name, code in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
        file = folder / name
        file.write_text(f"#!{sys.executable}{code}")
        file.chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join(filter(None, sys.path))
    # Jobs meet at a port that is made of their number
    first = str(1000 * secrets.randbelow(1000))
    return os.environ | {"PATH": path, "PYTHONPATH": modules, "RUNS": "1", "FIRST_JOB": first}
