"""facts: numbers of a model without running it. MACs, bytes, shapes per operator."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any

import onnx_ir as ir

from hasten.errors import BadInput
from hasten.model import Model
from hasten.own_operators import PACKED, is_packed, weight_shape
from hasten.shapes import infer_anew


@dataclasses.dataclass(frozen=True)
class Row:
    """One node. `macs`: multiply-accumulates, None where a shape is unknown; bytes of weights read, and of activations read and written;
    `bits`: width of its weights."""

    name: str
    op: str
    shape: tuple[int | str | None, ...] | None
    macs: int | None
    weight_bytes: int
    activation_bytes: int | None
    bits: int | None


@dataclasses.dataclass(frozen=True)
class Facts:
    """A model at given sizes of its dynamic axes. Totals leave out rows whose shapes are unknown; `unknown` counts them."""

    rows: tuple[Row, ...]
    operators: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    activation_bytes: int
    unknown: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: MACs per byte that moves."""
        return self.macs / max(1, self.weight_bytes + self.activation_bytes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"intensity": self.intensity}


def facts(model: Model, sizes: Mapping[str, int] | None = None, batch: int = 1) -> Facts:
    """Facts with the first axis of every input at `batch`, other dynamic axes at `sizes[name]` (unknown where not given).

    Raises BadInput for a name that no axis has.
    """
    return facts_of(at_sizes(model, sizes, batch))


