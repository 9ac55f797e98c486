"""What stands behind a layer and goes into its end: a bias, a residual sum, an activation, the quantizer of each channel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, sole_consumer
from hasten.lower.float_ops import IDENTITY, Activation, End
from hasten.lower.ops import Quantization
from hasten.lower.plan import Tensor
from hasten.lower.walk import Cannot, Laid, Unscaled, Value, Walk, bounds_of, channel_axis, image, zero_of


@dataclasses.dataclass(frozen=True)
class Tail:
    """The end of a layer, and the values that it computes on its way: outputs of nodes that need no op of their own.

    step: the scale of each channel's codes, float32 (channels,), where a QuantizeLinear is the last of them. to: what the codes mean, where all
    channels have one scale.
    """

    end: End
    covered: tuple[str, ...]
    step: Array | None = None
    zero: int = 0
    to: Quantization | None = None
    shape: tuple[int, ...] | None = None

    def name(self, it: Walk, y: Tensor, shape: tuple[int, ...]) -> None:
        """Keep the layer's result under each of the names; in the shape of the graph, where rows stand for more axes."""
        result: Any = Unscaled(y, self.zero, shape) if self.step is not None and self.to is None else Value(y, self.to, shape)
        if self.shape is not None and self.shape != shape:
            result = it.reshaped(result, self.shape)
        it.values.update(dict.fromkeys(self.covered, result))


def tail(it: Walk, node: ir.Node, shape: tuple[int, ...], bias: Array | None = None, codes: bool = True, rows: bool = False) -> Tail:
    """What follows `node`, whose result has the shape `shape` without the batch, as far as one reads it after the other.

    bias: what the node itself adds to each channel. codes: whether a quantizer may be the last. rows: whether the layer computes rows of the last
    axis, with more than one axis before it.
    """
    channels, h, w = (shape[-1], math.prod(shape[:-1]), 1) if rows else image(shape)
    value, covered = node.outputs[0], [node.outputs[0].name or ""]
    other: Tensor | None = None
    activation = IDENTITY
    step: Array | None = None
    to: Quantization | None = None
    zero = 0
    while (reader := sole_consumer(value)) is not None and reader.domain == "":
        if reader.op_type == "Add" and activation is IDENTITY:
            beside = reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0]
            stored = constant(beside)
            if stored is not None:
                more = of_channels(stored, shape, rows)
                if more is None or other is not None:
                    break
                bias = more if bias is None else bias + more
            else:
                found = it.values.get(beside.name or "") if beside is not None else None
                if other is not None or not isinstance(found, Value | Laid) or found.shape != shape:
                    break
                beside_it = it.rows(found) if rows else it.as_floats(found)
                if (beside_it.tensor.h, beside_it.tensor.w) != (h, w):
                    break
                other = beside_it.tensor
        elif activation is IDENTITY and (function := activation_of(reader)) is not None:
            activation = function
        elif codes and not rows and reader.op_type == "QuantizeLinear":
            scales = constant(reader.inputs[1])
            if (
                scales is None
                or not (scales > 0).all()
                or (scales.size > 1 and (scales.size != channels or channel_axis(reader, len(shape)) is None))
            ):
                break
            zero = zero_of(reader)
            step = np.broadcast_to(scales.reshape(-1), (channels,)).astype(np.float32)
            to = Quantization(float(scales.reshape(())), zero) if scales.size == 1 else None
        else:
            break
        value = reader.outputs[0]
        covered.append(value.name or "")
        if step is not None:
            break
    return Tail(End(bias, other, activation), tuple(covered), step, zero, to, shape)


def of_channels(stored: Array, shape: tuple[int, ...], rows: bool = False) -> Array | None:
    """A constant that is added to (batch, *shape) as one float for each channel, else None. rows: channels are the last axis."""
    channels = shape[-1] if rows else image(shape)[0]
    if stored.size == 1 and stored.ndim <= len(shape) + 1:
        return np.broadcast_to(stored.reshape(-1), (channels,)).astype(np.float32)
    sizes = (1,) * (len(shape) + 1 - stored.ndim) + stored.shape
    wanted = (*(1 for _ in shape), channels) if rows or len(shape) < 3 else (1, channels, 1, 1)
    return stored.reshape(-1).astype(np.float32) if sizes == wanted else None


def activation_of(node: ir.Node) -> Activation | None:
    """The node as a function of one number that the kernels know, else None."""
    if node.domain != "":
        return None
    get = node.attributes.get_float
    match node.op_type:
        case "Relu" | "Clip":
            try:
                return Activation("Clip", *bounds_of(node))
            except Cannot:
                return None
        case "LeakyRelu":
            return Activation("LeakyRelu", get("alpha", 0.01))
        case "Elu":
            return Activation("Elu", get("alpha", 1.0))
        case "HardSigmoid":
            return Activation("HardSigmoid", get("alpha", 0.2), get("beta", 0.5))
        case "Gelu":
            return Activation("Gelu" if (node.attributes.get_string("approximate", None) or "none") == "none" else "GeluTanh")
        case "Sigmoid" | "Tanh" | "HardSwish" | "Exp" | "Sqrt" | "Erf" | "Abs" | "Neg":
            return Activation(node.op_type)
        case _:
            return None
