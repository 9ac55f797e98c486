"""Rules for nodes between DequantizeLinear and QuantizeLinear: ops on 8-bit codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, scalar, sole_consumer
from hasten.lower import float_ops, ops
from hasten.lower.axes import reshape, transpose
from hasten.lower.ends import tail
from hasten.lower.ops import Quantization
from hasten.lower.plan import Tensor
from hasten.lower.walk import UINT8, Cannot, Rules, Unscaled, Value, Walk, Weight, channel_axis, pixels, zero_of
from hasten.numerics import combined_scale, dequantize, quantize
from hasten.patches import Slide, each, slide


def _quantize(it: Walk, node: ir.Node) -> None:
    source = it.value(node, 0)
    if not isinstance(source, Value):
        raise Cannot("it quantizes a weight at run time")
    scales = constant(node.inputs[1])
    if scales is not None and scales.size > 1:
        quantize_channels(it, node, it.as_floats(source), scales.reshape(-1))
        return
    to = it.target(node)
    if source.quantization is None:
        if it.fixed and source.tensor.port is None:
            raise Cannot("it quantizes what is computed in float")
        y = pixels(source.shape, fill=to.zero)
        if source.tensor.port is None or len(source.shape) == 2:
            x = it.as_floats(source).tensor
            y = Tensor(x.h, x.w, x.c, fill=to.zero)
            it.put(float_ops.QuantizePixels(x, y, np.full(y.c, to.scale, np.float32), to.zero), node, None, Value(y, to, source.shape))
            return
        if 1 < y.c < ops.GROUP and y.h * y.w > 1:
            y.wide = ops.GROUP  # a pixel of few channels is one word
        x = dataclasses.replace(source.tensor, h=y.h, w=y.w, c=y.c)
        it.put(ops.Quantize(x, y, to), node, None, Value(y, to, source.shape))
    elif source.quantization.same(to):
        it.values[node.outputs[0].name or ""] = source
    else:
        table = _table(lambda x: x, source.quantization, to)
        y = _like(source.tensor, to)
        it.put(ops.Map(source.tensor, y, table), node, None, Value(y, to, source.shape))


def quantize_channels(it: Walk, node: ir.Node, x: Value, scales: Array) -> None:
    """A scale for each channel; one zero point for all."""
    zero = zero_of(node)
    t = x.tensor
    if not (scales > 0).all():
        raise Cannot(f"the least of its scales is {scales.min()}; a scale is a positive number")
    if it.fixed or len(scales) != t.c or channel_axis(node, len(x.shape)) is None or (t.h * t.w > 1 and len(x.shape) == 1):
        raise Cannot("activations are quantized with one constant scale and zero point, or one scale for each channel")
    y = Tensor(t.h, t.w, t.c, fill=zero)
    it.ops.append(float_ops.QuantizePixels(t, y, scales, zero))
    it.values[node.outputs[0].name or ""] = Unscaled(y, zero, x.shape)


def _like(tensor: Tensor, to: Quantization) -> Tensor:
    return Tensor(tensor.h, tensor.w, tensor.c, fill=to.zero)


def _table(function: Callable[[Array], Array], of: Quantization, to: Quantization) -> Array:
    """The code behind a function for each of the 256 codes before it."""
    values = function(dequantize(np.arange(256, dtype=np.uint8), of.scale, of.zero))
    return np.clip(quantize(np.nan_to_num(values), to.scale, to.zero, UINT8), to.lo, to.hi)


def _dequantize(it: Walk, node: ir.Node) -> None:
    source = node.inputs[0]
    codes = constant(source)
    if codes is None:
        it.values[node.outputs[0].name or ""] = _meant(it, node)
        return
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if scale is None or zero is None or np.any(zero):
        raise Cannot("stored weights must be symmetric: zero point 0")
    if codes.dtype.name not in ("int8", "int32"):
        raise Cannot(f"its weights are {codes.dtype.name}; the native engine's are int8")
    axis = node.attributes.get_int("axis", 1)
    if scale.size > 1:
        codes, scale = np.moveaxis(codes, axis, 0), scale.reshape(-1)
        if len(scale) != len(codes):
            raise Cannot("its weights have scales for blocks")
        codes = np.moveaxis(codes, 0, axis)
    it.values[node.outputs[0].name or ""] = Weight(codes, scale.reshape(-1), axis % max(1, codes.ndim))


def _meant(it: Walk, node: ir.Node) -> Value:
    """The codes as a DequantizeLinear reads them."""
    found = it.value(node, 0)
    scale = scalar(node.inputs[1])
    if isinstance(found, Unscaled):
        if scale is None or not scale > 0 or zero_of(node) != found.zero:
            raise Cannot("it gives codes another zero point than they were made with, or no one positive scale")
        return Value(found.tensor, Quantization(scale, found.zero), found.shape)
    found = it.codes(node, 0)
    of = meaning(found)
    if scale is None or (float(np.float32(scale)), zero_of(node)) != (of.scale, of.zero):
        raise Cannot("it reads codes with another scale or zero point than they were made with")
    return found


def _conv(it: Walk, node: ir.Node) -> None:
    x, weight = it.codes(node, 0), it.weight(node, 1, 0)
    if len(x.shape) != 3 or weight.codes.ndim != 4:
        raise Cannot("only two-dimensional convolutions are lowered")
    how, group = slide(node, weight.codes.shape[2:], x.shape[1:]), node.attributes.get_int("group", 1)
    if any(p < 0 for pad in how.pads for p in pad):
        raise Cannot("it has negative padding")
    _layer(it, node, x, weight, how, group)


def _layer(it: Walk, node: ir.Node, x: Value, weight: Weight, how: Slide, group: int = 1) -> None:
    """A convolution or a Gemm that is one: its op, with the quantizer behind it."""
    found = it.quantizer(node)
    if found is None and not it.fixed:
        _layer_to_floats(it, node, x, weight, how, group)
        return
    if found is None and not node.outputs[0].is_graph_output():
        raise Cannot("its result is not quantized, or is read in float too")
    to = found[1] if found is not None else None
    of, channels = meaning(x), len(weight.codes)
    w_scale = np.broadcast_to(weight.scale, (channels,)).astype(np.float32)
    product = (np.float32(of.scale) * w_scale).astype(np.float32)
    scale = product if to is None else combined_scale(of.scale, w_scale, to.scale)
    bias = _bias(it, node, product)
    if it.fixed and ((scale <= 0).any() or (scale >= 2.0**20).any()):
        raise Cannot("a scale is not positive, or too large for fixed point")
    y, shape = it.new(node, to) if to is not None else (pixels(it.shape(node), "float32"), it.shape(node))
    if to is None and (y.h, y.w) != (1, 1):
        raise Cannot("an image of floats can't be an output: quantize it")
    base = _halo(it, x, how, y)
    if group > 1 and group == x.tensor.c == channels and to is not None:
        it.ops.append(ops.Depthwise(base, y, weight.codes, bias, scale, of.zero, how, to, it.fixed))
    elif group == 1:
        it.ops.append(ops.Conv(base, y, weight.codes, bias, scale, of.zero, how, to, it.fixed))
    else:
        inputs, outputs = x.tensor.c // group, channels // group
        for g in range(group):
            some = slice(g * outputs, (g + 1) * outputs)
            part = base.view(base.h, base.w, inputs, channel=g * inputs)
            goal = y.view(y.h, y.w, outputs, channel=g * outputs)
            it.ops.append(ops.Conv(part, goal, weight.codes[some], bias[some], scale[some], of.zero, how, to, it.fixed))
    it.name(node, found[0] if found is not None else None, Value(y, to, shape))


def _layer_to_floats(it: Walk, node: ir.Node, x: Value, weight: Weight, how: Slide, group: int) -> None:
    """A layer on codes whose sums become floats: bias, residual and activation behind it, and what quantizes each channel, go into its end."""
    if group > 1:
        raise Cannot("it has groups, and its result is not quantized")
    of, channels = meaning(x), len(weight.codes)
    scale = (np.float32(of.scale) * np.broadcast_to(weight.scale, (channels,)).astype(np.float32)).astype(np.float32)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    floats = constant(given)
    if floats is not None and floats.size not in (1, channels):
        raise Cannot(f"its bias has the shape {floats.shape}, not one number for each of {channels} channels")
    bias = np.zeros(channels, np.int32) if floats is not None else _bias(it, node, scale)
    shape = it.shape(node)
    behind = tail(it, node, shape, None if floats is None else np.broadcast_to(floats.astype(np.float32).reshape(-1), (channels,)))
    y = pixels(shape, "float32") if behind.step is None else pixels(shape, fill=behind.zero)
    base = _halo(it, x, how, y)
    to = None if behind.step is None else Quantization(1.0, behind.zero)
    it.ops.append(ops.Conv(base, y, weight.codes, bias, scale, of.zero, how, to, False, end=behind.end, step=behind.step))
    behind.name(it, y, shape)


def meaning(x: Value) -> Quantization:
    """What the codes of a value mean that must have some."""
    assert x.quantization is not None
    return x.quantization


def _bias(it: Walk, node: ir.Node, scale: Array) -> Array:
    """The int32 codes of a layer's bias, one for each channel; the scale they are stored with must be that of the sums."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(len(scale), np.int32)
    stored = it.value(node, 2)
    if not isinstance(stored, Weight) or stored.codes.size != len(scale) or not np.allclose(stored.scale, scale, rtol=1e-4, atol=0):
        raise Cannot("its bias is not stored as int32 codes of scale s_x s_w")
    return stored.codes.reshape(-1).astype(np.int32)


