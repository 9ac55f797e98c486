"""From a graph to the ops of a plan: node by node (`walk`), each by its row in the tables of `code_rules` and `float_rules`."""

from __future__ import annotations

from hasten import passes
from hasten.lower import code_rules, float_rules
from hasten.lower.plan import Plan
from hasten.lower.walk import Walk
from hasten.model import Model, Skip
from hasten.passes.fuse_attention import FuseAttention, fuse_attention
from hasten.plan import row as technique

ATTENTION = frozenset(("Softmax", "LayerNormalization", "RMSNormalization"))


def lower_graph(model: Model, requantize: str, precision: str = "float32") -> tuple[Plan | None, tuple[Skip, ...]]:
    """The plan, or None and each node that stands in the way with its reason.

    A float model with batch norms, or one that can't be lowered as it is, gets the clean-up of every recipe first.
    """
    operators = {node.op_type for node in model.ir.graph}
    untidy = requantize != "fixed" and "QuantizeLinear" not in operators
    if not (untidy and "BatchNormalization" in operators):
        walk = _walk(model, requantize == "fixed", precision)
        plan, skips = walk.run()
        if plan is not None or not untidy or walk.hopeless:
            return plan, skips
    for name in (*passes.CLEAN, *passes.FOLD, "fold_constants"):  # of shapes that became known on the way
        row = technique(name)
        model = row.apply(model, row.settings(), None)
    return _walk(model, False, precision).run()


def _walk(model: Model, fixed: bool, precision: str) -> Walk:
    if not fixed and any(node.op_type in ATTENTION for node in model.ir.graph):
        model = fuse_attention(model, FuseAttention(), None)
    return Walk(model, fixed, code_rules.RULES, float_rules.RULES, precision == "bfloat16")
