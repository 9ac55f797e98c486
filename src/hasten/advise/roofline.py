"""roofline: what each layer and the whole could reach on this machine, and what bounds them: compute, memory or overhead.

A layer of F operations that moves B bytes takes at least max(F / peak, B / bandwidth) seconds; a model takes the sum of these, and besides
the call itself and every node cost something, however little they compute (Williams, Waterman and Patterson, CACM 52 (4), 2009).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hasten.facts import Facts, Row
from hasten.measure.peaks import Peaks

COMPUTE, MEMORY, OVERHEAD = "compute", "memory", "overhead"

MERGED = frozenset(
    ("Relu", "Clip", "LeakyRelu", "BatchNormalization", "Dropout", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Constant", "Shape",
     "QuantizeLinear", "DequantizeLinear")
)  # fmt: skip
"""Operators that runtimes merge into their neighbours, or that only rename memory: they move no bytes of their own."""

OPERATIONS = 2
"""Operations in a multiply-accumulate."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer, or the whole, lies below the roof. Times in seconds.

    compute, memory: what the operations and the bytes take at the peaks. roof: the least time, the larger of the two (summed over layers).
    seconds: as measured, None where it was not. reached: roof / seconds, the share of the machine's best.
    """

    name: str
    op: str
    compute: float
    memory: float
    roof: float
    bound: str
    seconds: float | None = None
    reached: float | None = None


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The layers that compute or move anything, and the whole. `overhead`: seconds of the call and of all nodes; `cached`: whether all that
    the model reads and writes fits into the last level cache, so that the cache's bandwidth counts."""

    layers: tuple[Place, ...]
    whole: Place
    overhead: float
    cached: bool


def roofline(
    facts: Facts, peaks: Peaks, latency: float | None = None, layers: Mapping[str, float] | None = None, executed: int = 0
) -> Roofline:
    """The roofline of a model at its facts' sizes.

    latency: seconds of a call; layers: measured seconds by the node's name; executed: how many nodes the runtime ran (those that it merged
    are gone), 0 where unknown.
    """
    rows = [r for r in facts.rows if r.op not in MERGED]
    cached = peaks.last_level_cache is not None and facts.weight_bytes + _largest(rows) <= peaks.last_level_cache
    bandwidth = peaks.cache if cached else peaks.memory
    places = tuple(_place(r, peaks, bandwidth, (layers or {}).get(r.name)) for r in rows if r.macs or r.activation_bytes or r.weight_bytes)
    compute, memory, roof = (sum(getattr(p, name) for p in places) for name in ("compute", "memory", "roof"))
    overhead = peaks.call + peaks.node * (executed or len(rows))
    bound = OVERHEAD if overhead >= roof else COMPUTE if compute >= memory else MEMORY
    whole = Place("whole", "", compute, memory, roof, bound, latency, roof / latency if latency else None)
    return Roofline(places, whole, overhead, cached)


def _place(row: Row, peaks: Peaks, bandwidth: float, seconds: float | None) -> Place:
    peak = peaks.int8 if row.bits is not None and row.bits <= 8 else peaks.float32
    compute = OPERATIONS * (row.macs or 0) / peak
    memory = (row.weight_bytes + (row.activation_bytes or 0)) / bandwidth
    roof = max(compute, memory)
    return Place(
        row.name, row.op, compute, memory, roof, COMPUTE if compute >= memory else MEMORY, seconds, roof / seconds if seconds else None
    )


def _largest(rows: list[Row]) -> int:
    return max((r.activation_bytes or 0 for r in rows), default=0)
