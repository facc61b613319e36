"""Every flag of `cai ppo` changes what its help says, on a run of two small steps; the run is the real stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ppo_setup import make_pair, make_pm, options_for, write_prompts

from cai_cli.console.groups import flags_of
from cai_cli.stages import ppo


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    folder: Path

    def rows(self, name: str = "metrics") -> list[dict]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict]:
        return [row for row in self.rows() if "score" in row]

    @property
    def facts(self) -> dict:
        return json.loads((self.folder / "cai.json").read_text())

    @property
    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    model, pm = make_pair(folder)
    facts = {
        "stage": "train-pm",
        "options": {},
        "inputs": [],
        "models": [],
        "score_mean": 5.0,
        "score_deviation": 2.0,
    }
    (pm / "cai.json").write_text(json.dumps(facts))
    make_pm(model, folder / "gold", seed=7)
    (folder / "other-lm").mkdir()
    return model, pm, write_prompts(folder / "prompts.jsonl"), write_prompts(folder / "held.jsonl", 6)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """`run(flag=value, ...)` -> Outcome; the same settings are run once."""
    done: dict[str, Outcome] = {}

    def start(**changes) -> Outcome:
        name = json.dumps(changes, sort_keys=True, default=str)
        if name not in done:
            out = tmp_path_factory.mktemp("out") / "rl"
            ppo.run(options_for(*files[:3], out, **changes))
            done[name] = Outcome(out)
        return done[name]

    return start


def changed(name: str, where: int = 0):
    """The flag changes this number of a step."""
    return lambda base, other: other.steps[where][name] != base.steps[where][name]


def later(name: str):
    return changed(name, 1)


def differs(base: Outcome, other: Outcome) -> bool:
    return base.weights != other.weights and base.steps[0]["score"] == other.steps[0]["score"]


def gone_to(value: float, name: str, where: int = 0):
    return lambda base, other: other.steps[where][name] == pytest.approx(value, abs=1e-6)


RUNS_AWAY = {"save_steps": 1, "steps": 8, "learning_rate": 0.03, "kl_coef": 0.0, "missing_eos_penalty": 0.0}

# flag -> (settings, what is to hold beside the base run[, settings of another base])
CHANGES = {
    "seed": ({"seed": 1}, changed("score")),
    "steps": ({"steps": 1}, lambda base, other: len(other.steps) == 1 and other.facts["steps_done"] == 1),
    "rollout_batch_size": ({"rollout_batch_size": 4}, changed("score")),
    "num_ppo_epochs": ({"num_ppo_epochs": 1}, differs),
    "num_mini_batches": ({"num_mini_batches": 1}, differs),
    "per_device_train_batch_size": (
        {"per_device_train_batch_size": 1},
        lambda base, other: (
            other.steps[0]["policy_loss"] == pytest.approx(base.steps[0]["policy_loss"], abs=1e-4)
        ),
    ),
    "learning_rate": ({"learning_rate": 1e-4}, differs),
    "value_learning_rate": ({"value_learning_rate": 0.1}, later("value_loss")),
    "lr_scheduler_type": ({"lr_scheduler_type": "constant"}, gone_to(1e-3, "learning_rate", 1)),
    "warmup_steps": (
        {"warmup_steps": 1},
        lambda b, o: o.steps[0]["learning_rate"] == 0 < b.steps[0]["learning_rate"],
    ),
    "critic_warmup_steps": (
        {"critic_warmup_steps": 1},
        lambda b, o: "policy_loss" not in o.steps[0] and "policy_loss" in o.steps[1],
    ),
    "max_grad_norm": ({"max_grad_norm": 1e-4}, differs),
    "clip_range": (
        {"clip_range": 1e-5},
        lambda b, o: o.steps[0]["policy_clipped"] > b.steps[0]["policy_clipped"],
    ),
    "value_clip_range": (
        {"value_clip_range": 1e-5},
        lambda b, o: o.steps[0]["value_clipped"] > b.steps[0]["value_clipped"],
    ),
    "value_coef": (
        {"value_coef": 1.0},
        lambda b, o: o.steps[0]["value_grad_norm"] > 5 * b.steps[0]["value_grad_norm"],
    ),
    "gamma": ({"gamma": 0.5}, changed("explained_variance")),
    "lam": ({"lam": 0.1}, changed("explained_variance")),
    "kl_coef": ({"kl_coef": 10.0}, lambda b, o: differs(b, o) and o.steps[0]["kl_coef"] == 10),
    "target_kl": ({"target_kl": 0.1}, lambda b, o: o.steps[1]["kl_coef"] != b.steps[1]["kl_coef"]),
    "kl_horizon": ({"target_kl": 0.1, "kl_horizon": 10}, later("kl_coef"), {"target_kl": 0.1}),
    "max_kl": ({**RUNS_AWAY, "max_kl": 0.3}, lambda b, o: "above --max-kl" in o.facts["stopped"]),
    "normalise_scores": (
        {"normalise_scores": True, "missing_eos_penalty": 0.0},
        lambda b, o: o.steps[0]["reward"] == pytest.approx((o.steps[0]["score"] - 5) / 2, abs=1e-5),
    ),
    "score_clip": (
        {"score_clip": 0.01, "missing_eos_penalty": 0.0},
        lambda b, o: abs(o.steps[0]["reward"]) <= 0.01,
    ),
    "missing_eos_penalty": (
        {"missing_eos_penalty": 3.0},
        lambda b, o: (
            b.steps[0]["reward"] - o.steps[0]["reward"]
            == pytest.approx(2 * b.steps[0]["missing_eos"], abs=1e-5)
        ),
    ),
    "whiten_rewards": ({"whiten_rewards": True}, changed("value_loss")),
    "eval_steps": (
        {"eval_prompts": "held", "eval_steps": 1},
        lambda b, o: ["eval_score" in row for row in o.rows()] == [True] * 3,
    ),
    "eval_prompts": (
        {"eval_prompts": "held"},
        lambda b, o: (
            [row["step"] for row in o.rows() if "eval_score" in row] == [0, 2]
            and "eval_kl" in o.facts["evaluation"]
        ),
    ),
    "save_steps": (
        {**RUNS_AWAY, "max_kl": 0.3},
        lambda b, o: o.facts["saved_step"] == o.facts["steps_done"] - 1,
    ),
    "sample_steps": (
        {"sample_steps": 1},
        lambda b, o: (
            {row["step"] for row in o.rows("samples")} == {1, 2}
            and not b.rows("samples")
            and "completion" in o.rows("samples")[0]
        ),
    ),
    "load_best_model_at_end": (
        {"eval_prompts": "held", "eval_steps": 1, "best_max_kl": 1e-3, "load_best_model_at_end": True},
        lambda b, o: o.facts["saved_step"] == 0 == o.facts["best_step"],
    ),
    "best_max_kl": (
        {"eval_prompts": "held", "eval_steps": 1, "best_max_kl": -0.0},
        lambda b, o: o.facts["best_step"] in (None, 0) and o.facts["saved_step"] == 2,
    ),
    "report_to": ({"report_to": ["none"]}, lambda b, o: o.weights == b.weights),
    "lora": ({"lora": True}, differs),
    "lora_r": ({"lora": True, "lora_r": 2}, differs, {"lora": True}),
    "lora_alpha": ({"lora": True, "lora_alpha": 1}, differs, {"lora": True}),
    "quantize": ({"lora": True, "quantize": "8bit"}, changed("kl", 1), {"lora": True}),
    "save_adapter": (
        {"lora": True, "save_adapter": True},
        lambda b, o: (
            (o.folder / "adapter").is_dir() and not (b.folder / "adapter").exists() and o.weights == b.weights
        ),
        {"lora": True},
    ),
    "bf16": ({"bf16": True}, lambda b, o: "logprob_gap" in o.steps[0] and "logprob_gap" not in b.steps[0]),
    "dtype": (
        {"dtype": "bfloat16"},
        lambda b, o: o.facts["dtype"] == "bfloat16" and "logprob_gap" in o.steps[0],
    ),
    "frozen_dtype": ({"frozen_dtype": "bfloat16"}, changed("kl")),
    "attn_implementation": (
        {"attn_implementation": "sdpa"},
        lambda b, o: o.steps[0]["score"] == pytest.approx(b.steps[0]["score"], abs=1e-4),
    ),
    "gradient_checkpointing": (
        {"gradient_checkpointing": True},
        lambda b, o: o.steps[1]["kl"] == pytest.approx(b.steps[1]["kl"], abs=1e-3),
    ),
    "max_new_tokens": ({"max_new_tokens": 3}, lambda b, o: o.steps[0]["length"] <= 3 < b.steps[0]["length"]),
    "temperature": ({"temperature": 0.2}, changed("score")),
    "batch_size": (
        {"batch_size": 3},
        lambda b, o: o.steps[0]["score"] == pytest.approx(b.steps[0]["score"], abs=1e-4),
    ),
    "device": ({"device": "auto"}, lambda b, o: o.facts["device"].split(":")[0] in ("cpu", "cuda")),
    "value_device": (  # with a thread each, as here, the same numbers
        {"value_device": "cpu"},
        lambda b, o: (
            o.weights == b.weights
            and o.rows() == b.rows()
            and [
                set(other) - set(row) for row, other in zip(b.rows("timings"), o.rows("timings"), strict=True)
            ]
            == [{"critic_peak_mb"}] * 2
        ),
    ),
    "gold_pm": (
        {"gold_pm": "gold", "eval_prompts": "held"},
        lambda b, o: o.rows()[0]["eval_gold_score"] != o.rows()[0]["eval_score"],
    ),
}
# Told apart by their own tests: which files go in and out, refusals to start, flags of every command, and who
# samples (test_ppo_sampler.py), in which words (test_ppo_command.py).
ELSEWHERE = {"model", "pm", "prompts", "out", "dry_run", "if_changed", "max_reject_rate", "lora_dropout"} | {
    "engine",
    "gpu_memory_utilization",
    "chat_template_kwargs",
}


def test_every_flag_is_here():
    assert flags_of(ppo.Options).keys() == CHANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_flag_changes_what_it_says(run, files, name):
    settings, holds, *base = CHANGES[name]
    places = {"held": [str(files[3])], "gold": str(files[1].parent / "gold")}
    settings = {
        key: places.get(value, value) if isinstance(value, str) else value for key, value in settings.items()
    }
    assert holds(run(**(base[0] if base else {})), run(**settings))
