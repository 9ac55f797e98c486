"""The statistics, by simulation: intervals cover what they claim, and the verdict is not fooled. Seeded, 1,000 runs each."""

import numpy as np
import pytest

from hasten.measure.statistics import (
    Interval,
    geometric_mean,
    noise_floor,
    paired_difference,
    ratio_interval,
    smallest_provable_drop,
    student_t,
    tango,
    value_interval,
    verdict,
    whole_set_difference,
)
from hasten.metrics import METRICS, f1

RUNS = 1000


def covered(hits: int) -> bool:
    """93 to 97 % of 1,000 runs."""
    return 930 <= hits <= 970


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_the_ratio_interval_covers_over_six_process_pairs(noise):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(RUNS):
        pairs = [(2.0 * np.exp(noise * a), np.exp(noise * b)) for a, b in rng.standard_normal((6, 2))]
        interval = ratio_interval(pairs)
        hits += interval.low <= 2.0 <= interval.high
    assert covered(hits)


@pytest.mark.parametrize(("n", "gain", "loss"), [(400, 0.02, 0.03), (1000, 0.01, 0.015), (10_000, 0.002, 0.004), (200, 0.05, 0.05)])
def test_the_paired_interval_covers_for_right_and_wrong(n, gain, loss):
    rng = np.random.default_rng(2)
    hits = 0
    for gained, lost, _ in rng.multinomial(n, [gain, loss, 1 - gain - loss], RUNS):
        low, high = tango(int(gained), int(lost), n, 0.95)
        hits += low <= gain - loss <= high
    assert covered(hits)


def test_the_paired_interval_covers_for_real_scores():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(RUNS):
        before = rng.exponential(1.0, 200)
        interval = paired_difference(before, before + rng.normal(0.1, 0.5, 200))
        hits += interval.low <= 0.1 <= interval.high
    assert covered(hits)


def test_the_bootstrap_interval_covers_for_a_metric_of_the_whole_set(monkeypatch):
    monkeypatch.setattr("hasten.measure.statistics.RESAMPLES", 200)
    rng = np.random.default_rng(4)

    def sample(n):
        labels = rng.integers(0, 2, n)
        before, after = labels.copy(), labels.copy()
        for predicted, rate in ((before, 0.10), (after, 0.13)):
            flip = rng.random(n) < rate
            predicted[flip] = 1 - predicted[flip]
        return np.eye(2)[before], np.eye(2)[after], labels

    big = sample(400_000)
    truth = f1(big[1], big[2]) - f1(big[0], big[2])
    hits = 0
    for i in range(RUNS):
        before, after, labels = sample(400)
        interval = whole_set_difference(f1, before, after, labels, seed=i)
        hits += interval.low <= truth <= interval.high
    assert covered(hits)


@pytest.mark.parametrize(("n", "flips"), [(400, 0.04), (2000, 0.02), (10_000, 0.01)])
def test_a_drop_just_as_large_as_allowed_is_proven_in_at_most_five_percent(n, flips):
    rng = np.random.default_rng(5)
    drop = 0.01
    gain, loss = (flips - drop) / 2 if flips > drop else 0.0, (flips + drop) / 2 if flips > drop else drop
    proven = 0
    for gained, lost, _ in rng.multinomial(n, [gain, loss, 1 - gain - loss], RUNS):
        low, high = tango(int(gained), int(lost), n, 0.90)
        proven += verdict(Interval((gained - lost) / n, low, high, 0.95, low, high), drop, n).state == "proven"
    assert proven <= 50 + 2 * np.sqrt(1000 * 0.05 * 0.95)


def test_verdicts():
    assert verdict(Interval(0.0, -0.01, 0.01, 0.95, -0.008, 0.008), 0.01, 100).state == "proven"
    assert verdict(Interval(-0.02, -0.03, -0.01, 0.95, -0.03, -0.01), 0.01, 100).state == "broken"
    open_one = verdict(Interval(0.0, -0.03, 0.03, 0.95, -0.02, 0.02), 0.01, 100)
    assert open_one.state == "not shown"
    assert open_one.samples_needed == 300
    assert verdict(Interval(-0.01, -0.03, 0.03, 0.95, -0.02, 0.02), 0.01, 100).samples_needed is None


def test_no_flips_still_leave_doubt_and_more_samples_leave_less():
    zeros = np.ones(100)
    interval = paired_difference(zeros, zeros)
    assert interval.estimate == 0
    assert interval.low < -0.02
    assert smallest_provable_drop(10_000) < smallest_provable_drop(400)


@pytest.mark.parametrize(("p", "df", "value"), [(0.975, 5, 2.5705818), (0.95, 11, 1.7958848), (0.975, 1, 12.7062047), (0.9, 30, 1.3104150)])
def test_quantiles_of_student_s_t_are_those_of_the_tables(p, df, value):
    assert student_t(p, df) == pytest.approx(value, abs=1e-6)
    assert student_t(1 - p, df) == pytest.approx(-value, abs=1e-6)


def test_ratios_and_the_noise_floor():
    interval = ratio_interval([(2.0, 1.0)] * 6)
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((2, 2, 2))
    assert noise_floor([(1.0, 1.0)] * 6) == pytest.approx(0)
    assert noise_floor([(1.0, 1.1), (1.1, 1.0)] * 3) > 0.05
    assert geometric_mean([1, 4]) == 2
    with pytest.raises(ValueError, match="at least 2"):
        ratio_interval([(1.0, 1.0)])


def test_the_interval_of_a_value():
    accuracy = next(m for m in METRICS if m.name == "accuracy")
    labels = np.zeros(100, int)
    interval = value_interval(accuracy, np.eye(2)[labels], labels)
    assert interval.estimate == 1.0
    assert 0.95 < interval.low < 1.0
