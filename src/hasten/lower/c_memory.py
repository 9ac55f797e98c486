"""c_memory: a plan for a microcontroller: no halos, codes in and out, and tensors that share memory even while one is made of the other.

An op that reads x for the last time and writes y may write where it has read: pixel by pixel, y may begin `distance` bytes below x, or lower. How
far, follows from the order in which the kernels of c_kernels.c go; a depthwise 3 × 3 needs hardly more than a row (diagonal memory optimisation,
arXiv 2010.01000). Then tensors are placed greedily (as in `arena`), in several orders, and the smallest arena is taken.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.graph import Array
from hasten.lower import ops
from hasten.lower.plan import INPUT, OUTPUT, Plan, Tensor

TRIES, WORK = 400, 2_000_000
"""Orders that are tried, at most; fewer where a try looks at many pairs of tensors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Steps without those at the model's edge, by name; where each tensor begins; the arena's bytes.

    inputs: the tensor that holds each input's codes, and what they mean. outputs: the tensor of each output (in the caller's memory), and what its
    codes mean (None: whole numbers in a unit). offsets: of the tensors in the arena, inputs among them.
    """

    steps: tuple[tuple[str, Any], ...]
    inputs: tuple[tuple[Tensor, ops.Quantization], ...]
    outputs: tuple[tuple[Tensor, ops.Quantization | None], ...]
    units: tuple[float, ...]
    offsets: dict[Tensor, int]
    arena: int


class NoLayout(Exception):
    """Why a plan has no C code, in one sentence."""


def layout(plan: Plan) -> Layout:
    """The layout of a plan in fixed point; it takes the plan's tensors for its own. Raises NoLayout."""
    for tensor in plan.tensors:
        tensor.halo, tensor.wide = (0, 0, 0, 0), 0
    inputs: dict[int, tuple[Tensor, ops.Quantization]] = {}
    outputs: dict[int, tuple[Tensor, ops.Quantization | None]] = {}
    units: dict[int, float] = {}
    steps: list[tuple[str, Any]] = []
    for name, op in zip(plan.names, plan.ops, strict=True):
        if isinstance(op, ops.Quantize):
            assert op.x.port is not None
            if op.x.port[1] in inputs:
                raise NoLayout(f"input {plan.inputs[op.x.port[1]].name} is quantized in two ways")
            inputs[op.x.port[1]] = (op.y, op.to)
        elif isinstance(op, ops.Dequantize):
            assert op.y.port is not None
            number, x = op.y.port[1], op.x
            units[number] = 1.0
            if x.base is None and x.port is None and all(x is not t for t, _ in inputs.values()):
                x.port = op.y.port
                outputs[number] = (x, op.of)
            else:
                outputs[number] = (Tensor(x.h, x.w, x.c, port=op.y.port), op.of)
                steps.append((name, ops.Map(x, outputs[number][0])))
        else:
            steps.append((name, op))
            if op.y.port is not None and op.y.port[0] == OUTPUT and op.y.type == "float32":
                outputs[op.y.port[1]], units[op.y.port[1]] = (op.y, None), op.unit
    for i, port in enumerate(plan.inputs):
        if i not in inputs:
            raise NoLayout(f"input {port.name} is not read")
    held = tuple(t for _, (t, _) in sorted(inputs.items()))
    offsets, arena = _place([op for _, op in steps], held)
    count = len(plan.outputs)
    ordered = tuple(inputs[i] for i in range(len(inputs)))
    return Layout(tuple(steps), ordered, tuple(outputs[i] for i in range(count)), tuple(units[i] for i in range(count)), offsets, arena)


def size_of(t: Tensor) -> int:
    """Bytes of a tensor's memory."""
    return t.root.h * t.root.w * t.root.c * (4 if t.root.type == "float32" else 1)


def distance(op: Any, x: Tensor) -> int:
    """The bytes that y's memory must at least begin below that of x, so that nothing of x is overwritten before it was read.

    After the outputs up to p were written, up to address y0 + W(p), what is still to be read of x begins at x0 + R(p): x0 − y0 > max W(p) − R(p).
    """
    y = op.y
    rows, columns = np.arange(y.h), np.arange(y.w)
    first_row, first_column = rows, columns
    window = isinstance(op, ops.Layer | ops.Pool) and x is op.x
    if window:
        (top, _), (left, _) = op.slide.pads
        first_row = _first(rows * op.slide.strides[0] - top, op.slide.dilations[0])
        first_column = _first(columns * op.slide.strides[1] - left, op.slide.dilations[1])
    read = x.origin + (first_row[:, None] * x.row + first_column * x.pixel).reshape(-1)
    written = y.origin + (rows[:, None] * y.row + columns * y.pixel).reshape(-1)
    if isinstance(op, ops.Conv) and window:  # every channel of y reads all of x's: the pixel itself is still needed
        return int((np.maximum.accumulate(written + y.c - 1) - _rest(read)).max()) + 1
    channels = np.arange(y.c)
    read, written = (read[:, None] + channels).reshape(-1), (written[:, None] + channels).reshape(-1)
    return int((np.maximum.accumulate(written)[:-1] - _rest(read)[1:]).max(initial=-(2**31))) + 1


