"""sizes: what the whole numbers in a graph are, as far as its structure tells: Shape → Gather → Mul → Concat → Reshape chains, entry by entry.

An entry is a number, the axis whose size it is (a name, or the atoms of an axis that may lose some: see groups.py), or None: not known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant

Axis = Array | int | str | None
"""An axis of a value: its atoms (int64, one for each position), or its size where nothing goes (an int; a name or None: not known)."""

LONGEST = 64
"""Entries of a vector that may be a shape; longer ones are data."""

SAME = ("Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze")


class Sizes:
    """Entries by value. `axes_of`: the axes of a value that is no shape."""

    def __init__(self, axes_of: Callable[[ir.Value | None], list[Axis] | None]) -> None:
        self._axes_of = axes_of
        self._known: dict[int, list[Axis]] = {}

    def of(self, value: ir.Value | None) -> list[Axis] | None:
        """The entries of a scalar or vector, None where even their number is unknown."""
        if value is None:
            return None
        array = constant(value)
        if array is not None:
            return [int(v) for v in array.reshape(-1)] if array.dtype.kind in "iub" and array.size <= LONGEST else None
        if id(value) in self._known:
            return self._known[id(value)]
        if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int) and value.shape[0] <= LONGEST:
            return [None] * value.shape[0]
        return None

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """The entries where all are numbers."""
        entries = self.of(value)
        return None if entries is None or not all(isinstance(e, int) for e in entries) else [e for e in entries if isinstance(e, int)]

    def visit(self, node: ir.Node) -> None:
        """Follow one node, if it is one of the few that shapes are computed with."""
        if node.domain != "" or not node.outputs:
            return
        found = self._follow(node)
        if found is not None and len(found) <= LONGEST:
            self._known[id(node.outputs[0])] = found

    def _follow(self, node: ir.Node) -> list[Axis] | None:
        kind = node.op_type
        if kind == "Shape":
            axes = self._axes_of(node.inputs[0])
            return None if axes is None else axes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(axes))]
        given = [self.of(v) for v in node.inputs]
        if not given or given[0] is None:
            return None
        first = given[0]
        if kind in SAME:
            return first
        if kind == "Concat":
            return None if any(g is None for g in given) else [e for g in given for e in g or ()]
        if kind == "Gather":
            indices = self.numbers(node.inputs[1])
            return None if indices is None or any(not -len(first) <= i < len(first) for i in indices) else [first[i] for i in indices]
        if kind == "Slice":
            starts, ends, steps = (
                self.numbers(v) for v in (node.inputs[1], node.inputs[2], node.inputs[4] if len(node.inputs) > 4 else None)
            )
            if (
                starts is None
                or ends is None
                or len(starts) != 1
                or (len(node.inputs) > 4 and node.inputs[4] is not None and steps is None)
            ):
                return None
            return first[slice(starts[0], ends[0], steps[0] if steps else None)]
        if kind == "ConstantOfShape":
            count = self.numbers(node.inputs[0])
            value = node.attributes.get_tensor("value", None)
            if count is None or len(count) != 1 or not 0 <= count[0] <= LONGEST or value is None or value.dtype.is_floating_point():
                return None
            return [int(value.numpy().reshape(-1)[0])] * count[0]
        if kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Equal", "Where") and all(g is not None for g in given):
            count = [max(len(g or ()) for g in given)]
            columns = [(g or []) * (count[0] if len(g or ()) == 1 else 1) for g in given]
            return [_computed(kind, list(row)) for row in zip(*columns, strict=True)] if all(len(c) == count[0] for c in columns) else None
        return None


def _computed(kind: str, row: list[Axis]) -> Axis:
    """One entry of the result. A size is never negative, so it never equals −1."""
    if kind == "Where":
        return row[1 if row[0] else 2] if isinstance(row[0], int) else None
    if kind == "Equal" and sum(isinstance(e, int) and e < 0 for e in row) == 1 and not any(e is None for e in row):
        return 0
    numbers = [e for e in row if isinstance(e, int)]
    if len(numbers) < len(row):
        a, b = row[0], row[-1]
        if kind in ("Mul", "Div") and isinstance(b, int) and b == 1:
            return a
        return b if kind == "Mul" and isinstance(a, int) and a == 1 else None
    a, b = numbers[0], numbers[-1]
    if kind == "Div":
        return int(np.trunc(a / b)) if b else None
    return {"Add": a + b, "Sub": a - b, "Mul": a * b, "Min": min(numbers), "Max": max(numbers), "Equal": int(a == b)}[kind]
