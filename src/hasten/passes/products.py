"""Layers that are products with constant weights, seen from their input channels: what a pass needs to fold something into them from the front."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant
from hasten.rewrite import Edit, become, only_reader, plain

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def own_weights(layer: ir.Node) -> bool:
    """Whether it is a layer that multiplies what it reads with constant weights: a matrix or kernels, and a bias of one number per output channel."""
    weight = constant(layer.inputs[1]) if layer.op_type in LAYERS and plain(layer) else None
    if weight is None or constant(layer.inputs[0]) is not None or weight.dtype.kind != "f":
        return False
    if layer.op_type == "MatMul":
        return weight.ndim == 2 and (rank(layer.inputs[0]) or 0) > 1
    if layer.op_type == "Gemm" and layer.attributes.get_int("transA", 0) != 0:
        return False
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    number = constant(bias)
    return bias is None or (number is not None and number.size in (1, outputs_of(layer)) and (number.size,) == (number.shape[-1:] or (1,)))


def rank(value: ir.Value | None) -> int | None:
    """How many axes a value has: of its shape, or, where that is unknown (in a local function it is), of the layer that makes it."""
    if value is None or value.shape is not None:
        return None if value is None or value.shape is None else len(value.shape)
    layer = value.producer()
    weight = constant(layer.inputs[1]) if layer is not None and layer.op_type in LAYERS and plain(layer) else None
    if layer is None or weight is None:
        return None
    return rank(layer.inputs[0]) if layer.op_type == "MatMul" and weight.ndim == 2 else None if layer.op_type == "MatMul" else weight.ndim


def inputs_of(layer: ir.Node) -> int:
    """Input channels."""
    weight = np.asarray(constant(layer.inputs[1]))
    if layer.op_type == "Conv":
        return int(weight.shape[1]) * layer.attributes.get_int("group", 1)
    return int(weight.shape[1 if layer.attributes.get_int("transB", 0) != 0 else 0])


def outputs_of(layer: ir.Node) -> int:
    """Output channels of a layer with constant weights."""
    weight = np.asarray(constant(layer.inputs[1]))
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * layer.attributes.get_int("group", 1)
    return int(weight.shape[0 if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0) != 0 else -1])


def weigh(layer: ir.Node, weight: Array, factor: Array) -> Array:
    """The weights, each input channel times its factor."""
    if layer.op_type == "Conv":
        group = layer.attributes.get_int("group", 1)
        per_group = factor.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (weight.reshape(group, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    if layer.attributes.get_int("transB", 0) != 0:
        return weight * factor
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def mixed(layer: ir.Node, weight: Array, shift: Array) -> Array:
    """What a shift of every input channel adds to each output channel: W c. Not for a transposed convolution."""
    if layer.op_type == "Conv":
        return weigh(layer, weight, shift).reshape(len(weight), -1).sum(1)
    if layer.op_type == "Gemm":
        matrix = weight.T if layer.attributes.get_int("transB", 0) != 0 else weight
        return layer.attributes.get_float("alpha", 1.0) * (shift @ matrix)
    return shift @ weight


def bias_behind(layer: ir.Node) -> ir.Node | None:
    """The Add behind a MatMul that is its bias: one constant per output channel, and nothing else reads the product."""
    if layer.op_type != "MatMul" or not only_reader(layer.outputs[0]):
        return None
    add = next(iter(layer.outputs[0].uses())).node
    if add.op_type != "Add" or not plain(add) or add.graph is not layer.graph:
        return None
    number = next((c for v in add.inputs if (c := constant(v)) is not None), None)
    return add if number is not None and number.shape == (outputs_of(layer),) else None


def bias_of(layer: ir.Node) -> Array:
    """The bias in float64, (output channels,): of the layer itself, of the Add behind a MatMul, or zeros."""
    add = bias_behind(layer)
    number = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if add is not None:
        number = next(c for v in add.inputs if (c := constant(v)) is not None)
    found = np.zeros(outputs_of(layer)) if number is None else np.broadcast_to(np.asarray(number, np.float64).ravel(), (outputs_of(layer),))
    return found * layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else found


def set_bias(layer: ir.Node, bias: Array, edit: Edit) -> None:
    """Give the layer this bias; a MatMul of rows becomes a Gemm, one of more axes has it in the Add behind it."""
    dtype = np.asarray(constant(layer.inputs[1])).dtype
    value = edit.weight(layer, f"{layer.inputs[1].name}_bias", bias.astype(dtype))  # type: ignore[union-attr]
    add = bias_behind(layer)
    if add is not None:
        add.replace_input_with(next(i for i, v in enumerate(add.inputs) if constant(v) is not None), value)
        return
    if layer.op_type == "MatMul":
        become(layer, "Gemm", layer.inputs)
    if layer.op_type == "Gemm":
        layer.attributes.pop("beta", None)
    layer.resize_inputs(3)
    layer.replace_input_with(2, value)
