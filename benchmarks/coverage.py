"""Do the intervals cover what they claim? `python benchmarks/coverage.py [--runs 1000]`: simulated truth, a table, no machine needed.

Times follow the machine that was seen: each process has a speed of its own (1-5 %) that lasts its life, the whole machine drifts by tens of
percent from minute to minute and stalls now and then; a pair of processes shares the drift.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from hasten.measure.statistics import (
    paired_difference,
    ratio_interval,
    smallest_provable_drop,
    value_interval,
    verdict,
    whole_set_difference,
)
from hasten.metrics import f1, resolve

Generator = np.random.Generator
PAIRS = 6


def ratios(process: float, drift: float, stalls: float) -> Callable[[Generator], bool]:
    """Six process pairs of two things of which one is 1.5 times as fast."""

    def once(rng: Generator) -> bool:
        pairs = []
        for _ in range(PAIRS):
            shared = np.exp(drift * rng.standard_normal())
            a, b = (shared * np.exp(process * rng.standard_normal()) * (1.3 if rng.random() < stalls else 1.0) for _ in range(2))
            pairs.append((1.5 * float(a), float(b)))
        interval = ratio_interval(pairs)
        return interval.low <= 1.5 <= interval.high

    return once


def paired(n: int, gain: float, loss: float) -> Callable[[Generator], bool]:
    """Right-or-wrong scores of two models on the same n samples."""

    def once(rng: Generator) -> bool:
        u = rng.random(n)
        before, after = np.where(u < gain, 0.0, 1.0), np.where((u >= gain) & (u < gain + loss), 0.0, 1.0)
        interval = paired_difference(before, after)
        return interval.low <= gain - loss <= interval.high

    return once


def accuracy_of_one(n: int, p: float) -> Callable[[Generator], bool]:
    """Wilson's interval of one model's accuracy."""

    def once(rng: Generator) -> bool:
        right = (rng.random(n) < p).astype(int)
        interval = value_interval(resolve("accuracy"), np.stack([1 - right, right], 1).astype(float), np.ones(n, int))
        return interval.low <= p <= interval.high

    return once


def macro_f1(n: int) -> Callable[[Generator], bool]:
    """The bootstrap of a difference of F1; the truth is that of 400,000 samples."""

    def draw(rng: Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = rng.integers(0, 3, count)
        before = np.where(rng.random(count) < 0.1, (labels + 1) % 3, labels)
        after = np.where(rng.random(count) < 0.05, (labels + 2) % 3, before)
        return np.eye(3)[before], np.eye(3)[after], labels

    before, after, labels = draw(np.random.default_rng(99), 400_000)
    truth = f1(after, labels) - f1(before, labels)

    def once(rng: Generator) -> bool:
        before, after, labels = draw(rng, n)
        interval = whole_set_difference(f1, before, after, labels, seed=int(rng.integers(1 << 31)))
        return interval.low <= truth <= interval.high

    return once


def falsely_proven(n: int, drop: float, flips: float) -> Callable[[Generator], bool]:
    """A candidate exactly at the edge of its budget that the verdict calls proven."""

    def once(rng: Generator) -> bool:
        u = rng.random(n)
        before, after = np.where(u < flips, 0.0, 1.0), np.where((u >= flips) & (u < 2 * flips + drop), 0.0, 1.0)
        return verdict(paired_difference(before, after), drop, n).state == "proven"

    return once


def provable(n: int, flips: float) -> Callable[[Generator], bool]:
    """A candidate as good as the original, judged with the smallest drop that was announced as provable."""
    announced = smallest_provable_drop(n, flips)

    def once(rng: Generator) -> bool:
        u = rng.random(n)
        before, after = np.where(u < flips / 2, 0.0, 1.0), np.where((u >= flips / 2) & (u < flips), 0.0, 1.0)
        return verdict(paired_difference(before, after), announced, n).state == "proven"

    return once


def cases() -> Iterator[tuple[str, str, Callable[[Generator], bool]]]:
    """(what, what is expected, one run)."""
    for process, drift, stalls in ((0.01, 0.0, 0.0), (0.03, 0.2, 0.0), (0.05, 0.3, 0.1)):
        yield f"speed ratio: processes ±{process:.0%}, drift ±{drift:.0%}, stalls {stalls:.0%}", "93-97 %", ratios(process, drift, stalls)
    for n, gain, loss in ((200, 0.05, 0.05), (400, 0.02, 0.03), (1000, 0.01, 0.015), (10_000, 0.002, 0.004)):
        yield f"accuracy difference: {n} samples, +{gain:.1%} −{loss:.1%}", "93-97 %", paired(n, gain, loss)
    for n, p in ((300, 0.7), (1000, 0.92), (10_000, 0.99)):
        yield f"accuracy of one model: {n} samples at {p:.0%}", "93-97 %", accuracy_of_one(n, p)
    yield "F1 difference: 300 samples, bootstrap", "93-97 %", macro_f1(300)
    for n, drop, flips in ((400, 0.02, 0.01), (1000, 0.01, 0.01), (10_000, 0.005, 0.003)):
        yield f"proven at the edge: {n} samples, drop {drop:.1%}", "≤ 5 %", falsely_proven(n, drop, flips)
    for n in (400, 10_000):
        yield f"proven as announced: {n} samples, equal models, 1 % flips", "about half", provable(n, 0.01)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    for number, (what, expected, once) in enumerate(cases()):
        rng = np.random.default_rng(number)
        print(f"{what:72s} {sum(once(rng) for _ in range(runs)) / runs:7.1%}   expected {expected}", flush=True)


if __name__ == "__main__":
    main()
