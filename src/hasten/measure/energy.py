"""Energy of a call: measured by the processor's own counters where they can be read, else estimated from CPU time, and labelled so."""

from __future__ import annotations

import dataclasses
import math
import statistics as stats
from typing import Any

from hasten.errors import BadInput
from hasten.measure import rapl
from hasten.measure.process import Subject, Worker
from hasten.measure.worker import Arrays

MEASURED, ESTIMATED = "measured", "estimated"
WATTS_PER_CORE = 6.0
"""Watts of a busy core where nothing better is known: a server processor's TDP by its cores (350 W / 56, 280 W / 64, 205 W / 28: 4 to 7)."""

ROUNDS, SECONDS = 3, 0.3


@dataclasses.dataclass(frozen=True)
class Energy:
    """Joules of one call of one batch, the median over fresh processes. `how`: measured or estimated; `method` says by what.

    `cpu_seconds`: CPU time of a call, all threads; `watts_per_core`: what an estimate multiplied it with, None where it was measured.
    """

    joules: float
    how: str
    method: str
    cpu_seconds: float
    watts_per_core: float | None

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
            f"processes included; median of {ROUNDS} fresh processes"
        )
    return (
        f"estimated: CPU time of a call (user and system, all threads) × {watts_per_core:g} W a core; the RAPL counters can't be read here; "
        f"median of {ROUNDS} fresh processes"
    )


def energy(subject: Subject, feeds: Arrays, watts_per_core: float = WATTS_PER_CORE) -> Energy:
    """Energy of a call. Raises BadInput for watts that make no sense, WorkerFailed where the subject does not run."""
    check_watts(watts_per_core)
    said, rounds = method(watts_per_core), []
    for _ in range(ROUNDS):
        with Worker(subject) as worker:
            rounds.append(worker.energy(feeds, SECONDS))
    busy = stats.median(r["cpu_seconds"] / r["calls"] for r in rounds)
    spent = [r["joules"] / r["calls"] for r in rounds if r["joules"] is not None]
    if said.startswith(MEASURED) and len(spent) == len(rounds):
        return Energy(stats.median(spent), MEASURED, said, busy, None)
    return Energy(busy * watts_per_core, ESTIMATED, said, busy, watts_per_core)