def facts_of(sized: Sized) -> Facts:
    """Facts of a graph at the sizes that it has."""
    edited = sized.model
    rows = tuple(_row(node, sized) for node in edited.graph if node.op_type != "Constant")
    constants = [node.outputs[0] for node in edited.graph if node.op_type == "Constant"]
    weights = [t for v in [*edited.graph.initializers.values(), *constants] if (t := _weight(v)) is not None]
    return Facts(
        rows,
        dict(collections.Counter(r.op for r in rows).most_common()),
        sum(t.size for t in weights if t.dtype.is_floating_point() or t.dtype.bitwidth <= 8) + _packed_away(edited),
        sum(t.nbytes for t in weights),
        sum(r.macs or 0 for r in rows),
        sum(r.activation_bytes or 0 for r in rows),
        sum(r.macs is None or r.activation_bytes is None for r in rows),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Sized:
    """A graph whose dynamic axes have these sizes, by name."""

    model: ir.Model
    axes: Mapping[str, int]
    _bytes: dict[ir.Value, int | None] = dataclasses.field(default_factory=dict, init=False)

    def dims(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        """Sizes, names of axes that have none, None for what is unknown."""
        if value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else self.axes.get(d.value or "", d.value) for d in value.shape)

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape where every size is known."""
        dims = self.dims(value) if value is not None else None
        return None if dims is None or not all(isinstance(d, int) for d in dims) else dims  # type: ignore[return-value]

    def bytes(self, value: ir.Value) -> int | None:
        """Bytes of a value, None where its shape or type is unknown."""
        if value not in self._bytes:
            shape = self.shape(value)
            self._bytes[value] = None if shape is None or value.dtype is None else math.prod(shape) * value.dtype.bitwidth // 8
        return self._bytes[value]


def at_sizes(model: Model, sizes: Mapping[str, int] | None = None, batch: int = 1) -> Sized:
    """The graph with the first axis of every input at `batch`, other dynamic axes at `sizes[name]`: itself where the names of axes say all, else a
    clone whose shapes are inferred anew.

    Raises BadInput for a name that no axis has.
    """
    names = sorted({d for p in model.inputs for d in p.shape if isinstance(d, str)})
    if unknown := sorted(set(sizes or {}) - set(names)):
        raise BadInput(f"the model has no dynamic axis {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    fixed = [
        [d if isinstance(d, int) else (sizes or {}).get(str(d), batch if i == 0 else d) for i, d in enumerate(p.shape)]
        for p in model.inputs
    ]
    asked = {(name, size) for p, shape in zip(model.inputs, fixed, strict=True) for name, size in zip(p.shape, shape, strict=True)}
    axes = {name: size for name, size in asked if isinstance(name, str)}
    known = {name: size for name, size in axes.items() if isinstance(size, int)}
    if len(axes) == sum(not isinstance(name, int) for name, _ in asked) and _only_named(model.ir.graph, axes):
        return Sized(model.ir, known)
    edited = model.ir.clone()
    for value, shape in zip(edited.graph.inputs, fixed, strict=True):
        if value.shape is not None:
            value.shape = ir.Shape(shape)
    infer_anew(edited)
    return Sized(edited, known)


def _only_named(graph: ir.Graph, names: Container[str]) -> bool:
    """Whether every size in the graph is a number or has one of these names."""
    shapes = [o.shape for node in graph for o in node.outputs if o.name]
    return all(shape is not None and all(isinstance(d, int) or d.value in names for d in shape) for shape in shapes)


def _row(node: ir.Node, sized: Sized) -> Row:
    weights = [t for v in node.inputs if v is not None and (t := _weight(v)) is not None]
    weight_bytes = sum(t.nbytes for t in weights)
    moved = [sized.bytes(v) for v in [*node.inputs, *node.outputs] if v is not None and v.name and _weight(v) is None]
    big = max(weights, key=lambda t: t.size, default=None)
    bits = big.dtype.bitwidth if big is not None and node.op_type in MATRIX else None
    return Row(
        node.name or "",
        node.op_type,
        sized.dims(node.outputs[0]),
        _macs(node, sized),
        weight_bytes,
        None if None in moved else sum(m or 0 for m in moved),
        PACKED[node.op_type] if is_packed(node) else bits,
    )


MATRIX = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "LSTM", "GRU", "RNN")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _weight(value: ir.Value) -> ir.TensorProtocol | None:
    """The stored tensor behind a value: an initializer, or one behind a DequantizeLinear."""
    if value.const_value is not None and value.is_initializer():
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        return ir.convenience.get_const_tensor(value)
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        return producer.inputs[0].const_value if producer.inputs[0].is_initializer() else None
    return None


def _macs(node: ir.Node, sized: Sized) -> int | None:
    """Multiply-accumulates by the operator's definition; 0 for what multiplies nothing by weights or by another matrix."""
    if is_packed(node):
        made = sized.shape(node.outputs[0])
        return None if made is None else math.prod(made) * math.prod(weight_shape(node)[1:])
    if node.op_type == "MultiHeadAttention" and node.domain == "com.microsoft":
        # Q Kᵀ, then the weights times V: queries (B, S, h·d), keys and values (B, L, h·d).
        queries, keys, values = (sized.shape(v) for v in [*node.inputs, None, None][:3])
        if queries is None or keys is None or values is None or not len(queries) == len(keys) == len(values) == 3:
            return None
        return math.prod(queries[:2]) * keys[1] * (queries[2] + values[2])
    if node.op_type not in MATRIX:
        return 0
    output = sized.shape(node.outputs[0])
    weight = sized.shape(node.inputs[3 if node.op_type in ("QLinearConv", "QLinearMatMul") else 1])
    source = sized.shape(node.inputs[0])
    if output is None or weight is None or source is None:
        return None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(source) * math.prod(weight[1:])
    if node.op_type in GATES:
        # X (T, B, in), W (D, gates · H, in), R (D, gates · H, H).
        steps, batch, width = source
        hidden = weight[1] // GATES[node.op_type]
        return steps * batch * weight[0] * weight[1] * (width + hidden)
    inner = source[-1] if node.op_type != "Gemm" or not node.attributes.get_int("transA", 0) else source[0]
    return math.prod(output) * inner


def _packed_away(edited: ir.Model) -> int:
    """How many more weights there are than bytes that hold them, in the packed layers."""
    layers = [(node, node.inputs[1]) for node in edited.graph if is_packed(node)]
    return sum(math.prod(weight_shape(n)) - v.const_value.size for n, v in layers if v is not None and v.const_value is not None)
