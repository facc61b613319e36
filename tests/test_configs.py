"""The example configurations: every key is a flag of its stage, every value is one that the flag takes."""

from __future__ import annotations

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
