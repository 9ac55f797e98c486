"""fold_affine: a constant added to or multiplied with the output of a layer with weights goes into the weights. Effect: rounding.

y = a (W u + b) + c, with a and c constant per output channel, is (a W) u + (a b + c). Frameworks write biases and scales in this way (Keras' bias
of a convolution is an Add); the runtimes and the quantizer know them only as part of the layer. Computed in float64, stored in the weights' type.

Branches, loops' bodies and local functions are treated like the main graph; a function's values have no shapes, so a MatMul stays whose rows nothing
tells.

When: for Keras exports, whose biases are Adds, and for models with scales of their own behind a layer.
Cost: nothing at run time; no data. The scale is then no weight of its own that could be trained.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, may_rewrite, settle, sole_consumer, take_place
from hasten.model import Model, Skip, Step
from hasten.own_operators import is_packed
from hasten.passes.products import LAYERS, outputs_of, rank
from hasten.rewrite import Edit, graph_of, plain
from hasten.task import BoundTask

OPERATORS = ("Add", "Sub", "Mul", "Div")


@dataclasses.dataclass(frozen=True)
class FoldAffine:
    """No settings."""


def fold_affine(model: Model, settings: FoldAffine, task: BoundTask | None) -> Model:
    """Fold each Add, Sub, Mul and Div with a constant per channel into the Conv, ConvTranspose, Gemm or MatMul of matrices before it."""
    edited = begin(model)
    skipped: list[Skip] = []
    changed = 0
    edit = Edit(edited)
    for node in [n for n in edit.nodes() if n.op_type in OPERATORS and plain(n)]:
        layer, factor, term = _affine(node)
        if layer is None:
            continue
        if why := refusal(node, layer) or ("its constant is not one number per channel" if factor is None or term is None else ""):
            skipped.append(Skip(node.name or node.op_type, why))
            continue
        assert factor is not None and term is not None
        if not may_rewrite(node):
            continue
        absorb(node, layer, factor, term, edit)
        changed += 1
    if changed:
        settle(edited)
    return model.then(edited, Step("fold_affine", dataclasses.asdict(settings), changed, tuple(skipped)))


def _affine(node: ir.Node) -> tuple[ir.Node | None, Array | None, Array | None]:
    """The layer before the node, and a and c of y = a x + c where the other input is a constant per channel; no layer: nothing to fold."""
    constants = [constant(v) for v in node.inputs]
    which = 0 if constants[0] is None else 1
    value, number = node.inputs[which], constants[1 - which]
    layer = value.producer() if value is not None else None
    if number is None or layer is None or layer.op_type not in LAYERS or not plain(layer) or constant(layer.inputs[1]) is None:
        return None, None, None
    if which == 1 and node.op_type == "Div":
        return None, None, None
    flat = _per_channel(layer, np.asarray(number, np.float64), value)
    if flat is None:
        return layer, None, None
    one, zero = np.ones_like(flat), np.zeros_like(flat)
    if node.op_type == "Add":
        return layer, one, flat
    if node.op_type == "Sub":
        return (layer, one, -flat) if which == 0 else (layer, -one, flat)
    if node.op_type == "Mul":
        return layer, flat, zero
    return (layer, 1 / flat, zero) if np.all(flat != 0) else (layer, None, None)


def _per_channel(layer: ir.Node, number: Array, value: ir.Value | None) -> Array | None:
    """The constant as one number per output channel, None if it varies over another axis or makes the output larger."""
    axes = rank(value)
    if axes is None or number.ndim > axes:
        return None
    channels, axis = outputs_of(layer), 1 if layer.op_type.startswith("Conv") else axes - 1
    full = number.reshape((1,) * (axes - number.ndim) + number.shape)
    if full.size not in (1, channels) or full.size != full.shape[axis]:
        return None
    return np.broadcast_to(full.ravel(), (channels,))


def refusal(node: ir.Node, layer: ir.Node) -> str:
    """Why an affine node can't be folded into the layer before it, empty if it can."""
    if layer.graph is not node.graph:
        return f"the {layer.op_type} before it stands in another subgraph"
    if sole_consumer(layer.outputs[0]) is not node:
        return f"the {layer.op_type} output has other readers"
    if constant(layer.inputs[1]) is None or (len(layer.inputs) > 2 and layer.inputs[2] is not None and constant(layer.inputs[2]) is None):
        return f"the weights of the {layer.op_type} before it are computed, not constant"
    if layer.op_type == "MatMul" and (layer.inputs[1].shape is None or len(layer.inputs[1].shape) != 2):  # type: ignore[union-attr]
        return "the MatMul before it has weights that are not a matrix"
    rows_alone = layer.op_type == "MatMul" or (is_packed(layer) and layer.op_type.endswith("Gemm"))
    if rows_alone and rank(layer.outputs[0]) != 2:
        return f"the {layer.op_type} before it works on more than two axes{': it has no bias' if layer.op_type == 'MatMul' else ''}"
    return ""


def absorb(node: ir.Node, layer: ir.Node, factor: Array, term: Array, edit: Edit) -> None:
    """Let the layer compute `factor * y + term` per output channel (float64), in place of the node after it, which goes."""
    weight = constant(layer.inputs[1])
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    assert weight is not None
    if is_packed(layer):
        _absorb_in_scale(node, layer, factor, term, edit)
        return
    old_bias = np.zeros(len(term)) if bias is None else np.asarray(bias, np.float64)
    if layer.op_type == "Gemm":
        old_bias = old_bias * layer.attributes.get_float("beta", 1.0)
    name = layer.inputs[1].name or "weight"  # type: ignore[union-attr]
    if np.any(factor != 1):
        layer.replace_input_with(
            1, edit.weight(layer, f"{name}_folded", _scaled(layer, np.asarray(weight, np.float64), factor).astype(weight.dtype))
        )
    new_bias = edit.weight(layer, f"{name}_bias", (old_bias * factor + term).astype(weight.dtype))
    if layer.op_type == "MatMul":
        # A MatMul of matrices that gets a bias is a Gemm.
        layer.op_type = "Gemm"
    if layer.op_type == "Gemm":
        layer.attributes.pop("beta", None)
    layer.resize_inputs(3)
    layer.replace_input_with(2, new_bias)
    take_place(node.outputs[0], layer.outputs[0])
    graph_of(node).remove(node, safe=True)


def _absorb_in_scale(node: ir.Node, layer: ir.Node, factor: Array, term: Array, edit: Edit) -> None:
    """The same for a layer with packed weights, which has a scale and a bias of its own."""
    scale, bias = (np.asarray(constant(v), np.float64) for v in layer.inputs[2:4])
    for index, array in ((2, scale * factor.reshape(scale.shape)), (3, bias * factor.reshape(bias.shape) + term.reshape(bias.shape))):
        name = layer.inputs[index].name or "weight"  # type: ignore[union-attr]
        layer.replace_input_with(index, edit.weight(layer, f"{name}_folded", array.astype(np.float32)))
    take_place(node.outputs[0], layer.outputs[0])
    graph_of(node).remove(node, safe=True)


def _scaled(layer: ir.Node, weight: Array, factor: Array) -> Array:
    """The weights, each output channel times its factor."""
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":
        # (in, out/group, ...): output channel g * (out/group) + j belongs to the input channels of group g.
        group = layer.attributes.get_int("group", 1)
        per_group = factor.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (weight.reshape(group, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    if layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) != 0:
        return weight * factor[:, None]
    return weight * factor
