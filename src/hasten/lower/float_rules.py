"""Rules for nodes that compute on floats."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, scalar, sole_consumer
from hasten.lower import float_ops as ops
from hasten.lower.code_rules import reshape, transpose
from hasten.lower.ends import activation_of, of_channels, tail
from hasten.lower.float_ops import IDENTITY
from hasten.lower.plan import INPUT, Tensor
from hasten.lower.walk import ORDER, SIZES, Cannot, Laid, Rules, Value, Walk, Weight, bounds_of, image, pixels, settled
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
        axis = 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)) else 0
        shape = [1] * known.codes.ndim
        shape[axis] = -1
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


def _conv(it: Walk, node: ir.Node) -> None:
    x, weight = it.floats(node, 0), _weight(it, node, 1)
    if len(x.shape) != 3 or weight.ndim != 4:
        raise Cannot("only two-dimensional convolutions are lowered")
    how, group = slide(node, weight.shape[2:], x.shape[1:]), node.attributes.get_int("group", 1)
    if any(p < 0 for pad in how.pads for p in pad):
        raise Cannot("it has negative padding")
    _layer(it, node, x, weight, how, group)


def _conv_transpose(it: Walk, node: ir.Node) -> None:
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


def _resize(it: Walk, node: ir.Node) -> None:
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


def _gemm(it: Walk, node: ir.Node) -> None:
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
    if len(x.shape) == 2:
        _layer(it, node, x, weight[:, :, None, None], POINT, rows=rows)
    else:  # behind a Flatten, a Gemm is a convolution whose window is the whole image
        _layer(it, node, x, np.ascontiguousarray(weight).reshape(len(weight), t.c, t.h, t.w), dataclasses.replace(POINT, kernel=(t.h, t.w)))


def _batch_norm(it: Walk, node: ir.Node) -> None:
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


def _pool(it: Walk, node: ir.Node) -> None:
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


def _elementwise(it: Walk, node: ir.Node) -> None:
    """A function of two, the smaller repeated; an activation behind it goes along."""
    shape = it.shape(node)
    if len(node.inputs) != 2:
        raise Cannot("it has more or fewer than two operands")
    if all(it.values.get(v.name or "") is None for v in node.inputs if v is not None):
        raise Cannot("both its operands are constants: fold it first, with `hasten simplify`")
    if _of_rows(it, node, shape):
        return
    found = [_operand(it, node, i, shape) for i in range(2)]
    c, h, w = image(shape)
    lying = {(v.tensor.h, v.tensor.w, v.tensor.c) for v in found if v.shape}
    if len(shape) == 1 and len(lying) == 1:
        ((h, w, c),) = lying  # perhaps flattened images, of one order on both sides
    elif len(shape) == 1:
        found = [_vector(it, v) for v in found]
    a, b = (v.tensor for v in found)
    if any(size not in (1, wanted) for t in (a, b) for size, wanted in zip((t.c, t.h, t.w), (c, h, w), strict=True)):
        raise Cannot(f"it broadcasts {found[0].shape} and {found[1].shape}")
    behind = _activation_behind(node)
    y = Tensor(h, w, c, "float32")
    it.ops.append(ops.Elementwise(a, y, b, node.op_type, behind[0]))
    it.values.update(dict.fromkeys(behind[1], Value(y, None, shape)))


def _vector(it: Walk, x: Value) -> Value:
    """A flattened image in ONNX's order, anything else as it is."""
    if x.tensor.h * x.tensor.w == 1:
        return x
    found = settled(it.laid(x))
    assert isinstance(found, Value)
    return found


