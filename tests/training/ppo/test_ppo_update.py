"""The trainer's steps: known optima are found, a heavy KL penalty holds the policy, what is not sound stops
before the step.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from ppo_setup import EOS, PAD, make_pair, options_for, write_prompts

from cai_cli.engines.base import LENGTH, STOP, Completion
from cai_cli.errors import RunError
from cai_cli.models.score import final_scores
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.training.ppo import learner as learner_module
from cai_cli.training.ppo.learner import Learner
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.trainer import Trainer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    return *make_pair(folder), write_prompts(folder / "prompts.jsonl")


def make_trainer(files, tmp_path, score=None, **changes) -> Trainer:
    """A trainer whose preference model is the function `score(token_ids)` where one is given."""
    trainer = Trainer(options_for(*files, tmp_path / "out", **changes), 64)
    if score is not None:
        trainer.critic.critic.score = lambda completions: [
            score(completion.token_ids) for completion in completions
        ]
    return trainer


def steps(trainer: Trainer, files, count: int) -> list[tuple[float, float]]:
    """(mean score, KL) of the rollout of each step."""
    prompts = read_prompts([str(files[2])])
    size = trainer.options.ppo.rollout_batch_size
    history = []
    for step in range(count):
        batch = [prompts[(step * size + n) % len(prompts)] for n in range(size)]
        rollout = trainer.rollout(step, batch, Clock())
        row = trainer.learn(step, rollout, Clock())
        assert row["first_log_ratio"] <= 1e-4
        history.append((row["score"], row["kl"]))
    return history


def learners_of(trainer: Trainer) -> tuple[Learner, Learner]:
    return trainer.learner, trainer.critic.critic.learner


def weights_of(*learners: Learner) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for learner in learners for w in learner.parallel.weights])


FAST = {
    "rollout_batch_size": 64,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "missing_eos_penalty": 0.0,
}


# Known optima


def test_a_two_armed_bandit_ends_in_the_gibbs_distribution(files, tmp_path):
    """One token, reward ±1 by its parity: under a KL penalty β the optimum is π(arm) ∝ π_ref(arm)
    e^(reward/β).
    """
    arm = lambda ids: 1.0 if ids[0] % 2 else -1.0  # noqa: E731
    beta, total = 1.0, 45
    trainer = make_trainer(
        files,
        tmp_path,
        arm,
        steps=total,
        max_new_tokens=1,
        kl_coef=beta,
        **{**FAST, "rollout_batch_size": 128},
    )
    history = steps(trainer, files, total)
    start = (sum(score for score, _ in history[:1]) + 1) / 2
    p = make_trainer(files, tmp_path, arm, max_new_tokens=1, **FAST)
    reference = [p.rollout(k, read_prompts([str(files[2])]) * 20, Clock()) for k in range(2)]
    share = sum(e.score > 0 for r in reference for e in r.table) / sum(len(r.table) for r in reference)
    optimum = share * math.exp(1 / beta) / (share * math.exp(1 / beta) + (1 - share) * math.exp(-1 / beta))
    reached = sum((score + 1) / 2 for score, _ in history[-15:]) / 15
    assert abs(start - optimum) > 0.15
    assert reached == pytest.approx(optimum, abs=0.06)


def say_this(token: int):
    """The share of the reply's tokens that are the one wanted, times 5."""
    return lambda ids: 5 * ids.count(token) / len(ids)


def test_the_policy_learns_to_say_the_rewarded_token(files, tmp_path):
    trainer = make_trainer(files, tmp_path, say_this(77), steps=60, kl_coef=0.0, **FAST)
    history = steps(trainer, files, 60)
    assert history[0][0] < 0.2
    assert sum(score for score, _ in history[-3:]) / 3 > 4.75  # of 5
    assert history[-1][1] > 5


def test_under_a_heavy_kl_penalty_the_policy_stays(files, tmp_path):
    """Same reward, same learning rate: the tokens' log-ratio is all that counts."""
    trainer = make_trainer(files, tmp_path, say_this(77), steps=30, kl_coef=1000.0, **FAST)
    history = steps(trainer, files, 30)
    assert sum(score for score, _ in history[-3:]) / 3 < 0.4
    assert abs(history[-1][1]) < 0.5


