"""Calibration error, on cases where it is known."""

import numpy as np
import pytest

from hasten.measure.calibration import calibration, confidences, expected_calibration_error, softmax

RNG = np.random.default_rng(0)


def test_the_error_of_constructed_cases():
    # 100 samples of confidence 0.9, 80 of them right; 100 of confidence 0.6, 60 of them right: (0.1 + 0) / 2.
    confidence = np.repeat([0.9, 0.6], 100)
    right = np.concatenate([np.arange(100) < 80, np.arange(100) < 60])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.05)
    assert expected_calibration_error(np.ones(10), np.ones(10)) == 0
    assert expected_calibration_error(np.ones(10), np.zeros(10)) == 1
    # One bin takes over- and under-confidence together, two do not.
    assert expected_calibration_error(np.array([0.2, 0.8]), np.array([1, 0]), bins=1) == 0
    assert expected_calibration_error(np.array([0.2, 0.8]), np.array([1, 0]), bins=2) == pytest.approx(0.8)


def drawn(n):
    """Probabilities that are right as often as they say."""
    p = RNG.dirichlet(np.ones(4) / 2, n)
    return p, np.array([RNG.choice(4, p=row) for row in p])


def test_a_calibrated_model_beside_an_overconfident_one():
    p, labels = drawn(4000)
    sharper = p**3 / (p**3).sum(1, keepdims=True)
    found = calibration(p, sharper, labels)
    assert (found.softmax, found.samples, found.bins) == (False, 4000, 15)
    assert found.before < 0.03
    assert found.after > 0.1
    assert found.difference.estimate == pytest.approx(found.after - found.before)
    assert 0 < found.difference.low < found.difference.estimate < found.difference.high
    same = calibration(p, p, labels).difference
    assert (same.low, same.estimate, same.high) == (0, 0, 0)


def test_logits_are_seen_and_softmax_is_applied():
    p, labels = drawn(500)
    from_logits, from_probabilities = calibration(np.log(p + 1e-12) + 3, np.log(p + 1e-12), labels), calibration(p, p, labels)
    assert from_logits.softmax and not from_probabilities.softmax
    assert from_logits.before == pytest.approx(from_probabilities.before, abs=1e-6)
    np.testing.assert_allclose(softmax(np.array([[0.0, np.log(3)], [1000.0, 1000.0]])), [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(confidences(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 1])), [[0.8, 1], [0.9, 0]])


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (np.zeros((5, 1), np.float32), np.zeros(5, int)),
        (np.zeros((5, 3, 2), np.float32), np.zeros(5, int)),
        (np.full((5, 2), np.nan), np.zeros(5, int)),
        (np.zeros((5, 2), np.float32), np.zeros((5, 3))),
        (np.zeros((5, 2), np.int64), np.zeros(5, int)),
    ],
)
def test_what_has_no_classes_has_no_calibration(outputs, labels):
    assert calibration(outputs, outputs, labels) is None