def _of_rows(it: Walk, node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether it works on values whose axes lie in ONNX's order, with more than one before the last; then it is done here, on rows."""
    known = [it.values.get(v.name or "") if v is not None else None for v in node.inputs]
    if not any(isinstance(k, Laid) and len(k.shape) > 2 and k.order == tuple(sorted(k.order)) and k.shape == shape for k in known):
        return False
    operands = []
    for value, k in zip(node.inputs, known, strict=True):
        stored = constant(value)
        one = None if stored is None or stored.dtype != np.float32 else of_channels(stored, shape, rows=True)
        if one is not None:
            operands.append(_constant(one))
        elif isinstance(k, Value | Laid) and k.shape == shape:
            operands.append(it.rows(k).tensor)
        else:
            return False
    function, names = _activation_behind(node)
    y = Tensor(math.prod(shape[:-1]), 1, shape[-1], "float32")
    it.ops.append(ops.Elementwise(operands[0], y, operands[1], node.op_type, function))
    it.values.update(dict.fromkeys(names, it.reshaped(Value(y, None, (y.h, y.c)), shape)))
    return True


def _operand(it: Walk, node: ir.Node, index: int, shape: tuple[int, ...]) -> Value:
    """An operand that is repeated to (batch, *shape)."""
    stored = constant(node.inputs[index])
    if stored is None:
        found = it.floats(node, index)
        if found.shape == shape:
            return found
        if len(found.shape) != len(shape):
            raise Cannot(f"it broadcasts {found.shape} to {shape}: other axes than the batch's meet it")
        return found
    if it.elsewhere(node) and stored.ndim > 1:
        raise Cannot("it has a constant of several axes, and its batch is not the first one")
    if stored.dtype != np.float32 or stored.ndim > len(shape) + 1 or (stored.ndim == len(shape) + 1 and len(stored) != 1):
        raise Cannot(f"it has a constant of {stored.dtype} {stored.shape}")
    sizes = ((1,) * len(shape) + stored.shape)[-len(shape) :] if shape else ()
    return Value(_constant(stored.reshape(sizes)), None, sizes)


def _constant(array: Array) -> Tensor:
    """A constant of a shape without the batch, pixel by pixel."""
    c, h, w = image(array.shape)
    lying = array.transpose(1, 2, 0) if array.ndim == 3 else array.reshape(h, w, c)
    return Tensor(h, w, c, "float32", constant=np.ascontiguousarray(lying, np.float32))


def _activation_behind(node: ir.Node) -> tuple[ops.Activation, tuple[str, ...]]:
    """(what the node's only reader does to each number, if it is an activation; the names of what is computed then)."""
    reader, name = sole_consumer(node.outputs[0]), node.outputs[0].name or ""
    function = activation_of(reader) if reader is not None else None
    return (IDENTITY, (name,)) if reader is None or function is None else (function, (name, reader.outputs[0].name or ""))


def _activation(it: Walk, node: ir.Node) -> None:
    function, given = activation_of(node), it.value(node, 0)
    if function is None:
        bounds_of(node)
        raise Cannot("its parameters are not constants")
    if isinstance(given, Laid) and given.quantization is None:  # of each number alone: its axes may lie as they do
        t = given.tensor
        made = Tensor(t.h, t.w, t.c, "float32")
        it.ops.append(ops.Elementwise(t, made, activation=function))
        it.values[node.outputs[0].name or ""] = dataclasses.replace(given, tensor=made)
        return
    x = it.as_floats(given)
    y = Tensor(x.tensor.h, x.tensor.w, x.tensor.c, "float32")
    it.put(ops.Elementwise(x.tensor, y, activation=function), node, None, Value(y, None, x.shape))


def _reduce(it: Walk, node: ir.Node) -> None:
    x = it.floats(node, 0)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else node.attributes.get_ints("axes", None)
    if given is None or (x.tensor.h * x.tensor.w > 1 and len(x.shape) == 1):
        raise Cannot("its axes are not constants, or it reduces a flattened image")
    rank = len(x.shape)
    axes = {int(a) % (rank + 1) for a in np.asarray(given).reshape(-1)}
    if not axes or 0 in axes:
        raise Cannot("it reduces the batch")
    letters = {1: "c", 2: "hc", 3: "chw"}[rank]
    over = {letters[a - 1] for a in axes}
    t, kept = x.tensor, tuple(1 if a + 1 in axes else size for a, size in enumerate(x.shape))
    h, w, c = (1 if letter in over else size for letter, size in zip("hwc", (t.h, t.w, t.c), strict=True))
    y = Tensor(h, w, c, "float32")
    it.ops.append(ops.Reduce(t, y, ("h" in over, "w" in over, "c" in over), node.op_type))
    it.values[node.outputs[0].name or ""] = it.reshaped(Value(y, None, kept), it.shape(node))


def _softmax(it: Walk, node: ir.Node) -> None:
    """Over any axis of a sample: it is brought to be the innermost."""
    x, source = it.value(node, 0), node.inputs[0]
    if not isinstance(x, Value | Laid) or source is None or not x.shape:
        raise Cannot("it runs over the batch")
    axis = it.axis(source, node.attributes.get_int("axis", -1))
    if (
        isinstance(x, Value)
        and (x := it.as_floats(x))
        and ORDER[len(x.shape)][-1] == axis
        and not (len(x.shape) == 1 and x.tensor.h * x.tensor.w > 1)
    ):
        t = x.tensor
        y = Tensor(t.h, t.w, t.c, "float32")
        it.put(ops.Softmax(t, y), node, None, Value(y, None, x.shape))
        return
    laid = it.laid(x)
    if axis not in laid.order:
        raise Cannot("it runs over one number")
    if laid.order[-1] != axis:
        laid = it.moved(laid, (*(a for a in laid.order if a != axis), axis))
    size = laid.shape[axis]
    t = laid.tensor.as_shape(math.prod(laid.shape) // size, 1, size)
    y = Tensor(t.h, 1, t.c, "float32")
    it.ops.append(ops.Softmax(t, y))
    it.values[node.outputs[0].name or ""] = settled(dataclasses.replace(laid, tensor=y))


def _norm(it: Walk, node: ir.Node) -> None:
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
    total, other = x.tensor, _operand(it, node, 1, x.shape).tensor if skip else None
    if other is not None and (other.h, other.c) != (total.h, total.c):
        raise Cannot("it broadcasts what it adds")
    if skip and (parameters[2 - rms :] or (len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()))):
        bias = parameters[2 - rms] if parameters[2 - rms :] else None
        if bias is not None:
            total, other = _sum(it, total, _constant(bias.reshape(-1))), other
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


def _attention(it: Walk, node: ir.Node) -> None:
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


def _gather(it: Walk, node: ir.Node) -> None:
    """Rows of a stored table by numbers of the caller's; or one position of a sequence."""
    table, axis = constant(node.inputs[0]), node.attributes.get_int("axis", 0)
    if table is None:
        _position(it, node)
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


def _position(it: Walk, node: ir.Node) -> None:
    """One place of an axis, by a constant."""
    x, index, source = it.value(node, 0), constant(node.inputs[1]), node.inputs[0]
    if x is SIZES:
        it.values[node.outputs[0].name or ""] = SIZES
        return
    if index is None or index.size != 1 or index.ndim > 1 or not isinstance(x, Value | Laid) or source is None:
        raise Cannot("only one place of an axis is taken, by a constant")
    axis = it.axis(source, node.attributes.get_int("axis", 0))
    at = int(index.reshape(())) % x.shape[axis]
    it.keep(node.outputs[0], it.part(x, axis, at, 1, drop=index.ndim == 0))


def _split(it: Walk, node: ir.Node) -> None:
    x, source = it.value(node, 0), node.inputs[0]
    given = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if not isinstance(x, Value | Laid) or source is None or (given is None and len(node.inputs) > 1 and node.inputs[1] is not None):
        raise Cannot("its sizes are not constants")
    axis = it.axis(source, node.attributes.get_int("axis", 0))
    each = -(-x.shape[axis] // len(node.outputs))
    sizes = [int(n) for n in given] if given is not None else [min(each, x.shape[axis] - i * each) for i in range(len(node.outputs))]
    at = 0
    for output, count in zip(node.outputs, sizes, strict=True):
        it.keep(output, it.part(x, axis, at, count))
        at += count


def _pow(it: Walk, node: ir.Node) -> None:
    """The powers that multiplications and roots give."""
    x, exponent = it.floats(node, 0), scalar(node.inputs[1])
    t = x.tensor
    y = Tensor(t.h, t.w, t.c, "float32")
    if exponent == 2:
        it.ops.append(ops.Elementwise(t, y, t, "Mul"))
    elif exponent == 3:
        square = Tensor(t.h, t.w, t.c, "float32")
        it.ops += [ops.Elementwise(t, square, t, "Mul"), ops.Elementwise(square, y, t, "Mul")]
    elif exponent in (0.5, 1):
        it.ops.append(ops.Elementwise(t, y, activation=ops.Activation("Sqrt") if exponent == 0.5 else IDENTITY))
    elif exponent == -0.5:
        root = Tensor(t.h, t.w, t.c, "float32")
        it.ops += [
            ops.Elementwise(t, root, activation=ops.Activation("Sqrt")),
            ops.Elementwise(_constant(np.ones(1, np.float32)), y, root, "Div"),
        ]
    else:
        raise Cannot("only the powers 2, 3, 1/2 and -1/2 are lowered")
    it.values[node.outputs[0].name or ""] = Value(y, None, x.shape)


def _reciprocal(it: Walk, node: ir.Node) -> None:
    x = it.floats(node, 0)
    y = Tensor(x.tensor.h, x.tensor.w, x.tensor.c, "float32")
    it.put(ops.Elementwise(_constant(np.ones(1, np.float32)), y, x.tensor, "Div"), node, None, Value(y, None, x.shape))


def _inside(it: Walk, tensor: Tensor) -> Tensor:
    """The tensor in the arena, where parts of it can be read."""
    if tensor.root.port is None:
        return tensor
    copy = Tensor(tensor.h, tensor.w, tensor.c, "float32")
    it.ops.append(ops.Elementwise(tensor, copy))
    return copy


def _cast(it: Walk, node: ir.Node) -> None:
    x = it.value(node, 0)
    if x is SIZES:
        it.values[node.outputs[0].name or ""] = SIZES
        return
    to = node.attributes.get_int("to", 0)
    if not isinstance(x, Value) or to != ir.DataType.FLOAT:
        raise Cannot("only casts to float32 are lowered")
    if x.tensor.type != "int64":
        it.values[node.outputs[0].name or ""] = it.as_floats(x)
        return
    if len(x.shape) == 3 and x.tensor.port is not None and x.tensor.port[0] == INPUT and x.tensor.c > 1 and x.tensor.h * x.tensor.w > 1:
        raise Cannot("it casts an image of whole numbers")
    y = Tensor(x.tensor.h, x.tensor.w, x.tensor.c, "float32")
    it.put(ops.Cast(x.tensor, y), node, None, Value(y, None, x.shape))


def _shape(it: Walk, node: ir.Node) -> None:
    it.values[node.outputs[0].name or ""] = SIZES


def _expand(it: Walk, node: ir.Node) -> None:
    """Repeats; where all readers repeat by themselves, nothing."""
    shape = it.shape(node)
    x = _operand(it, node, 0, shape)
    readers = [use.node for use in node.outputs[0].uses()]
    if len(x.shape) != len(shape):
        raise Cannot("it adds an axis")
    if readers and not node.outputs[0].is_graph_output() and all(r.op_type in REPEAT or r.op_type == "MultiHeadAttention" for r in readers):
        it.values[node.outputs[0].name or ""] = x
        return
    c, h, w = image(shape)
    y = Tensor(h, w, c, "float32")
    it.put(ops.Elementwise(x.tensor, y), node, None, Value(y, None, shape))


def _concat(it: Walk, node: ir.Node) -> None:
    if any(it.values.get(v.name or "") is SIZES for v in node.inputs if v is not None):
        it.values[node.outputs[0].name or ""] = SIZES
        return
    shape = it.shape(node)
    parts = [it.floats(node, i) if constant(v) is None else _operand(it, node, i, shape) for i, v in enumerate(node.inputs)]
    axis = node.attributes.get_int("axis", 1) % (1 + len(shape))
    if len(shape) == 0 or axis == 0 or any(len(p.shape) == 1 and p.tensor.h * p.tensor.w > 1 for p in parts):
        raise Cannot("it joins samples, or flattened images")
    letter = {1: "c", 2: "hc", 3: "chw"}[len(shape)][axis - 1]
    y, at = pixels(shape, "float32"), 0
    for part in parts:
        t = part.tensor
        start = {"c": (0, 0), "h": (at, 0), "w": (0, at)}[letter]
        goal = y.view(t.h, t.w, t.c, start, channel=at if letter == "c" else 0)
        it.ops.append(ops.Elementwise(t, goal))
        at += {"c": t.c, "h": t.h, "w": t.w}[letter]
    it.values[node.outputs[0].name or ""] = Value(y, None, shape)


def _pad(it: Walk, node: ir.Node) -> None:
    """A constant all around, then the input in its middle."""
    x, shape = it.floats(node, 0), it.shape(node)
    pads, number = constant(node.inputs[1]), 0.0
    if (
        (node.attributes.get_string("mode", None) or "constant") != "constant"
        or pads is None
        or (len(node.inputs) > 3 and node.inputs[3] is not None)
    ):
        raise Cannot("it pads by other than a constant, or its pads are not constants for all axes")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = scalar(node.inputs[2])
        if given is None:
            raise Cannot("its value is no constant")
        number = given
    if (
        len(pads) != 2 * len(shape) + 2
        or pads[0]
        or pads[len(shape) + 1]
        or min(pads) < 0
        or (len(x.shape) == 1 and x.tensor.h * x.tensor.w > 1)
    ):
        raise Cannot("it pads the batch or a flattened image, or cuts")
    before = dict(zip({0: "", 1: "c", 2: "hc", 3: "chw"}[len(shape)], (int(p) for p in pads[1 : len(shape) + 1]), strict=True))
    y, t = pixels(shape, "float32"), x.tensor
    it.ops.append(ops.Elementwise(_constant(np.full((1,), number, np.float32)), y))
    it.ops.append(ops.Elementwise(t, y.view(t.h, t.w, t.c, (before.get("h", 0), before.get("w", 0)), channel=before.get("c", 0))))
    it.values[node.outputs[0].name or ""] = Value(y, None, shape)


def _slice(it: Walk, node: ir.Node) -> None:
    if it.value(node, 0) is SIZES:
        it.values[node.outputs[0].name or ""] = SIZES
        return
    x, shape = it.floats(node, 0), it.shape(node)
    parts = [constant(v) if v is not None else None for v in node.inputs[1:]]
    if len(parts) < 3 or any(p is None for p in parts) or len(x.shape) == 0 or (len(x.shape) == 1 and x.tensor.h * x.tensor.w > 1):
        raise Cannot("its bounds are not constants, or it slices a flattened image")
    starts, axes = [int(v) for v in parts[0]], [int(v) for v in parts[2]]  # type: ignore[union-attr]
    steps = [int(v) for v in parts[3]] if len(parts) > 3 else [1] * len(axes)  # type: ignore[union-attr]
    letters = {1: "c", 2: "hc", 3: "chw"}[len(x.shape)]
    begin, step = dict.fromkeys("chw", 0), dict.fromkeys("chw", 1)
    for axis, start, by in zip(axes, starts, steps, strict=True):
        axis %= len(x.shape) + 1
        if axis == 0 or by < 1:
            raise Cannot("it slices the batch, or backwards")
        size, letter = x.shape[axis - 1], letters[axis - 1]
        begin[letter], step[letter] = min(max(start + size if start < 0 else start, 0), size), by
    if step["c"] != 1:
        raise Cannot("it takes every n-th channel")
    c, h, w = image(shape)
    t = _inside(it, x.tensor)
    it.values[node.outputs[0].name or ""] = Value(
        t.view(h, w, c, (begin["h"], begin["w"]), (step["h"], step["w"]), begin["c"]), None, shape
    )


REPEAT = ("Add", "Sub", "Mul", "Div", "Max", "Min")

RULES: Rules = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), _pool),
    **dict.fromkeys(REPEAT, _elementwise),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Elu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish"), _activation),
    **dict.fromkeys(("Tanh", "Erf", "Abs", "Neg", "Exp", "Sqrt"), _activation),
    **dict.fromkeys(ops.REDUCTIONS, _reduce),
    "Softmax": _softmax,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _norm),
    **dict.fromkeys(("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization"), _norm),
    "com.microsoft::MultiHeadAttention": _attention,
    "Gather": _gather,
    "Split": _split,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Cast": _cast,
    "Shape": _shape,
    "Expand": _expand,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), reshape),
    "Transpose": transpose,
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
}