def test_the_value_learns_alone_while_it_warms_up(files, tmp_path):
    trainer = make_trainer(
        files, tmp_path, lambda ids: 3.0, steps=12, kl_coef=0.0, critic_warmup_steps=8, **FAST
    )
    before = [weight.clone() for weight in trainer.policy.parameters()]
    prompts = read_prompts([str(files[2])])[:8]
    fits = []
    for step in range(9):
        row = trainer.learn(step, trainer.rollout(step, prompts, Clock()), Clock())
        fits.append(row["value_loss"])
        same = all(torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))
        assert same == (step < 8)
        assert ("policy_loss" in row) == (step >= 8)
    assert fits[7] < 0.7 * fits[0]


# Scores


def test_the_pm_reads_the_reply_closed_by_eos_and_a_cut_one_pays(files, tmp_path):
    trainer = make_trainer(files, tmp_path, missing_eos_penalty=1.5)
    ended = Completion("", STOP, [5, 6], [7, 8, EOS], [0.0] * 3)
    cut = Completion("", LENGTH, [5, 6], [7, 8], [0.0] * 2)
    critic = trainer.critic.critic
    scores = critic.score([ended, cut])
    with torch.no_grad(), critic.pair.frozen() as pm:
        expected = final_scores(pm.model, [[5, 6, 7, 8, EOS]], PAD).item()
    assert scores == pytest.approx([expected, expected], abs=1e-5)
    assert trainer.shape(2.0, ended) == 2.0
    assert trainer.shape(2.0, cut) == 0.5


# Soundness


def rolled(files, tmp_path, **changes):
    """A trainer, its rollout, and something random to learn from it: advantages, returns."""
    trainer = make_trainer(
        files, tmp_path, say_this(77), rollout_batch_size=24, num_ppo_epochs=1, num_mini_batches=1, **changes
    )
    rollout = trainer.rollout(0, (read_prompts([str(files[2])]) * 2), Clock())
    generator = torch.Generator().manual_seed(0)
    shape = rollout.episodes.mask.shape
    advantages, returns = (torch.randn(shape, generator=generator) * rollout.episodes.mask for _ in range(2))
    return trainer, rollout, advantages, returns


def improve(trainer, rollout, advantages, returns) -> dict[str, float]:
    policy, value = learners_of(trainer)
    batch = (rollout.episodes, rollout.logprobs, advantages, len(rollout.table), 0)
    return policy.improve(*batch) | value.improve(
        rollout.episodes, rollout.values, returns, len(rollout.table), 0
    )


@pytest.mark.parametrize("microbatch", [1, 7, 32])
def test_the_first_log_ratio_is_rounding_and_the_largest_of_all_micro_batches(files, tmp_path, microbatch):
    changes = {"learning_rate": 0.0, "per_device_train_batch_size": microbatch}
    trainer, rollout, advantages, returns = rolled(files, tmp_path, **changes)
    improve(trainer, rollout, advantages, returns)
    assert trainer.learner.first_gap <= 1e-4
    spoiled = rollout.logprobs.clone()
    spoiled[3, 0] -= 0.05
    improve(trainer, replace(rollout, logprobs=spoiled), advantages, returns)
    assert trainer.learner.first_gap == pytest.approx(0.05, abs=1e-3)


def test_micro_batches_change_nothing_but_rounding(files, tmp_path):
    """The same gradients and the same measures from micro-batches of 1, 5 and all."""
    found = []
    for microbatch in (32, 5, 1):
        trainer, *batch = rolled(files, tmp_path, per_device_train_batch_size=microbatch, max_grad_norm=0.0)
        for learner in learners_of(trainer):
            learner.parallel.optimizer = torch.optim.SGD(learner.parallel.weights, lr=0.1)
            learner.schedule = torch.optim.lr_scheduler.ConstantLR(learner.parallel.optimizer, 1.0)
        found.append((improve(trainer, *batch), weights_of(*learners_of(trainer))))
    for stats, weights in found[1:]:
        assert torch.allclose(weights, found[0][1], atol=1e-5)
        for name in (
            "policy_loss",
            "value_loss",
            "policy_grad_norm",
            "value_grad_norm",
            "value_clipped",
            "update_kl",
        ):
            assert stats[name] == pytest.approx(found[0][0][name], abs=1e-4), name


@pytest.mark.parametrize("spoil", ["policy", "value"])
def test_what_is_not_finite_stops_before_the_step(files, tmp_path, spoil):
    """A NaN in any micro-batch, not only in the last."""
    trainer, rollout, advantages, returns = rolled(files, tmp_path, per_device_train_batch_size=1)
    {"policy": advantages, "value": returns}[spoil][5, 0] = math.nan
    learner = dict(zip(("policy", "value"), learners_of(trainer), strict=True))[spoil]
    before = copy.deepcopy(weights_of(learner))
    with pytest.raises(RunError, match=f"{spoil}_loss is nan at step 0"):
        improve(trainer, rollout, advantages, returns)
    assert torch.equal(before, weights_of(learner))


