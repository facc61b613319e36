"""The losses against hand-worked numbers, and against the same formulas in plain Python, token by token, on
random batches.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from ragged import Rows, mask_of, pad, random_rows

from cai_cli.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean, soft_pairwise_loss


def plain_policy_loss(new: Rows, old: Rows, advantages: Rows, clip: float) -> tuple[float, float]:
    losses, bound = [], []
    for row in zip(new, old, advantages, strict=True):
        for logprob, before, advantage in zip(*row, strict=True):
            ratio = math.exp(logprob - before)
            kept = min(max(ratio, 1 - clip), 1 + clip)
            losses.append(-min(advantage * ratio, advantage * kept))
            bound.append(advantage * kept < advantage * ratio)
    return sum(losses) / len(losses), sum(bound) / len(bound)


def plain_value_loss(values: Rows, old: Rows, returns: Rows, clip: float) -> tuple[float, float]:
    losses, bound = [], []
    for row in zip(values, old, returns, strict=True):
        for value, before, target in zip(*row, strict=True):
            kept = min(max(value, before - clip), before + clip)
            losses.append(0.5 * max((value - target) ** 2, (kept - target) ** 2))
            bound.append((kept - target) ** 2 > (value - target) ** 2)
    return sum(losses) / len(losses), sum(bound) / len(bound)


# The pairwise loss


@pytest.mark.parametrize(
    ("difference", "probability", "expected"),
    [
        (0.0, 1.0, math.log(2)),
        (0.0, 0.5, math.log(2)),
        (2.0, 1.0, 0.126928011),  # log(1 + e^-2)
        (-2.0, 1.0, 2.126928011),
        (2.0, 0.75, 0.626928011),  # 0.75 · 0.126928 + 0.25 · 2.126928
        (math.log(3), 0.75, 0.562335145),  # σ = p: the loss is p's own entropy
    ],
)
def test_soft_pairwise_loss_by_hand(difference, probability, expected):
    loss = soft_pairwise_loss(torch.tensor([difference]), torch.zeros(1), torch.tensor([probability]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_soft_pairwise_loss_on_random_numbers():
    """Binary cross-entropy of the label and the Bradley-Terry probability, in float64 by numpy."""
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(0, 3, 500), rng.normal(0, 3, 500)
    label = rng.uniform(0, 1, 500)
    predicted = np.exp(chosen) / (np.exp(chosen) + np.exp(rejected))
    expected = -label * np.log(predicted) - (1 - label) * np.log(1 - predicted)
    found = soft_pairwise_loss(*(torch.tensor(values) for values in (chosen, rejected, label)))
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


def test_soft_pairwise_loss_pulls_towards_the_label():
    """Its gradient is σ(Δ) - p: zero exactly where the model's probability is the label's."""
    chosen = torch.tensor([0.3, math.log(4)], requires_grad=True)
    soft_pairwise_loss(chosen, torch.zeros(2), torch.tensor([0.9, 0.8])).sum().backward()
    assert chosen.grad.tolist() == pytest.approx([1 / (1 + math.exp(-0.3)) - 0.9, 0.0], abs=1e-6)


def test_soft_pairwise_loss_is_finite_far_out():
    loss = soft_pairwise_loss(torch.tensor([-200.0, 200.0]), torch.zeros(2), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == pytest.approx([200.0, 100.0])


# The clipped losses


def test_masked_mean_by_hand():
    values, mask = (
        torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    )
    assert masked_mean(values, mask).item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "bound"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 1.0),  # gains stop at 1 + ε
        (0.5, 2.0, -1.0, 0.0),  # a loss is not cut
        (1.5, -2.0, 3.0, 0.0),
        (0.5, -2.0, 1.6, 1.0),  # and at 1 - ε for a bad action
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, bound):
    new, old = torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1)
    loss, clipped = clipped_policy_loss(new, old, torch.tensor([[advantage]]), torch.ones(1, 1), 0.2)
    assert (loss.item(), clipped.item()) == (pytest.approx(expected, abs=1e-6), bound)


def test_policy_loss_has_no_gradient_beyond_the_clip():
    new = torch.tensor([[math.log(1.5), math.log(1.1)]], requires_grad=True)
    clipped_policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.2)[0].backward()
    assert new.grad.tolist()[0] == pytest.approx([0.0, -0.55], abs=1e-6)  # -A r / number of tokens


@pytest.mark.parametrize(
    ("value", "old", "target", "expected", "bound"),
    [
        (1.0, 1.0, 3.0, 2.0, 0.0),
        (2.0, 1.0, 3.0, 1.62, 1.0),  # clipped to 1.2: 0.5 · 1.8²
        (2.0, 1.0, 0.0, 2.0, 0.0),  # the worse of both is taken: 0.5 · 2²
        (0.0, 1.0, -1.0, 1.62, 1.0),  # clipped to 0.8
    ],
)
def test_value_loss_by_hand(value, old, target, expected, bound):
    rows = [torch.tensor([[number]]) for number in (value, old, target)]
    loss, clipped = clipped_value_loss(*rows, torch.ones(1, 1), 0.2)
    assert (loss.item(), clipped.item()) == (pytest.approx(expected, abs=1e-6), bound)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("of_tensors", "of_lists"),
    [(clipped_policy_loss, plain_policy_loss), (clipped_value_loss, plain_value_loss)],
)
def test_clipped_losses_on_random_padded_batches(seed, of_tensors, of_lists):
    """The tensors are padded with 7s; the plain version has no padding at all."""
    rng = Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(6)]
    rows = [random_rows(rng, lengths, 0.5) for _ in range(3)]
    expected = of_lists(*rows, 0.2)
    loss, clipped = of_tensors(*(pad(part, 9) for part in rows), mask_of(lengths, 9), 0.2)
    assert (loss.item(), clipped.item()) == (
        pytest.approx(expected[0], abs=1e-5),
        pytest.approx(expected[1], abs=1e-6),
    )
