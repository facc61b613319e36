"""The example configurations: every key is a flag of its stage, every value is one that the flag takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_cli.cli import app
from cai_cli.yaml_text import load_yaml

CONFIGS = sorted((Path(__file__).parent.parent / "scripts" / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_keys_and_values_are_those_of_the_stage(path: Path) -> None:
    import typer

    command = typer.main.get_command(app).commands[path.stem]
    context = command.make_context(path.stem, ["--config", str(path)])
    settings = load_yaml(path.read_bytes(), path)
    assert all(context.params[name.replace("-", "_")] is not None for name in settings)
    assert context.params["out"] == Path(settings["out"])
    assert f"--config scripts/configs/{path.parent.name}/{path.name}" in path.read_text(encoding="utf-8")


def test_there_is_one_for_every_stage() -> None:
    stages = ["label", "pmp", "ppo", "revise", "sample", "sft", "train-pm"]
    for folder in ("one-gpu", "eight-gpus"):
        assert sorted(path.stem for path in CONFIGS if path.parent.name == folder) == stages


@pytest.mark.parametrize("nodes", ["one-gpu", "eight-gpus"])
def test_the_settings_for_sft_run_together(nodes: str, llama: Path, tmp_path: Path) -> None:
    """4 bits, packing, checkpointing and bfloat16 at once, on a tiny model."""
    rows = []
    for n in range(24):
        prompt, reply = ({"role": role, "content": f"{text} {n}"} for role, text in (("user", "Why"), ("assistant", "Because")))
        rows.append({"id": f"{n}/0", "prompt": [prompt], "completion": [reply], "finish_reason": "stop"})
    data = tmp_path / "samples.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = CONFIGS[0].parent.parent / nodes / "sft.yaml"
    words = ["sft", "--config", path, "--model", llama, "--data", data, "--device", "cpu"]
    words += ["--held-out", "0.2", "--warmup-steps", "0", "--max-length", "128"]
    app([*map(str, words), "--out", str(tmp_path / "out")], standalone_mode=False)
    record = json.loads((tmp_path / "out/cai.json").read_text())
    assert record["options"]["gradient_checkpointing"] and record["counts"]["out"] == 24 and record["held_out"]["loss"]
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (llama, tmp_path / "out"))
    assert before != after
