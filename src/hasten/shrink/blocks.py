"""blocks: parts of a graph that can be left out whole, because what they give has the shape of what they take: residual blocks, hidden layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from hasten.graph import constant, sole_consumer, take_place
from hasten.model import Skip

ACTIVATIONS = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Elu",
    "Selu",
    "Gelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Tanh",
    "Softplus",
)
LAYERS = ("Conv", "Gemm", "MatMul")
TELLING = (*LAYERS, *ACTIVATIONS, "BatchNormalization", "LayerNormalization", "Softmax")
"""Operators that tell one kind of block from another: what only computes shapes and masks does not."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What maps `source` to `result` of the same shape. `kind`: its operators."""

    name: str
    source: ir.Value
    result: ir.Value
    kind: tuple[str, ...]


def remove(graph: ir.Graph, blocks: Sequence[Block]) -> None:
    """Leave these blocks out, in place: each result is its source. Types and shapes between the nodes are to be inferred again."""
    passed: dict[int, ir.Value] = {}
    for block in blocks:
        # Where the block before is gone too, its shortcut is this one's.
        source = passed.get(id(block.source), block.source)
        take_place(block.result, source)
        passed[id(block.result)] = source
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def residual_blocks(graph: ir.Graph) -> tuple[list[Block], list[Skip]]:
    """The innermost x + f(x) with weights in f, and those Adds whose shortcut is not x itself."""
    nodes = list(graph)
    number = {id(node): i for i, node in enumerate(nodes)}
    before: dict[int, int] = {}  # value → the nodes that it depends on, as bits
    found: list[Block] = []
    skipped: list[Skip] = []
    adds = 0
    layers = sum(1 << i for i, node in enumerate(nodes) if node.op_type in LAYERS)
    for i, node in enumerate(nodes):
        bits = 1 << i
        for value in node.inputs:
            bits |= before.get(id(value), 0)
        for value in node.outputs:
            before[id(value)] = bits
        if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
            continue
        one, other = node.inputs
        if one is None or other is None or constant(one) is not None or constant(other) is not None:
            continue
        for source, branch in ((one, other), (other, one)):
            inside = before.get(id(branch), 0) & ~before.get(id(source), 0)
            own = [nodes[k] for k in range(i) if inside >> k & 1]
            reads = any(source is v for n in own for v in n.inputs)
            apart = all(
                number.get(id(u.node), -1) == i or inside >> number[id(u.node)] & 1
                for n in own
                if n.op_type in LAYERS
                for u in n.outputs[0].uses()
            )
            if reads and apart and inside & layers and not inside & adds and _same_shape(source, branch):
                found.append(Block(node.name or "", source, node.outputs[0], tuple(n.op_type for n in own if n.op_type in TELLING)))
                adds |= 1 << i
                break
        else:
            a, b = before.get(id(one), 0), before.get(id(other), 0)
            if a & b and (a ^ b) & layers and a & ~b and b & ~a:
                skipped.append(
                    Skip(node.name or "", "kept: its shortcut is not its input but computed (another shape), or blocks stand within it")
                )
    return found, skipped


def hidden_layers(graph: ir.Graph) -> Iterator[Block]:
    """Layers that map a hidden value to one of its shape, with the norm, bias and activation behind them."""
    for node in graph:
        if node.op_type not in LAYERS or len(node.inputs) < 2 or constant(node.inputs[1]) is None:
            continue
        source, result, kind = node.inputs[0], node.outputs[0], [node.op_type]
        active = False
        while (reader := sole_consumer(result)) is not None and (
            reader.op_type in ("BatchNormalization", *ACTIVATIONS)
            or (reader.op_type == "Add" and any(constant(v) is not None for v in reader.inputs))
        ):
            active |= reader.op_type in ACTIVATIONS
            result = reader.outputs[0]
            kind.append(reader.op_type)
        if (
            source is None
            or source.producer() is None
            or not active
            or result.is_graph_output()
            or source.shape is None
            or source.shape != result.shape
        ):
            continue
        grouped = node.attributes.get_int("group", 1) > 1
        yield Block(node.name or "", source, result, (*kind, "grouped" if grouped else ""))


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values that are added have the same shape: known sizes are equal, and the same axes are dynamic."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        m == n if isinstance(m, int) and isinstance(n, int) else isinstance(m, int) == isinstance(n, int)
        for m, n in zip(a.shape, b.shape, strict=True)
    )
