"""NaN and infinity: no trainer saves them, every loss is looked at, files hold none, and the line says what
is to blame.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family, write_comparisons, write_samples
from ppo_setup import make_pm, options_for, write_prompts

from cai_cli.artifacts.manifest import write_manifest
from cai_cli.console.groups import build
from cai_cli.errors import RunError
from cai_cli.models.finite import advice, odd_weight
from cai_cli.models.load import load_lm, load_pm
from cai_cli.rows.jsonl import dump_row, strict_json
from cai_cli.stages import ppo, sft, train_pm
from cai_cli.training.ppo.best import Best
from cai_cli.training.ppo.measures import Episode

NAN = math.nan


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("not-finite") / "base", "llama")


@pytest.fixture(scope="module")
def pm(base: Path) -> Path:
    return make_pm(base, base.parent / "pm")


def changed(model: Path, folder: Path, change: Any, load: Any = load_lm) -> Path:
    """A copy of the model after change(model)."""
    found = load(str(model), "cpu")
    with torch.no_grad():
        change(found)
    found.save_pretrained(folder)
    for file in model.glob("*.j*"):
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def spoil(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = NAN


def swell(model: Any) -> None:
    """Activations above what float16 holds, and below what float32 does."""
    model.model.layers[0].mlp.down_proj.weight.mul_(1e7)


def one_line(result: Any, *parts: str) -> None:
    """A failed run: exit 1 and at its end one line with each of the parts."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and all(part in last for part in parts), last


def assert_none_saved(out: Path) -> None:
    assert not (out / "cai.json").exists() and not (out / "model.safetensors").exists()
    for file in out.rglob("*.safetensors"):
        from safetensors.torch import load_file

        assert odd_weight(load_file(file)) is None, file


# Trainers


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--logging-steps", 100, "--save-steps", 100],
        ["--gradient-accumulation-steps", 2],
        ["--lora"],
        ["--max-grad-norm", 0],
    ],
    ids=["plain", "shorter-than-logging", "accumulated", "lora", "unclipped"],
)
def test_sft_at_a_rate_too_high_saves_nothing(more, cai, base, tmp_path):
    data = write_samples(tmp_path / "s.jsonl", 24)
    words = [
        "--model",
        base,
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--per-device-train-batch-size",
        2,
    ]
    rate = ["--learning-rate", "1e30"]
    one_line(cai("sft", *words, *rate, *more), "lower --learning-rate")
    assert_none_saved(tmp_path / "out")


def test_one_step_that_ends_in_weights_that_are_not_finite_is_not_saved(base, tmp_path):
    """The only loss there is was finite."""
    data = write_samples(tmp_path / "s.jsonl", 4)
    with pytest.raises(RunError, match="is not finite"):
        sft.run(
            build(
                sft.Options,
                model=str(base),
                data=[str(data)],
                out=tmp_path / "out",
                device="cpu",
                learning_rate=1e39,
            )
        )
    assert_none_saved(tmp_path / "out")


@pytest.mark.parametrize("held_out", [0.0, 0.5], ids=["next-step", "held-out-pairs"])
def test_train_pm_at_a_rate_too_high_saves_nothing(held_out, base, tmp_path):
    """What the last step made of the weights is seen by the held-out pairs alone."""
    data, rate = write_comparisons(tmp_path / "c.jsonl", 12 if held_out else 24), 1e37
    settings = {
        "model": str(base),
        "comparisons": [str(data)],
        "device": "cpu",
        "learning_rate": rate,
        "held_out": held_out,
    }
    with pytest.raises(RunError) as error:
        train_pm.run(build(train_pm.Options, out=tmp_path / "out", **settings))
    assert "lower --learning-rate" in str(error.value)
    assert_none_saved(tmp_path / "out")


