"""Accuracy, Brier score, calibration error and Wilson's interval, worked by hand."""

from __future__ import annotations

from random import Random

import pytest

from cai_cli.evaluation.calibration import accuracy, brier, calibration_error, reliability_bins, wilson


def test_accuracy_by_hand():
    """Right, wrong, undecided (half), and a tie of the target that is left out."""
    assert accuracy([0.9, 0.2, 0.5, 0.9], [1.0, 1.0, 0.7, 0.5]) == pytest.approx(1.5 / 3)


def test_accuracy_sees_targets_below_a_half():
    assert accuracy([0.1, 0.6], [0.0, 0.2]) == pytest.approx(0.5)


def test_accuracy_without_decided_targets_is_none():
    assert accuracy([0.9], [0.5]) is None
    assert accuracy([], []) is None


def test_brier_by_hand():
    assert brier([0.9, 0.5, 0.2], [1.0, 0.5, 1.0]) == pytest.approx((0.01 + 0.0 + 0.64) / 3)


def test_calibration_error_by_hand():
    """0.75 said of three pairs of which two came true, seen from both sides: |0.75 - 2/3| in either bin."""
    assert calibration_error([0.75] * 3, [1.0, 1.0, 0.0]) == pytest.approx(0.75 - 2 / 3)


def test_calibration_error_is_zero_for_exact_probabilities():
    assert calibration_error([0.75] * 4, [1.0, 1.0, 1.0, 0.0]) == pytest.approx(0.0)
    assert calibration_error([0.63, 0.91], [0.63, 0.91]) == pytest.approx(0.0)


def test_calibration_error_of_the_overconfident():
    assert calibration_error([1.0, 1.0], [1.0, 0.0]) == pytest.approx(0.5)


def test_calibration_error_does_not_depend_on_which_reply_is_called_chosen():
    rng = Random(0)
    predicted, target = [rng.random() for _ in range(200)], [float(rng.random() < 0.5) for _ in range(200)]
    flipped = calibration_error([1 - p for p in predicted], [1 - t for t in target])
    assert calibration_error(predicted, target) == pytest.approx(flipped)


def test_each_pair_is_seen_from_both_sides():
    """0.75 for the right reply, 0.25 for another right one: half of what was given 0.75 came true, in either
    order.
    """
    assert calibration_error([0.75, 0.25], [1.0, 1.0]) == pytest.approx(0.25)


def test_calibration_error_falls_with_honest_probabilities():
    rng = Random(1)
    predicted = [rng.random() for _ in range(5000)]
    honest = [float(rng.random() < p) for p in predicted]
    bold = [min(1.0, max(0.0, 0.5 + 2 * (p - 0.5))) for p in predicted]
    assert calibration_error(predicted, honest) < 0.03 < 0.1 < calibration_error(bold, honest)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (90, 100, 0.8256, 0.9448),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_by_hand(successes, total, low, high):
    assert wilson(successes, total) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_reliability_bins() -> None:
    bins = reliability_bins([0.05, 0.15, 0.1, 1.0, 0.95], [0.0, 1.0, 0.0, 1.0, 0.5])
    assert [(cell.low, cell.high, cell.count) for cell in bins] == [
        (0.0, 0.1, 1),
        (0.1, 0.2, 2),
        (0.9, 1.0, 2),
    ]
    assert bins[1].predicted == pytest.approx(0.125) and bins[1].target == pytest.approx(0.5)
    assert bins[2].predicted == pytest.approx(0.975) and bins[2].target == pytest.approx(0.75)
