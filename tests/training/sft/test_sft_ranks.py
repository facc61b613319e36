"""Finetuning in two processes: data parallel, and with the model held in parts by FSDP; what a launcher asks
for and cannot have.

accelerate itself takes FSDP to GPUs only; `ON_A_CPU` tells it that the processes on this CPU are such. What
shards, trains, gathers and saves is the real thing.
"""

from __future__ import annotations

import json
from pathlib import Path

import forks
import pytest
import torch
from catching import catch
from conftest import mistake, run_cai
from launchers import ACCELERATE, ON_A_CPU, TORCHRUN, kill_all, start, start_anew
from safetensors.torch import load_file
from tiny import make_model

from cai_cli.models.load import load_lm
from cai_cli.rows.conversation import message

FLAGS = (
    "sft --model lm --data samples.jsonl --device cpu --learning-rate 1e-3 --logging-steps 8 --save-steps 8 "
    "--num-train-epochs 6 --held-out 0.1 --gradient-checkpointing"
)
PM = "train-pm --model lm --comparisons samples.jsonl"
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
THINGS = ("bread", "a kite", "some soup", "a shelf", "a song", "a garden", "tea")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft-ranks")
    make_model(folder / "lm")
    rows = []
    for n in range(140):
        prompt = [message("user", f"How do I make {THINGS[n % 7]}, {'please, ' * (n % 5)}number {n}?")]
        reply = [message("assistant", "First, mix it. " * (1 + n % 3))]
        rows.append({"id": f"p{n}/0", "prompt": prompt, "completion": reply, "finish_reason": "stop"})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fsdp.py").write_text(ON_A_CPU)
    return folder


def words(out: str, *flags: str) -> list[str]:
    return [*FLAGS.split(), *flags, "--out", out]


def finish(process: forks.Command) -> str:
    said = process.communicate(timeout=280)[1]
    assert process.returncode == 0, said
    return said


def losses(folder: Path, out: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("held_out_loss")) for row in rows]


def test_a_model_in_parts_is_trained_and_saved_as_one_in_copies(folder: Path) -> None:
    """The whole is the data-parallel run up to rounding; killed and continued it is the same."""
    finish(start(TORCHRUN, words("copies"), folder))
    sealed = lambda: list((folder / "parts").glob("checkpoints/checkpoint-*/complete"))  # noqa: E731
    catch(lambda: start(ACCELERATE, words("parts"), folder), folder / "parts", sealed, send=kill_all)
    assert not (folder / "parts/cai.json").exists()
    assert "continuing from" in finish(start(ACCELERATE, words("parts"), folder))
    assert losses(folder, "parts") == pytest.approx(losses(folder, "copies"), abs=1e-4)
    before, copies, parts = (
        load_file(folder / name / "model.safetensors") for name in ("lm", "copies", "parts")
    )
    assert parts.keys() == copies.keys()
    for name, weight in copies.items():
        assert torch.allclose(parts[name], weight, atol=5e-5), name
    assert max((parts[name] - before[name]).abs().max() for name in parts) > 1e-3
    assert json.loads((folder / "parts/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_adapters_on_a_model_in_parts_are_saved_merged(folder: Path) -> None:
    flags = ("--lora", "--save-adapter", "--packing", "--max-length", "128", "--bf16")
    finish(start_anew(ACCELERATE, words("lora", *flags), folder))
    merged, adapter, base = (load_lm(str(folder / name)) for name in ("lora", "lora/adapter", "lm"))
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, adapter(ids).logits)
        assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("command", "asked", "told"),
    [
        (FLAGS, ZERO, "asks for DeepSpeed"),
        (PM, ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "ZeRO 2 and 3 are supported"),
        (PM, ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "hold parts on the CPU"),
        (PM, ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "a file of its own is not read"),
        (PM + " --lora --quantize 8bit", ZERO, "--quantize 8bit: DeepSpeed cannot hold it in parts"),
        (FLAGS, FSDP | {"FSDP_VERSION": "1"}, "only version 2"),
        (FLAGS + " --lora --quantize 4bit", FSDP, "--quantize 4bit: FSDP cannot hold it in parts"),
        (PM + " --lora --quantize 8bit", FSDP, "--quantize 8bit: FSDP cannot hold it in parts"),
        ("sample --model lm --prompts samples.jsonl", FSDP, "asks for FSDP, which this stage cannot do"),
    ],
)
def test_what_cannot_be_had_is_told_at_once(folder, monkeypatch, command, asked, told) -> None:
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    out = "out.jsonl" if command.startswith("sample") else "out"
    mistake(run_cai(*command.split(), "--out", out, cwd=folder), told)
    assert not (folder / out).exists()
