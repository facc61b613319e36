"""What is found before a model is loaded: places that take nothing, devices and models that are not there, a
Hub out of reach.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cai, mistake, run_cai
from ppo_setup import make_pair

from cai_cli.errors import RunError
from cai_cli.rows.conversation import message
from cai_cli.rows.storage import check_writable

ROOM = "make room, or choose a place that can be written to"
DROP, OVERRIDE, READ_SEARCH = 24, 1, 2  # of prctl, and the capabilities by which root writes anywhere


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_pair(folder)
    asked, reply = [message("user", "How do I bake?")], [message("assistant", "Mix it.")]
    pair = {"chosen": reply, "rejected": [message("assistant", "No.")], "probability": 0.9, "origin": "human"}
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": asked}) + "\n")
    (folder / "samples.jsonl").write_text(
        json.dumps({"id": "a/0", "prompt": asked, "completion": reply}) + "\n"
    )
    (folder / "comparisons.jsonl").write_text(json.dumps({"id": "a", "prompt": asked, **pair}) + "\n")
    (folder / "hhh.jsonl").write_text(
        json.dumps({"prompt": "Q (A)\n(B)", "corrects": [" (A)"], "incorrects": [" (B)"]}) + "\n"
    )
    shutil.copytree(folder / "lm", folder / "other")
    return folder


def powerless() -> None:
    """In a child: without root's power to write where nobody may."""
    for capability in (OVERRIDE, READ_SEARCH):
        ctypes.CDLL(None).prctl(DROP, capability, 0, 0, 0)


def as_anybody(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cai_cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, preexec_fn=powerless, capture_output=True, text=True, check=False)


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities")
STAGES = {
    "sample": "sample --model lm --prompts prompts.jsonl --out {}/x.jsonl",
    "revise": "revise --model lm --prompts prompts.jsonl --out {}/new/x.jsonl",
    "score": "score --pm pm samples.jsonl --out {}/x.jsonl",
    "sft": "sft --model lm --data samples.jsonl --out {}/x",
    "sft there": "sft --model lm --data samples.jsonl --out {}",
    "train-pm": "train-pm --model lm --comparisons comparisons.jsonl --out {}/x",
    "ppo": "ppo --model lm --pm pm --prompts prompts.jsonl --out {}/x",
    "pmp": "pmp --data-only --posts samples.jsonl --out {}/x",
    "hhh": "evaluate hhh hhh.jsonl --model lm --out {}/x.json",
    "constitution test": "constitution test --feedback-model lm --pairs samples.jsonl --out {}/x.json",
    "split": "split prompts.jsonl --parts a=1 --out {}",
}


@needs_linux
@pytest.mark.parametrize("stage", STAGES)
def test_a_place_that_takes_nothing_is_found_before_a_model_is_loaded(place, tmp_path, stage):
    """Told without torch: `-X importtime` would list it."""
    tmp_path.chmod(0o555)
    words = STAGES[stage].format(tmp_path).split()
    command = [sys.executable, "-X", "importtime", "-m", "cai_cli", *words]
    done = subprocess.run(
        command, cwd=place, preexec_fn=powerless, capture_output=True, text=True, check=False
    )
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Permission denied" in line and "make room" in line, line
    assert "| torch\n" not in done.stderr and list(tmp_path.iterdir()) == []


@needs_linux
def test_what_is_done_in_a_place_that_takes_nothing_is_still_done(cai: Cai, place, tmp_path):
    words = (
        "sample",
        "--model",
        "lm",
        "--prompts",
        "prompts.jsonl",
        "-n",
        1,
        "--max-new-tokens",
        2,
        "--on-truncated",
        "keep",
    )
    words = (*words, "--out", tmp_path / "x.jsonl")
    assert cai(*words, cwd=place).returncode == 0
    tmp_path.chmod(0o555)
    done = as_anybody(*words, cwd=place)
    assert done.returncode == 0 and "already done (1 rows)" in done.stderr
    more = as_anybody(*words, "-n", 2, "--if-changed", "restart", cwd=place)
    assert more.returncode == 1 and f"--out {tmp_path / 'x.jsonl'}: Permission denied — {ROOM}" in more.stderr


