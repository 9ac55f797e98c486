"""Rules for layers on floats: what has weights, windows, or heads."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant
from hasten.lower import float_ops as ops
from hasten.lower.axes import position
from hasten.lower.ends import tail
from hasten.lower.float_numbers import constant_tensor, operand
from hasten.lower.plan import Tensor
from hasten.lower.walk import SIZES, Cannot, Laid, Value, Walk, Weight, pixels
from hasten.patches import Slide, each, slide

POINT = Slide((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
"""A window of one pixel."""


def _weight(it: Walk, node: ir.Node, index: int) -> Array:
    """A stored weight in float32; one of int8 codes is dequantized here, once."""
    source = node.inputs[index]
    found = constant(source)
    if found is None:
        known = it.values.get(source.name or "") if source is not None else None
        if not isinstance(known, Weight):
            raise Cannot("both its operands are computed" if known is not None else "its weight is no constant")
        shape = [1] * known.codes.ndim
        shape[known.axis] = -1
        return np.asarray(known.codes * known.scale.reshape(shape), np.float32)
    if found.dtype != np.float32:
        raise Cannot(f"its weight is {found.dtype}; the native engine computes in float32")
    return found


def _stored_bias(it: Walk, node: ir.Node, channels: int) -> Array | None:
    """A layer's own bias."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    stored = constant(node.inputs[2])
    if stored is None:
        known = it.values.get(node.inputs[2].name or "")
        if not isinstance(known, Weight):
            raise Cannot("its bias is computed")
        stored = np.asarray(known.codes.reshape(-1) * known.scale.reshape(-1), np.float32)
    found = np.broadcast_to(stored.reshape(-1).astype(np.float32), (channels,)) if stored.size in (1, channels) else None
    if found is None:
        raise Cannot(f"its bias has the shape {stored.shape}, not one number for each of {channels} channels")
    return found


def conv(it: Walk, node: ir.Node) -> None:
    x, weight = it.floats(node, 0), _weight(it, node, 1)
    if len(x.shape) != 3 or weight.ndim != 4:
        raise Cannot("only two-dimensional convolutions are lowered")
    how, group = slide(node, weight.shape[2:], x.shape[1:]), node.attributes.get_int("group", 1)
    if any(p < 0 for pad in how.pads for p in pad):
        raise Cannot("it has negative padding")
    _layer(it, node, x, weight, how, group)


