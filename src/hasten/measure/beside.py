"""beside: how long models take beside another one, each in fresh processes in turn: what a technique asks that lets time decide."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hasten.errors import OutOfResources
from hasten.measure.judge import Failure, time_once
from hasten.measure.process import Subject
from hasten.measure.worker import Arrays
from hasten.model import Model
from hasten.runtimes import Target


def ratios_beside(original: Model, models: Sequence[Model], runtime: str, target: Target, feeds: Arrays, rounds: int = 1) -> list[float]:
    """The time of each model, of the original's: medians over the rounds, in each of which every model has a process of its own and the original
    one before every second model. Raises OutOfResources with the reason where one can't be timed."""
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        paths = [Path(private) / f"{number}.onnx" for number in range(len(models) + 1)]
        for path, model in zip(paths, (original, *models), strict=True):
            model.save(path)
        found: list[list[float]] = [[] for _ in models]
        for turn in range(rounds):
            order = list(range(len(models)))
            if turn % 2:
                order.reverse()
            beside = 0.0
            for place, number in enumerate(order):
                if place % 2 == 0:
                    beside = _seconds(paths[0], runtime, target, feeds)
                found[number].append(_seconds(paths[number + 1], runtime, target, feeds) / beside)
        return [statistics.median(f) for f in found]


def _seconds(path: Path, runtime: str, target: Target, feeds: Arrays) -> float:
    timed = time_once(Subject(runtime, path, target), feeds)
    if isinstance(timed, Failure):
        raise OutOfResources(f"a model could not be timed in {runtime}: {timed.reason}")
    return timed.seconds
