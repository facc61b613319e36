"""The README of each trained model: what huggingface_hub reads of it, that its snippets run, and that no name
breaks it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cai
from huggingface_hub import ModelCard
from ppo_setup import write_prompts
from stack_exchange_dumps import answer, dump, question

from cai_cli.training.model_card import code, model_card, plain

EVIL = "a|b`<img src=x>` [x](y) # {{ 1 }}"  # a name of a file, and of a constitution
TRAIN = "--per-device-train-batch-size 8 --learning-rate 1e-4"
COMMANDS = {
    "sl-cai": f"sft --model lm --data revisions.jsonl:2 --held-out 0.3 --lora {TRAIN}",
    "pmp": f"pmp --model sl-cai --posts posts.xml --held-out 0.2 {TRAIN}",
    "pm": f"train-pm --model sl-cai --comparisons {{evil}}.jsonl:3 --held-out 0.3 {TRAIN}",
    "rl-cai": "ppo --model sl-cai --pm pm --prompts prompts.jsonl --eval-prompts prompts.jsonl --steps 1 --rollout-batch-size 8 "
    "--max-new-tokens 6",
}
PIPELINES = {
    "sl-cai": "text-generation",
    "pmp": "text-classification",
    "pm": "text-classification",
    "rl-cai": "text-generation",
}


def put(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def with_manifest(folder: Path, stem: str, stage: str, **facts: Any) -> None:
    manifest = {"stage": stage, "version": "0", "seed": 0, "options": {}, "inputs": [], "models": [], **facts}
    (folder / f"{stem}.manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def models(cai: Cai, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret-folder")
    shutil.copytree(llama, folder / "lm")
    write_prompts(folder / "prompts.jsonl")
    asked = [said("user", f"How do I bake bread? {n}") for n in range(24)]
    step = dict.fromkeys(("critique_request", "critique", "revision_request"), "It harms.")
    first = {
        "initial": said("assistant", "Sure."),
        "rounds": [{"principle": EVIL, **step, "revision": "Mix the flour."}],
    }
    mixed = said("assistant", "Mix the flour.")
    put(
        folder / "revisions.jsonl",
        *({"id": f"{n}/0", "prompt": p, "completion": mixed, **first} for n, p in enumerate(asked)),
    )
    lost = {"option": "prompts", "path": "hf:org/red-team:train", "weight": 1, "sha256": None}
    constitution = {"name": f"/home/secret-folder/{EVIL}", "path": "../x/c.yaml", "sha256": "ab" * 32}
    with_manifest(folder, "revisions", "revise", inputs=[lost], constitution=constitution)
    sides = {"chosen": mixed, "rejected": said("assistant", "No."), "probability": 0.8, "origin": "ai"}
    put(
        folder / f"{EVIL.replace('/', '_')}.jsonl",
        *({"id": f"{n}/0", "prompt": p, **sides} for n, p in enumerate(asked)),
    )
    posts = [
        post for n in range(1, 60, 3) for post in (question(n), answer(n + 1, n, 9), answer(n + 2, n, 0))
    ]
    dump(folder / "posts.xml", posts)
    for name, words in COMMANDS.items():
        given = [word.replace("{evil}", EVIL.replace("/", "_")) for word in words.split()]
        done = cai(*given, "--out", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_the_hub_reads_the_card(models: Path, name: str) -> None:
    card = ModelCard.load(models / name / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == PIPELINES[name] and data["library_name"] == "transformers"
    assert "constitutional-ai" in data["tags"] and ("lora" in data["tags"]) == (name == "sl-cai")
    assert data["datasets"] == ["org/red-team"] and "base_model" not in data
    figures = {metric["type"] for found in data["model-index"][0]["results"] for metric in found["metrics"]}
    wanted = {"sl-cai": "loss", "pmp": "accuracy", "pm": "brier", "rl-cai": "kl"}[name]
    assert wanted in figures
    measured = [
        (found["dataset"]["name"], tuple(found["metrics"][0])) for found in data["model-index"][0]["results"]
    ]
    assert len(measured) == len(set(measured)) and (name != "pm" or len(measured) == 2)
    text = (models / name / "README.md").read_text()
    assert "secret-folder" not in text and "/tmp" not in text and "/home" not in text
    assert f"Constitution: {code(EVIL)} (SHA-256 `{'ab' * 8}`)" in text
    assert "{{ 1 }}" in text and not re.search(r"<img|\]\(y\)|\{\{", re.sub(r"`[^`\n]*`", "", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_snippets_run_in_the_models_folder(
    cai: Cai, models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models / name
    python, command = (
        re.search(rf"```{kind}\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
        for kind in ("python", "sh")
    )
    assert python and command
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(python[1], {})
    write_prompts(folder / "prompts.jsonl", 2)
    replies = ("Mix flour, water, salt and yeast.", "No.")
    rows = [
        {"id": str(n), "prompt": said("user", "How do I bake bread?"), "completion": said("assistant", r)}
        for n, r in enumerate(replies)
    ]
    if "score" in command[1]:
        put(folder / "replies.jsonl", *rows)
    words = command[1].split()
    done = cai(
        *words[1:],
        *(["--max-new-tokens", 4, "--on-truncated", "keep"] if "sample" in words else []),
        cwd=folder,
    )
    assert words[0] == "cai" and done.returncode == 0, done.stderr
    if "score" in words:
        scored = json.loads((folder / "scored.jsonl").read_text().splitlines()[0])
        assert float(shown.getvalue()) == pytest.approx(scored["score"], abs=1e-5)


def test_a_model_of_the_hub_is_named_and_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    """Through a local model that was trained from it; a name that is none of the Hub's never gets into the
    YAML.
    """
    (tmp_path / "base").mkdir()
    hub = {"option": "model", "path": "meta/llama-7b", "fingerprint": "0" * 64, "files": {}}
    manifest = {
        "stage": "sft",
        "version": "0",
        "seed": 0,
        "options": {},
        "inputs": [],
        "models": [hub],
        "constitution": None,
    }
    (tmp_path / "base/cai.json").write_text(json.dumps(manifest))
    (tmp_path / "x.manifest.json").write_text('{"stage": 1, "options": {}, "inputs": [], "models": []}')
    (tmp_path / "x.jsonl").write_text("{}\n")
    local = {"option": "model", "path": "../base", "fingerprint": "1" * 64, "files": {"config.json": "2"}}
    data = {"option": "comparisons", "path": "../x.jsonl", "weight": 1.0, "sha256": "3" * 64}
    facts = {
        "stage": "train-pm",
        "options": {"lora": False},
        "models": [local],
        "inputs": [data],
        "counts": {"out": 3, "rejected": {}},
    }
    (tmp_path / "pm").mkdir()
    card = model_card(manifest | facts | {"warnings": ["<b>bold</b> *x*"]}, tmp_path / "pm")
    assert "base_model: meta/llama-7b\n" in card and "what `x.jsonl` came from" in card
    assert "- \\<b\\>bold\\</b\\> \\*x\\*" in card and "it has not been evaluated" in card
    odd = {**hub, "path": "x\nlicense: mit/y"}
    assert (
        "license: mit"
        not in model_card(manifest | facts | {"models": [odd]}, tmp_path / "pm").split("---")[1]
    )


def test_names_mean_nothing_to_markdown() -> None:
    assert code("a`b|c\nd") == "`a'b\\|c\\nd`"
    assert (
        plain("# <b> _x_ | [l](u)") == "\\# \\<b\\> \\_x\\_ \\| \\[l\\]\\(u\\)"
        and plain("1.5, 87 %") == "1.5, 87 %"
    )