@pytest.mark.parametrize(
    "more", [{}, {"load_best_model_at_end": True}, {"steps": 1}], ids=["last", "best", "one-step"]
)
def test_ppo_at_a_rate_too_high_saves_nothing(more, base, pm, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl")
    more = {**more, **({"eval_prompts": [str(prompts)]} if "load_best_model_at_end" in more else {})}
    options = options_for(base, pm, prompts, tmp_path / "out", **{"learning_rate": 1e39, **more})
    with pytest.raises(RunError, match=r"finite|nan"):
        ppo.run(options)
    assert_none_saved(tmp_path / "out")


def test_a_policy_without_a_finite_kl_is_never_the_best_one():
    best = Best()
    episode = Episode("p", None, "text", 3, "stop", 9.0, NAN)
    assert not best.offer(4, [episode], budget=50.0) and best.step == -1


def test_the_advice_blames_what_is_to_blame(base, tmp_path):
    model = load_lm(str(base), "cpu")
    assert "lower --learning-rate" in advice(model, updates=3)
    assert "--bf16" in advice(model, updates=0, bf16=True)
    assert "too large" in advice(model, updates=0)
    assert "float16 ends at 65504" in advice(model.half(), updates=0)
    with torch.no_grad():
        spoil(model)
    assert "model.layers.0.mlp.down_proj.weight is not finite" in advice(model, updates=0)


# What models say


def test_scores_that_are_not_finite_name_model_and_dtype(cai, pm, tmp_path):
    odd = changed(pm, tmp_path / "odd", spoil, load_pm)
    comparisons = write_comparisons(tmp_path / "c.jsonl")
    for words in (("score", comparisons), ("evaluate", "pm", "--comparisons", comparisons)):
        out = tmp_path / f"{words[0]}.json{'l' if words[0] == 'score' else ''}"
        result = cai(*words, "--pm", odd, "--out", out, "--device", "cpu")
        one_line(
            result, "odd", "a score is nan in float32", "model.layers.0.mlp.down_proj.weight is not finite"
        )
        assert not out.exists()


def test_a_dtype_that_is_too_small_is_blamed(cai, base, tmp_path):
    large = changed(base, tmp_path / "large", swell)
    samples = write_samples(tmp_path / "s.jsonl", 4)
    words = (
        "--model",
        large,
        "--prompts",
        samples,
        "--max-new-tokens",
        4,
        "--on-truncated",
        "keep",
        "--device",
        "cpu",
    )
    result = cai("sample", *words, "--dtype", "float16", "--out", tmp_path / "half.jsonl")
    one_line(result, "large", "is nan in float16", "--dtype bfloat16 or float32")
    assert cai("sample", *words, "--out", tmp_path / "whole.jsonl", "--attempts", 1).returncode == 0


def test_a_judge_and_a_writer_that_are_not_finite_stop_the_run(cai, base, tmp_path):
    odd = changed(base, tmp_path / "odd", spoil)
    samples, comparisons = write_samples(tmp_path / "s.jsonl", 4), write_comparisons(tmp_path / "c.jsonl", 4)
    words = ("--prompts", samples, "--out", tmp_path / "x.jsonl", "--device", "cpu", "--max-new-tokens", 8)
    result = cai("sample", "--model", odd, *words)
    one_line(result, "odd", "a token's log-probability is nan in float32")
    words = ("--pairs", comparisons, "--feedback-model", odd, "--device", "cpu", "--min-mass", 0)
    one_line(
        cai("label", *words, "--out", tmp_path / "l.jsonl"),
        "odd",
        "an option's log-probability is nan in float32",
    )


# Files


def test_files_hold_no_number_that_is_not_finite(tmp_path):
    with pytest.raises(RunError, match=r"cai.json: `evaluation.all\[1\]` would be nan"):
        write_manifest(tmp_path / "cai.json", {"evaluation": {"all": [0.5, NAN]}})
    assert not (tmp_path / "cai.json").exists()
    with pytest.raises(RunError, match="row a/0: `score` would be -inf"):
        dump_row({"id": "a/0", "score": -math.inf})
    assert json.loads(strict_json({"a": [1.5, None, "NaN"]}, "x")) == {"a": [1.5, None, "NaN"]}


def test_odd_weights_are_found_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for number in (NAN, math.inf, -math.inf):
            weights = {
                "a": torch.ones(3, dtype=dtype),
                "b": torch.ones(2, 2, dtype=dtype),
                "c": torch.zeros(0),
            }
            assert odd_weight(weights) is None
            weights["b"][1, 0] = number
            assert odd_weight(weights) == "b"
    assert odd_weight({"whole": torch.ones(3, dtype=torch.uint8)}) is None
