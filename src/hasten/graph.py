"""Our vocabulary over onnx_ir: constants, new weights with names of their own, finishing an edit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from hasten.model import Model, Skip, Step, all_nodes

Array = NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """The value's array where it is a constant (an initializer, or a Constant node's output), else None. Read-only."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value if value.is_initializer() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, else None."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, None if there are several or the graph's output does."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def unique_name(graph: ir.Graph, wish: str) -> str:
    """`wish`, or `wish_1`, `wish_2` … : a name that no value and no node of the graph has."""
    taken = {v.name for v in graph.inputs} | set(graph.initializers) | {o.name for n in graph for o in n.outputs} | {n.name for n in graph}
    name, number = wish, 0
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


def add_weight(graph: ir.Graph, wish: str, array: Array) -> ir.Value:
    """A new initializer with a name of its own; its array becomes read-only."""
    array = np.array(array)
    array.flags.writeable = False
    name = unique_name(graph, wish)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
    value.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(value)
    return value


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read wherever `old` is; where that was an output of the graph, it takes its name too. It must not be an output already."""
    output = old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if output:
        name, old.name = old.name, None
        new.name = name


def remove_unused(edited: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads, until there are none. What a removed subgraph read counts as unread."""
    removed = True
    while removed:
        removed = bool(RemoveUnusedNodesPass()(edited).modified)
        graphs = list(edited.graphs())
        bodies: list[ir.Graph | ir.Function] = [edited.graph, *edited.functions.values()]
        live = {node for body in bodies for node in all_nodes(body)}
        for graph in graphs:
            for value in [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]:
                for reader, index in [use for use in value.uses() if use.node not in live]:
                    reader.replace_input_with(index, None)
                    removed = True
                if value.is_initializer() and not value.uses() and not value.is_graph_input() and not value.is_graph_output():
                    del graph.initializers[value.name or ""]


def finish(model: Model, edited: ir.Model, settings: Any, name: str, changed: int, skipped: list[Skip]) -> Model:
    """The model after a technique: what nothing reads is removed, types and shapes are inferred again, the step is in the history."""
    remove_unused(edited)
    edited = ShapeInferencePass(strict_mode=False, data_prop=True)(edited).model
    return model.then(edited, Step(name, dataclasses.asdict(settings), changed, tuple(skipped)))