def test_log_probabilities_that_disagree_warn_once_and_stop(files, tmp_path, capsys):
    trainer = make_trainer(files, tmp_path)
    capsys.readouterr()
    trainer.check_ratio(0.9e-4)
    assert capsys.readouterr().err == ""
    trainer.check_ratio(2e-4)
    assert "differ by 0.0002" in capsys.readouterr().err
    trainer.check_ratio(2e-4)
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match=r"rollout and update differ by 0\.2"):
        trainer.check_ratio(0.2)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    sampled = -torch.ones(2, 3) * mask
    assert trainer.gap(sampled, sampled + 0.05 * mask + (1 - mask), mask) == pytest.approx(0.05, abs=1e-5)
    with pytest.raises(RunError, match="on average over the tokens"):
        trainer.gap(sampled, sampled + 0.11 * mask, mask)


def test_ratios_that_are_off_stop_before_the_step(files, tmp_path):
    trainer = make_trainer(files, tmp_path)
    rollout = trainer.rollout(0, read_prompts([str(files[2])])[:8], Clock())
    before = weights_of(trainer.learner)
    with pytest.raises(RunError, match="at a token"):
        trainer.learn(0, replace(rollout, logprobs=rollout.logprobs - 0.2), Clock())
    assert torch.equal(before, weights_of(trainer.learner))


def test_in_mixed_precision_old_log_probabilities_are_those_of_the_trained_pass(files, tmp_path):
    """The rollout's own would make the first ratios differ from 1; the gap between the two is measured."""
    trainer = make_trainer(files, tmp_path, bf16=True)
    prompts = read_prompts([str(files[2])])[:8]
    rollout = trainer.rollout(0, prompts, Clock())
    sampled = [value for completion in rollout.completions for value in completion.logprobs]
    used = rollout.logprobs[rollout.episodes.mask.bool()].tolist()
    assert used != pytest.approx(sampled, abs=1e-7)
    row = trainer.learn(0, rollout, Clock())
    assert 0 < row["logprob_gap"] < 0.02
    assert row["first_log_ratio"] < 0.02


WHOLE = {
    "rollout_batch_size": 12,
    "per_device_train_batch_size": 12,
    "num_mini_batches": 1,
    "num_ppo_epochs": 2,
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_micro_batch_takes_over_the_passes_of_the_scoring(
    files, tmp_path, monkeypatch, bf16, checkpointing
):
    """The values', and the log-probabilities' where they are computed again: the same weights as without."""
    calls = []
    for name in ("response_values", "response_logprobs"):
        whole = getattr(learner_module, name)
        monkeypatch.setattr(
            learner_module, name, lambda *args, name=name, whole=whole: (calls.append(name), whole(*args))[1]
        )
    weights, stats = [], []
    for kept in (True, False):
        trainer = make_trainer(files, tmp_path, bf16=bf16, gradient_checkpointing=checkpointing, **WHOLE)
        rollout = trainer.rollout(0, read_prompts([str(files[2])]), Clock())
        policy, value = learners_of(trainer)
        assert value.graph is not None and (policy.graph is not None) == bf16
        if not kept:
            policy.graph = value.graph = None
        calls.clear()
        stats.append(trainer.learn(0, rollout, Clock()))
        assert policy.graph is value.graph is None
        assert calls.count("response_values") == (1 if kept else 2)
        assert calls.count("response_logprobs") == (1 if kept and bf16 else 2)
        weights.append(weights_of(*learners_of(trainer)))
    assert torch.allclose(*weights, atol=1e-5 if not bf16 else 1e-3)
    assert stats[0]["value_loss"] == pytest.approx(stats[1]["value_loss"], rel=1e-2 if bf16 else 1e-4)


@pytest.mark.parametrize("changes", [{"per_device_train_batch_size": 11}, {"num_mini_batches": 2}])
def test_no_graph_is_kept_for_micro_batches_that_differ(files, tmp_path, changes):
    trainer = make_trainer(files, tmp_path, **{**WHOLE, **changes})
    rollout = trainer.rollout(0, read_prompts([str(files[2])]), Clock())
    assert all(learner.graph is None for learner in learners_of(trainer))
    assert not rollout.values.requires_grad
