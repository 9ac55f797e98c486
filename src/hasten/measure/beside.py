"""beside: how long models take beside another one, each in fresh processes in turn: what a technique asks that lets time decide."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.errors import OutOfResources
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.process import Subject
from hasten.measure.statistics import Interval, ratio_interval
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


def _seconds(path: Path, runtime: str, target: Target, feeds: Arrays) -> float:
    timed = judge.time_once(Subject(runtime, path, target), feeds)
    if isinstance(timed, Failure):
        raise OutOfResources(f"a model could not be timed in {runtime}: {timed.reason}")
    return timed.seconds