def test_names_as_long_as_the_longest_that_is_made_beside_them(tmp_path):
    """255 bytes a name: `.NAME.manifest.partial.json.bak.tmp` has to fit."""
    longest = 255 - len("..manifest.partial.json.bak.tmp")
    check_writable(tmp_path / "x.jsonl", tmp_path, "n" * longest)
    with pytest.raises(RunError, match=r"--out .*x\.jsonl: File name too long"):
        check_writable(tmp_path / "x.jsonl", tmp_path, "n" * (longest + 1))
    check_writable(tmp_path / "a/b/c", tmp_path / "a/b/c", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_in_no_file_system_that_can_be_made(cai: Cai, place):
    done = cai("sft", "--model", "lm", "--data", "samples.jsonl", "--out", "/proc/x", cwd=place)
    assert done.returncode == 1 and "another process" not in done.stderr and "make room" in done.stderr


# Devices


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:7", "tpu"])
@pytest.mark.parametrize("stage", ["sample", "sft", "train-pm", "hhh"])
def test_a_device_that_is_not_there_is_told_first(cai: Cai, place, tmp_path, stage, device):
    """Before inputs are read: a broken one is not yet seen. A dry run needs no device."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there are devices here")
    words = STAGES[stage].format(tmp_path).split()
    mistake(cai(*words, "--device", device, cwd=place), f"--device {device}: ", "cpu")
    if device == "cuda":
        assert cai(*words, "--device", device, "--dry-run", cwd=place).returncode == 0


def test_attention_that_is_not_there_is_told_first(cai: Cai, place, tmp_path):
    words = (*STAGES["ppo"].format(tmp_path).split(), "--attn-implementation", "flash_attention_2")
    mistake(
        cai(*words, cwd=place),
        "--attn-implementation flash_attention_2: needs the package flash-attn",
        "leave it at auto",
    )


# Models


def test_models_without_a_tokenizer(cai: Cai, place, tmp_path):
    for name in ("lm", "pm"):
        shutil.copytree(place / name, tmp_path / name, ignore=shutil.ignore_patterns("tokenizer*"))
    for words, flag in (
        ("sample --model {} --prompts prompts.jsonl --out x.jsonl", "--model"),
        (STAGES["score"], "--pm"),
    ):
        folder = tmp_path / flag[2:].replace("model", "lm")
        line = words.replace("--pm pm", f"--pm {folder}").format(folder)
        mistake(cai(*line.split(), cwd=place), f"{flag} {folder}: has no tokenizer", "tokenizer.json")


def test_half_a_model_in_the_cache_of_the_hub(place, tmp_path, monkeypatch):
    """The index names two files, of which one has come; without a network nothing else will."""
    home = tmp_path / "hub" / "models--org--name"
    snapshot = home / "snapshots" / "abc"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    shutil.copytree(place / "lm", snapshot)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    words = "sample --model org/name --prompts prompts.jsonl --out x.jsonl"
    mistake(
        run_cai(*words.split(), cwd=place),
        "--model org/name: model-00002-of-00002.safetensors is missing",
        "fetch it",
    )


# The Hub


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sample --model org/name --prompts prompts.jsonl --out x.jsonl", "hf download org/name"),
        (
            "sample --model lm --prompts hf:org/name:train --out x.jsonl",
            "hf download --repo-type dataset org/name",
        ),
        ("import ultrafeedback hf:org/name --out x.jsonl", "hf download --repo-type dataset org/name"),
        ("pmp --model lm --posts hf:org/name --out x", "hf download --repo-type dataset org/name"),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_hub_is_asked_once(place, tmp_path, words, told, offline):
    variables = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    started = time.monotonic()
    command = [sys.executable, "-m", "cai_cli", *words.split()]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=variables)
    why = "HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 does not answer"
    mistake(done, why, told)
    assert time.monotonic() - started < 20  # half a minute for each file, if the libraries had their way
