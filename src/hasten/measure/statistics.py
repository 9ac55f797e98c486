"""The statistics of the judge: intervals over processes and over paired samples, and the verdict on a budget.

Coverage of every interval and the false-positive rate of the verdict are simulated by `benchmarks/coverage.py` and held by a test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.task import Metric

Array = NDArray[Any]
RESAMPLES = 1000
NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval. `bound_low`/`bound_high` are the one-sided bounds of the same level."""

    estimate: float
    low: float
    high: float
    level: float = 0.95
    bound_low: float | None = None
    bound_high: float | None = None

    def mirrored(self) -> Interval:
        """The interval of the negated value."""
        low, high = self.bound_low, self.bound_high
        return Interval(-self.estimate, -self.high, -self.low, self.level, None if high is None else -high, None if low is None else -low)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On a budget for the drop: `proven` (the one-sided 95 % bound keeps it), `not shown` (the estimate keeps it), `broken`.

    `worst` is that bound: the largest drop that the data leaves plausible. `samples_needed`: about so many more samples would decide
    a `not shown`, None where none are needed or no number would do.
    """

    state: str
    drop: float
    worst: float
    samples_needed: int | None


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean of logs; values above 0."""
    return math.exp(sum(math.log(v) for v in values) / len(values))


def ratio_interval(pairs: Sequence[tuple[float, float]], level: float = 0.95) -> Interval:
    """How many times faster the second of each pair is: geometric mean of first/second over process pairs, Student's t on the logs.

    Over processes and not over rounds: two processes of the same thing differ for their whole life, so rounds within one process are
    not independent, and an interval over them misses the truth almost always. Raises ValueError for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"an interval over process pairs needs at least 2 of them, got {len(pairs)}")
    logs = [math.log(a / b) for a, b in pairs]
    n = len(logs)
    mean = sum(logs) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in logs) / (n - 1) / n)
    half = student_t(0.5 + level / 2, n - 1) * error
    one = student_t(level, n - 1) * error
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), level, math.exp(mean - one), math.exp(mean + one))


def noise_floor(pairs: Sequence[tuple[float, float]]) -> float:
    """What a comparison of a thing with itself, measured the same way, shows as a difference: the share below which nothing is claimed.

    The A/A interval's farther end from 1, as |log ratio|; about twice the standard error of a comparison.
    """
    interval = ratio_interval(pairs)
    half = (math.log(interval.high) - math.log(interval.low)) / 2
    return math.expm1(max(half, abs(math.log(interval.estimate))))


def paired_difference(before: Array, after: Array, level: float = 0.95) -> Interval:
    """after − before, means over the same samples; (N,) scores each.

    Scores of 0 and 1: the score interval of Tango (Statistics in Medicine 17, 1998), right also where nothing or all flipped.
    Otherwise Student's t on the differences. Raises ValueError for fewer than two samples.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    n = len(before)
    if n < 2 or before.shape != after.shape:
        raise ValueError(f"paired scores need one shape (N,) with N ≥ 2, got {before.shape} and {after.shape}")
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        gained, lost = int(np.sum(after > before)), int(np.sum(after < before))
        low, high = tango(gained, lost, n, level)
        one_low, one_high = tango(gained, lost, n, 2 * level - 1)
        return Interval((gained - lost) / n, low, high, level, one_low, one_high)
    difference = after - before
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n)
    half, one = student_t(0.5 + level / 2, n - 1) * error, student_t(level, n - 1) * error
    return Interval(mean, mean - half, mean + half, level, mean - one, mean + one)


def tango(gained: int, lost: int, n: int, level: float) -> tuple[float, float]:
    """Tango's score interval for (gained − lost) / n, from `gained` and `lost` discordant pairs of n.

    The bounds are the δ at which the score statistic (b − c − nδ) / sqrt(n (2 q + δ (1 − δ))) is ±z, q being the maximum likelihood
    estimate of the probability of a loss at that δ; found by bisection, because the statistic falls strictly with δ.
    """
    z = NORMAL.inv_cdf(0.5 + level / 2)

    def statistic(delta: float) -> float:
        # Restricted maximum likelihood estimate of the loss probability q21 (Tango 1998, appendix): the root of A q² + B q + C = 0.
        a, b, c = 2 * n, -gained - lost + (2 * n - gained + lost) * delta, -lost * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        top = gained - lost - n * delta
        return top / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, top) if top else 0.0

    estimate = (gained - lost) / n
    return _bisect(lambda d: statistic(d) - z, -1.0, estimate), _bisect(lambda d: statistic(d) + z, estimate, 1.0)


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def whole_set_difference(
    metric: Callable[[Array, Array], float], before: Array, after: Array, labels: Array, seed: int = 0, level: float = 0.95
) -> Interval:
    """after − before of a metric of the whole set: paired bootstrap over the samples' indices, centred percentiles with a t correction.

    The percentile interval of a bootstrap is short by about sqrt((n−1)/n) and by t against z; at n of 100 and more that is below 1 %.
    """
    n = len(labels)
    rng = np.random.default_rng(seed)
    estimate = metric(after, labels) - metric(before, labels)
    draws = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        index = rng.integers(0, n, n)
        draws[i] = metric(after[index], labels[index]) - metric(before[index], labels[index])
    draws = draws[np.isfinite(draws)]
    return _bootstrap(estimate, draws, level)


