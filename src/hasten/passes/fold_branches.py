"""fold_branches: what a constant condition decides is decided now. Effect: equivalent.

An If with a constant condition is replaced by the branch that it takes; a Loop that never turns by what goes in; a Where with a constant mask that is
all true or all false, or with both sides the same, by that side, if it has the result's shape.

When: for exports with branches on training mode, on flags or on shapes (resolve_shapes makes constants of those).
Cost: nothing at run time; the other branch's weights leave the file. No data.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from hasten.graph import begin, constant, take_place
from hasten.model import Model, Step, all_nodes
from hasten.rewrite import Edit, Rule, dims, graph_of, rewrite, same_dims
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class FoldBranches:
    """No settings."""


def fold_branches(model: Model, settings: FoldBranches, task: BoundTask | None) -> Model:
    """Apply RULES to every node, subgraphs and local functions included, until nothing changes."""
    edited = begin(model)
    changed = rewrite(edited, RULES)
    return model.then(edited, Step("fold_branches", dataclasses.asdict(settings), changed))


def _if(node: ir.Node, edit: Edit) -> bool:
    """Move the nodes of the branch that is taken in front of the If."""
    condition = constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
    graph = graph_of(node)
    outputs, moved, weights = list(branch.outputs), list(branch), list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    branch.remove(moved)
    for value in weights:
        value.name = edit.unique(value.name or "weight")
        if value.const_value is not None:
            edit.hold(node, value)
    for inner in moved:
        _rename(inner, edit)
        graph.insert_before(node, inner)
    for old, new in zip(list(node.outputs), outputs, strict=True):
        if old.uses() or old.is_graph_output():
            through = edit.before(node, "Identity", [new])
            through.shape = new.shape
            take_place(old, through)
    graph.remove(node, safe=True)
    return True


def _rename(node: ir.Node, edit: Edit) -> None:
    """Names of a branch may be those of its sibling: ONNX lets both have them, one graph does not."""
    for inner in (node, *(n for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH for n in all_nodes(a.as_graph()))):
        inner.name = edit.unique(inner.name or inner.op_type)
        for value in inner.outputs:
            if value.name:
                value.name = edit.unique(value.name)


def _loop(node: ir.Node, edit: Edit) -> bool:
    """A Loop of no turn, without outputs that grow by the turn, gives what goes in."""
    trips, condition = (constant(v) if v is not None else None for v in node.inputs[:2])
    never = (trips is not None and trips.size == 1 and trips.item() <= 0) or (condition is not None and not condition.any())
    carried = node.inputs[2:]
    if not never or len(node.outputs) != len(carried) or any(v is None for v in carried):
        return False
    for old, new in zip(list(node.outputs), carried, strict=True):
        if old.uses() or old.is_graph_output():
            assert new is not None
            take_place(old, edit.before(node, "Identity", [new]))
    graph_of(node).remove(node, safe=True)
    return True


def _where(node: ir.Node, edit: Edit) -> bool:
    mask, (yes, no) = constant(node.inputs[0]), node.inputs[1:]
    side = yes if yes is no else None if mask is None or not mask.size else yes if mask.all() else no if not mask.any() else None
    if side is None or not same_dims(dims(side), dims(node.outputs[0])):
        return False
    return edit.bypass(node, side)


def _identity(node: ir.Node, edit: Edit) -> bool:
    value = node.inputs[0]
    return value is not None and edit.bypass(node, value)


RULES: dict[str, tuple[Rule, ...]] = {"If": (_if,), "Loop": (_loop,), "Where": (_where,), "Identity": (_identity,)}
"""Operator → what a constant decides of it."""
