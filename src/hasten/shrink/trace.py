"""trace: one walk over the graph that follows every axis that may lose positions. What is learnt of each position (an *atom*): with which others
it is one channel, whether it can't go, and which numbers of the graph count it. The rules by operator are in rules.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant
from hasten.shrink.sizes import Axis, Sizes

Axes = list[Axis]

FIXED = "it meets values whose size is fixed: the model's input, or something computed from it"


@dataclasses.dataclass(frozen=True, eq=False)
class Mend:
    """A number in the graph that counts channels: an attribute of a node (`where` a name), or entries of an input (`where` its index).

    Each becomes the number of its atoms that stay.
    """

    node: int
    where: str | int
    entries: dict[int, Array]


class Trace:
    """Walks the graph once, in order. What it collects: atoms of every axis, which are the same, which are frozen, what is to be mended."""

    def __init__(self, graph: ir.Graph, rules: Mapping[str, Rule], choices: dict[int, int]) -> None:
        """`rules`: by operator. `choices`: by node, which of the axes that one was parted into loses positions: the outermost that can."""
        self.graph, self.rules = graph, rules
        self.choices = choices
        self.parted: dict[int, tuple[Array, int]] = {}
        self.index = -1
        self.sizes = Sizes(self.of)
        self._axes: dict[int, Axes] = {}
        self.count = 0
        self.edges: list[tuple[Array, Array]] = []
        self.frozen: list[tuple[Array, str]] = []
        self.inexact: list[tuple[Array, str]] = []
        self.sites: dict[tuple[str, int], Array] = {}
        self.parts: list[Array] = []
        self.sums: dict[int, Axis] = {}
        self.readers: dict[str, str] = {}
        self.mends: list[Mend] = []

    # --- what the rules call

    def of(self, value: ir.Value | None) -> Axes | None:
        """The axes of a value; None where its rank is unknown. A weight's axes are atoms of their own from its first reader on."""
        if value is None:
            return None
        if id(value) not in self._axes:
            known = self._weight(value) if value.is_initializer() and not value.is_graph_input() else inferred(value)
            if known is None:
                return None
            self._axes[id(value)] = known
        return self._axes[id(value)]

    def put(self, value: ir.Value, axes: Axes) -> None:
        self._axes[id(value)] = axes

    def fresh(self, count: int) -> Array:
        self.count += count
        return np.arange(self.count - count, self.count)

    def site(self, weight: str, axis: int, size: int) -> Array:
        """Atoms of an axis of a weight."""
        self.sites[weight, axis] = self.fresh(size)
        return self.sites[weight, axis]

    def freeze(self, axis: Axis, why: str) -> None:
        """No position of this axis goes. An empty reason: that is how the operator is, nobody needs to be told."""
        if isinstance(axis, np.ndarray):
            self.frozen.append((axis, why))

    def equal(self, a: Array, b: Array) -> None:
        """Atoms that are one channel, pair by pair."""
        self.edges.append((np.ravel(a), np.ravel(b)))

    def join(self, a: Axis, b: Axis, why: str) -> Axis:
        """Two axes that must keep the same positions: one axis. Beside an axis of fixed size nothing goes, for the reason given."""
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and len(a) == len(b):
            if a is not b:
                self.equal(a, b)
            return a
        self.freeze(a, why)
        self.freeze(b, why)
        if isinstance(a, np.ndarray):
            return a
        return b if isinstance(b, (np.ndarray, int)) else a

    def together(self, rows: Array) -> None:
        """Each row (rows, n) is one channel."""
        self.equal(rows[:, 1:], np.repeat(rows[:, :1], rows.shape[1] - 1, axis=1))

    def part(self, axis: Array) -> Axis:
        """Some positions of an axis as an axis of their own: one of them must stay, so they make groups of their own."""
        if len(axis) == 1:
            self.freeze(axis, "it is the only channel of a part")
            return 1
        self.parts.append(axis)
        return axis

    def mean_over(self, axis: Axis, why: str) -> None:
        if isinstance(axis, np.ndarray):
            self.inexact.append((axis, why))

    def summed(self, axis: Axis) -> None:
        """An axis of a weight that a product sums over."""
        self.sums[id(axis)] = axis

    def mend(self, where: str | int, entries: dict[int, Array]) -> None:
        self.mends.append(Mend(self.index, where, entries))

    def broadcast(self, all_axes: Sequence[Axes], why: str) -> Axes:
        """Axes of the result of an elementwise operator: aligned at the right, axes of size 1 stretched."""
        rank = max(len(axes) for axes in all_axes)
        out: Axes = []
        for back in range(rank, 0, -1):
            axis: Axis = 1
            for axes in all_axes:
                other = axes[-back] if back <= len(axes) else 1
                if not isinstance(other, np.ndarray) and other == 1:
                    continue
                axis = other if not isinstance(axis, np.ndarray) and axis == 1 else self.join(axis, other, why)
            out.append(axis)
        return out

    # --- the walk

    def visit(self, index: int, node: ir.Node) -> None:
        self.index = index
        for value in node.inputs:
            if value is not None and value.name:
                self.readers.setdefault(value.name or "", node.name or "")
        self.sizes.visit(node)
        rule = self.rules.get(node.op_type) if node.domain == "" else None
        if rule is None:
            domain = f"{node.domain}." if node.domain else ""
            self._refuse(node, f"{node.name}: {domain}{node.op_type} has no rule for channels")
            return
        if any(value is not None and self.of(value) is None for value in node.inputs):
            self._refuse(node, f"{node.name} ({node.op_type}): a shape there is unknown")
            return
        why = rule(self, node)
        if why:
            self._refuse(node, f"{node.name} ({node.op_type}): {why}")

    def _refuse(self, node: ir.Node, why: str) -> None:
        captured = [v for a in node.attributes.values() for v in _captured(a)]
        for value in (*node.inputs, *captured):
            for axis in self.of(value) or []:
                self.freeze(axis, why)

    def _weight(self, value: ir.Value) -> Axes:
        """A weight's axes: atoms for each that has more than one position. Whole numbers are shapes and indices, unless they are dequantized."""
        tensor = value.const_value
        assert tensor is not None
        uses = tuple(value.uses())
        is_weight = tensor.dtype.is_floating_point() or (bool(uses) and all(u.node.op_type == "DequantizeLinear" for u in uses))
        axes: Axes = []
        for number, size in enumerate(tensor.shape):
            assert isinstance(size, int)
            axis: Axis = size
            if is_weight and size > 1:
                axis = self.site(value.name or "", number, size)
            axes.append(axis)
        return axes

    # --- what came of it

    def choose_again(self) -> bool:
        """Where an axis was parted and nothing of the part chosen can go (of queries, keys and values: heads · width), choose the next one."""
        if not self.parted:
            return False
        labels = roots(self.count, self.edges)
        frozen = np.zeros(self.count, bool)
        for atoms, _ in self.frozen:
            frozen[labels[atoms]] = True
        again = False
        for node, (atoms, others) in self.parted.items():
            mine = labels[atoms]
            if (frozen[mine].all() or (mine == mine[0]).all()) and self.choices.get(node, 0) + 1 < others:
                self.choices[node] = self.choices.get(node, 0) + 1
                again = True
        return again


