"""What `cai sft --lora` saves, merged and as an adapter directory, goes through `cai label` and `cai ppo`
(micro-world).

Adapter directories go through the installed command; the merged models beside them through the same command
line in this process, which saves the start.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cai
from ppo_setup import make_pm

from cai_cli.cli import app
from cai_cli.errors import UserError
from cai_cli.microworld import checkpoint

LORA = {"lora": ["--lora"], "qlora": ["--lora", "--quantize", "4bit"]}


def here(*args: object) -> None:
    """`cai ARGS` in this process."""
    app([str(arg) for arg in args], prog_name="cai", standalone_mode=False)


def lines_of(file: Path, count: int) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True)[:count]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model trained with --lora and --lora --quantize 4bit, a preference model, and some prompts."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copytree(checkpoint("base"), folder / "base")
    samples = [
        {"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"], "finish_reason": "stop"}
        for row in map(json.loads, lines_of(world / "human-helpfulness.jsonl", 64))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (folder / "prompts.jsonl").write_text("".join(lines_of(world / "harmful-label.jsonl", 8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, flags in LORA.items():
            settings = [
                "--save-adapter",
                "--learning-rate",
                "1e-2",
                "--lora-r",
                "4",
                "--num-train-epochs",
                "2",
            ]
            here("sft", "--model", "base", "--data", "samples.jsonl", *flags, *settings, "--out", name)
    make_pm(folder / "lora", folder / "pm")
    return folder


def label(folder: Path, model: str) -> list[object]:
    words = [
        "--prompts",
        folder / "prompts.jsonl",
        "--feedback-model",
        checkpoint("helpful-only"),
        "--min-mass",
        "0",
    ]
    more = ["--max-new-tokens", "24", "--on-truncated", "keep", "--max-reject-rate", "1"]
    return [
        "label",
        "--model",
        folder / model,
        *words,
        *more,
        "--out",
        folder / f"{model.replace('/', '-')}.jsonl",
    ]


def ppo(folder: Path, model: str, *flags: str) -> list[object]:
    words = [
        "--pm",
        folder / "pm",
        "--prompts",
        folder / "prompts.jsonl",
        "--steps",
        "1",
        "--rollout-batch-size",
        "8",
    ]
    out = folder / f"ppo-{model.replace('/', '-')}"
    return [
        "ppo",
        "--model",
        folder / model,
        *words,
        "--max-new-tokens",
        "8",
        "--learning-rate",
        "1e-3",
        *flags,
        "--out",
        out,
    ]


@pytest.mark.parametrize("name", LORA)
def test_label_samples_the_same_pairs_from_the_adapter_as_from_the_merged_model(
    cai: Cai, folder: Path, name: str
) -> None:
    done = cai(*label(folder, f"{name}/adapter"))
    assert done.returncode == 0, done.stderr
    here(*label(folder, name))
    merged, adapter = rows(folder / f"{name}.jsonl"), rows(folder / f"{name}-adapter.jsonl")
    texts = [[(row["prompt"], row["chosen"], row["rejected"]) for row in each] for each in (merged, adapter)]
    assert texts[0] == texts[1] and len(merged) >= 6


@pytest.mark.parametrize("name", LORA)
def test_ppo_goes_on_from_the_adapter_as_from_the_merged_model(cai: Cai, folder: Path, name: str) -> None:
    done = cai(*ppo(folder, f"{name}/adapter"))
    assert done.returncode == 0, done.stderr
    here(*ppo(folder, name))
    places = (folder / f"ppo-{name}", folder / f"ppo-{name}-adapter", folder / name)
    merged, adapter, start = ((place / "model.safetensors").read_bytes() for place in places)
    assert merged == adapter != start


def test_adapters_on_an_adapter(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PPO with --lora on an adapter directory: the adapter it saves names that directory as its base, and
    serves as a model.
    """
    out = folder / "ppo-lora-adapter-again"
    here(*ppo(folder, "lora/adapter", "--lora", "--save-adapter")[:-1], out)
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((folder / "lora/adapter").resolve())
    sampled = [tmp_path / "whole.jsonl", tmp_path / "adapter.jsonl"]
    for model, file in zip((out, out / "adapter"), sampled, strict=True):
        words = ["--prompts", folder / "prompts.jsonl", "--max-new-tokens", "24", "--on-truncated", "keep"]
        here("sample", "--model", model, *words, "--out", file)
    assert sampled[0].read_bytes() == sampled[1].read_bytes()
    capsys.readouterr()
    here("lineage", sampled[1])
    lineage = capsys.readouterr().out
    assert "cai ppo" in lineage and "cai sft" in lineage


def test_adapters_without_a_tokenizer_or_a_base(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "lora/adapter" / file, bare / file)
    words = [
        "sample",
        "--model",
        bare,
        "--prompts",
        folder / "prompts.jsonl",
        "--limit",
        "2",
        "--max-new-tokens",
        "8",
    ]
    here(*words, "--on-truncated", "keep", "--out", tmp_path / "out.jsonl")
    assert len(rows(tmp_path / "out.jsonl")) == 4
    config = json.loads((bare / "adapter_config.json").read_text())
    (bare / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(UserError, match="its base model /gone/base: no such directory"):
        here(*words, "--out", tmp_path / "out2.jsonl")
    (bare / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="no base_model_name_or_path in it"):
        here(*words, "--out", tmp_path / "out3.jsonl")


def test_the_adapter_of_an_unfinished_model_is_not_taken(folder: Path, tmp_path: Path) -> None:
    half = shutil.copytree(folder / "lora", tmp_path / "half")
    (half / "cai.json").rename(half / "cai.partial.json")
    with pytest.raises(UserError, match="its training has not finished"):
        here(
            "sample",
            "--model",
            half / "adapter",
            "--prompts",
            folder / "prompts.jsonl",
            "--out",
            tmp_path / "out.jsonl",
        )