def conv_transpose(it: Walk, node: ir.Node) -> None:
    """For each place that an output may have between the inputs (stride · stride of them) a convolution with the taps that fall there.

    y[s r + i] = Σ_u x[r + b − u] w[a + s u] with a = (i + pad) mod s and b = (i + pad) div s, in rows as in columns (Shi et al., arXiv 1609.07009).
    """
    x, weight = it.floats(node, 0), _weight(it, node, 1)
    if (
        len(x.shape) != 3
        or weight.ndim != 4
        or node.attributes.get_int("group", 1) != 1
        or (node.attributes.get_string("auto_pad", None) or "NOTSET") != "NOTSET"
    ):
        raise Cannot("only two-dimensional transposed convolutions without groups and automatic padding are lowered")
    (stride_h, stride_w), pads = each(node, "strides", 2, 1), each(node, "pads", 4, 0)
    if any(d != 1 for d in each(node, "dilations", 2, 1)) or min(pads) < 0:
        raise Cannot("it has dilations or negative padding")
    shape = it.shape(node)
    behind = tail(it, node, shape, _stored_bias(it, node, weight.shape[1]), codes=False)
    y, end = pixels(shape, "float32"), behind.end
    for i, j in itertools.product(range(min(stride_h, y.h)), range(min(stride_w, y.w))):
        starts, strides = (i, j), (stride_h, stride_w)
        first = [(at + pad) % s for at, pad, s in zip(starts, pads, strides, strict=False)]
        before = [(at + pad) // s for at, pad, s in zip(starts, pads, strides, strict=False)]
        taps = weight[:, :, first[0] :: stride_h, first[1] :: stride_w][:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        h, w = -(-(y.h - i) // stride_h), -(-(y.w - j) // stride_w)
        goal = y.view(h, w, y.c, starts, strides)
        other = None if end.other is None else end.other.view(h, w, y.c, starts, strides)
        if 0 in taps.shape:  # more stride than kernel: a place that no tap reaches
            taps, before = np.zeros((len(weight[0]), len(weight), 1, 1), np.float32), [0, 0]
        top, left = taps.shape[2] - 1 - before[0], taps.shape[3] - 1 - before[1]
        how = Slide(taps.shape[2:], (1, 1), (1, 1), ((top, 0), (left, 0)))
        it.ops.append(
            ops.ConvF32(_halo(it, x.tensor, how, goal), goal, np.ascontiguousarray(taps), how, ops.End(end.bias, other, end.activation))
        )
    behind.name(it, y, shape)


def resize(it: Walk, node: ir.Node) -> None:
    """Each pixel so many times, in rows and columns: the nearest one where sizes are multiples."""
    x, shape = it.floats(node, 0), it.shape(node)
    text = node.attributes.get_string
    mode, where = text("mode", None) or "nearest", text("coordinate_transformation_mode", None) or "half_pixel"
    rounds = text("nearest_mode", None) or "round_prefer_floor"
    if mode != "nearest" or len(x.shape) != 3 or x.shape[0] != shape[0] or any(n % m for n, m in zip(shape, x.shape, strict=True)):
        raise Cannot("only an image is resized, to a multiple of its size, by its nearest pixels")
    times_h, times_w = shape[1] // x.shape[1], shape[2] // x.shape[2]
    # Of k outputs in an input's place all must be nearest to it: with half pixels those are less than a half away; from its corner up to (k - 1) / k.
    if not (where == "half_pixel" and rounds.startswith("round")) and not (
        where == "asymmetric" and (rounds == "floor" or (rounds == "round_prefer_floor" and max(times_h, times_w) <= 2))
    ):
        raise Cannot(f"its nearest pixels are found by {where}, {rounds}")
    y = pixels(shape, "float32")
    for i, j in itertools.product(range(times_h), range(times_w)):
        it.ops.append(ops.Elementwise(x.tensor, y.view(x.tensor.h, x.tensor.w, y.c, (i, j), (times_h, times_w))))
    it.values[node.outputs[0].name or ""] = Value(y, None, shape)


def _layer(it: Walk, node: ir.Node, x: Value, weight: Array, how: Slide, group: int = 1, rows: bool = False) -> None:
    """rows: the input is one of `Walk.rows`, of a value with more axes."""
    channels, shape = len(weight), it.shape(node)
    bias = _stored_bias(it, node, channels)
    if bias is not None and node.op_type == "Gemm":
        bias = bias * np.float32(node.attributes.get_float("beta", 1.0))
    behind = tail(it, node, shape, bias, codes=False, rows=rows)
    if rows:
        shape = (math.prod(shape[:-1]), shape[-1])
    y = pixels(shape, "float32")
    base = _halo(it, x.tensor, how, y)
    if group == x.tensor.c == channels and group > 1:
        it.ops.append(ops.DepthwiseF32(base, y, weight[:, 0], how, behind.end))
    elif group == 1:
        in_pairs = it.bfloat16 and ops.runs(base, how, weight)[1].shape[2] % 2 == 0
        it.ops.append((ops.ConvBF16 if in_pairs else ops.ConvF32)(base, y, weight, how, behind.end))
    else:
        inputs, outputs = x.tensor.c // group, channels // group
        for g in range(group):
            some = slice(g * outputs, (g + 1) * outputs)
            part, goal = base.view(base.h, base.w, inputs, channel=g * inputs), y.view(y.h, y.w, outputs, channel=g * outputs)
            it.ops.append(ops.ConvF32(part, goal, weight[some], how, behind.end.some(some)))
    behind.name(it, y, shape)


def _halo(it: Walk, tensor: Tensor, how: Slide, y: Tensor) -> Tensor:
    """The input with a halo of zeros for the padding: its own, or that of a copy where it can't have one."""
    (top, _), (left, _) = how.pads
    (span_h, span_w), (stride_h, stride_w) = how.spans, how.strides
    bottom = (y.h - 1) * stride_h + span_h - top - tensor.h
    right = (y.w - 1) * stride_w + span_w - left - tensor.w
    if max(top, left, bottom, right) <= 0:
        return tensor
    if tensor.base is not None or tensor.flat or tensor.port is not None:
        copy = Tensor(tensor.h, tensor.w, tensor.c, "float32")
        it.ops.append(ops.Elementwise(tensor, copy))
        tensor = copy
    tensor.need_halo(top, left, max(bottom, 0), max(right, 0))
    return tensor


def gemm(it: Walk, node: ir.Node) -> None:
    given, weight, source = it.value(node, 0), _weight(it, node, 1), node.inputs[0]
    rows = isinstance(given, Value | Laid) and len(given.shape) > 2 and node.op_type == "MatMul"
    x = it.rows(given) if rows else it.as_floats(given)
    if source is not None:
        it.axis(source, -1)
    if weight.ndim != 2 or len(x.shape) not in (1, 2):
        raise Cannot(
            f"it multiplies {('batch', *x.shape)} by {weight.shape}; the native engine multiplies vectors and sequences by stored matrices"
        )
    if node.op_type == "Gemm":
        a = node.attributes
        if a.get_int("transA", 0) != 0:
            raise Cannot("it has transA")
        weight = np.float32(a.get_float("alpha", 1.0)) * (weight if a.get_int("transB", 0) else weight.T)
    else:
        weight = weight.T
    t = x.tensor
    if t.h * t.w == 1 or len(x.shape) == 2:
        _layer(it, node, x, weight[:, :, None, None], POINT, rows=rows)
    else:  # behind a Flatten, a Gemm is a convolution whose window is the whole image
        _layer(it, node, x, np.ascontiguousarray(weight).reshape(len(weight), t.c, t.h, t.w), dataclasses.replace(POINT, kernel=(t.h, t.w)))


def batch_norm(it: Walk, node: ir.Node) -> None:
    """y = x · γ / √(variance + ε) + …: one tap of a depthwise convolution."""
    x = it.floats(node, 0)
    stored = [constant(v) for v in node.inputs[1:5]]
    if any(s is None for s in stored) or len(node.outputs) > 1:
        raise Cannot("its parameters are computed, or it trains")
    gamma, beta, mean, variance = (s.astype(np.float64) for s in stored if s is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    if x.tensor.c != len(scale):
        raise Cannot("it normalizes other than the channels")
    shape = it.shape(node)
    behind = tail(it, node, shape, (beta - mean * scale).astype(np.float32), codes=False)
    y = Tensor(x.tensor.h, x.tensor.w, x.tensor.c, "float32")
    it.ops.append(ops.DepthwiseF32(x.tensor, y, scale.astype(np.float32)[:, None, None], POINT, behind.end))
    behind.name(it, y, shape)


def pool(it: Walk, node: ir.Node) -> None:
    x = it.floats(node, 0)
    if len(x.shape) != 3 or len(node.outputs) > 1:
        raise Cannot("only two-dimensional pools with one result are lowered")
    average, whole = "Average" in node.op_type, node.op_type.startswith("Global")
    sizes = (x.tensor.h, x.tensor.w)
    how = dataclasses.replace(POINT, kernel=sizes) if whole else slide(node, each(node, "kernel_shape", 2), sizes)
    if any(d != 1 for d in how.dilations) or any(p >= k for (p, _), k in zip(how.pads, how.kernel, strict=True)):
        raise Cannot("it has dilations, or padding as wide as its window")
    if average and not whole and node.attributes.get_int("ceil_mode", 0) != 0:
        raise Cannot("an average with ceil_mode is not lowered")
    shape = it.shape(node)
    y = pixels(shape, "float32")
    if any((o - 1) * s - p >= n for o, s, (p, _), n in zip((y.h, y.w), how.strides, how.pads, sizes, strict=True)):
        raise Cannot("a window lies wholly in the padding")
    it.put(ops.PoolF32(x.tensor, y, average, how, node.attributes.get_int("count_include_pad", 0) != 0), node, None, Value(y, None, shape))


def norm(it: Walk, node: ir.Node) -> None:
    """LayerNormalization, RMSNormalization, and onnxruntime's of a sum (see `fuse_attention`), over the channels of vectors and sequences."""
    skip = node.op_type.startswith("Skip")
    rms = node.op_type in ("RMSNormalization", "SkipSimplifiedLayerNormalization")
    given, source = it.value(node, 0), node.inputs[0]
    if not isinstance(given, Value | Laid) or not given.shape or source is None:
        raise Cannot("it normalizes the batch")
    axis, shape = it.axis(source, node.attributes.get_int("axis", -1)), given.shape
    x = it.rows(given) if len(shape) > 2 and not skip else it.as_floats(given)
    if len(x.shape) not in (1, 2) or axis != len(shape) - 1 or (len(x.shape) == 1 and x.tensor.h * x.tensor.w > 1):
        raise Cannot("only the last axis is normalized")
    parameters = [constant(v) for v in node.inputs[1 + skip :]]
    if not parameters or any(p is None or p.size != x.tensor.c for p in parameters[: 1 if rms else 2]):
        raise Cannot("its scale and bias are not constants, one number for each channel")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1 : 3 if skip else None]):
        raise Cannot("its mean or deviation is read")
    total, other = x.tensor, operand(it, node, 1, x.shape).tensor if skip else None
    if other is not None and (other.h, other.c) != (total.h, total.c):
        raise Cannot("it broadcasts what it adds")
    if skip and (parameters[2 - rms :] or (len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()))):
        bias = parameters[2 - rms] if parameters[2 - rms :] else None
        if bias is not None:
            total, other = _sum(it, total, constant_tensor(bias.reshape(-1))), other
        if len(node.outputs) > 3:
            total, other = _sum(it, total, other), None
            it.values[node.outputs[3].name or ""] = Value(total, None, x.shape)
    y = Tensor(total.h, total.w, total.c, "float32")
    gamma, beta = parameters[0], None if rms or len(parameters) < 2 else parameters[1]
    assert gamma is not None
    epsilon = node.attributes.get_float("epsilon", 1e-5 if not skip else 1e-12)
    it.ops.append(ops.Norm(total, y, gamma.reshape(-1), None if beta is None else beta.reshape(-1), epsilon, other, rms))
    it.values[node.outputs[0].name or ""] = it.reshaped(Value(y, None, x.shape), shape)


def _sum(it: Walk, a: Tensor, b: Tensor | None) -> Tensor:
    assert b is not None
    y = Tensor(a.h, a.w, a.c, "float32")
    it.ops.append(ops.Elementwise(a, y, b, "Add"))
    return y


def attention(it: Walk, node: ir.Node) -> None:
    """MultiHeadAttention as `fuse_attention` writes it: Q, K, V (batch, positions, heads · size), a mask that is added to the scores."""
    if any(v is not None for v in (*node.inputs[3:5], *node.inputs[6:])) or len(node.outputs) > 1:
        raise Cannot("it has a bias, a padding mask or past keys")
    queries, keys, values = (it.floats(node, i) for i in range(3))
    heads = node.attributes.get_int("num_heads", 0)
    if any(len(v.shape) != 2 or heads < 1 or v.shape[1] % heads for v in (queries, keys, values)):
        raise Cannot("its queries, keys and values are not (batch, positions, heads · size)")
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(queries.shape[1] // heads)
    bias = (
        _mask(it, node.inputs[5], heads, queries.shape[0], keys.shape[0]) if len(node.inputs) > 5 and node.inputs[5] is not None else None
    )
    shape = (queries.shape[0], values.shape[1])
    y = pixels(shape, "float32")
    tensors = (queries.tensor, keys.tensor, values.tensor)
    it.put(ops.Attention(*tensors, y, heads, scale, bias), node, None, Value(y, None, shape))


def _mask(it: Walk, source: ir.Value, heads: int, queries: int, keys: int) -> Tensor:
    """What is added to the scores, as rows for heads, pixels for queries, channels for keys; of size 1 where it is the same for all."""
    stored = constant(source)
    if stored is not None:
        if stored.ndim != 4 or len(stored) != 1:
            raise Cannot("its mask differs from sample to sample")
        found = np.ascontiguousarray(stored[0], np.float32)
        tensor = Tensor(found.shape[0], found.shape[1], found.shape[2], "float32", constant=found)
    else:
        value = it.values.get(source.name or "")
        if not isinstance(value, Value) or len(value.shape) != 3 or value.shape[0] != 1:
            raise Cannot("its mask is computed for each head")
        value = it.as_floats(value)
        rows = it.reshaped(value, (value.shape[1], value.shape[2])).tensor  # one head for all
        tensor = rows.as_shape(1, rows.h, rows.c) if rows.h > 1 else rows
    if tensor.h not in (1, heads) or tensor.w not in (1, queries) or tensor.c != keys:
        raise Cannot(f"its mask has the shape {(tensor.h, tensor.w, tensor.c)}")
    return tensor


def gather(it: Walk, node: ir.Node) -> None:
    """Rows of a stored table by numbers of the caller's; or one position of a sequence."""
    table, axis = constant(node.inputs[0]), node.attributes.get_int("axis", 0)
    if table is None:
        position(it, node)
        return
    numbers = it.value(node, 1)
    if numbers is SIZES:
        it.values[node.outputs[0].name or ""] = SIZES
        return
    direct = isinstance(numbers, Value) and numbers.tensor.type == "int64" and numbers.tensor.port is not None
    if not direct or len(numbers.shape) != 1 or table.ndim != 2 or axis != 0 or table.dtype != np.float32:
        raise Cannot("only rows of a float32 table are looked up, by an input of whole numbers")
    shape = it.shape(node)
    y = pixels(shape, "float32")
    it.put(ops.Gather(numbers.tensor, y, table), node, None, Value(y, None, shape))
