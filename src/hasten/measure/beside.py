"""beside: how long models take beside another one: what a technique asks that lets time decide.

Both have a process of their own and take turns every few hundredths of a second, so that the machine's own speed, which drifts by tens of percent in
a minute, is the same for both; what counts in a turn is the 10th percentile of single calls, which other work on the machine hardly touches. It
tells which of two shapes is faster; what a user is told is measured by the judge.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hasten.errors import OutOfResources
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.measure.statistics import Interval, ratio_interval
from hasten.measure.worker import Arrays
from hasten.model import Model
from hasten.runtimes import Target

UNDISTURBED = 10.0
"""The percentile of single calls that is taken."""

TURNS, TURN_SECONDS = 8, 0.025


def ratios_beside(original: Model, models: Sequence[Model], runtime: str, target: Target, feeds: Arrays, rounds: int = 1) -> list[float]:
    """The time of each model, of the original's: medians over the turns of `rounds` fresh pairs of processes. Raises OutOfResources where one can't
    be timed."""
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        paths = [Path(private) / f"{number}.onnx" for number in range(len(models) + 1)]
        for path, model in zip(paths, (original, *models), strict=True):
            model.save(path)
        ratios: list[list[float]] = [[] for _ in models]
        try:
            for _ in range(rounds):
                with Worker(Subject(runtime, paths[0], target)) as first:
                    for path, mine in zip(paths[1:], ratios, strict=True):
                        with Worker(Subject(runtime, path, target)) as other:
                            mine += [_undisturbed(other, feeds) / _undisturbed(first, feeds) for _ in range(TURNS)]
        except WorkerFailed as e:
            raise OutOfResources(f"a model could not be timed in {runtime}: {e}") from e
        return [statistics.median(r) for r in ratios]


def _undisturbed(worker: Worker, feeds: Arrays) -> float:
    _, calls, _ = worker.time(feeds, rounds=1, seconds=1e-3, calls_seconds=TURN_SECONDS, warm_up=2)
    return float(np.percentile(calls, UNDISTURBED))


def duel(subjects: Mapping[str, Subject], feeds: Arrays, rounds: int, hopeless: float) -> Interval | Failure:
    """How many times faster the second of two subjects is than the first, over rounds of fresh processes; after two rounds no more where it was
    below `hopeless` in both."""
    one, other = subjects
    pairs: list[tuple[float, float]] = []
    for turn in range(rounds):
        timed = judge.duel_round(subjects, feeds, turn)
        first, second = timed[one], timed[other]
        if not isinstance(first, Timing) or not isinstance(second, Timing):
            return next(t for t in (first, second) if isinstance(t, Failure))
        pairs.append((first.seconds, second.seconds))
        if len(pairs) == 2 and all(a < hopeless * b for a, b in pairs):
            break
    return ratio_interval(pairs)
