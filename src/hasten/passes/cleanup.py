"""cleanup: remove what computes nothing. Dead nodes, identities, duplicate weights, common subexpressions. Effect: equivalent.

When: always: it is the first step of every recipe.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateHashedInitializersPass,
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
    """Remove dead nodes, Identity and inference Dropout, duplicate weights and common subexpressions. Constants become initializers."""
    edited = model.edit()
    before = sum(1 for _ in all_nodes(edited.graph)) + len(edited.graph.initializers)
    for node in list(edited.graph):
        if node.op_type == "Dropout" and node.domain == "" and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            node.op_type = "Identity"
            node.resize_inputs(1)
            node.resize_outputs(1)
            node.attributes.clear()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(edited)
    for step in (
        IdentityEliminationPass(),
        DeduplicateHashedInitializersPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
    ):
        step(edited)
    edited.opset_imports[""] = OPSET
    changed = before - sum(1 for _ in all_nodes(edited.graph)) - len(edited.graph.initializers)
    return finish(model, edited, settings, "cleanup", changed, [])