Rule = Callable[[Trace, ir.Node], str | None]
"""Puts the axes of the outputs; gives the reason why the node can't be followed, else nothing."""


def roots(count: int, edges: Iterable[tuple[Array, Array]]) -> Array:
    """Union-find in rounds: each root takes the least root that it is tied to, then every atom its root."""
    labels = np.arange(count)
    pairs = list(edges)
    a, b = (np.concatenate([*(p[i] for p in pairs), np.zeros(0, np.int64)]) for i in (0, 1))
    while True:
        one, other = labels[a], labels[b]
        differ = one != other
        if not differ.any():
            return labels
        a, b = a[differ], b[differ]
        np.minimum.at(labels, np.maximum(one, other)[differ], np.minimum(one, other)[differ])
        while True:
            shorter = labels[labels]
            if np.array_equal(shorter, labels):
                break
            labels = shorter


def _captured(attribute: Any) -> list[ir.Value]:
    """Values that a subgraph in an attribute reads, its own among them (they hold no atoms)."""
    graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []
    if attribute.type == ir.AttributeType.GRAPH:
        graphs = [attribute.as_graph()]
    return [v for g in graphs for node in ir.traversal.RecursiveGraphIterator(g) for v in node.inputs if v is not None]


def inferred(value: ir.Value) -> Axes | None:
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


def axes_of(t: Trace, node: ir.Node, index: int) -> Axes:
    found = t.of(node.inputs[index])
    assert found is not None
    return found


def given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def numbers(node: ir.Node, index: int) -> list[int] | None:
    """The whole numbers of a constant input, None where it is computed or missing."""
    array = constant(given(node, index))
    return None if array is None else [int(v) for v in array.reshape(-1)]


def because(node: ir.Node, why: str) -> str:
    return f"{node.name} ({node.op_type}): {why}"


def size_of(axis: Axis) -> int | str | None:
    return len(axis) if isinstance(axis, np.ndarray) else axis


def sizes_of(value: ir.Value, start: int, end: int) -> Axes:
    """Inferred sizes of axes from `start` to `end`, unknown ones as None."""
    known = inferred(value)
    return known[start:end] if known is not None and len(known) >= end else [None] * (end - start)


def is_weight(value: ir.Value | None) -> bool:
    """Whether it comes from weights alone, by a chain of nodes that read nothing else."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "ConstantOfShape":
            return True
        if any(v is not None and not v.is_initializer() for v in node.inputs[1:]) or not node.inputs:
            return False
        value = node.inputs[0]
    return value is not None and value.is_initializer()
