"""How a study runs `cai`: the ordinary commands, each in a process of its own, as `cai demo` runs its stages.

    OUT/seed-N/              what a seed's studies write: a world, its models, files and one JSON a study
    OUT/seed-N/commands.log  each command and what it said
    OUT/cpu.jsonl            CPU seconds of each command

A command that has been through says so at once, one that was killed goes on: so a study that was killed does too.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_cli.rows.jsonl import read_rows, write_atomically
from cai_cli.stages.demo import run_cli, start_method

CPU = "cpu.jsonl"


class CommandError(Exception):
    """A command of a study failed; its message is in the log that is named."""


@dataclass(frozen=True)
class Place:
    """The folder of one seed, shared by all studies."""

    out: Path
    seed: int
    prompts: int = 256  # test prompts of each kind that replies are measured on
    locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    @property
    def folder(self) -> Path:
        return self.out / f"seed-{self.seed}"

    def __truediv__(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def cai(self, *words: object, seeded: bool = True) -> None:
        """Run `cai WORDS --seed N`. Raises CommandError where it fails."""
        line = [str(word) for word in words] + (["--seed", str(self.seed)] if seeded else [])
        print(f"[seed {self.seed}] $ cai {shlex.join(line)}", flush=True)
        log = self / "commands.log"
        process = start_method().Process(target=logged, args=(line, log, self.out / CPU))
        process.start()
        process.join()
        if process.exitcode:
            raise CommandError(f"`cai {shlex.join(line)}` ended with {process.exitcode}: see {log}")

    def made(self, target: Path, make: Callable[[Path], Any]) -> Path:
        """`target`, made by `make(target)` unless it is there; two studies that want it make it once."""
        with self.held(target):
            if not done(target):
                make(target)
        return target

    @contextmanager
    def held(self, target: Path) -> Any:
        with self.locks[str(target)]:
            yield


def done(target: Path) -> bool:
    """Whether a file, a model or a data set of the world is there whole."""
    return target.is_file() or (target / "cai.json").is_file()


def logged(words: list[str], log: Path, cpu: Path) -> None:
    """`cai WORDS` in this process, with what it says and the CPU seconds it took put aside."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ cai {shlex.join(words)}\n")
        stream.flush()
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        run_cli(words)
    finally:
        note_cpu(" ".join(words[:2]), cpu)


def note_cpu(what: str, path: Path) -> None:
    """Append this process's CPU seconds, those of its children among them."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(use.ru_utime + use.ru_stime for use in uses)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"what": what, "cpu": round(seconds, 2), "at": round(time.time())}) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON Lines, all or nothing."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def one_thread() -> None:
    """As many commands run at once as there are jobs, with one thread each. To be called before the first one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
