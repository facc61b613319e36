"""`make pipeline`: the stages as file targets. Small settings: what is tested is what reruns, not what is
learned.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import forks
import pytest

PROJECT = Path(__file__).parents[2]
SETTINGS = """
include {project}/scripts/microworld.mk
REVISE := --few-shot none --rounds 1 --max-new-tokens 48 --limit 24
SAMPLE := -n 1 --max-new-tokens 48 --limit 24
SFT := --per-device-train-batch-size 8 --max-length 256 --learning-rate 1e-3
LABEL := --max-new-tokens 48 --limit 24
PMP := --per-device-train-batch-size 16 --max-pairs 32 --held-out 0
TRAIN_PM := --num-train-epochs 0.05 --per-device-train-batch-size 16
PPO := --steps 1 --rollout-batch-size 8 --num-ppo-epochs 1 --max-new-tokens 48
"""

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (PROJECT / "Makefile").is_file(),
    reason="needs make and the source tree",
)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make pipeline` of the project with the small settings, without its set-up."""
    cai, descriptor = forks.command_line()
    variables = [f"ARGS={folder}/small.mk", f"RUN={folder}/run", f"CAI={shlex.join(cai)}"]
    command = ["make", "-C", str(PROJECT), "-o", ".venv/.installed", "pipeline", *variables, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, pass_fds=[descriptor]
    )


def stages_run(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages whose commands make started, in order."""
    cai = f"{shlex.join(forks.command_line()[0])} "
    return [line.split(cai)[1].split()[0] for line in result.stdout.splitlines() if cai in line]


def test_reruns_only_what_is_stale(tmp_path: Path) -> None:
    (tmp_path / "small.mk").write_text(SETTINGS.format(project=PROJECT), encoding="utf-8")
    first = make(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    assert sorted(stages_run(first)) == sorted(
        ["demo", "revise", "sample", "sft", "label", "pmp", "train-pm", "ppo"]
    )
    assert (tmp_path / "run" / "rl-cai" / "cai.json").is_file()

    again = make(tmp_path)
    assert again.returncode == 0 and stages_run(again) == []

    # Other prompts for the first stage: what depends on them is made anew, the rest is not even looked at.
    prompts = tmp_path / "run" / "inputs" / "world" / "harmful-sft.jsonl"
    lines = prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    prompts.write_text("".join(lines[1:]), encoding="utf-8")
    kept = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("samples.jsonl", "pmp/cai.json")}
    changed = make(tmp_path)
    assert changed.returncode == 0, changed.stderr[-3000:]
    assert sorted(stages_run(changed)) == sorted(["revise", "sft", "label", "train-pm", "ppo"])
    assert changed.stderr.count("starting afresh") == 5
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == kept

    # Touched without a change of content: make asks, and each stage finds nothing to do.
    prompts.touch()
    touched = make(tmp_path)
    assert touched.returncode == 0, touched.stderr[-3000:]
    assert touched.stderr.count("nothing to do") == len(stages_run(touched)) == 5
    assert stages_run(make(tmp_path)) == []

    # Another setting: each stage is asked, and the one that it is of runs anew.
    settings = tmp_path / "small.mk"
    settings.write_text(settings.read_text().replace("PPO := --steps 1", "PPO := --steps 2"))
    other = make(tmp_path)
    assert other.returncode == 0, other.stderr[-3000:]
    assert "ppo" in stages_run(other) and other.stderr.count("starting afresh") == 1
    assert make(tmp_path, "-q").returncode == 0
    settings.unlink()
    assert "No such file" in make(tmp_path).stderr
