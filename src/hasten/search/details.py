"""What the report shows beyond the choice itself: time per layer, single calls, classes, history. Measured once the choice is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hasten.measure import layers
from hasten.measure.compare import class_changes
from hasten.measure.judge import Failure
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.model import Model
from hasten.search.result import Outcome
from hasten.search.run import Run

RANKS = (*range(1, 50, 2), 50, *range(51, 100, 2))
"""Percentiles of single calls that are kept: enough for a curve, p50, p95 and p99 among them."""

PROCESSES, CALLS_SECONDS = 3, 0.4
"""Fresh processes of each, one after the other in turn, and the time for single calls in each."""

BEFORE, AFTER = "before", "after"


def details(run: Run, original: Outcome, chosen: Outcome) -> dict[str, Any]:
    """For manifest["details"]; `before` is the original, `after` the chosen one, which is left out where the original was kept.

    `history`, `splits` (samples), `rounds` of the finals; `layers`, `latency`, `classes` and `flips` where they can be had. Each measurement
    is remembered, so a resumed run does not repeat it; one that failed is {"failed": why}; past the time limit nothing is begun.
    """
    sides = {BEFORE: original} if chosen is original else {BEFORE: original, AFTER: chosen}
    found: dict[str, Any] = {
        "history": [dataclasses.asdict(step) for step in Model.load(run.path(chosen.candidate.recipe)).history],
        "splits": _splits(run),
        "rounds": len(chosen.rounds) or None,
        "layers": _layers(run, sides),
        "latency": _latency(run, sides),
        **_classes(run, chosen),
    }
    return {k: v for k, v in found.items() if v is not None}


def _splits(run: Run) -> dict[str, int] | None:
    if run.task is None:
        return None
    return {name: len(split) for name in ("calibrate", "validate", "test") if (split := getattr(run.task, name)) is not None}


def _layers(run: Run, sides: dict[str, Outcome]) -> dict[str, Any] | None:
    """{before: {"layers": [{name, op, seconds}], "call_seconds"}, after: …}; a side whose runtime tells nothing is {"failed": why}."""
    method = "the runtime's own profiler, in one process of its own; call_seconds is without it"
    found = {}
    for side, outcome in sides.items():

        def compute(outcome: Outcome = outcome) -> dict[str, Any]:
            profile = layers.profile(run.subject(outcome.candidate), run.feeds)
            return {"failed": profile.reason} if isinstance(profile, Failure) else dataclasses.asdict(profile)

        values = _within_limit(run, "layers", outcome.candidate.name, method, compute)
        if values is not None:
            found[side] = values
    return found or None


def _latency(run: Run, sides: dict[str, Outcome]) -> dict[str, Any] | None:
    """{"ranks", before: seconds of a single call at each rank, after: …, "calls": {…}}, over a few fresh processes in turn."""
    names = [o.candidate.name for o in sides.values()]
    method = f"percentiles of single calls, pooled over {PROCESSES} fresh processes of each, in turn"

    def compute() -> dict[str, Any]:
        calls: dict[str, list[float]] = {side: [] for side in sides}
        try:
            for _ in range(PROCESSES):
                for side, outcome in sides.items():
                    calls[side] += _single_calls(run, run.subject(outcome.candidate))
        except WorkerFailed as e:
            return {"failed": str(e)}
        curves = {side: np.percentile(values, RANKS).tolist() for side, values in calls.items()}
        return {"ranks": list(RANKS), "calls": {side: len(values) for side, values in calls.items()}, **curves}

    return _within_limit(run, "latency", " | ".join(names), method, compute)


def _single_calls(run: Run, subject: Subject) -> list[float]:
    with Worker(subject) as worker:
        return worker.time(run.feeds, 1, CALLS_SECONDS / 4, CALLS_SECONDS)[1]


def _classes(run: Run, chosen: Outcome) -> dict[str, Any]:
    """`classes` [{label, before, after, samples}] and `flips` on the test split; nothing where there are no class scores."""
    if run.task is None or chosen.test is None:
        return {}

    def compute() -> dict[str, Any]:
        given = run.split("test").labels
        classes, flips = class_changes(run.predictions(run.baseline, "test"), run.predictions(chosen.candidate, "test"), given)
        return {"classes": [dataclasses.asdict(c) for c in classes] or None, "flips": flips}

    said = "recall of each class on the test split, and the samples whose predicted class changed"
    return _within_limit(run, "classes", chosen.candidate.name, said, compute) or {}


def _within_limit(run: Run, kind: str, subject: str, method: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Remembered, or measured while the time limit allows it; else None."""
    if run.left <= 0 and run.records.get(f"{kind}:{subject}") is None:
        return None
    return run.remember(kind, subject, method, compute)
