"""Damaged checkpoints: named and passed over for the one before, never read; with none whole one line and a
next step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_cai
from trainer_runs import CHECKPOINTS, COMMANDS, finish, kill_when, make_world, metrics

from cai_cli.errors import RunError
from cai_cli.training.checkpoints import (
    damage,
    load_checkpoint,
    load_weights,
    newest_whole,
    save_checkpoint,
    save_weights,
)
from cai_cli.training.metrics_file import MetricsFile


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    """One byte in the middle; of the list itself its first one, since a digit of a checksum is damage of what
    it is of.
    """
    content = bytearray(file.read_bytes())
    content[0 if file.name == "complete" else len(content) // 2] ^= 1
    file.write_bytes(content)


HARM = (truncate, empty, zero, flip, Path.unlink)
TRAINERS = ("train-pm", "sft", "ppo")
# What each must keep in a checkpoint.
FILES = {
    "train-pm": {"state.pt"},
    "sft": {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "window-0.pt",
    },
    "ppo": {"state.pt", "critic.pt"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Each trainer once to its end (`<trainer>-whole`), and once killed when it had two checkpoints."""
    world = make_world(tmp_path_factory.mktemp("damage"))
    for trainer in TRAINERS:
        finish(trainer, f"{trainer}-whole", world)
        kill_when(trainer, f"{trainer}-killed", world, lambda t=trainer: len(newest(kept(world, t), t)) == 2)
    return world


def kept(world: Path, trainer: str) -> Path:
    return world / f"{trainer}-killed/checkpoints"


def newest(folder: Path, trainer: str) -> list[Path]:
    """The sealed ones, the newest first."""
    found = [file.parent for file in folder.glob(f"{CHECKPOINTS[trainer]}/complete")]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("harm", HARM)
def test_any_damage_of_any_file_is_seen_and_the_checkpoint_before_taken(world, tmp_path, trainer, harm):
    name = CHECKPOINTS[trainer].removesuffix("-*")
    last, before = newest(kept(world, trainer), trainer)[:2]
    files = [path.relative_to(last) for path in last.rglob("*") if path.is_file()]
    assert FILES[trainer] | {"complete"} <= {str(file) for file in files}
    for file in files:
        folder = Path(shutil.copytree(kept(world, trainer), tmp_path / f"{name}-{file.name}"))
        if file.name == "complete" and harm is Path.unlink:
            continue  # without it a kill has left the checkpoint half-written
        harm(folder / last.name / file)
        told = damage(folder / last.name)
        assert told is not None and told.startswith(f"{folder / last.name / file}: is "), file
        assert newest_whole(folder, name) == folder / before.name
        assert not (folder / last.name).exists()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_bytes(world, trainer):
    out = f"{trainer}-mended"
    shutil.copytree(world / f"{trainer}-killed", world / out)
    last, before = newest(world / out / "checkpoints", trainer)[:2]
    weights = last / ("model.safetensors" if trainer == "sft" else "state.pt")
    flip(weights)
    said = finish(trainer, out, world)
    (warning,) = [line for line in said.splitlines() if line.startswith("warning:") and "damaged" in line]
    assert (
        f"{last.name}/{weights.name}: is damaged" in warning
        and f"going on from {out}/checkpoints/{before.name}" in warning
    )
    whole = world / f"{trainer}-whole"
    assert metrics(world / out) == metrics(whole)
    for name in filter(
        lambda name: (whole / name).exists(), ("model.safetensors", "metrics.jsonl", "samples.jsonl")
    ):
        assert (world / out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("trainer", TRAINERS)
def test_with_no_checkpoint_whole_the_run_ends_with_a_line_and_its_next_step_works(world, trainer):
    out = f"{trainer}-lost"
    shutil.copytree(world / f"{trainer}-killed", world / out)
    for checkpoint in newest(world / out / "checkpoints", trainer):
        zero(checkpoint / ("trainer_state.json" if trainer == "sft" else "state.pt"))
    done = run_cai(*COMMANDS[trainer].split(), "--out", out, cwd=world)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "is damaged" in line and f"remove {out}/checkpoints, and the same command starts afresh" in line
    shutil.rmtree(world / out / "checkpoints")
    finish(trainer, out, world)
    weights = "model.safetensors"
    assert (world / out / weights).read_bytes() == (world / f"{trainer}-whole" / weights).read_bytes()


# What is kept


def test_two_checkpoints_are_kept_and_half_written_ones_removed(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"weight": torch.full((2,), float(step))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / "step-00000020/state.pt").write_bytes(b"half")
    (tmp_path / "step-notes").mkdir()
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0].name == "step-00000015" and found[1]["weight"].tolist() == [15.0, 15.0]
    assert not (tmp_path / "step-00000020").exists() and (tmp_path / "step-notes").exists()
    assert load_checkpoint(tmp_path / "none") is None


