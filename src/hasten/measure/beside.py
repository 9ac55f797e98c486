"""beside: how long models take beside another one: what a technique asks that lets time decide.

Both have a process of their own and take turns every few hundredths of a second, so that the machine's own speed, which drifts by tens of percent in
a minute, is the same for both; what counts in a turn is the 10th percentile of single calls, which other work on the machine hardly touches. It
tells which of two shapes is faster; what a user is told is measured by the judge.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hasten.errors import OutOfResources
from hasten.measure.process import Subject, Worker, WorkerFailed
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
