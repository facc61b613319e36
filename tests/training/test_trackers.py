"""`--report-to` of every trainer: the lines of metrics.jsonl reach the tracker, and one that cannot open
costs nothing.

Weights & Biases is a stand-in here that writes down what it is given; TensorBoard is the real one, where it
is installed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Cai, mistake
from ppo_setup import make_pair, write_prompts

from cai_cli.training.metrics_file import numbers_of

WANDB = """
import json, os, types
def note(**what):
    with open(os.environ["FAKE_WANDB"], "a") as stream:
        stream.write(json.dumps(what) + "\\n")
api = types.SimpleNamespace(api_key=os.environ.get("WANDB_API_KEY"))
config = types.SimpleNamespace(update=lambda values, **settings: note(config=values))
class Run:
    def log(self, values, step=None, **settings):
        note(step=step, values=values)
    def finish(self):
        note(finished=True)
def init(project, **settings):
    if os.environ.get("FAKE_WANDB_DOWN"):
        raise ConnectionError("no route to host")
    note(project=project, run=settings["id"], resume=settings["resume"])
    return Run()
"""
TRAINERS = {
    "sft": "sft --model lm --data rows.jsonl --held-out 0.3",
    "train-pm": "train-pm --model lm --comparisons pairs.jsonl --held-out 0.3 --eval-steps 1",
    "ppo": "ppo --model lm --pm pm --prompts prompts.jsonl --steps 2 --rollout-batch-size 8 --max-new-tokens 6",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    asked = [f"How do I bake bread? {n}" for n in range(24)]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "completion": "Mix it."}) + "\n" for p in asked)
    )
    pairs = ({"prompt": p, "chosen": "Mix the flour.", "rejected": "No."} for p in asked)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "packages/wandb").mkdir(parents=True)
    (folder / "packages/wandb/__init__.py").write_text(WANDB)
    info = folder / "packages/wandb-0.20.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.20.0\n")
    return folder


@pytest.fixture
def wandb(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(inputs / "packages"), os.environ.get("PYTHONPATH")]))
    )
    monkeypatch.setenv("FAKE_WANDB", str(tmp_path / "told.jsonl"))
    return tmp_path / "told.jsonl"


@pytest.mark.parametrize("name", TRAINERS)
def test_the_metrics_reach_the_tracker(
    cai: Cai, inputs: Path, wandb: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    done = cai(
        *TRAINERS[name].split(),
        *(("--logging-steps", 1) if name != "ppo" else ()),
        "--report-to",
        "wandb",
        "--out",
        tmp_path / "out",
        cwd=inputs,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in wandb.read_text().splitlines()]
    assert (
        told[0]["project"] == f"cai-{name}" and told[0]["run"] == (tmp_path / "out/wandb-run-id").read_text()
    )
    assert told[1]["config"]["learning_rate"] > 0 and told[-1] == {"finished": True}
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    logged = [(item["step"], item["values"]) for item in told if "values" in item]
    assert (
        logged == [(row["step"], {n: v for n, v in numbers_of(row) if n != "step"}) for row in rows]
        and len(rows) > 1
    )


def test_what_cannot_open_is_found_before_anything_is_claimed(
    cai: Cai, inputs: Path, wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    words = (*TRAINERS["sft"].split(), "--out", tmp_path / "out")
    mistake(
        cai(*words, "--report-to", "wandb", cwd=inputs),
        "--report-to wandb: nobody is logged in",
        "WANDB_API_KEY",
    )
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("FAKE_WANDB_DOWN", "1")
    down = cai(*words, "--report-to", "wandb", cwd=inputs)
    assert down.returncode == 1, down.stderr
    assert "error: --report-to wandb: cannot be opened: no route to host" in down.stderr.splitlines()[-1]
    again = cai(*words, cwd=inputs)
    assert again.returncode == 0 and (tmp_path / "out/cai.json").exists(), again.stderr


@pytest.mark.parametrize("name", TRAINERS)
def test_an_unknown_tracker_is_refused_by_every_trainer(
    cai: Cai, inputs: Path, tmp_path: Path, name: str
) -> None:
    words = (*TRAINERS[name].split(), "--out", tmp_path / "out", "--report-to")
    mistake(cai(*words, "nix", cwd=inputs), "--report-to nix: unknown")
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        mistake(
            cai(*words, "tensorboard", cwd=inputs),
            "--report-to tensorboard: not installed",
            "pip install tensorboard",
        )
    assert not (tmp_path / "out").exists()


def test_numbers_of_a_row() -> None:
    row = {
        "step": 3,
        "loss": 0.5,
        "evaluation": {"ai": {"accuracy": 1.0, "accuracy_interval": [0, 1]}},
        "ok": True,
    }
    assert dict(numbers_of(row)) == {"step": 3, "loss": 0.5, "evaluation/ai/accuracy": 1.0}
    held = {"step": 3, "held_out": "helpful", "held_out_loss": 2.0}
    assert dict(numbers_of(held)) == {"step": 3, "held_out_loss/helpful": 2.0}
