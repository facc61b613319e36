"""Mistakes in what a command is given: one line that names the place and a next step, exit 2, earlier output
intact.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from conftest import mistake

from cai_cli.rows.conversation import message

PROMPT = [message("user", "q")]
REPLIES = {"chosen": [message("assistant", "a")], "rejected": [message("assistant", "b")]}
COMPARISON = {"id": "i/0", "prompt": PROMPT, **REPLIES, "probability": 1, "origin": "human"}
SAMPLE = {"id": "i/0", "prompt": PROMPT, "completion": REPLIES["chosen"], "finish_reason": "stop"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that looks like a model as far as it is looked at before any weights are loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return put(tmp_path / "prompts.jsonl", {"prompt": "one"}, {"prompt": "two"})


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# Prompts


@pytest.mark.parametrize("command", ["sample", "revise"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"prompt": "q"}\n\n{"prompt": \n', "prompts.jsonl:3: not a JSON object"),
        (
            b'{"prompt": "q"}\n{"promt": "r"}\n',
            "prompts.jsonl:2: field `prompt`: missing (fields here: promt)",
        ),
        (b'{"prompt": [{"role": "user"}]}\n', "prompts.jsonl:1: field `prompt[0].content`"),
        (b'{"prompt": "q"}\n{"prompt": "\xe9"}\n', "prompts.jsonl:2: not UTF-8 text"),
        (gzip.compress(b'{"prompt": "q"}\n' * 99, mtime=0)[:-20], "broken gzip data"),
        (b"", "prompts.jsonl: no prompts in it"),
        (b"\n\n", "prompts.jsonl: no prompts in it"),
    ],
)
def test_prompts(cai, tmp_path, model, command, content, problem):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(content)
    done = cai(command, "--model", model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and problem in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "prompts.jsonl"]


def test_a_missing_file_and_a_directory(cai, tmp_path, model):
    for given, problem in (
        (tmp_path / "nix.jsonl", "nix.jsonl: no such file"),
        (model, "model: is a directory"),
    ):
        mistake(cai("sample", "--model", model, "--prompts", given, "--out", tmp_path / "out.jsonl"), problem)
    mistake(
        cai("split", tmp_path / "nix.jsonl", "--parts", "a=1", "--out", tmp_path / "o"),
        "nix.jsonl: no such file",
    )
    mistake(cai("import", "hh-rlhf", tmp_path / "nix", "--out", tmp_path / "out.jsonl"), "nix: no such file")


def test_two_prompts_of_one_id(cai, tmp_path, model):
    prompts = put(tmp_path / "prompts.jsonl", {"id": "x", "prompt": "one"}, {"id": "x", "prompt": "two"})
    done = cai("sample", "--model", model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    mistake(done, "prompts.jsonl:2: field `id`: 'x' is used for two prompts", "prompts.jsonl:1")


# Constitutions


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "principles:\n- {id: a, critque: x, revision: y, comparison: z}",
            ["unknown field `critque`", "did you mean `critique`?"],
        ),
        (
            "principles:\n- {id: a, revision: y, comparison: z}",
            ["principles[0]: field `critique`: missing or empty"],
        ),
        ("principles: []", ["field `principles`"]),
        ("principles:\n- {id: a\n- b", ["mine.yaml:3: not valid YAML"]),
    ],
)
def test_constitutions(cai, tmp_path, model, prompts, text, parts):
    constitution = tmp_path / "mine.yaml"
    constitution.write_text(text)
    words = (
        "--model",
        model,
        "--prompts",
        prompts,
        "--constitution",
        constitution,
        "--out",
        tmp_path / "out.jsonl",
    )
    mistake(cai("revise", *words), "mine.yaml", *parts)


def test_an_unknown_constitution_names_the_shipped_ones(cai, tmp_path, model, prompts):
    words = (
        "--model",
        model,
        "--prompts",
        prompts,
        "--constitution",
        "articel",
        "--out",
        tmp_path / "out.jsonl",
    )
    mistake(cai("revise", *words), "no constitution 'articel'", "article, humanity, thorough")


# Models


def test_directories_that_are_no_model(cai, tmp_path, prompts):
    empty, unfinished = tmp_path / "empty", tmp_path / "unfinished"
    for folder in (empty, unfinished):
        folder.mkdir()
    (unfinished / "cai.partial.json").write_text("{}")
    for given, problem in (
        (empty, "empty: is not a model directory"),
        (unfinished, "its training has not finished"),
        (prompts, "prompts.jsonl: is a file"),
        (tmp_path / "nix", "nix: no such directory"),
        ("nix", "--model nix: no such directory"),
    ):
        mistake(
            cai("sample", "--model", given, "--prompts", prompts, "--out", tmp_path / "out.jsonl"), problem
        )


def test_a_model_that_cannot_be_loaded(cai, tmp_path, model, prompts):
    done = cai("sample", "--model", model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and done.stderr.startswith(f"error: --model {model}: no usable tokenizer"), (
        done.stderr
    )
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out.jsonl").exists()


def test_sl_cai_is_not_its_own_judge(cai, tmp_path, prompts, helpful):
    copy = shutil.copytree(helpful, tmp_path / "another-name")
    words = [
        "label",
        "--model",
        helpful,
        "--prompts",
        prompts,
        "--feedback-model",
        copy,
        "--out",
        tmp_path / "out.jsonl",
    ]
    mistake(cai(*words), f"--feedback-model {copy}: holds the same weights", "--allow-self-judge")
    assert not (tmp_path / "out.jsonl.partial").exists()


# Rows of our own


@pytest.mark.parametrize(
    ("command", "flag", "row", "problem"),
    [
        (
            "train-pm",
            "--comparisons",
            {**COMPARISON, "probability": 0.3},
            "field `probability`: expected a number in [0.5, 1]",
        ),
        ("train-pm", "--comparisons", SAMPLE, "is a row of samples, and comparisons are taken here"),
        ("sft", "--data", {**SAMPLE, "finish_reason": None}, "field `finish_reason`"),
        ("sft", "--data", {**SAMPLE, "rounds": []}, "field `rounds`"),
        ("ppo", "--prompts", {"prompt": "q", "kind": "evil"}, "field `kind`"),
    ],
)
def test_rows_of_trainers(cai, tmp_path, llama, model, command, flag, row, problem):
    """Those of sft and train-pm are read as their ids are made; prompts before any model is looked at."""
    lm = model if command == "ppo" else llama
    good = {"prompt": "q"} if command == "ppo" else COMPARISON if command == "train-pm" else SAMPLE
    path = put(tmp_path / "rows.jsonl", good, row)
    words = [command, "--model", lm, flag, path, "--out", tmp_path / "out"]
    done = cai(*words, *(["--pm", lm] if command == "ppo" else []))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"rows.jsonl:2: {problem}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_pairs_without_two_replies(cai, tmp_path, model):
    pairs = put(tmp_path / "samples.jsonl", SAMPLE)
    done = cai("label", "--pairs", pairs, "--feedback-model", model, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and "samples.jsonl: no pairs in it" in done.stderr


# Outputs


def test_where_rows_cannot_go(cai, tmp_path, model, prompts):
    words = ("sample", "--model", model, "--prompts", prompts, "--out")
    mistake(cai(*words, tmp_path / "folder"), "folder: rows are written as .jsonl", "name a .jsonl file")
    mistake(cai(*words, model), "model: rows are written as .jsonl")
    other = put(tmp_path / "mine.jsonl", "precious")
    mistake(cai(*words, other), "mine.jsonl exists and has no manifest", "choose another --out")
    assert other.read_text() == "precious\n"


def test_where_models_cannot_go(cai, tmp_path, model):
    data = put(tmp_path / "data.jsonl", SAMPLE)
    (tmp_path / "full").mkdir()
    kept = put(tmp_path / "full" / "thesis.txt", "precious")
    words = ("sft", "--model", model, "--data", data, "--out")
    mistake(cai(*words, kept.parent), "full: is not empty and not ours")
    mistake(cai(*words, data), "data.jsonl: is a file", "name a directory")
    assert kept.read_text() == "precious\n" and len(list(kept.parent.iterdir())) == 1


def test_a_manifest_that_is_none(cai, tmp_path, model, prompts):
    put(tmp_path / "out.jsonl", "{}")
    put(tmp_path / "out.manifest.json", "[]")
    done = cai("sample", "--model", model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    mistake(done, "out.manifest.json: is not one of our manifests")