def _first(begin: Array, step: int) -> Array:
    """The first of the places begin, begin + step, … that lies inside."""
    return np.where(begin < 0, begin + -(begin // step) * step, begin)


def _rest(read: Array) -> Array:
    """The lowest address that is read from each place on."""
    return np.minimum.accumulate(read[::-1])[::-1]


def _place(steps: Sequence[Any], inputs: Sequence[Tensor]) -> tuple[dict[Tensor, int], int]:
    """(the offset of each tensor in the arena, bytes of the arena)."""
    lives: dict[Tensor, tuple[int, int]] = dict.fromkeys(inputs, (-1, -1))
    for i, op in enumerate(steps):
        for t in (op.y, *op.reads):
            if t.root.port is None or t.root.port[0] == INPUT:
                lives[t.root] = (lives.get(t.root, (i, i))[0], i)
    below: dict[tuple[Tensor, Tensor], int] = {}
    for i, op in enumerate(steps):
        y = op.y.root
        for x in {t.root for t in op.reads}:
            if y in lives and x in lives and lives[x][1] == i == lives[y][0] and x is not y:
                below[x, y] = min(size_of(y), max(distance(op, t) for t in op.reads if t.root is x))
    tensors = list(lives)
    meets = {t: [p for p in tensors if p is not t and lives[p][0] <= lives[t][1] and lives[t][0] <= lives[p][1]] for t in tensors}
    orders = [sorted(tensors, key=lambda t: (-size_of(t), lives[t])), sorted(tensors, key=lambda t: lives[t])]
    orders.append(orders[1][::-1])
    best = min((_first_fit(order, meets, below) for order in orders), key=lambda found: found[1])
    order = min(orders, key=lambda o: _first_fit(o, meets, below)[1])
    least = max((sum(size_of(t) for t in tensors if lives[t][0] <= i <= lives[t][1] and not _shared(t, i, lives, below)) for i in
                 range(-1, len(steps))), default=0)  # fmt: skip
    rng = random.Random(0)
    for _ in range(min(TRIES, WORK // max(1, sum(map(len, meets.values()))))):
        if best[1] <= least or len(order) < 2:
            break
        a, b = rng.sample(range(len(order)), 2)
        changed = list(order)
        changed.insert(b, changed.pop(a))
        found = _first_fit(changed, meets, below)
        if found[1] <= best[1]:
            best, order = found, changed
    return best


def _shared(t: Tensor, i: int, lives: dict[Tensor, tuple[int, int]], below: dict[tuple[Tensor, Tensor], int]) -> bool:
    """Whether at step i another tensor, no smaller, may lie over t: then t does not count in a lower bound."""
    if lives[t][1] == i:
        over = [y for x, y in below if x is t]
        return any(size_of(y) >= size_of(t) for y in over)
    under = [x for x, y in below if y is t and lives[y][0] == i]
    return any(size_of(x) > size_of(t) for x in under)


def _first_fit(
    order: Sequence[Tensor], meets: dict[Tensor, list[Tensor]], below: dict[tuple[Tensor, Tensor], int]
) -> tuple[dict[Tensor, int], int]:
    """Each tensor in this order at the lowest place that those before it leave."""
    offsets: dict[Tensor, int] = {}
    for t in order:
        closed = []
        for p in meets[t]:
            if p in offsets:
                low, high = offsets[p] - size_of(t), offsets[p] + size_of(p)  # may not begin between these two
                if (p, t) in below:
                    low = max(low, offsets[p] - below[p, t])
                elif (t, p) in below:
                    high = min(high, offsets[p] + below[t, p])
                closed.append((low, high))
        at = 0
        for low, high in sorted(closed):
            if low < at < high:
                at = high
        while any(low < at < high for low, high in closed):
            at = min(high for low, high in closed if low < at < high)
        offsets[t] = at
    return offsets, max((at + size_of(t) for t, at in offsets.items()), default=0)
