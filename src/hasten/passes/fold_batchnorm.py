"""fold_batchnorm: batch norm at inference is an affine map per channel, so it goes into the weights before it. Effect: rounding.

y = γ (x − μ) / √(σ² + ε) + β = a x + (β − a μ) with a = γ / √(σ² + ε); for x = W u + b: y = (a W) u + a (b − μ) + β.
(Ioffe and Szegedy, arXiv 1502.03167; folding as in Jacob et al., arXiv 1712.05877, section 3.2.) Computed in float64, stored in the weights' type.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, add_weight, constant, finish, sole_consumer, take_place
from hasten.model import Model, Skip, all_nodes
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class FoldBatchnorm:
    """No settings."""


def fold_batchnorm(model: Model, settings: FoldBatchnorm, task: BoundTask | None) -> Model:
    """Fold every BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it; the others are skipped, each with the reason."""
    edited = model.edit()
    skipped: list[Skip] = []
    changed = 0
    for norm in [n for n in all_nodes(edited.graph) if n.op_type == "BatchNormalization"]:
        before = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        why = _refusal(norm, before)
        if before is None or why:
            skipped.append(Skip(norm.name or "", why))
            continue
        _fold(edited.graph, norm, before)
        changed += 1
    return finish(model, edited, settings, "fold_batchnorm", changed, skipped)


def _refusal(norm: ir.Node, before: ir.Node | None) -> str:
    """Why this batch norm can't be folded, empty if it can."""
    if before is None:
        return "it stands first: there are no weights before it"
    if before.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return f"it follows {before.op_type}, which has no weights"
    if before.graph is not norm.graph:
        return f"the {before.op_type} before it stands in another subgraph"
    if sole_consumer(before.outputs[0]) is not norm:
        return f"the {before.op_type} output has other readers"
    if any(constant(v) is None for v in norm.inputs[1:5]):
        return "its scale, bias, mean or variance is computed, not constant"
    if constant(before.inputs[1]) is None or (
        len(before.inputs) > 2 and before.inputs[2] is not None and constant(before.inputs[2]) is None
    ):
        return f"the weights of the {before.op_type} before it are computed, not constant"
    if before.op_type == "MatMul" and (before.inputs[1].shape is None or len(before.inputs[1].shape) != 2):  # type: ignore[union-attr]
        return "the MatMul before it has weights that are not a matrix"
    if before.op_type == "MatMul" and (before.outputs[0].shape is None or len(before.outputs[0].shape) != 2):
        return "the MatMul's last axis is not the channel axis of the batch norm"
    return ""


def _fold(graph: ir.Graph, norm: ir.Node, before: ir.Node) -> None:
    gamma, beta, mean, variance = (np.asarray(constant(v), np.float64) for v in norm.inputs[1:5])
    a = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = constant(before.inputs[1])
    bias = constant(before.inputs[2]) if len(before.inputs) > 2 else None
    assert weight is not None
    old_bias = np.zeros_like(mean) if bias is None else np.broadcast_to(np.asarray(bias, np.float64), bias.shape)
    if before.op_type == "Gemm":
        old_bias = old_bias * before.attributes.get_float("beta", 1.0)
    new_bias = (old_bias - mean) * a + beta
    name = before.inputs[1].name or "weight"  # type: ignore[union-attr]
    new_weight = add_weight(graph, f"{name}_folded", (_scaled(before, np.asarray(weight, np.float64), a)).astype(weight.dtype))
    new_bias_value = add_weight(graph, f"{name}_bias", new_bias.astype(weight.dtype))
    before.replace_input_with(1, new_weight)
    if before.op_type == "MatMul":
        # A MatMul of matrices that gets a bias is a Gemm.
        before.op_type = "Gemm"
    if before.op_type == "Gemm":
        before.attributes.pop("beta", None)
    before.resize_inputs(3)
    before.replace_input_with(2, new_bias_value)
    take_place(norm.outputs[0], before.outputs[0])
    graph.remove(norm, safe=True)


def _scaled(node: ir.Node, weight: Array, a: Array) -> Array:
    """The weights, each output channel times its `a`."""
    if node.op_type == "Conv":
        return weight * a.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op_type == "ConvTranspose":
        # (in, out/group, ...): output channel g * (out/group) + j belongs to the input channels of group g.
        group = node.attributes.get_int("group", 1)
        per_group = a.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (weight.reshape(group, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return weight * a[:, None]
    return weight * a
