"""cleanup: remove what computes nothing. Dead nodes, identities, duplicate weights, common subexpressions. Effect: equivalent.

Two nodes are one if they have the same operator, attributes and inputs; of Add, Mul, Min, Max, And, Or, Xor and Equal the order of the inputs does
not count. What a subgraph computes once more is taken from around it.

When: always: it is the first step of every recipe.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses
import hashlib

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from hasten.graph import begin, lift_constants, settle
from hasten.model import OPSET, Model, Step, all_nodes
from hasten.rewrite import Edit, become
from hasten.task import BoundTask

COMMUTATIVE = ("Add", "Mul", "Min", "Max", "And", "Or", "Xor", "Equal")
RANDOM = ("RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike", "Multinomial", "Bernoulli")
"""Operators that give something else each time."""

LARGEST_ATTRIBUTE = 10
"""Elements at most of a tensor in an attribute that is compared."""

Key = tuple[object, ...]


@dataclasses.dataclass(frozen=True)
class Cleanup:
    """No settings: what it removes changes no bit of any result."""


def cleanup(model: Model, settings: Cleanup, task: BoundTask | None) -> Model:
    """Remove dead nodes, Identity and inference Dropout, duplicate weights and common subexpressions. Constants become initializers.

    Float vectors stay apart: in a model that is to be trained biases, scales and running statistics are alike before the first step only.
    """
    before = _size(model.ir)
    edited = begin(model)
    lifted = lift_constants(edited)
    edit = Edit(edited)
    there = {id(node) for node in _identities(edit)}
    _leave_out(edit)
    _merge_weights(edited.graph)
    for body in edit.bodies():
        _merge_nodes(body, edit, {})
    _leave_out(edit)
    stayed = sum(id(node) not in there for node in _identities(edit))
    if before != _size(edited) or lifted or stayed:
        settle(edited)
    RemoveUnusedOpsetsPass()(edited)
    edited.opset_imports[""] = OPSET
    changed = before - _size(edited) + lifted + stayed
    return model.then(edited, Step("cleanup", dataclasses.asdict(settings), changed))


def _size(model: ir.Model) -> int:
    """Nodes, and weights of the main graph."""
    bodies = (model.graph, *(f.graph for f in model.functions.values()))
    return sum(1 for body in bodies for _ in all_nodes(body)) + len(model.graph.initializers)


def _identities(edit: Edit) -> list[ir.Node]:
    """What a node becomes that has a twin and gives an output of the graph: as many nodes as before, and fewer that compute."""
    return [node for node in edit.nodes() if node.op_type == "Identity" and node.domain == ""]


def _leave_out(edit: Edit) -> None:
    """Identity, and Dropout, which is one in inference; training mode is refused at the door."""
    for node in list(edit.nodes()):
        if node.op_type == "Dropout" and node.domain == "" and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            become(node, "Identity", node.inputs[:1])
            node.resize_outputs(1)
        if node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
            edit.bypass(node, node.inputs[0])


def _merge_weights(graph: ir.Graph) -> None:
    """Let equal initializers be one, float vectors aside."""
    kept: dict[tuple[str, str, bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input() or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.dtype.is_floating_point() and len(tensor.shape) == 1:
            continue
        key = (tensor.dtype.name, str(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
        if (first := kept.setdefault(key, value)) is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[value.name or ""]


def _merge_nodes(graph: ir.Graph, edit: Edit, around: dict[Key, ir.Node]) -> None:
    """Let nodes that compute the same be one; `around` are those that come before the graph, outside of it."""
    seen = dict(around)
    for node in list(graph):
        subgraphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        for subgraph in subgraphs:
            _merge_nodes(subgraph, edit, seen)
        key = None if subgraphs or _is_random(node, edit) else _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if first.graph is not graph and any(o.is_graph_output() for o in node.outputs):
            continue
        for index, output in reversed(list(enumerate(node.outputs))):
            if node.graph is not None and (output.uses() or output.is_graph_output()):
                edit.bypass(node, first.outputs[index], index)
        if node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)


def _is_random(node: ir.Node, edit: Edit) -> bool:
    """Whether it gives something else each time, as a function does that calls such an operator."""
    function = edit.model.functions.get(node.op_identifier())
    return node.op_type in RANDOM or (function is not None and any(_is_random(inner, edit) for inner in all_nodes(function)))


def _key(node: ir.Node) -> Key | None:
    """What two nodes must share to compute the same, None for those that are not compared: an Identity that is left must be there."""
    if node.op_type == "Identity" and node.domain == "":
        return None
    attributes: list[tuple[str, object]] = []
    for a in node.attributes.values():
        if a.type in (ir.AttributeType.GRAPHS, ir.AttributeType.SPARSE_TENSOR):
            return None
        if a.is_ref():
            attributes.append((a.name, ("parameter", a.ref_attr_name)))
        elif a.type == ir.AttributeType.TENSOR:
            tensor = a.as_tensor()
            if tensor.size > LARGEST_ATTRIBUTE or tensor.dtype == ir.DataType.STRING:
                return None
            attributes.append((a.name, (tensor.dtype.name, str(tensor.shape), tensor.tobytes())))
        else:
            attributes.append((a.name, str(a.value)))
    inputs = [id(v) for v in node.inputs]
    if node.domain == "" and node.op_type in COMMUTATIVE:
        inputs.sort()
    outputs = tuple(bool(o.name) for o in node.outputs)
    return (node.op_identifier(), outputs, tuple(inputs), tuple(sorted(attributes)))
