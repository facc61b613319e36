"""The preference model's loop: TRL's loss where labels are hard, soft labels, weights, order of the data,
what is measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import count

import pytest
import torch
from pairwise_runs import PAD, options, random_pairs
from tiny import make_model

from cai_cli.errors import RunError
from cai_cli.models.load import load_pm
from cai_cli.models.score import reset_head, score_all
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.training.metrics_file import MetricsFile
from cai_cli.training.parallel import Passes
from cai_cli.training.preference.loop import all_batches, fit_pairwise
from cai_cli.training.preference.losses import batch_losses, evaluate_pairs


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def pm(path):
    model = load_pm(str(path), "cpu", tokenizer=load_tokenizer(str(path)))
    reset_head(model, 0)
    return model


# The loss of a batch


def test_hard_labels_give_trls_loss(pm, path, tmp_path):
    """Loss and gradients of TRL's RewardTrainer on the same batch."""
    import datasets
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    pairs = random_pairs(9, probability=1.0)
    rows = [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]
    config = RewardConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_length=None, disable_dropout=True
    )
    trainer = RewardTrainer(
        model=pm,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load_tokenizer(str(path)),
    )
    inputs = trainer.data_collator(rows)
    trainer.compute_loss(pm, inputs).backward()
    theirs = trainer.compute_loss(pm, inputs).item()
    gradients = {
        name: weight.grad.clone() for name, weight in pm.named_parameters() if weight.grad is not None
    }
    pm.zero_grad()
    ours = batch_losses(pm, pairs, PAD)[0] / len(pairs)
    ours.backward()
    assert ours.item() == pytest.approx(theirs, abs=1e-5)
    for name, weight in pm.named_parameters():
        if name in gradients:
            assert torch.allclose(weight.grad, gradients[name], atol=1e-5), name


def test_batch_loss_is_the_weighted_sum_over_pairs(pm):
    pairs = [
        replace(pair, weight=weight)
        for pair, weight in zip(random_pairs(4), (1.0, 0.5, 2.0, 0.0), strict=True)
    ]
    expected = 0.0
    for pair in pairs:
        high, low = score_all(pm, [pair.chosen, pair.rejected], PAD, 1)
        log_sigmoid = -math.log1p(math.exp(low - high)), -math.log1p(math.exp(high - low))
        expected -= pair.weight * (
            pair.probability * log_sigmoid[0] + (1 - pair.probability) * log_sigmoid[1]
        )
    assert batch_losses(pm, pairs, PAD)[0].item() == pytest.approx(expected, abs=1e-5)


def test_accumulated_batches_are_one_batch(pm, path, tmp_path):
    """8 pairs at once, and 4 times 2: the same first step up to rounding."""
    results = []
    for size, passes in ((8, 1), (2, 4)):
        model = load_pm(str(path), "cpu")
        reset_head(model, 0)
        settings = options(
            per_device_train_batch_size=size, gradient_accumulation_steps=passes, learning_rate=1e-4
        )
        fit_pairwise(model, random_pairs(8), [], settings, tmp_path / str(size), PAD, 0)
        results.append(
            (
                json.loads((tmp_path / str(size) / "metrics.jsonl").read_text()),
                model.score.weight.detach().clone(),
            )
        )
    assert results[0][0]["loss"] == pytest.approx(results[1][0]["loss"], abs=1e-5)
    assert results[0][0]["grad_norm"] == pytest.approx(results[1][0]["grad_norm"], rel=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)


# The loop


def test_it_learns_a_preference(pm, tmp_path):
    training, held_out = random_pairs(256, 1.0), random_pairs(64, 1.0, seed=1)
    before = evaluate_pairs(Passes(pm), held_out, PAD, 64)["evaluation"]["all"]["accuracy"]
    facts = fit_pairwise(pm, training, held_out, options(num_train_epochs=3.0), tmp_path, PAD, 0)
    after = facts["evaluation"]["all"]
    assert before < 0.8
    assert after["accuracy"] > 0.95
    assert after["brier"] < 0.06
    assert facts["steps"] == 96
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(2, 97, 2))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_it_learns_the_probability_not_the_side(pm, tmp_path):
    """Labels of 0.75 lead to scores log(3) apart."""
    fit_pairwise(pm, random_pairs(256, 0.75), [], options(num_train_epochs=4.0), tmp_path, PAD, 0)
    held_out = random_pairs(64, 0.75, seed=1)
    evaluation = evaluate_pairs(Passes(pm), held_out, PAD, 64)["evaluation"]["all"]
    assert evaluation["calibration_error"] < 0.06
    assert evaluation["brier"] < 0.01