def _halo(it: Walk, x: Value, how: Slide, y: Tensor) -> Tensor:
    """The input with a halo for the padding: its own, or that of a copy where it is a view."""
    (top, _), (left, _) = how.pads
    tensor = x.tensor
    (span_h, span_w), (stride_h, stride_w) = how.spans, how.strides
    bottom = (y.h - 1) * stride_h + span_h - top - tensor.h
    right = (y.w - 1) * stride_w + span_w - left - tensor.w
    if max(top, left, bottom, right) <= 0:
        return tensor
    if tensor.base is not None or tensor.flat:
        copy = _like(tensor, meaning(x))
        it.ops.append(ops.Map(tensor, copy))
        tensor = copy
    tensor.need_halo(top, left, max(bottom, 0), max(right, 0))
    return tensor


def _gemm(it: Walk, node: ir.Node) -> None:
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    x, weight = it.codes(node, 0), it.weight(node, 1, 0 if transposed else 1)
    if node.op_type == "Gemm":
        a = node.attributes
        if a.get_float("alpha", 1.0) != 1 or a.get_float("beta", 1.0) != 1 or a.get_int("transA", 0) != 0:
            raise Cannot("it has alpha, beta or transA")
    codes = weight.codes if transposed else weight.codes.T
    if len(x.shape) not in (1, 2) or codes.ndim != 2 or (it.fixed and len(x.shape) == 2):
        raise Cannot(f"its input has the shape {('batch', *x.shape)}; the native engine multiplies vectors and sequences")
    if len(x.shape) == 2:
        _layer(
            it,
            node,
            x,
            Weight(np.ascontiguousarray(codes)[:, :, None, None], weight.scale),
            Slide((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
        )
        return
    # Behind a Flatten, a Gemm is a convolution whose window is the whole image.
    t = x.tensor
    codes = np.ascontiguousarray(codes).reshape(len(codes), t.c, t.h, t.w)
    how = Slide((t.h, t.w), (1, 1), (1, 1), ((0, 0), (0, 0)))
    _layer(it, node, x, Weight(codes, weight.scale), how)


def _add(it: Walk, node: ir.Node) -> None:
    a, b = it.codes(node, 0), it.codes(node, 1)
    quantizer, to = it.needed_quantizer(node)
    if a.shape != b.shape:
        raise Cannot(f"it broadcasts {a.shape} and {b.shape}")
    y, shape = it.new(node, to)
    of = (meaning(a), meaning(b), to)
    sums = [ops.Sum(b.tensor, *of), ops.Sum(a.tensor, *of, second=True)]
    if it.fixed:
        try:
            _ = sums[0].fixed
        except ValueError as e:
            raise Cannot(str(e)) from e
    # The later of two layers takes the sum in, if nothing else reads it.
    makers = [
        (i, which)
        for which, part in enumerate((a, b))
        for i, op in enumerate(it.ops)
        if op.y is part.tensor and _may_take(it, node, which, op)
    ]
    if makers and a.tensor is not b.tensor:
        place, which = max(makers)
        layer = it.ops.pop(place)
        it.put(dataclasses.replace(layer, y=y, add=sums[which]), node, quantizer, Value(y, to, shape))
    else:
        it.put(ops.Add(a.tensor, y, sums[0], it.fixed), node, quantizer, Value(y, to, shape))


def _may_take(it: Walk, node: ir.Node, which: int, op: Any) -> bool:
    dq = node.inputs[which]
    source = dq.producer() if dq is not None else None
    alone = source is not None and source.op_type == "DequantizeLinear" and sole_consumer(source.outputs[0]) is node
    first = source.inputs[0] if source is not None and source.inputs else None
    return isinstance(op, ops.Conv) and op.add is None and op.end is None and alone and first is not None and sole_consumer(first) is source


def _pool(it: Walk, node: ir.Node) -> None:
    x = it.codes(node, 0)
    of = meaning(x)
    average, whole = node.op_type != "MaxPool", node.op_type == "GlobalAveragePool"
    if len(x.shape) != 3 or len(node.outputs) > 1:
        raise Cannot("only two-dimensional pools with one result are lowered")
    quantizer, to = it.needed_quantizer(node)
    sizes = (x.tensor.h, x.tensor.w)
    how = Slide(sizes, (1, 1), (1, 1), ((0, 0), (0, 0))) if whole else slide(node, each(node, "kernel_shape", 2), sizes)
    if any(d != 1 for d in how.dilations) or any(p >= k for (p, _), k in zip(how.pads, how.kernel, strict=True)):
        raise Cannot("it has dilations, or padding as wide as its window")
    y, shape = it.new(node, to)
    counts = node.attributes.get_int("count_include_pad", 0) != 0
    if average and not counts and not whole and any(p for pad in how.pads for p in pad) and it.fixed:
        raise Cannot("an average over padded windows has no fixed-point form")
    if any((o - 1) * s - p >= n for o, s, (p, _), n in zip((y.h, y.w), how.strides, how.pads, sizes, strict=True)):
        raise Cannot("a window lies wholly in the padding")
    if average and not whole and node.attributes.get_int("ceil_mode", 0) != 0:
        raise Cannot("an average with ceil_mode is not lowered")
    if average or (of.same(to) and (to.lo, to.hi) == (0, 255)):
        it.ops.append(ops.Pool(x.tensor, y, average, how, counts, of, to, it.fixed))
    else:
        between = _like(y, of)
        it.ops.append(ops.Pool(x.tensor, between, False, how, counts, of, of, it.fixed))
        it.ops.append(ops.Map(between, y, _table(lambda v: v, of, to)))
    it.name(node, quantizer, Value(y, to, shape))


def _slice(it: Walk, node: ir.Node) -> None:
    x, shape = it.codes(node, 0), it.shape(node)
    parts = [constant(v) if v is not None else None for v in node.inputs[1:]]
    if len(parts) < 3 or any(p is None for p in parts) or len(x.shape) != 3:
        raise Cannot("its bounds are not constants, or it does not slice an image")
    starts, axes = [int(v) for v in parts[0]], [int(v) for v in parts[2]]  # type: ignore[union-attr]
    steps = [int(v) for v in parts[3]] if len(parts) > 3 else [1] * len(axes)  # type: ignore[union-attr]
    begin, step = {1: 0, 2: 0, 3: 0}, {1: 1, 2: 1, 3: 1}
    for axis, start, by in zip(axes, starts, steps, strict=True):
        axis %= 4
        if axis == 0 or by < 1:
            raise Cannot("it slices the batch, or backwards")
        size = x.shape[axis - 1]
        begin[axis], step[axis] = min(max(start + size if start < 0 else start, 0), size), by
    if step[1] != 1:
        raise Cannot("it takes every n-th channel")
    view = x.tensor.view(shape[1], shape[2], shape[0], (begin[2], begin[3]), (step[2], step[3]), begin[1])
    it.values[node.outputs[0].name or ""] = Value(view, x.quantization, shape)


def _pad(it: Walk, node: ir.Node) -> None:
    x, shape = it.codes(node, 0), it.shape(node)
    of = meaning(x)
    if (node.attributes.get_string("mode", None) or "constant") != "constant" or len(x.shape) != 3:
        raise Cannot("it pads by other than a constant, or no image")
    pads, number = constant(node.inputs[1]), 0.0
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        raise Cannot("its pads are not constants, or for some axes only")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = scalar(node.inputs[2])
        if given is None:
            raise Cannot("its value is no constant")
        number = given
    quantizer, to = it.needed_quantizer(node)
    before, behind = [int(p) for p in pads[: len(pads) // 2]], [int(p) for p in pads[len(pads) // 2 :]]
    if before[0] or behind[0] or min(*before, *behind) < 0:
        raise Cannot("it pads the batch, or cuts")
    y, _ = it.new(node, to)
    code = int(_table(lambda v: np.full_like(v, number), of, to)[0])
    table = None if of.same(to) and (to.lo, to.hi) == (0, 255) else _table(lambda v: v, of, to)
    c, h, w = x.shape
    if y.h * y.w == h * w:  # channels alone
        for first, count in ((0, before[1]), (before[1] + c, behind[1])):
            if count:
                part = y.view(y.h, y.w, count, channel=first)
                it.ops.append(ops.Map(part, part, constant=code))
    else:
        it.ops.append(ops.Map(y, y, constant=code))
    it.ops.append(ops.Map(x.tensor, y.view(h, w, c, (before[2], before[3]), channel=before[1]), table))
    it.name(node, quantizer, Value(y, to, shape))


def _concat(it: Walk, node: ir.Node) -> None:
    parts = [it.codes(node, i) for i in range(len(node.inputs))]
    quantizer, to = it.needed_quantizer(node)
    y, shape = it.new(node, to)
    if channel_axis(node, len(shape)) is None or any(len(p.shape) == 1 and p.tensor.h * p.tensor.w > 1 for p in parts):
        raise Cannot("only channels are joined")
    first = 0
    for part in parts:
        of = meaning(part)
        same = of.same(to) and (to.lo, to.hi) == (0, 255)
        goal = y.view(y.h, y.w, part.tensor.c, channel=first)
        it.ops.append(ops.Map(part.tensor, goal, None if same else _table(lambda v: v, of, to)))
        first += part.tensor.c
    it.name(node, quantizer, Value(y, to, shape))


def _activation(it: Walk, node: ir.Node) -> None:
    """A function of one number: a table of its 256 results."""
    x = it.codes(node, 0)
    quantizer, to = it.needed_quantizer(node)
    y = _like(x.tensor, to)
    it.ops.append(ops.Map(x.tensor, y, _table(lambda v: _evaluate(node, v), meaning(x), to)))
    it.name(node, quantizer, Value(y, to, x.shape))


def _evaluate(node: ir.Node, values: Array) -> Array:
    """The node's function on an array, by onnxruntime."""
    import onnx
    import onnxruntime as ort

    proto = ir.to_proto(node)
    del proto.input[1:]
    constants = []
    for value in node.inputs[1:]:
        found = constant(value)
        if value is not None and found is None:
            raise Cannot("its parameters are not constants")
        proto.input.append(value.name or "" if value is not None else "")
        if value is not None:
            constants.append(onnx.numpy_helper.from_array(np.asarray(found), value.name))
    proto.input[0], proto.output[0] = "x", "y"
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [len(values)]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([proto], "table", ports[:1], ports[1:], constants)
    made = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": values.astype(np.float32)})[0]
    return result


ACTIVATIONS = (
    *("Relu", "Clip", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Softplus", "Softsign"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Abs", "Neg", "Exp", "Sqrt"),
)

RULES: Rules = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Add": _add,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), reshape),
    "Transpose": transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    **dict.fromkeys(ACTIVATIONS, _activation),
}
