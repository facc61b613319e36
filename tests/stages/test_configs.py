"""The example configurations: every key is a flag of its stage, every value one it takes; `cai configs`
copies them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.cli import app
from cai_cli.rows.yaml_text import load_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "scripts" / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_keys_and_values_are_those_of_the_stage(path: Path) -> None:
    import typer

    command = typer.main.get_command(app).commands[path.stem]
    context = command.make_context(path.stem, ["--config", str(path)])
    settings = load_yaml(path.read_bytes(), path)
    assert all(context.params[name.replace("-", "_")] is not None for name in settings)
    assert context.params["out"] == Path(settings["out"])
    assert f"--config configs/{path.parent.name}/{path.name}" in path.read_text(encoding="utf-8")


def test_there_is_one_for_every_stage() -> None:
    stages = ["label", "pmp", "ppo", "revise", "sample", "sft", "train-pm"]
    for folder in ("one-gpu", "eight-gpus"):
        assert sorted(path.stem for path in CONFIGS if path.parent.name == folder) == stages


@pytest.mark.parametrize("nodes", ["one-gpu", "eight-gpus"])
def test_the_settings_for_sft_run_together(nodes: str, llama: Path, tmp_path: Path) -> None:
    """4 bits, packing, checkpointing and bfloat16 at once, on a tiny model."""
    rows = []
    for n in range(24):
        prompt, reply = (
            {"role": role, "content": f"{text} {n}"}
            for role, text in (("user", "Why"), ("assistant", "Because"))
        )
        rows.append({"id": f"{n}/0", "prompt": [prompt], "completion": [reply], "finish_reason": "stop"})
    data = tmp_path / "samples.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = CONFIGS[0].parent.parent / nodes / "sft.yaml"
    words = ["sft", "--config", path, "--model", llama, "--data", data, "--device", "cpu"]
    words += ["--held-out", "0.2", "--warmup-steps", "0", "--max-length", "128"]
    app([*map(str, words), "--out", str(tmp_path / "out")], standalone_mode=False)
    record = json.loads((tmp_path / "out/cai.json").read_text())
    assert (
        record["options"]["gradient_checkpointing"]
        and record["counts"]["out"] == 24
        and record["held_out"]["loss"]
    )
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (llama, tmp_path / "out"))
    assert before != after


def names() -> list[str]:
    return [f"{path.parent.name}/{path.stem}" for path in CONFIGS]


def test_they_are_listed_by_name(cai) -> None:
    shown = cai("configs")
    assert shown.returncode == 0 and shown.stderr == ""
    assert [line.split()[0] for line in shown.stdout.splitlines()] == names()


@pytest.mark.parametrize(
    ("words", "copied"),
    [
        (["--all"], names()),
        (["one-gpu"], [name for name in names() if name.startswith("one-gpu/")]),
        (["eight-gpus/sft", "one-gpu/train-pm.yaml"], ["eight-gpus/sft", "one-gpu/train-pm"]),
    ],
)
def test_what_is_named_is_copied_as_it_is(cai, tmp_path: Path, words: list[str], copied: list[str]) -> None:
    done = cai("configs", "copy", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {
        path.relative_to(tmp_path / "configs").with_suffix(""): path
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert sorted(map(str, made)) == copied
    source = CONFIGS[0].parent.parent
    assert all(path.read_bytes() == (source / f"{name}.yaml").read_bytes() for name, path in made.items())


def test_what_is_there_is_never_written_over(cai, tmp_path: Path) -> None:
    assert cai("configs", "copy", "one-gpu/ppo", "--out", tmp_path).returncode == 0
    again = cai("configs", "copy", "one-gpu/ppo", "--out", tmp_path)
    assert again.returncode == 0 and "already there" in again.stderr
    mine = tmp_path / "one-gpu" / "ppo.yaml"
    mine.write_text("steps: 3\n")
    mistake(
        cai("configs", "copy", "--all", "--out", tmp_path), str(mine), "other content", "choose another --out"
    )
    assert mine.read_text() == "steps: 3\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine], (
        "nothing is copied where one is in the way"
    )
    mine.unlink()
    mine.symlink_to(tmp_path / "elsewhere.yaml")
    mistake(cai("configs", "copy", "one-gpu/ppo", "--out", tmp_path), str(mine))
    assert not (tmp_path / "elsewhere.yaml").exists() and mine.is_symlink()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give either names or --all", "`cai configs` lists"]),
        (["one-gpu", "--all"], ["give either names or --all"]),
        (["two-gpus"], ["no example configuration 'two-gpus'", "`cai configs` lists"]),
        (["one-gpu/../one-gpu/ppo"], ["no example configuration"]),
    ],
)
def test_mistakes_of_names(cai, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    mistake(cai("configs", "copy", *words, cwd=tmp_path), *parts)
    assert list(tmp_path.iterdir()) == []
