"""fold_scales: a constant scale, or shift, of what a layer reads goes into the layer's weights. Effect: rounding.

W (a u + c) + b, with a and c constant per input channel, is (W a) u + (W c + b): the normalisation that a preprocessing left in the graph, the scale
of a norm whose mean and deviation stay. A convolution that pads takes a scale and no shift: its zeros are not shifted. A shift needs a bias to go to,
so a MatMul of rows becomes a Gemm, and one of more axes takes the shift where an Add of a constant follows. Computed in float64, stored in the
weights' type. The scale of an RMS normalization stays, for onnxruntime makes one operator of it with a scale alone: six pre-normalised layers
of 64 channels ran at 1.17 of their speed so and at 1.07 with the scales folded (16 tokens, one thread; 256 channels: no difference).

Branches, loops' bodies and local functions are treated like the main graph; a function's values have no shapes, so there one number for all channels
is folded, and no vector, which could make what it meets larger.

When: pictures scaled in the graph, scales of attention.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, may_rewrite, settle
from hasten.model import Model, Skip, Step
from hasten.passes.fuse_operators import ends_rms_norm
from hasten.passes.products import LAYERS, bias_behind, bias_of, inputs_of, mixed, own_weights, rank, set_bias, weigh
from hasten.rewrite import Edit, graph_of, keeps_shape, only_reader, plain
from hasten.task import BoundTask

OPERATORS = ("Add", "Sub", "Mul", "Div")


@dataclasses.dataclass(frozen=True)
class FoldScales:
    """No settings."""


def fold_scales(model: Model, settings: FoldScales, task: BoundTask | None) -> Model:
    """Fold each Add, Sub, Mul and Div with a constant per channel into the one layer that reads it, until none is left to fold."""
    edited = begin(model)
    skipped: list[Skip] = []
    changed = 0
    edit = Edit(edited)
    for layer in [n for n in edit.nodes() if n.op_type in LAYERS and plain(n)]:
        while (scale := _scale_before(layer)) is not None:
            found = _factor_and_shift(scale, layer)
            why = "its constant is not one number per channel that the layer reads" if found is None else _refusal(layer, scale, *found)
            if found is None or why:
                skipped.append(Skip(scale.name or scale.op_type, why))
                break
            if not may_rewrite(layer):
                break
            _absorb(layer, scale, *found, edit)
            changed += 1
    if changed:
        settle(edited)
    return model.then(edited, Step("fold_scales", dataclasses.asdict(settings), changed, tuple(skipped)))


def _scale_before(layer: ir.Node) -> ir.Node | None:
    """The Add, Sub, Mul or Div with one constant whose only reader the layer is."""
    value = layer.inputs[0]
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in OPERATORS or not plain(node) or node.graph is not layer.graph or not only_reader(value):
        return None
    constants = [constant(v) is not None for v in node.inputs]
    return node if constants in ([True, False], [False, True]) and own_weights(layer) else None


def _factor_and_shift(scale: ir.Node, layer: ir.Node) -> tuple[Array, Array] | None:
    """a and c of a u + c, one number for each channel that the layer reads; None where the constant is none such."""
    which = 0 if constant(scale.inputs[0]) is None else 1
    number = np.asarray(constant(scale.inputs[1 - which]), np.float64)
    value = scale.inputs[which]
    channels = inputs_of(layer)
    if value is None or not keeps_shape(value, number) or number.size not in (1, channels):
        return None
    if number.ndim > 0:
        axes = len(value.shape or ())
        full = number.reshape((1,) * (axes - number.ndim) + number.shape)
        if full.size != full.shape[-1 if layer.op_type in ("Gemm", "MatMul") else 1]:
            return None
    flat = np.broadcast_to(number.ravel(), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if scale.op_type == "Add":
        return one, flat
    if scale.op_type == "Sub":
        return (one, -flat) if which == 0 else (-one, flat)
    if scale.op_type == "Mul":
        return flat, zero
    return (1 / flat, zero) if which == 0 and np.all(flat != 0) else None


def _refusal(layer: ir.Node, scale: ir.Node, factor: Array, shift: Array) -> str:
    """Why a layer can't or should not take them, empty if it may."""
    if ends_rms_norm(scale):
        return "it is the scale of an RMS normalization, which runtimes make one operator of with its scale alone"
    if not np.any(shift):
        return ""
    if layer.op_type == "ConvTranspose":
        return "a transposed convolution takes no shift: the places at its edges sum over fewer inputs"
    if layer.op_type == "Conv" and (any(layer.attributes.get_ints("pads", ())) or _auto_pads(layer)):
        return "the convolution pads, and its zeros are not shifted"
    if layer.op_type == "MatMul" and rank(layer.outputs[0]) != 2 and bias_behind(layer) is None:
        return "the MatMul works on more than two axes and no constant is added behind it: there is no bias that could take the shift"
    return ""


def _auto_pads(layer: ir.Node) -> bool:
    return layer.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _absorb(layer: ir.Node, scale: ir.Node, factor: Array, shift: Array, edit: Edit) -> None:
    """Let the layer read what the scale reads; the scale goes."""
    weight = np.asarray(constant(layer.inputs[1]))
    wide = np.asarray(weight, np.float64)
    if np.any(shift):
        set_bias(layer, bias_of(layer) + mixed(layer, wide, shift), edit)
    if np.any(factor != 1):
        name = layer.inputs[1].name or "weight"  # type: ignore[union-attr]
        layer.replace_input_with(1, edit.weight(layer, f"{name}_scaled", weigh(layer, wide, factor).astype(weight.dtype)))
    layer.replace_input_with(0, scale.inputs[0 if constant(scale.inputs[0]) is None else 1])
    graph_of(scale).remove(scale, safe=True)
