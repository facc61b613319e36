"""CAI_SHORTCUTS=0: the plain computation alone, to the same texts, labels and losses; manifests say which was
taken.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cai
from row_runs import sampling
from trainer_runs import COMMANDS, make_world, metrics

from cai_cli.compute.shortcuts import PADDING, SWITCH


def run(*words: object, off: bool, cwd: Path | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(SWITCH, raising=False)
        if off:
            patch.setenv(SWITCH, "0")
        done = run_cai(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr


def shortcuts(manifest: Path) -> dict[str, str]:
    return json.loads(manifest.read_text())["shortcuts"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_and_labels(helpful, world, tmp_path):
    for off in (False, True):
        folder = tmp_path / str(off)
        run(*sampling(helpful, world, folder / "samples.jsonl"), "--limit", 40, "-n", 2, off=off)
        judge = (
            "--feedback-model",
            helpful,
            "--allow-self-judge",
            "--constitution",
            world / "constitution.yaml",
        )
        run(
            "label",
            "--pairs",
            folder / "samples.jsonl",
            *judge,
            "--max-reject-rate",
            1,
            "--out",
            folder / "labels.jsonl",
            off=off,
        )
        found = shortcuts(folder / "samples.manifest.json") | shortcuts(folder / "labels.manifest.json")
        assert found.keys() > {"left padding", "right padding", "shared starts"}
        for name, told in found.items():
            assert told == ("no: CAI_SHORTCUTS=0" if off and name not in PADDING else "yes"), name
    plain, taken = (tmp_path / str(off) / "samples.jsonl" for off in (True, False))
    assert plain.read_bytes() == taken.read_bytes()
    labels = [rows(tmp_path / str(off) / "labels.jsonl") for off in (True, False)]
    for a, b in zip(*labels, strict=True):
        assert a["id"] == b["id"] and a["chosen"] == b["chosen"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


def test_losses(tmp_path):
    world = make_world(tmp_path)
    for off in (False, True):
        flags = ("--steps", "6", "--eval-steps", "3", "--out", f"{off}")
        run(*COMMANDS["ppo"].split(), *flags, cwd=world, off=off)
    plain, taken = metrics(world / "True"), metrics(world / "False")
    assert len(plain) == len(taken) > 1
    for a, b in zip(plain, taken, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-3), name
    told, whole = (shortcuts(world / f"{off}/cai.json") for off in (True, False))
    assert told["packed rows"] == "no: CAI_SHORTCUTS=0" and whole["packed rows"] == "yes"
    assert {told[name] for name in told if name not in PADDING} == {"no: CAI_SHORTCUTS=0"}