def test_a_killed_run_ends_in_the_same_weights(path, tmp_path):
    """Stopped between two checkpoints, with a half-written newer one: bit for bit, metrics too."""
    settings, pairs = options(num_train_epochs=2.0), random_pairs(48)

    def fit(name: str, stop_at: int = -1):
        model = load_pm(str(path), "cpu")
        reset_head(model, 0)
        calls = count()

        def stop(*_):
            if torch.is_grad_enabled() and next(calls) == stop_at:  # trials of the model learn nothing
                raise KeyboardInterrupt

        model.base_model.register_forward_pre_hook(stop)
        fit_pairwise(model, pairs, [], settings, tmp_path / name, PAD, 0)
        return model

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("cut", stop_at=7)
    half = tmp_path / "cut/checkpoints/step-00000007"
    half.mkdir()
    (half / "state.pt").write_bytes(b"PK half")
    resumed = fit("cut")
    assert not half.exists()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(pm, tmp_path, monkeypatch, what):
    before = pm.score.weight.detach().clone()
    if what == "loss":
        with torch.no_grad():
            pm.model.norm.weight.fill_(math.nan)
    else:
        pm.score.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunError, match="at step 0"):
        fit_pairwise(pm, random_pairs(8), [], options(), tmp_path, PAD, 0)
    assert torch.equal(pm.score.weight, before)


# The order of the data


def test_each_epoch_takes_every_pair_once_in_its_own_order():
    pairs = random_pairs(50)
    batches = all_batches(pairs, options(num_train_epochs=2.0, per_device_train_batch_size=4).training, 0)
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    for epoch in (first, second):
        assert sorted(n for batch in epoch for n in batch) == list(range(50))
    assert first != second
    assert batches == all_batches(
        pairs, options(num_train_epochs=2.0, per_device_train_batch_size=4).training, 0
    )
    assert batches != all_batches(
        pairs, options(num_train_epochs=2.0, per_device_train_batch_size=4).training, 1
    )


def test_half_an_epoch_takes_half_the_pairs():
    batches = all_batches(
        random_pairs(50), options(num_train_epochs=1.5, per_device_train_batch_size=5).training, 0
    )
    taken = [n for batch in batches for n in batch]
    assert len(taken) == 75
    assert len(set(taken[50:])) == 25


def test_batches_are_of_like_length():
    pairs = random_pairs(512)
    batches = all_batches(pairs, options(per_device_train_batch_size=8).training, 0)
    spread = [
        max(pairs[n].longest for n in batch) - min(pairs[n].longest for n in batch) for batch in batches
    ]
    assert sum(spread) / len(spread) < 4


# What is measured


def test_evaluation_by_origin(pm):
    pairs = random_pairs(40, 1.0)
    facts = evaluate_pairs(Passes(pm), pairs, PAD, 7)
    rows = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    scores = score_all(pm, rows, PAD, 16)
    human = [n for n, pair in enumerate(pairs) if pair.origin == "human"]
    right = [scores[2 * n] > scores[2 * n + 1] for n in human]
    assert facts["evaluation"]["human"]["pairs"] == len(human)
    assert facts["evaluation"]["human"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert facts["evaluation"]["all"]["pairs"] == 40
    assert facts["score_mean"] == pytest.approx(torch.tensor(scores).mean().item(), abs=1e-5)
    assert facts["score_deviation"] == pytest.approx(torch.tensor(scores).std(correction=0).item(), abs=1e-5)


def test_metrics_file_drops_what_comes_after_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    with MetricsFile(file, 4) as metrics:
        metrics.write({"step": 6, "again": True})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 2},
        {"step": 4},
        {"step": 6, "again": True},
    ]
    with MetricsFile(file, 0):
        assert file.read_text() == ""
