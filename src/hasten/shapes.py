"""shapes: types and shapes of a graph's values, by onnx's own inference.

onnx infers a graph of 10,000 nodes in a few hundredths of a second; most of the time of `onnx_ir`'s pass goes into making a graph of what
onnx says. So the nodes alone are written for onnx, and what it says is read from its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from hasten.model import subgraphs

FUSED = ("MultiHeadAttention", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
"""Operators of onnxruntime's, which onnx can't infer: what they write (but for means) has the shape of their first input."""

SMALL = 1024
"""Bytes of a weight whose values shape inference may want: shapes, axes, sizes. Of others it sees type and shape."""

WHOLE = (ir.DataType.INT64, ir.DataType.INT32)
MADE_UP = "unk__"
"""What onnx begins the name of an axis with that it knows nothing of."""


def infer(edited: ir.Model) -> None:
    """All types and shapes; what onnx can't infer stays as it is. A model with subgraphs or local functions goes through `onnx_ir`'s pass."""
    if _is_nested(edited):
        ShapeInferencePass(strict_mode=False, data_prop=True)(edited)
    else:
        _infer(edited, list(edited.graph))


def infer_anew(edited: ir.Model) -> None:
    """Shapes and types of the main graph's values, whatever was known of them; what onnx can't infer is unknown."""
    graph = edited.graph
    for value in (*(o for node in graph for o in node.outputs), *graph.outputs):
        value.shape = None
    _infer(edited, list(graph))


def infer_missing(edited: ir.Model) -> None:
    """Shapes and types where something of them is unknown; what is known stays, for a rewrite keeps what values hold.

    Only the nodes that write such values go through onnx, and those that compute sizes for them.
    """
    if _is_nested(edited):
        infer(edited)
    elif lacking := [node for node in edited.graph if any(_lacks(o) for o in node.outputs)]:
        _infer(edited, _with_sizes(edited.graph, lacking))


def _is_nested(edited: ir.Model) -> bool:
    return bool(edited.functions) or any(subgraphs(node) for node in edited.graph)


def _lacks(value: ir.Value) -> bool:
    """Whether something of a tensor's type or shape is unknown."""
    shape = value.shape
    if shape is None or value.type is None:
        return bool(value.name) and (value.type is None or isinstance(value.type, ir.TensorType))
    return any(type(d) is not int and _nameless(d) for d in shape)


def _nameless(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and (dim.value is None or dim.value.startswith(MADE_UP))


def _with_sizes(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes and those that compute whole numbers which they read, in the graph's order."""
    found, todo = set(nodes), list(nodes)
    while todo:
        for value in todo.pop().inputs:
            maker = value.producer() if value is not None and value.dtype in WHOLE else None
            if maker is not None and maker not in found:
                found.add(maker)
                todo.append(maker)
    return [node for node in graph if node in found]


def _infer(edited: ir.Model, nodes: Sequence[ir.Node]) -> None:
    """Let onnx infer these nodes of the main graph, from what is known of the values that come in and of their own."""
    proto = onnx.ModelProto(ir_version=10)
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in edited.opset_imports.items())
    proto.functions.extend(ir.serde.serialize_function(f) for f in edited.functions.values())
    written = dict.fromkeys(o for node in nodes for o in node.outputs if o.name)
    for value in dict.fromkeys(v for node in nodes for v in read(node) if v not in written):
        tensor = value.const_value if value.is_initializer() else None
        if tensor is not None and tensor.nbytes <= SMALL:
            proto.graph.initializer.append(ir.serde.serialize_tensor(tensor))
        elif value.type is not None:
            ir.serde.serialize_value_into(proto.graph.input.add(), value)
    for value in written:
        if value.shape is not None and value.type is not None:
            ir.serde.serialize_value_into(
                proto.graph.value_info.add(), ir.Value(name=value.name, type=value.type, shape=_named(value.shape))
            )
    for node in nodes:
        if node.domain == "com.microsoft" and node.op_type in FUSED:
            proto.graph.node.extend(_as_identities(node))
        else:
            ir.serde.serialize_node_into(proto.graph.node.add(), node)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return  # onnx can't infer this graph: its shapes stay as they are
    found = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output) if v.type.HasField("tensor_type")}
    for value in written:
        known = found.get(value.name or "")
        if known is not None and known.elem_type and value.dtype != known.elem_type:
            value.type = ir.TensorType(ir.DataType(known.elem_type))
        if known is not None and known.HasField("shape"):
            value.shape = better(_shape(known.shape), value.shape)


def _named(shape: ir.Shape) -> ir.Shape:
    """Without the names that onnx made up."""
    return ir.Shape([None if _nameless(d) else d for d in shape])


def _shape(proto: onnx.TensorShapeProto) -> ir.Shape:
    return ir.Shape([d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in proto.dim])


def _as_identities(node: ir.Node) -> Iterator[onnx.NodeProto]:
    """An Identity in place of each output of a FUSED operator: for the shapes it is the same."""
    first = node.inputs[0]
    for index, output in enumerate(node.outputs):
        if index in (0, 3) and output.name and first is not None:
            yield onnx.NodeProto(op_type="Identity", input=[first.name or ""], output=[output.name])


def read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, and the nodes in its subgraphs from outside."""
    found = [v for v in node.inputs if v is not None]
    for graph in subgraphs(node):
        found += [v for inner in graph for v in read(inner)] + list(graph.outputs)
    return found


def better(one: ir.Shape | None, other: ir.Shape | None) -> ir.Shape | None:
    """What is known of one shape from two: sizes before names, names before nothing; of two names the first one's."""
    if one is None or other is None or len(one) != len(other):
        return other if one is None else one
    return ir.Shape([b if not isinstance(a, int) and (isinstance(b, int) or _nameless(a)) else a for a, b in zip(one, other, strict=True)])
