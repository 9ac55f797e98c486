"""Task: what a model is for. Samples, splits, metric; bound to a model it knows which output is judged and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Samples(Protocol):
    """Samples in order. `take` gives a batch by input name, ready for the model: its dtype, its layout, preprocessed."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some of the samples, with labels (N, ...) or None."""

    samples: Samples
    labels: Array | None
    indices: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds for `size` samples at a time; the last batch may be smaller. Memory: one batch."""
        for start in range(0, len(self), size):
            yield self.samples.take(self.indices[start : start + size])


@dataclasses.dataclass(frozen=True)
class Metric:
    """How good outputs are. One of the two kinds is given:

    per_sample(outputs, labels) -> (N,) float array, whose mean is the value; or
    whole_set(outputs, labels) -> float, resampled by indices for its interval.
    `chance(outputs, labels) -> float` is what guessing would reach, None where that is undefined.
    """

    name: str
    higher_is_better: bool
    per_sample: Callable[[Array, Array], Array] | None = None
    whole_set: Callable[[Array, Array], float] | None = None
    chance: Callable[[Array, Array], float] | None = None

    def value(self, outputs: Array, labels: Array) -> float:
        if self.per_sample is not None:
            return float(np.mean(self.per_sample(outputs, labels)))
        assert self.whole_set is not None
        return float(self.whole_set(outputs, labels))


@dataclasses.dataclass(frozen=True, eq=False)
class BoundTask:
    """A Task bound to a model: what techniques and the judge read. Any split may be None (no data)."""

    calibrate: Split | None
    validate: Split | None
    test: Split | None
    metric: Metric
    output: str
    notes: tuple[str, ...]
    digest: str
    observation: dict[str, Any] | None = None
    """What an earlier run of a technique's `observe` saw (plain JSON values); with it a plan replays without data."""


def without_data() -> BoundTask:
    """A task for a model that came without data: nothing to calibrate on, nothing to judge accuracy by."""
    return BoundTask(None, None, None, Metric("none", higher_is_better=True), "", (), "none")
