"""Token rewards, GAE, whitening and KL: hand-worked numbers, a plain-Python version on random batches,
padding that is inert.
"""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from ragged import mask_of, pad, random_rows

from cai_cli.training.ppo.advantages import (
    KLController,
    generalised_advantages,
    sequence_kl,
    token_rewards,
    whiten,
)

ONE_ROW = torch.ones(1, 3)


def plain_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = Σ_k (γλ)^k δ_{t+k}, summed directly."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - value for r, value, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


# Rewards


def test_token_rewards_by_hand():
    """Minus kl_coef times the log-ratio at each token; the score once, on the last real one."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -0.5, 9.0]])
    reference = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, -1.5, -9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    rewards = token_rewards(torch.tensor([10.0, -4.0]), logprobs, reference, mask, 0.1)
    assert rewards.tolist()[0] == pytest.approx([-0.05, 0.0, 10.2])
    assert rewards.tolist()[1] == pytest.approx([0.0, -4.1, 0.0])


def test_token_rewards_sum_to_score_minus_kl():
    rng = Random(0)
    lengths = [3, 8, 1, 5]
    new, old = pad(random_rows(rng, lengths), 8), pad(random_rows(rng, lengths), 8, filler=-3.0)
    mask, scores = mask_of(lengths, 8), torch.tensor([1.0, 2.0, 3.0, 4.0])
    total = token_rewards(scores, new, old, mask, 0.3).sum(-1)
    assert total.tolist() == pytest.approx((scores - 0.3 * sequence_kl(new, old, mask)).tolist(), abs=1e-5)


# Advantages


def test_advantages_by_hand():
    """γ = 0.9, λ = 0.5: δ = (0.85, -0.55, 1), A = (0.85 + 0.45·(-0.1), -0.55 + 0.45·1, 1)."""
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.6, 0.5, 1.0]])
    rewards[0, 1] = -0.95  # δ_1 = -0.95 + 0.9 · 1.0 - 0.5 = -0.55
    advantages, returns = generalised_advantages(rewards, values, ONE_ROW, 0.9, 0.5)
    assert advantages.tolist()[0] == pytest.approx([0.805, -0.1, 1.0], abs=1e-6)
    assert returns.tolist()[0] == pytest.approx([1.405, 0.4, 2.0], abs=1e-6)


def test_lambda_one_is_the_return_and_lambda_zero_one_step():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, -1.0, 3.0]])
    _, returns = generalised_advantages(rewards, values, ONE_ROW, 1.0, 1.0)
    assert returns.tolist()[0] == pytest.approx([7.0, 6.0, 4.0])
    advantages, _ = generalised_advantages(rewards, values, ONE_ROW, 1.0, 0.0)
    assert advantages.tolist()[0] == pytest.approx([-0.5, 6.0, 1.0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_advantages_on_random_padded_batches(seed, gamma, lam):
    rng = Random(seed)
    lengths = [rng.randint(1, 12) for _ in range(7)]
    rewards, values = random_rows(rng, lengths), random_rows(rng, lengths)
    padded_rewards = pad(rewards, 12, filler=0.0)  # token_rewards leaves zeros there
    advantages, returns = generalised_advantages(
        padded_rewards, pad(values, 12), mask_of(lengths, 12), gamma, lam
    )
    for n, length in enumerate(lengths):
        expected = plain_advantages(rewards[n], values[n], gamma, lam)
        assert advantages[n].tolist() == pytest.approx(expected + [0.0] * (12 - length), abs=1e-5)
        sums = [a + v for a, v in zip(expected, values[n], strict=True)]
        assert returns[n].tolist() == pytest.approx(sums + [0.0] * (12 - length), abs=1e-5)


# Whitening


def test_whiten_by_hand():
    """1, 2, 3 and a padded 99: mean 2, biased variance 2/3."""
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 99.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    unit = math.sqrt(1.5)
    assert whiten(values, mask).flatten().tolist() == pytest.approx([-unit, 0.0, unit, 0.0], abs=1e-6)
    kept = whiten(values, mask, shift_mean=False).flatten().tolist()
    assert kept == pytest.approx([2 - unit, 2.0, 2 + unit, 0.0], abs=1e-6)


def test_whiten_of_equal_values_is_finite():
    assert whiten(torch.full((2, 2), 5.0), torch.ones(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
def test_whiten_on_random_padded_batches(seed):
    rng = Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(6)]
    rows = random_rows(rng, lengths, 3.0)
    real = [value for row in rows for value in row]
    mean = sum(real) / len(real)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in real) / len(real))
    got = whiten(pad(rows, 9), mask_of(lengths, 9))
    for n, row in enumerate(rows):
        expected = [(value - mean) / deviation for value in row] + [0.0] * (9 - len(row))
        assert got[n].tolist() == pytest.approx(expected, abs=1e-5)


# KL


def test_sequence_kl_by_hand():
    new, old = torch.tensor([[-1.0, -2.0, 50.0]]), torch.tensor([[-1.5, -1.0, -50.0]])
    assert sequence_kl(new, old, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(-0.5)


def test_fixed_coefficient_stays():
    controller = KLController(0.05)
    controller.update(1000.0, 500)
    assert controller.coefficient == 0.05


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.15),  # on target
        (6.6, 0.15 * (1 + 0.1 * 256 / 10_000)),
        (60.0, 0.15 * (1 + 0.2 * 256 / 10_000)),  # the error is clipped at ±0.2
        (0.0, 0.15 * (1 - 0.2 * 256 / 10_000)),
    ],
)
def test_adaptive_coefficient_by_hand(kl, expected):
    controller = KLController(0.15, target=6.0, horizon=10_000)
    controller.update(kl, 256)
    assert controller.coefficient == pytest.approx(expected)
