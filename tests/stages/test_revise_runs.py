"""`cai revise` on the micro-world: whatever the batches, shards, processes and kills, the file is the same,
byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forks
import pytest
from catching import catch

from cai_cli.console.groups import build
from cai_cli.stages import revise

LIMIT = 20


def words(helpful: Path, world: Path, out: Path, *more: object) -> list[str]:
    source = (
        "--model",
        helpful,
        "--prompts",
        world / "harmful-sft.jsonl",
        "--constitution",
        world / "constitution.yaml",
    )
    how = ("--few-shot", "none", "--rounds", 2, "--max-new-tokens", 48, "--limit", LIMIT)
    return [str(word) for word in ("revise", *source, *how, "--out", out, *more)]


def run_here(helpful: Path, world: Path, out: Path, **more) -> Path:
    """The stage in this process, which has paid for its imports."""
    options = build(
        revise.Options,
        model=str(helpful),
        prompts=[str(world / "harmful-sft.jsonl")],
        constitution=str(world / "constitution.yaml"),
        few_shot="none",
        rounds=2,
        max_new_tokens=48,
        limit=LIMIT,
        out=out,
        **more,
    )
    revise.run(options)
    return out


@pytest.fixture(scope="module")
def whole(helpful, world, tmp_path_factory) -> Path:
    out = run_here(helpful, world, tmp_path_factory.mktemp("whole") / "revisions.jsonl")
    assert out.read_bytes().count(b"\n") >= LIMIT // 2
    return out


def test_shards_of_any_batch_size_merge_into_the_whole(helpful, world, whole, tmp_path, cai):
    sizes = (1, 7, 64)
    shards = [
        run_here(helpful, world, tmp_path / f"{n}.jsonl", shard=f"{n}/3", batch_size=size)
        for n, size in enumerate(sizes)
    ]
    done = cai("merge", *reversed(shards), "--out", tmp_path / "all.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.jsonl").read_bytes() == whole.read_bytes()


def test_batches_of_seven(helpful, world, whole, tmp_path):
    assert (
        run_here(helpful, world, tmp_path / "revisions.jsonl", batch_size=7).read_bytes()
        == whole.read_bytes()
    )


def test_a_killed_run_ends_as_an_uninterrupted_one(helpful, world, whole, tmp_path, cai):
    out = tmp_path / "revisions.jsonl"
    command = words(helpful, world, out, "--batch-size", 1)
    partial = out.with_name("revisions.jsonl.partial")
    catch(lambda: forks.start(list(map(str, command))), out, lambda: partial.read_bytes().count(b"\n") >= 2)
    assert not out.exists()
    done = cai(*command)
    assert done.returncode == 0 and "continuing after" in done.stderr, done.stderr
    assert out.read_bytes() == whole.read_bytes()


def test_two_processes_write_the_same_file(helpful, world, whole, tmp_path):
    out = tmp_path / "revisions.jsonl"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "cai_cli",
    ]
    done = subprocess.run(
        [*launch, *words(helpful, world, out)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole.read_bytes()


def test_a_model_that_never_stops_fails_the_command_with_advice(helpful, world, tmp_path, cai):
    """At two tokens a segment no reply comes to its end: nothing is written as done, and the way out is
    named.
    """
    out = tmp_path / "revisions.jsonl"
    done = cai(*words(helpful, world, out, "--limit", 4, "--max-new-tokens", 2))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "4 of 4 rows were rejected (truncated 4)" in done.stderr and "raise --max-new-tokens" in done.stderr
    )
    assert not out.exists() and (tmp_path / "revisions.rejects.jsonl").read_text().count("\n") == 4