def value_interval(metric: Metric, outputs: Array, labels: Array, seed: int = 0, level: float = 0.95) -> Interval:
    """The 95 % interval of a metric's own value: Wilson's for 0/1 scores, t for others, bootstrap for metrics of the whole set."""
    n = len(labels)
    if metric.per_sample is None:
        assert metric.whole_set is not None
        rng = np.random.default_rng(seed)
        draws = []
        for _ in range(RESAMPLES):
            index = rng.integers(0, n, n)
            draws.append(metric.whole_set(outputs[index], labels[index]))
        finite = np.asarray(draws)[np.isfinite(draws)]
        return _bootstrap(metric.value(outputs, labels), finite, level)
    scores = np.asarray(metric.per_sample(outputs, labels), np.float64)
    mean = float(scores.mean())
    if np.isin(scores, (0, 1)).all():
        z = NORMAL.inv_cdf(0.5 + level / 2)
        centre, half = (mean + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / 4 / n / n)
        return Interval(mean, centre - half, centre + half, level)
    half = student_t(0.5 + level / 2, n - 1) * float(scores.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, level)


def _bootstrap(estimate: float, draws: Array, level: float) -> Interval:
    """Percentile interval. Raises ValueError where the metric was defined on no resample."""
    if len(draws) < 2:
        raise ValueError("the metric is not defined on resamples of this data: there are too few samples of a class")
    low, one_low, one_high, high = np.quantile(draws, [(1 - level) / 2, 1 - level, level, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, float(one_low), float(one_high))


def verdict(difference: Interval, max_drop: float, samples: int) -> Verdict:
    """Non-inferiority: is the drop (−`difference`, higher being better) within `max_drop`, as the one-sided 95 % bound says?"""
    drop, worst = -difference.estimate, -(difference.low if difference.bound_low is None else difference.bound_low)
    if drop > max_drop:
        return Verdict("broken", drop, worst, None)
    if worst <= max_drop:
        return Verdict("proven", drop, worst, 0)
    spread, room = worst - drop, max_drop - drop
    # The bound's distance from the estimate falls with the root of the number of samples.
    needed = math.ceil(samples * (spread / room) ** 2) - samples if room > 0 else None
    return Verdict("not shown", drop, worst, needed)


def smallest_provable_drop(samples: int, discordant: float = 0.01) -> float:
    """The smallest `max_drop` that `samples` samples prove for a candidate as good as the original of which a share `discordant` flips.

    The one-sided 95 % Tango bound with as many gains as losses.
    """
    flips = max(0, round(samples * discordant / 2))
    return -tango(flips, flips, samples, 0.90)[0]


def student_t(p: float, df: int) -> float:
    """The p-quantile of Student's t with `df` degrees of freedom, by bisection on its distribution function.

    For whole degrees of freedom that is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4): with θ = atan(t / √df),
    P(|T| < t) = sin θ (1 + cos²θ/2 + 1·3 cos⁴θ/(2·4) + …) for even df, and 2/π (θ + sin θ (cos θ + 2/3 cos³θ + …)) for odd df.
    """
    if df > 1000:
        return NORMAL.inv_cdf(p)

    def inside(t: float) -> float:
        theta = math.atan(t / math.sqrt(df))
        sine, cosine = math.sin(theta), math.cos(theta)
        term, total = (cosine, 0.0) if df % 2 else (1.0, 0.0)
        for k in range(1 if df % 2 else 0, df - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total

    if p < 0.5:
        return -student_t(1 - p, df)
    return _bisect(lambda t: 2 * p - 1 - inside(t), 0.0, 1e4)
