"""`cai push`: what goes to the Hub, what stays, and what a failure costs."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Cai, mistake
from ppo_setup import write_prompts

from cai_cli.errors import RunError
from cai_cli.stages import push


class FakeHub:
    """In place of HfApi: keeps what it is told, and the files as they are uploaded."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.calls: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        self.calls.append({"repo_id": repo_id, **settings})
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, folder_path: Path, **settings: Any) -> None:
        if self.fails:
            raise self.fails
        self.calls.append(settings)
        found = (path for path in Path(folder_path).rglob("*") if path.is_file())
        self.files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def made(cai: Cai, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret-folder")
    shutil.copytree(llama, folder / "lm")
    write_prompts(folder / "prompts.jsonl")
    words = f"sample --model {folder}/lm --prompts {folder}/prompts.jsonl -n 1 --max-new-tokens 4 --on-truncated keep"
    assert cai(*words.split(), "--out", folder / "samples.jsonl").returncode == 0
    words = f"sft --model {folder}/lm --data {folder}/samples.jsonl --lora --save-adapter"
    done = cai(*words.split(), "--out", folder / "sl-cai")
    assert done.returncode == 0, done.stderr
    for name in (
        "rejects.jsonl",
        "checkpoints/step-00000001/state.pt",
        "wandb/x.log",
        "wandb-run-id",
        ".lock",
        "tensorboard/events",
    ):
        (folder / "sl-cai" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sl-cai" / name).write_text("x")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def test_a_model_goes_whole_without_what_is_of_this_machine(made: Path, hub: FakeHub) -> None:
    before = {path: path.read_bytes() for path in (made / "sl-cai").rglob("*") if path.is_file()}
    push.run(push.Options(path=made / "sl-cai", repo="org/sl-cai"))
    assert hub.calls[0] == {"repo_id": "org/sl-cai", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[1] == {"repo_id": "org/sl-cai", "repo_type": "model", "commit_message": "cai sft"}
    names = set(hub.files)
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "cai.json",
        "metrics.jsonl",
    } <= names
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names
    assert not [name for name in names if re.search("rejects|checkpoints|wandb|lock|tensorboard", name)]
    assert hub.files["model.safetensors"] == (made / "sl-cai/model.safetensors").read_bytes()
    told = [
        name
        for name, content in hub.files.items()
        if b"secret-folder" in content or os.fsencode(made.parent) in content
    ]
    assert told == []
    manifest = json.loads(hub.files["cai.json"])
    assert manifest["inputs"][0]["path"] == "samples.jsonl" and manifest["options"]["model"] == "lm"
    card = hub.files["README.md"].decode()
    assert 'path = "org/sl-cai"' in card and "cai sample --model org/sl-cai --prompts" in card
    assert {path: path.read_bytes() for path in (made / "sl-cai").rglob("*") if path.is_file()} == before


def test_rows_go_as_a_data_set_with_their_manifest(made: Path, hub: FakeHub) -> None:
    push.run(push.Options(path=made / "samples.jsonl", repo="org/samples", private=False))
    assert hub.calls[0]["repo_type"] == "dataset" and hub.calls[0]["private"] is False
    assert set(hub.files) == {"samples.jsonl", "samples.manifest.json"}
    assert b"secret-folder" not in hub.files["samples.manifest.json"]


def test_a_failure_is_one_line_and_the_same_command_tries_again(made: Path, cai: Cai, hub: FakeHub) -> None:
    hub.fails = OSError("401 Client Error\nmore of it")
    options = push.Options(path=made / "sl-cai", repo="org/sl-cai")
    with pytest.raises(RunError, match="could not be pushed to org/sl-cai: 401 Client Error") as error:
        push.run(options)
    assert "same command tries again" in (error.value.hint or "")
    hub.fails = None
    push.run(options)
    assert "model.safetensors" in hub.files
    offline = cai("push", made / "sl-cai", "org/sl-cai")  # HF_HUB_OFFLINE is set
    assert (
        offline.returncode == 1 and offline.stderr.count("\n") == 1 and offline.stderr.startswith("error: ")
    ), offline.stderr


def test_what_cannot_be_pushed_is_a_mistake(made: Path, cai: Cai, tmp_path: Path) -> None:
    shutil.copytree(made / "sl-cai", tmp_path / "half")
    (tmp_path / "half/cai.json").rename(tmp_path / "half/cai.partial.json")
    mistake(cai("push", tmp_path / "half", "org/x"), "its training has not finished")
    (tmp_path / "x.jsonl").write_text("{}\n")
    mistake(cai("push", tmp_path / "x.jsonl", "org/x"), "has no manifest")
    mistake(cai("push", made / "sl-cai", "a/b/c"), "REPO a/b/c")
    mistake(cai("push", tmp_path / "nix", "org/x"), "nix")
    shown = cai("push", made / "sl-cai", "org/x", "--dry-run")
    assert (
        shown.returncode == 0
        and "model.safetensors: " in shown.stderr
        and "would go to the model org/x" in shown.stderr
    )