def test_the_newest_checkpoint_of_a_trainer_goes_by_number(tmp_path):
    for step in (9, 10, 100):
        save_weights(tmp_path / f"checkpoint-{step}", {"step": step})
    (tmp_path / "checkpoint-100/complete").unlink()
    assert newest_whole(tmp_path, "checkpoint") == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()


def test_files_of_folders_in_a_checkpoint_count(tmp_path):
    """FSDP and DeepSpeed keep theirs in folders."""

    def also(folder: Path) -> None:
        (folder / "parts").mkdir()
        (folder / "parts/0.distcp").write_bytes(b"some weights")

    save_checkpoint(tmp_path, 1, {}, also)
    flip(tmp_path / "step-00000001/parts/0.distcp")
    with pytest.raises(RunError, match=r"parts/0\.distcp: is damaged: not the bytes"):
        load_checkpoint(tmp_path)


def test_damaged_weights_alone_are_an_error(tmp_path):
    """The best policy of a PPO run: no other one may take its place."""
    save_weights(tmp_path / "best-00000004", {"weight": torch.ones(2)})
    assert load_weights(tmp_path / "best-00000004")["weight"].tolist() == [1.0, 1.0]
    truncate(tmp_path / "best-00000004/state.pt")
    with pytest.raises(RunError, match=r"best-00000004/state\.pt: is damaged"):
        load_weights(tmp_path / "best-00000004")
    with pytest.raises(RunError, match="best-00000008/complete: cannot be read"):
        load_weights(tmp_path / "best-00000008")


# The log


@pytest.mark.parametrize(
    ("tail", "kept_steps", "named"),
    [
        (b'{"step": 4, "lo', [1, 2, 3], [4]),
        (b'{"step": 4}', [1, 2, 3], []),  # of a step after the checkpoint
        (b'{"step": 3}', [1, 2, 3, 3], []),  # whole but for its newline
        (b"\x00\x00\xff\n", [1, 2, 3], [4]),
        (b'"text"\n[1]\n{"stop": 1}\n{"step": 2}\n', [1, 2, 3, 2], [4, 5, 6]),
    ],
)
def test_a_line_of_the_log_that_cannot_be_read_is_left_out_and_named(
    tmp_path, capsys, tail, kept_steps, named
):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n' + tail)
    with MetricsFile(file, 3):
        pass
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == kept_steps
    assert file.read_bytes().endswith(b"\n")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"warning: {file}: line {number} cannot be read and is left out" for number in named]


@pytest.mark.parametrize("harm", [truncate, empty, zero])
def test_a_damaged_manifest_of_a_model_in_the_making_is_one_line(world, harm):
    out = f"manifest-{harm.__name__}"
    shutil.copytree(world / "train-pm-killed", world / out)
    manifest = world / out / "cai.partial.json"
    harm(manifest)
    done = run_cai(*COMMANDS["train-pm"].split(), "--out", out, cwd=world)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "cai.partial.json: is not one of our manifests" in done.stderr
