"""Energy of a call: measured by the processor's own counters where they can be read, else estimated from CPU time, and labelled so."""

from __future__ import annotations

import dataclasses
import math
import statistics as stats
from collections.abc import Mapping
from typing import Any

from hasten.errors import BadInput
from hasten.measure import rapl
from hasten.measure.process import Subject, Worker
from hasten.measure.statistics import Interval, ratio_interval
from hasten.measure.worker import Arrays

MEASURED, ESTIMATED = "measured", "estimated"
WATTS_PER_CORE = 6.0
"""Watts of a busy core where nothing better is known: a server processor's TDP by its cores (350 W / 56, 280 W / 64, 205 W / 28: 4 to 7)."""

ROUNDS, SECONDS = 4, 0.3


@dataclasses.dataclass(frozen=True)
class Energy:
    """Joules of one call of one batch, the median over fresh processes. `how`: measured or estimated; `method` says by what.

    `cpu_seconds`: CPU time of a call, all threads; `watts_per_core`: what an estimate multiplied it with, None where it was measured.
    `ratio`: how many times less than the first of those measured together, over the rounds' pairs; None for the first itself.
    """

    joules: float
    how: str
    method: str
    cpu_seconds: float
    watts_per_core: float | None
    ratio: Interval | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_watts(watts_per_core: float) -> None:
    """Raises BadInput."""
    if not (math.isfinite(watts_per_core) and watts_per_core > 0):
        raise BadInput(f"--watts-per-core is {watts_per_core}, expected a number above 0, such as {WATTS_PER_CORE:g}")


def method(watts_per_core: float = WATTS_PER_CORE) -> str:
    """How energy is had on this machine, in words."""
    if rapl.zones():
        return (
            f"measured: RAPL counters of all processors and their memory around about {SECONDS:g} s of calls, idle power and other "
            f"processes included; median of {ROUNDS} rounds of fresh processes"
        )
    return (
        f"estimated: CPU time of a call (user and system, all threads) × {watts_per_core:g} W a core; the RAPL counters can't be read here; "
        f"median of {ROUNDS} rounds of fresh processes"
    )


def energy(subjects: Mapping[str, Subject], feeds: Arrays, watts_per_core: float = WATTS_PER_CORE) -> dict[str, Energy]:
    """Energy of a call of each, in rounds of fresh processes, the order alternated.

    Raises BadInput for watts that make no sense, WorkerFailed where a subject does not run.
    """
    check_watts(watts_per_core)
    said, names = method(watts_per_core), list(subjects)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in names if turn % 2 == 0 else reversed(names):
            with Worker(subjects[name]) as worker:
                rounds[name].append(worker.energy(feeds, SECONDS))
    measured = said.startswith(MEASURED)
    calls = {name: [(r["joules"] if measured else r["cpu_seconds"] * watts_per_core) / r["calls"] for r in rounds[name]] for name in names}
    return {
        name: Energy(
            stats.median(calls[name]),
            MEASURED if measured else ESTIMATED,
            said,
            stats.median(r["cpu_seconds"] / r["calls"] for r in rounds[name]),
            None if measured else watts_per_core,
            _ratio(calls[names[0]], calls[name]) if name != names[0] else None,
        )
        for name in names
    }


def _ratio(first: list[float], other: list[float]) -> Interval | None:
    """Over the rounds' pairs; None where a counter did not move."""
    pairs = list(zip(first, other, strict=True))
    return ratio_interval(pairs) if all(a > 0 and b > 0 for a, b in pairs) else None
