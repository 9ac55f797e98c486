"""ranges: the values that tensors take over the calibration samples: each element's range, and the size of each sample.

Value profiling, as compilers do it (Calder, Feller and Eustace, MICRO 1997), of tensors. Memory: twice the activations of one sample, and about CHUNK
of values that are seen at once; where that is less than the whole, the samples are run once for each part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from hasten.calibrate import BATCH, tensors
from hasten.graph import Array
from hasten.rewrite import dims
from hasten.task import BoundTask

CHUNK = 64 << 20
"""Bytes of a batch's values that are seen at once."""

UNKNOWN = 128
"""What a size that is not known counts as."""


class Range:
    """What was seen of one tensor. `samples`: how many; `rms`: the root mean square of each of them (of each batch, where samples have no axis).

    `low`, `high`: (the tensor's shape without the samples' axis) of each element over the samples, as long as `whole`; else, where the tensor has no
    axis of samples or its shape varies, (channels,) along `axis`, which counts from the end, or one number where there is none.
    """

    def __init__(self, axis: int | None, whole: bool = True) -> None:
        self.axis, self.whole, self.samples = axis, whole, 0
        self.low: Array = np.empty(0)
        self.high: Array = np.empty(0)
        self.rms: list[float] = []

    def see(self, x: Array, here: int) -> None:
        """A batch of `here` samples."""
        rows = x.ndim > 0 and len(x) == here
        if self.whole and not (rows and (not self.samples or self.low.shape == x.shape[1:])):
            self.low, self.high = self.along(self.axis) if self.samples else (self.low, self.high)
            self.whole = False
        with np.errstate(invalid="ignore"):
            low, high = (x.min(0), x.max(0)) if self.whole else (_over(x.min, x.ndim, self.axis), _over(x.max, x.ndim, self.axis))
            self.low, self.high = (np.minimum(self.low, low), np.maximum(self.high, high)) if self.samples else (low, high)
        flat = np.square(x.reshape(here if rows else 1, -1), dtype=np.float64)
        self.rms += np.sqrt(flat.mean(1)).tolist()
        self.samples += here

    def along(self, axis: int | None) -> tuple[Array, Array]:
        """(low, high), each (channels,) along that axis, or one number where that is not known."""
        if self.whole:
            return _over(self.low.min, self.low.ndim, axis), _over(self.high.max, self.high.ndim, axis)
        return (self.low, self.high) if axis == self.axis else (self.low.min(), self.high.max())


def _over(reduce: Callable[..., Array], rank: int, axis: int | None) -> Array:
    """A reduction over all axes but one."""
    return np.asarray(reduce(axis=None if axis is None else tuple(a for a in range(rank) if a != rank + axis)))


def ranges(edited: ir.Model, wanted: Mapping[str, int | None], samples: int, task: BoundTask) -> dict[str, Range]:
    """The ranges of the tensors of these names, over at most `samples` of the calibration split; with each its axis of channels, None for none."""
    values = {v.name: v for v in (*edited.graph.inputs, *(o for node in edited.graph for o in node.outputs))}
    batch = next(((dims(v) or (None,))[0] for v in edited.graph.inputs), None)
    found = {name: Range(axis, _has_samples(values[name], batch)) for name, axis in wanted.items()}
    for some in _parts(values, list(wanted)):
        for name, x, count in tensors(edited, some, samples, task):
            found[name].see(
                x[None] if batch == 1 and found[name].whole and (dims(values[name]) or (0,))[0] != 1 else x, count - found[name].samples
            )
    return found


def _has_samples(value: ir.Value, batch: int | str | None) -> bool:
    """Whether the first axis can be that of the samples. A model of one sample at a time needs none."""
    known = dims(value)
    return batch == 1 or (known is not None and len(known) > 0 and (known[0] == batch or not isinstance(known[0], int)))


def _parts(values: Mapping[str | None, ir.Value], names: list[str]) -> Iterator[list[str]]:
    """The names in parts whose values are CHUNK bytes at most (one value may be more)."""
    some: list[str] = []
    total = 0
    for name in names:
        if some and total + _bytes(values[name]) > CHUNK:
            yield some
            some, total = [], 0
        some.append(name)
        total += _bytes(values[name])
    if some:
        yield some


def _bytes(value: ir.Value) -> int:
    known = dims(value) or (None, None)
    return 4 * math.prod(d if isinstance(d, int) else BATCH if i == 0 else UNKNOWN for i, d in enumerate(known))
