"""layers: the products of a graph (Conv, ConvTranspose apart, Gemm, MatMul) as matrices, and what they read and give as rows: y = X Wᵀ + b.

A convolution is a product too: each output position reads one row, the patch of the input under the kernel (im2col). Least squares, importance and
low rank are about these rows, and a sample of the positions is enough for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant
from hasten.patches import drawn, patches, slide

POSITIONS = 64
"""Output positions of a convolution (or of a sequence) that are looked at in each sample, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A product with one constant weight. `groups` of a convolution; 1 elsewhere. `reads`, `makes`: the weight's axes of what goes in and comes out
    (a grouped convolution's inputs are those of one group)."""

    node: ir.Node
    weight: ir.Value
    x: ir.Value
    y: ir.Value
    bias: ir.Value | None
    groups: int
    reads: int
    makes: int

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def array(self) -> Array:
        found = constant(self.weight)
        assert found is not None
        return found

    def matrices(self) -> Array:
        """The weight as (groups, outputs of a group, numbers in a row)."""
        w = self.array
        if self.node.op_type == "Conv":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1)
        return (w if self.makes == 0 else w.T)[None]

    def weight_of(self, matrices: Array) -> Array:
        """The weight that such matrices are, of the layer's own shape and dtype."""
        like = self.array
        if self.node.op_type == "Conv":
            return np.ascontiguousarray(matrices.reshape(like.shape)).astype(like.dtype)
        return np.ascontiguousarray(matrices[0] if self.makes == 0 else matrices[0].T).astype(like.dtype)

    @property
    def channels_in_row(self) -> int:
        """Numbers that each input channel has in a row: the kernel's size, or 1."""
        return int(np.prod(self.array.shape[2:])) if self.node.op_type == "Conv" else 1

    def rows(self, x: Array, rng: np.random.Generator, limit: int = POSITIONS) -> Array:
        """X for a batch of inputs: (groups, rows, numbers in a row). At most `limit` positions of each sample, drawn by `rng`."""
        if self.node.op_type != "Conv":
            return _flat(x.reshape(len(x), -1, x.shape[-1]), rng, limit)[None]
        how = slide(self.node, self.array.shape[2:], x.shape[2:])
        places = int(np.prod(how.out(x.shape[2:])))
        chosen = np.arange(len(x))[:, None] * places + drawn(places, rng, limit)
        found = patches(x, how, chosen.ravel())
        return np.ascontiguousarray(found.reshape(len(found), self.groups, -1).swapaxes(0, 1))

    def results(self, y: Array, rng: np.random.Generator, limit: int = POSITIONS) -> Array:
        """Y of the same positions, if `rng` is in the same state: (groups, rows, outputs of a group). For a value of the output's shape."""
        if self.node.op_type != "Conv":
            return _flat(y.reshape(len(y), -1, y.shape[-1]), rng, limit)[None]
        n, c = y.shape[:2]
        flat = y.reshape(n, c, -1)
        some = flat[:, :, drawn(flat.shape[2], rng, limit)]
        groups = self.groups if c % self.groups == 0 else 1
        return np.ascontiguousarray(some.reshape(n, groups, c // groups, -1).transpose(1, 0, 3, 2).reshape(groups, -1, c // groups))


def layers(graph: ir.Graph) -> Iterator[Layer]:
    """Every such product of the main graph, in order. A weight that several nodes read is none: it can't be changed for one of them."""
    for node in graph:
        if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
            continue
        x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if x is None or weight is None or constant(x) is not None or constant(weight) is None or len(tuple(weight.uses())) != 1:
            continue
        tensor = weight.const_value if weight.is_initializer() else None
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        groups, reads = 1, 0
        if node.op_type == "Conv":
            groups, reads = node.attributes.get_int("group", 1) or 1, 1
        elif len(tensor.shape) != 2 or node.attributes.get_int("transA", 0) == 1 or node.attributes.get_float("alpha", 1.0) != 1.0:
            continue
        elif node.op_type == "Gemm":
            reads = 1 if node.attributes.get_int("transB", 0) else 0
        yield Layer(node, weight, x, node.outputs[0], bias, groups, reads, 1 - reads)


def positions(layer: Layer, samples: int, enough: int) -> int:
    """Positions of each sample that give `enough` rows for each number in a row: no fewer than 4, no more than POSITIONS."""
    return int(np.clip(-(-enough * layer.matrices().shape[2] // max(1, samples)), 4, POSITIONS))


def _flat(flat: Array, rng: np.random.Generator, limit: int) -> Array:
    """(samples, positions, n) → (rows, n)."""
    return flat[:, drawn(flat.shape[1], rng, limit)].reshape(-1, flat.shape[2])
