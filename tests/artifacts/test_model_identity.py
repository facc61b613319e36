"""What a model consists of: each file that decides what it says belongs to its identity, and is named where
it changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.artifacts.fingerprints import file_changes, fingerprint_model, fingerprint_weights, model_files
from cai_cli.artifacts.locks import give_back
from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.places import manifest_path
from cai_cli.console.groups import build
from cai_cli.stages.train_pm import Options

FILES = (
    *(
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ),
    *("adapter_model.safetensors", "adapter_model.bin", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
)
NOT_THE_MODEL = (
    "README.md",
    "cai.json",
    "metrics.jsonl",
    "training_args.bin",
    "checkpoints/step-00000001/state.pt",
)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_a_model_counts_and_is_named(tmp_path, name):
    before, now = (write(tmp_path / copy, *FILES) for copy in ("before", "now"))
    assert model_files(str(before)) == model_files(str(now))
    (now / name).write_text("other content")
    assert file_changes(model_files(str(before)), model_files(str(now))) == [f"{name} has other content"]
    assert fingerprint_model(str(before)) != fingerprint_model(str(now))
    (now / name).unlink()
    assert file_changes(model_files(str(before)), model_files(str(now))) == [f"{name} is gone"]
    assert file_changes(model_files(str(now)), model_files(str(before))) == [f"{name} is new"]


def test_what_else_lies_in_its_directory_does_not_count(tmp_path):
    model = write(tmp_path / "model", *FILES)
    before = model_files(str(model))
    write(model, *NOT_THE_MODEL)
    assert model_files(str(model)) == before and before.keys() == set(FILES)


def test_many_changes_are_counted():
    before = {f"{n}.json": "1" for n in range(5)}
    assert file_changes(before, {}) == ["0.json, 1.json, 2.json, 2 more are gone"]
    assert file_changes(before, {**before, "0.json": "2", "3.json": "2"}) == [
        "0.json, 3.json have other content"
    ]


def adapter_on(folder: Path, base: Path | str) -> Path:
    write(folder, "adapter_model.safetensors", "tokenizer_config.json")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


def test_an_adapter_is_what_its_base_model_is(tmp_path):
    base = write(tmp_path / "base", "model.safetensors", "config.json")
    adapter = adapter_on(tmp_path / "adapter", base)
    upper = adapter_on(tmp_path / "upper", adapter)
    before = {path: model_files(str(path)) for path in (adapter, upper)}
    weights = fingerprint_weights(str(adapter))
    (base / "model.safetensors").write_text("other weights")
    assert file_changes(before[adapter], model_files(str(adapter))) == [
        "base/model.safetensors has other content"
    ]
    assert file_changes(before[upper], model_files(str(upper))) == [
        "base/base/model.safetensors has other content"
    ]
    assert fingerprint_weights(str(adapter)) != weights


def test_an_adapter_whose_base_is_not_here_or_is_itself_has_its_own_files(tmp_path):
    own = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"}
    for base in ("org/name", tmp_path / "gone"):
        assert model_files(str(adapter_on(tmp_path / "adapter", base))).keys() == own
    circle = adapter_on(tmp_path / "circle", tmp_path / "circle")
    assert model_files(str(circle)).keys() == own
    (circle / "adapter_config.json").write_text("half a")
    assert model_files(str(circle)).keys() == own


# On resume


@pytest.fixture
def begun(tmp_path, llama) -> Path:
    """A preference model in the making, of a copy of the tiny model."""
    shutil.copytree(llama, tmp_path / "lm")
    row = {
        "prompt_id": "p",
        "prompt": [{"role": "user", "content": "Hi"}],
        "probability": 1.0,
        "origin": "human",
    }
    replies = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "c", **row, **replies}) + "\n")
    options = build(
        Options, model=str(tmp_path / "lm"), comparisons=[str(tmp_path / "c.jsonl")], out=tmp_path / "pm"
    )
    ModelArtifact("train-pm", options).start()
    give_back(options.output.out)  # as the end of the process does
    return tmp_path


def again(cai, folder: Path):
    return cai("train-pm", "--model", "lm", "--comparisons", "c.jsonl", "--out", "pm", cwd=folder)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tokenizer_config.json", "--model: tokenizer_config.json has other content"),
        ("chat_template.jinja", "--model: chat_template.jinja has other content"),
        ("generation_config.json", "--model: generation_config.json has other content"),
        ("added_tokens.json", "--model: added_tokens.json is new"),
        ("additional_chat_templates/rag.jinja", "--model: additional_chat_templates/rag.jinja is new"),
    ],
)
def test_a_changed_file_is_refused_by_name(cai, begun, name, told):
    file = begun / "lm" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "{}") + " ")
    mistake(again(cai, begun), f"pm was made differently: {told} — choose another --out")


@pytest.mark.parametrize("field", ["files", "fingerprint", "path"])
def test_a_manifest_without_a_field_is_one_line(cai, begun, field):
    file = begun / "pm/cai.partial.json"
    manifest = json.loads(file.read_text())
    del manifest["models"][0][field]
    file.write_text(json.dumps(manifest))
    mistake(again(cai, begun), f"cai.partial.json: field `models[0].{field}`: missing")


@pytest.mark.parametrize("models", [None, 3, [3], [None]])
def test_a_manifest_of_another_shape_is_one_line(cai, begun, models):
    file = begun / "pm/cai.partial.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "models": models}))
    mistake(again(cai, begun), "cai.partial.json: field `models")
    file.rename(manifest_path(begun / "pm"))
    done = cai("lineage", "pm", cwd=begun)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
