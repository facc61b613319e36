"""Rollouts by another engine than the policy itself: it says what the policy says, after every update."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec

import pytest
import torch
from conftest import mistake, run_cai
from ppo_setup import options_for
from trainer_runs import COMMANDS, make_world, metrics

from cai_cli.engines import open as opening
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.errors import UserError
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.merging import whole_weights
from cai_cli.models.score import reset_head
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.stages import ppo
from cai_cli.training.ppo import trainer
from cai_cli.training.ppo.sampler import check_sampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


class Follower(TransformersEngine):
    """A model of its own that takes over weights when it is told to."""

    def follow(self, model) -> None:
        self.followed = getattr(self, "followed", 0) + 1
        weights = dict(whole_weights(model))
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                weight.copy_(weights[name])


@pytest.mark.parametrize("lora", [False, True])
def test_a_second_engine_that_follows_gives_the_same_run(folder, tmp_path, monkeypatch, lora):
    changes = {"steps": 3, "rollout_batch_size": 8, "max_new_tokens": 8, "learning_rate": 1e-3}
    adapters = {"lora": True, "lora_r": 4} if lora else {}

    def run(out):
        options = options_for(
            folder / "lm", folder / "pm", folder / "prompts.jsonl", tmp_path / out, **changes, **adapters
        )
        ppo.run(options)
        return [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]

    alone = run("alone")
    opened = []

    def follower(options, policy, tokenizer):
        settings = EngineSettings(temperature=1.0, odd_numbers_end_it=False)
        own = copy.deepcopy(policy)
        if lora:  # merged, as another process would hold it
            own = load_lm(str(folder / "lm"), "cpu")
        opened.append(Follower(own, tokenizer, settings))
        return opened[0]

    monkeypatch.setattr(trainer, "open_sampler", follower)
    beside = run("beside")
    assert opened[0].followed >= 3
    for a, b in zip(alone, beside, strict=True):
        for name in ("score", "kl", "length", "policy_loss", "first_log_ratio"):
            if name in a:
                assert a[name] == pytest.approx(b[name], abs=2e-4), name


def test_what_is_in_parts_cannot_be_sent(tmp_path, monkeypatch):
    options = options_for(*[tmp_path] * 4, engine="vllm")
    monkeypatch.setattr(opening, "check_engine", lambda *_: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    check_sampler(options)  # one process holds all
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--engine vllm under ZeRO 3: .* cannot be sent \(leave one out\)"):
        check_sampler(options)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    check_sampler(options)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--engine vllm under FSDP: "):
        check_sampler(options)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_one_line(folder):
    words = COMMANDS["ppo"].split()
    mistake(
        run_cai(*words, "--engine", "vllm", "--out", "x", cwd=folder), "vllm not installed", "cai-cli[vllm]"
    )


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: see CONTRIBUTING")
def test_rollouts_by_vllm(helpful, world, tmp_path):
    """On the micro-world's model: vLLM on a CPU has no heads as small as those of the other tests."""
    pm = load_pm(str(helpful), "cpu")
    reset_head(pm, 0)
    pm.save_pretrained(tmp_path / "pm")
    load_tokenizer(str(helpful)).save_pretrained(tmp_path / "pm")
    sizes = ("--steps", 4, "--rollout-batch-size", 16, "--max-new-tokens", 24, "--learning-rate", "1e-3")
    models = ("--model", helpful, "--pm", tmp_path / "pm", "--prompts", world / "rl.jsonl")
    out = tmp_path / "by-vllm"
    done = run_cai("ppo", *models, *sizes, "--engine", "vllm", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = metrics(out)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-3) and abs(rows[-1]["kl"]) > 1e-3
    assert all(row["logprob_gap"] < 1e-3 for row in rows)
    assert json.loads((out / "cai.json").read_text())["options"]["engine"] == "vllm"
