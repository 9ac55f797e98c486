"""weights: the weights of a graph's layers as matrices (outputs, inputs), whatever their operator. A row's sum with the inputs is an output.

Conv (O, I, k…): row o holds (k…, I), the inputs at one place of the kernel side by side, as the kernels for N:M sparsity read them. ConvTranspose
(I, O, k…) is turned to the same. Gemm and MatMul (I, O) are transposed, with transB = 1 they are as they are. Recurrent layers (directions,
gates · hidden, I) have one row for each gate's unit, in W and in R.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant
from hasten.model import Skip

POSITIONS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
"""Operators with weights, and which of their inputs these are."""

RECURRENT = ("LSTM", "GRU", "RNN")

SMALL = 0.05
"""A first or a last layer with less than this share of all weights is left dense: there is next to nothing to gain, and it is sensitive."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as a matrix: `reshape(split).transpose(order).reshape(rows, -1)`.

    node, op: of the layer; name: of the initializer; width: inputs at one place of the kernel, side by side; height: outputs that read the same
    inputs (those of a group); why: the reason why it is not to be made sparse, empty where it may be.
    """

    node: str
    op: str
    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    rows: int
    width: int
    height: int
    why: str = ""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def matrix(self, array: Array) -> Array:
        """(rows, columns)."""
        return array.reshape(self.split).transpose(self.order).reshape(self.rows, -1)

    def back(self, matrix: Array) -> Array:
        """The inverse: the weight's own shape."""
        turned = matrix.reshape([self.split[axis] for axis in self.order])
        return turned.transpose(np.argsort(self.order)).reshape(self.shape)


def weight(node: ir.Node, shape: tuple[int, ...], name: str) -> Weight:
    """How a layer reads a weight of this shape."""
    split, why = shape, ""
    order: tuple[int, ...] = (0, 1)
    if node.op_type in ("Conv", "ConvTranspose"):
        group, kernel = node.attributes.get_int("group", 1), tuple(range(2, len(shape)))
        if node.op_type == "Conv":
            order, rows, width, height = (0, *kernel, 1), shape[0], shape[1], shape[0] // group
        else:
            split, order = (group, shape[0] // group, *shape[1:]), (0, 2, *(k + 1 for k in kernel), 1)
            rows, width, height = group * shape[1], shape[0] // group, shape[1]
        if width == 1 and group > 1:
            why = f"it is depthwise: its {int(np.prod(shape[2:]))} weights a channel are few, and each counts"
    elif node.op_type in RECURRENT:
        order, rows, width, height = (0, 1, 2), shape[0] * shape[1], shape[2], shape[1]
    else:
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        order = (0, 1) if turned else (1, 0)
        rows, width = (shape[0], shape[1]) if turned else (shape[1], shape[0])
        height = rows
    return Weight(node.name or node.op_type, node.op_type, name, shape, split, order, rows, width, height, why)


def weights(graph: ir.Graph) -> tuple[list[Weight], list[Skip]]:
    """(the weights of all layers, in order; layers whose weights can't be read as such, with the reason)."""
    found: list[Weight] = []
    skipped: list[Skip] = []
    for node in graph:
        if node.op_type not in POSITIONS or node.domain not in ("", "ai.onnx"):
            continue
        for index in POSITIONS[node.op_type]:
            value = node.inputs[index] if len(node.inputs) > index else None
            array = constant(value)
            if array is None or value is None:
                if why := _no_weight(node):
                    skipped.append(Skip(node.name or node.op_type, why))
            elif not value.is_initializer():
                skipped.append(
                    Skip(node.name or node.op_type, "its weights are a Constant node; `hasten cleanup` makes an initializer of it")
                )
            elif node.op_type == "MatMul" and array.ndim != 2:
                skipped.append(Skip(node.name or node.op_type, f"its weights have {array.ndim} axes; only matrices are made sparse"))
            else:
                one = weight(node, tuple(array.shape), value.name or "")
                if not np.issubdtype(array.dtype, np.floating):
                    one = dataclasses.replace(one, why=f"its weights are {array.dtype}, and only floats of 16 to 64 bits are made sparse")
                elif len(tuple(value.uses())) > 1 or value.is_graph_output():
                    one = dataclasses.replace(one, why="its weights are read by other nodes too")
                found.append(one)
    return found, skipped


def _no_weight(node: ir.Node) -> str:
    """Why a layer's second input is no weight; empty for a product of two activations, which has none."""
    if node.op_type == "MatMul":
        return "" if constant(node.inputs[0]) is None else "its weights are its first input"
    return "its weights are computed, not constant"


def small_ends(graph: ir.Graph, found: list[Weight]) -> dict[str, str]:
    """The first and the last layers, by node, that have a SMALL share of the weights, and what is said of them."""
    first, last = ends(graph)
    total, said = sum(w.size for w in found), {}
    for name in {w.node: None for w in found if w.node in first | last}:
        share = sum(w.size for w in found if w.node == name) / total
        if share < SMALL:
            said[name] = f"it is the {'first' if name in first else 'last'} layer and has only {share:.1%} of the weights"
    return said


def ends(graph: ir.Graph) -> tuple[set[str], set[str]]:
    """Names of (layers with no layer before them, layers with no layer behind them)."""
    layers = [n for n in graph if n.op_type in POSITIONS and constant(n.inputs[1] if len(n.inputs) > 1 else None) is not None]
    known = set(layers)
    fed: set[ir.Node] = set()
    first: set[str] = set()
    for node in layers:
        before = _before(node) & known
        fed |= before
        if not before:
            first.add(node.name or node.op_type)
    return first, {n.name or n.op_type for n in layers if n not in fed}


def _before(node: ir.Node) -> set[ir.Node]:
    """Every node that the node depends on."""
    todo, seen = list(node.inputs), set()
    while todo:
        value = todo.pop()
        maker = value.producer() if value is not None else None
        if maker is not None and maker not in seen:
            seen.add(maker)
            todo += maker.inputs
    return seen
