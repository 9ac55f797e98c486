"""cleanup: remove what computes nothing. Dead nodes, identities, duplicate weights, common subexpressions. Effect: equivalent.

When: always: it is the first step of every recipe.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses
import hashlib

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from hasten.graph import finish
from hasten.model import OPSET, Model, all_nodes
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class Cleanup:
    """No settings: what it removes changes no bit of any result."""


def cleanup(model: Model, settings: Cleanup, task: BoundTask | None) -> Model:
    """Remove dead nodes, Identity and inference Dropout, duplicate weights and common subexpressions. Constants become initializers.

    Float vectors stay apart: in a model that is to be trained biases, scales and running statistics are alike before the first step only.
    """
    edited = model.edit()
    before = sum(1 for _ in all_nodes(edited.graph)) + len(edited.graph.initializers)
    for node in list(edited.graph):
        if node.op_type == "Dropout" and node.domain == "" and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            node.op_type = "Identity"
            node.resize_inputs(1)
            node.resize_outputs(1)
            node.attributes.clear()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(edited)
    IdentityEliminationPass()(edited)
    _merge_weights(edited.graph)
    for step in (
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
    ):
        step(edited)
    edited.opset_imports[""] = OPSET
    changed = before - sum(1 for _ in all_nodes(edited.graph)) - len(edited.graph.initializers)
    return finish(model, edited, settings, "cleanup", changed, [])


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
