"""Seconds and memory of the stages that read all rows of a run, by the number of rows: each in a process of its own.

    python scripts/bench/data.py [--rows 10000 100000 1000000] [--keep DIR]

Rows are made up, the same ones each time: micro-world requests and answers with a number in each, so that no two are
alike. Measured are

    train-pm   two processes, as on a node: all that they do before the first step (reading, checking and making ids
               once, mapping them, the order of the batches), and then a reading of every pair of an epoch
    sft        the same of `sft` on samples
    split      `cai split` into three parts
    prompts    reading prompts into a list, as `sample` and `revise` do
    join       putting the parts of two ranks in order
    overlap    `cai merge`'s check that no id is in two shards

Memory is the peak, in MB, summed over the processes: "own" is RssAnon, what a process holds that no file backs;
"PSS" counts the pages of files too, a page that two processes map half in each (mapped files are given
back by the kernel where it needs room).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "cai_cli/microworld/checkpoints/base"
TASKS = ("train-pm", "sft", "split", "prompts", "join", "overlap")
PROCESSES = {"train-pm": 2, "sft": 2}
SAMPLE_SECONDS = 0.1
BAR = 2000  # MB a node of the largest train-pm
WORDS = [
    "how",
    "do",
    "i",
    "make",
    "a",
    "kite",
    "of",
    "red",
    "paper",
    "for",
    "my",
    "little",
    "sister",
    "when",
    "it",
    "rains",
    "and",
    "the",
    "shop",
    "is",
    "closed",
    "today",
]
PARTS = "sft=0.5,rl=0.4,test=0.1"


# Rows


def text(rng: Random, number: int, words: int) -> str:
    return f"{' '.join(rng.choices(WORDS, k=words)).capitalize()} {number}."


def make_rows(folder: Path, count: int) -> None:
    rng = Random(0)
    names = ("comparisons", "samples", "prompts", "rank0", "rank1")
    files = {name: (folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    for n in range(count):
        prompt = [{"role": "user", "content": text(rng, n, 12)}]
        chosen, rejected = (
            [{"role": "assistant", "content": text(rng, n, rng.randint(8, 48))}] for _ in range(2)
        )
        row: dict[str, Any] = {"id": f"{n:016x}/0", "prompt": prompt}
        label = {"chosen": chosen, "rejected": rejected, "probability": 0.5 + n % 50 / 100, "origin": "ai"}
        sample = {**row, "completion": chosen, "finish_reason": "stop", "kind": "helpful"}
        for name, line in (
            ("comparisons", {**row, **label}),
            ("samples", sample),
            ("prompts", {"prompt": prompt}),
            (f"rank{n % 2}", sample),
        ):
            files[name].write(json.dumps(line) + "\n")
    for file in files.values():
        file.close()


# Tasks


def train_pm(folder: Path, count: int) -> None:
    from cai_cli.console.groups import build
    from cai_cli.stages import train_pm as stage
    from cai_cli.training.preference import run

    def until_the_first_step(artifact: Any, fit: Any, base: str, tokenizer: Any, pairs: Any) -> None:
        from cai_cli.training.preference.loop import all_batches

        batches = all_batches(pairs.training, fit.training, artifact.options.output.seed)
        told("ready")
        read = sum(len(pairs.training[n].chosen) for batch in batches for n in batch)
        assert read and len(pairs.training) + len(pairs.held_out) == count
        told("epoch")

    run.run_pairwise_stage = until_the_first_step
    out, rows = folder / "pm", folder / "comparisons.jsonl"
    stage.run(build(stage.Options, model=str(BASE), comparisons=[str(rows)], out=out, device="cpu"))


def sft(folder: Path, count: int) -> None:
    from cai_cli.console.groups import build
    from cai_cli.stages import sft as stage
    from cai_cli.training.sft import run

    def until_the_first_step(artifact: Any, options: Any, tokenizer: Any, data: Any, *_: Any) -> None:
        told("ready")
        assert sum(len(row["input_ids"]) for row in data.training) and len(data) == count
        told("epoch")

    run.finetune = until_the_first_step
    out, rows = folder / "sl-cai", folder / "samples.jsonl"
    stage.run(build(stage.Options, model=str(BASE), data=[str(rows)], out=out, device="cpu"))


def split(folder: Path, count: int) -> None:
    from cai_cli.console.groups import build
    from cai_cli.stages import split as stage

    rows = str(folder / "prompts.jsonl")
    stage.run(build(stage.Options, prompts=[rows], parts=PARTS, out=folder / "parts"))


def prompts(folder: Path, count: int) -> None:
    from cai_cli.rows.prompt_files import read_prompts

    assert len(read_prompts([str(folder / "prompts.jsonl")])) == count


def join(folder: Path, count: int) -> None:
    from cai_cli.artifacts.shards import put_in_order

    order = [f"{n:016x}/0" for n in range(count)]
    told("order")
    put_in_order(folder / "joined.jsonl", [folder / f"rank{n}.jsonl" for n in range(2)], order)


def overlap(folder: Path, count: int) -> None:
    from cai_cli.stages.merge import Shard, check_overlap

    check_overlap([Shard(folder / f"rank{n}.jsonl", {}, n, 2) for n in range(2)])


# Measuring


BEGUN = time.perf_counter()
SEEN: dict[str, dict[str, float]] = {}
PEAK = {"own": 0.0, "PSS": 0.0}


def told(name: str) -> None:
    """Keep what was seen up to here under a name of its own."""
    look()
    SEEN[name] = {"seconds": time.perf_counter() - BEGUN, **PEAK}


def look() -> None:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    own = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    pss = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
    for name, found in (("own", own), ("PSS", pss)):
        PEAK[name] = max(PEAK[name], int(found[1]) / 1000 if found else 0.0)


def watch(task: str, folder: Path, count: int) -> None:
    """Do one task in this process; what was seen of it goes to stdout."""

    def looking() -> None:
        while True:
            look()
            time.sleep(SAMPLE_SECONDS)

    threading.Thread(target=looking, daemon=True).start()
    tasks: dict[str, Callable[[Path, int], None]] = {
        "train-pm": train_pm,
        "sft": sft,
        "split": split,
        "prompts": prompts,
        "join": join,
        "overlap": overlap,
    }
    tasks[task](folder, count)
    told("end")
    print(json.dumps(SEEN))


def measure(task: str, folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The task in fresh processes: seconds of the slowest of them, memory of all, at each point that it tells of."""
    ranks = PROCESSES.get(task, 1)
    # A checkout need not be installed
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    common |= {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29400 + os.getpid() % 500),
    }
    words = [sys.executable, __file__, "--watch", task, "--keep", str(folder), "--rows", str(count)]
    started = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            text=True,
            env={**common, "RANK": str(n), "LOCAL_RANK": str(n), "LOCAL_WORLD_SIZE": str(ranks)},
        )
        for n in range(ranks)
    ]
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{task} of {count} rows failed")
    seen = [json.loads(lines.splitlines()[-1]) for lines in printed]
    return {
        point: {
            "seconds": max(one[point]["seconds"] for one in seen),
            **{name: sum(one[point][name] for one in seen) for name in PEAK},
        }
        for point in seen[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--keep", type=Path, help="keep what is made in this folder")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--watch", choices=TASKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        watch(arguments.watch, arguments.keep, arguments.rows[0])
        return
    print(f"{'task':10}{'rows':>10}  {'point':8}{'seconds':>9}{'own MB':>9}{'PSS MB':>9}")
    reached = True
    with tempfile.TemporaryDirectory() as scratch:
        for count in arguments.rows:
            folder = (arguments.keep or Path(scratch)) / str(count)
            folder.mkdir(parents=True, exist_ok=True)
            make_rows(folder, count)
            for task in arguments.tasks:
                for point, found in measure(task, folder, count).items():
                    line = f"{found['seconds']:9.1f}{found['own']:9.0f}{found['PSS']:9.0f}"
                    print(f"{task:10}{count:10,}  {point:8}{line}", flush=True)
                    reached = reached and (task != "train-pm" or found["own"] <= BAR)
    print(f"bar (train-pm: at most {BAR} MB a node): {'reached' if reached else 'MISSED'}")


if __name__ == "__main__":
    main()
