"""Time per layer: what a runtime spends in each node that it executes, by the runtime's own profiler, in a worker process of its own."""

from __future__ import annotations

import dataclasses
import statistics as stats

from hasten.measure import judge
from hasten.measure.judge import Failure
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.measure.worker import Arrays

PROFILED = ("onnxruntime", "openvino", "native")
"""Runtimes with a profiler: those whose file has a function `profile`."""

CALLS, SECONDS = 200, 1.5
"""Calls that are profiled, and the time after which fewer must do."""


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """One executed node: the runtime's own name for it (it fuses and renames), its operator or kind, and its seconds a call."""

    name: str
    op: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The layers in order of execution, and `call_seconds`: a whole call, timed without the profiler in the same process."""

    layers: tuple[LayerTime, ...]
    call_seconds: float

    @property
    def explained(self) -> float:
        """Share of a call that the layers explain, at most 1. For small models the rest, overhead, is most of it."""
        return min(1.0, sum(layer.seconds for layer in self.layers) / self.call_seconds)

    @property
    def overhead(self) -> float:
        """Seconds of a call that no layer explains; 0 where profiling itself costs more than that."""
        return max(0.0, self.call_seconds - sum(layer.seconds for layer in self.layers))


def layer_times(subject: Subject, feeds: Arrays, calls: int = CALLS) -> tuple[LayerTime, ...] | Failure:
    """Seconds a call of every executed node, in order; Failure where the runtime has no profiler or the model can't be run."""
    found = profile(subject, feeds, calls)
    return found if isinstance(found, Failure) else found.layers


def profile(subject: Subject, feeds: Arrays, calls: int = CALLS) -> Profile | Failure:
    """The layers and the whole call. Units and resolution are the profiler's: whole microseconds, made finer where calls can be told apart."""
    if subject.runtime not in PROFILED:
        return Failure(f"{subject.runtime} tells no time per layer; {', '.join(PROFILED[:-1])} and {PROFILED[-1]} do")
    try:
        with Worker(subject) as worker:
            rounds, _, _ = worker.time(feeds, judge.ROUNDS, judge.ROUND_SECONDS)
            return Profile(tuple(LayerTime(*layer) for layer in worker.layers(feeds, calls, SECONDS)), stats.median(rounds))
    except WorkerFailed as e:
        return Failure(str(e))
