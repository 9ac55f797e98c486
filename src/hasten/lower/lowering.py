"""From a QDQ graph to the ops of a plan: node by node, each by its row in `RULES`.

A quantized tensor is followed on its codes. An operator between DequantizeLinear and QuantizeLinear becomes one op on codes; a Relu or Clip in
front of the QuantizeLinear becomes bounds of the codes, which is the same, for rounding keeps order; reshapes and slices become views.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, scalar, sole_consumer
from hasten.lower import ops
from hasten.lower.ops import Quantization
from hasten.lower.plan import INPUT, OUTPUT, Plan, Tensor
from hasten.lower.plan import Port as PlanPort
from hasten.model import Model, Skip
from hasten.numerics import combined_scale, dequantize, format_of, quantize
from hasten.patches import Slide, each, slide

UINT8 = format_of("uint8")


class Cannot(Exception):
    """Why a node can't be lowered, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value of the graph: where it lies, what its codes mean (None: floats), its shape without the batch.

    A tensor of shape (channels, h, w) lies as h × w × channels. A flattened one keeps its tensor: (c·h·w,) over h × w × c.
    """

    tensor: Tensor
    quantization: Quantization | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """Stored int8 codes behind a DequantizeLinear, zero point 0, and their scale for each output channel (or one for all)."""

    codes: Array
    scale: Array


def lower_graph(model: Model, requantize: str) -> tuple[Plan | None, tuple[Skip, ...]]:
    """The plan, or None and each node that stands in the way with its reason."""
    return _Lowering(model, requantize == "fixed").run()


class _Lowering:
    """The walk down the graph: `values` by name, and the ops so far."""

    def __init__(self, model: Model, fixed: bool) -> None:
        self.model, self.graph, self.fixed = model, model.ir.graph, fixed
        self.values: dict[str, Any] = {}
        self.ops: list[Any] = []
        self.names: dict[Any, str] = {}
        self.batch: int | None = None

    def run(self) -> tuple[Plan | None, tuple[Skip, ...]]:
        skips: list[Skip] = []
        try:
            inputs = [self._input(i, v) for i, v in enumerate(self.graph.inputs)]
        except Cannot as e:
            return None, (Skip("", str(e)),)
        for node in self.graph:
            if node.outputs[0].name in self.values:
                continue
            rule = RULES.get(node.op_type) if node.domain == "" else None
            try:
                if rule is None:
                    raise Cannot(f"the native engine has no {node.domain + '::' if node.domain else ''}{node.op_type} on 8-bit codes")
                rule(self, node)
                self._sign(node.name or node.op_type)
            except Cannot as e:
                skips.append(Skip(node.name or node.op_type, str(e)))
                if len(skips) >= MOST_REASONS:
                    return None, tuple(skips)
                for output in node.outputs:
                    self.values[output.name or ""] = UNKNOWN
        skips = [s for s in skips if s.why != str(FOLLOWS)]
        if not skips:
            try:
                outputs = [self._output(i, v) for i, v in enumerate(self.graph.outputs)]
                self._sign("output")
                mode = "fixed" if self.fixed else "float"
                return Plan(tuple(inputs), tuple(outputs), tuple(self.ops), mode, tuple(self.names[op] for op in self.ops)), ()
            except Cannot as e:
                skips.append(Skip("", str(e)))
        return None, tuple(skips)

    def _sign(self, name: str) -> None:
        """Remember for whom the newest ops were made."""
        for op in reversed(self.ops):
            if op in self.names:
                break
            self.names[op] = name

    # Ports

    def _input(self, number: int, value: ir.Value) -> PlanPort:
        name, shape = value.name or "", value.shape
        if value.dtype != ir.DataType.FLOAT:
            raise Cannot(f"input {name} is {value.dtype}; the native engine takes float32 images and vectors")
        sizes = _fixed(shape)
        if shape is None or sizes is None:
            raise Cannot(f"input {name} must have a fixed shape behind its batch, came {shape}; fix it with --shape")
        batch = shape.dims[0] if isinstance(shape.dims[0], int) else -1
        if batch > 1:
            raise Cannot(f"input {name} has the fixed batch {batch}; the native engine takes 1 or a free one")
        if self.batch not in (None, batch):
            raise Cannot("some inputs have a free batch and others a fixed one")
        self.batch = batch
        self.values[name] = Value(_planes(sizes, (INPUT, number)), None, sizes)
        return PlanPort(name, "float32", (batch, *sizes))

    def _output(self, number: int, value: ir.Value) -> PlanPort:
        name = value.name or ""
        found = self.values.get(name)
        if not isinstance(found, Value):
            raise Cannot(f"output {name} is none of the values that were lowered")
        if found.quantization is not None:
            tensor = found.tensor
            if len(found.shape) == 1 and tensor.h * tensor.w > 1:
                raise Cannot(f"output {name} is a flattened image, which would have to be written channel by channel")
            y = Tensor(tensor.h, tensor.w, tensor.c, "float32", port=(OUTPUT, number))
            self.ops.append(ops.Dequantize(tensor, y, found.quantization))
        else:
            maker = next((op for op in self.ops if op.y is found.tensor), None)
            if maker is None or found.tensor.port is not None or any(found.tensor is t for op in self.ops for t in op.reads):
                raise Cannot(f"output {name} is an input, or is read by other nodes too")
            found.tensor.port = (OUTPUT, number)
        return PlanPort(name, "float32", (self.batch or -1, *found.shape))

    # What the rules ask

    def value(self, node: ir.Node, index: int) -> Any:
        """What is known of an input; a Cannot if it is a float that no op takes."""
        source = node.inputs[index]
        found = self.values.get(source.name or "") if source is not None else None
        if found is UNKNOWN:
            raise FOLLOWS
        if found is None:
            raise Cannot(f"its input {source.name if source is not None else index} is a constant or is computed in float")
        return found

    def codes(self, node: ir.Node, index: int) -> Value:
        """An input that must be quantized."""
        found = self.value(node, index)
        if not isinstance(found, Value) or found.quantization is None:
            raise Cannot("it computes in float: only what stands between DequantizeLinear and QuantizeLinear is lowered")
        return found

    def weight(self, node: ir.Node, index: int) -> Weight:
        found = self.value(node, index)
        if not isinstance(found, Weight):
            raise Cannot("its second operand is no stored 8-bit weight")
        return found

    def quantizer(self, node: ir.Node) -> tuple[ir.Node, Quantization] | None:
        """(the one QuantizeLinear behind the node, what it writes), a Relu or Clip between them taken in as bounds; None: floats are wanted."""
        reader, clips = sole_consumer(node.outputs[0]), []
        while reader is not None and reader.op_type in ("Relu", "Clip"):
            clips.append(reader)
            reader = sole_consumer(reader.outputs[0])
        if reader is None or reader.op_type != "QuantizeLinear":
            return None
        to = self.target(reader)
        for clip in clips:
            low, high = _bounds(clip)
            lo, hi = (int(quantize(np.asarray(b), to.scale, to.zero, UINT8)) for b in (low, high))
            to = dataclasses.replace(to, lo=max(to.lo, lo), hi=min(max(to.hi, lo) if hi < lo else to.hi, max(hi, lo)))
        return reader, to

    def target(self, quantizer: ir.Node) -> Quantization:
        scale, zero = constant(quantizer.inputs[1]), constant(quantizer.inputs[2]) if len(quantizer.inputs) > 2 else np.zeros((), np.uint8)
        if scale is None or zero is None or scale.size != 1:
            raise Cannot("activations are quantized with one constant scale and zero point")
        if not (scale > 0).all():
            raise Cannot(f"its scale is {scale.reshape(())}; a scale is a positive number")
        if zero.dtype != np.uint8:
            raise Cannot(f"it quantizes to {zero.dtype}; the native engine's activations are uint8")
        return Quantization(float(scale.reshape(())), int(zero.reshape(())))

    def needed_quantizer(self, node: ir.Node) -> tuple[ir.Node, Quantization]:
        found = self.quantizer(node)
        if found is None:
            raise Cannot("its result is not quantized, or is read in float too")
        return found

    def put(self, op: Any, node: ir.Node, quantizer: ir.Node | None, value: Value) -> None:
        """Keep the op, and its value under the name of the node's output or of what the quantizer behind it writes."""
        self.ops.append(op)
        self.name(node, quantizer, value)

    def name(self, node: ir.Node, quantizer: ir.Node | None, value: Value) -> None:
        self.values[node.outputs[0].name or ""] = value
        if quantizer is not None:
            reader = sole_consumer(node.outputs[0])
            while reader is not None and reader is not quantizer:
                self.values[reader.outputs[0].name or ""] = value
                reader = sole_consumer(reader.outputs[0])
            self.values[quantizer.outputs[0].name or ""] = value

    def new(self, node: ir.Node, like: Quantization) -> tuple[Tensor, tuple[int, ...]]:
        """(a tensor for the node's result, its shape without the batch)."""
        shape = self.shape(node)
        return _pixels(shape, fill=like.zero), shape

    def shape(self, node: ir.Node) -> tuple[int, ...]:
        shape = node.outputs[0].shape
        sizes = _fixed(shape)
        if sizes is None:
            raise Cannot(f"the shape of its result is not known: {shape}")
        return sizes


UNKNOWN = object()
FOLLOWS = Cannot("it reads what could not be lowered")
MOST_REASONS = 20


def _fixed(shape: ir.Shape | None) -> tuple[int, ...] | None:
    """The sizes behind the batch, None where there are none or one is not known."""
    sizes = tuple(d for d in shape.dims[1:] if isinstance(d, int)) if shape is not None else ()
    return sizes if sizes and shape is not None and len(sizes) == len(shape) - 1 else None


def _planes(shape: tuple[int, ...], port: tuple[int, int]) -> Tensor:
    """The tensor of a port: what lies in planes."""
    c, h, w = _image(shape)
    return Tensor(h, w, c, "float32", port=port)


def _pixels(shape: tuple[int, ...], type_: str = "uint8", fill: int = 0) -> Tensor:
    c, h, w = _image(shape)
    return Tensor(h, w, c, type_, fill)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, h, w) of a shape without the batch."""
    if len(shape) not in (1, 3) or math.prod(shape) < 1:
        raise Cannot(f"the native engine has vectors and images, not the shape {('batch', *shape)}")
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _bounds(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    limits = [scalar(v) if v is not None else None for v in node.inputs[1:3]] + [None, None]
    given = [v is not None for v in node.inputs[1:3]] + [False, False]
    if any(g and limit is None for g, limit in zip(given, limits, strict=False)):
        raise Cannot("a Clip's bounds are not constants")
    return -math.inf if limits[0] is None else limits[0], math.inf if limits[1] is None else limits[1]


# The rules


def _quantize(it: _Lowering, node: ir.Node) -> None:
    source, to = it.value(node, 0), it.target(node)
    if not isinstance(source, Value):
        raise Cannot("it quantizes a weight at run time")
    if source.quantization is None:
        if source.tensor.port is None:
            raise Cannot("it quantizes what is computed in float")
        y = _pixels(source.shape, fill=to.zero)
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


def _like(tensor: Tensor, to: Quantization) -> Tensor:
    return Tensor(tensor.h, tensor.w, tensor.c, fill=to.zero)


def _table(function: Callable[[Array], Array], of: Quantization, to: Quantization) -> Array:
    """The code behind a function for each of the 256 codes before it."""
    values = function(dequantize(np.arange(256, dtype=np.uint8), of.scale, of.zero))
    return np.clip(quantize(np.nan_to_num(values), to.scale, to.zero, UINT8), to.lo, to.hi)


def _dequantize(it: _Lowering, node: ir.Node) -> None:
    source = node.inputs[0]
    codes = constant(source)
    if codes is None:
        found = it.codes(node, 0)
        it.values[node.outputs[0].name or ""] = found
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
    it.values[node.outputs[0].name or ""] = Weight(codes, np.broadcast_to(scale.reshape(-1), (scale.size,)))


def _conv(it: _Lowering, node: ir.Node) -> None:
    x, weight = it.codes(node, 0), it.weight(node, 1)
    if len(x.shape) != 3 or weight.codes.ndim != 4:
        raise Cannot("only two-dimensional convolutions are lowered")
    how, group = slide(node, weight.codes.shape[2:], x.shape[1:]), node.attributes.get_int("group", 1)
    if any(p < 0 for pad in how.pads for p in pad):
        raise Cannot("it has negative padding")
    _layer(it, node, x, weight, how, group)


def _layer(it: _Lowering, node: ir.Node, x: Value, weight: Weight, how: Slide, group: int = 1) -> None:
    """A convolution or a Gemm that is one: its op, with the quantizer behind it."""
    found = it.quantizer(node)
    if found is None and not node.outputs[0].is_graph_output():
        raise Cannot("its result is not quantized, or is read in float too")
    to = found[1] if found is not None else None
    of, channels = _meaning(x), len(weight.codes)
    w_scale = np.broadcast_to(weight.scale, (channels,)).astype(np.float32)
    product = (np.float32(of.scale) * w_scale).astype(np.float32)
    scale = product if to is None else combined_scale(of.scale, w_scale, to.scale)
    bias = _bias(it, node, product)
    if it.fixed and ((scale <= 0).any() or (scale >= 2.0**20).any()):
        raise Cannot("a scale is not positive, or too large for fixed point")
    y, shape = it.new(node, to) if to is not None else (_pixels(it.shape(node), "float32"), it.shape(node))
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


def _meaning(x: Value) -> Quantization:
    """What the codes of a value mean that must have some."""
    assert x.quantization is not None
    return x.quantization


def _bias(it: _Lowering, node: ir.Node, scale: Array) -> Array:
    """The int32 codes of a layer's bias, one for each channel; the scale they are stored with must be that of the sums."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(len(scale), np.int32)
    stored = it.value(node, 2)
    if not isinstance(stored, Weight) or stored.codes.size != len(scale) or not np.allclose(stored.scale, scale, rtol=1e-4, atol=0):
        raise Cannot("its bias is not stored as int32 codes of scale s_x s_w")
    return stored.codes.reshape(-1).astype(np.int32)


def _halo(it: _Lowering, x: Value, how: Slide, y: Tensor) -> Tensor:
    """The input with a halo for the padding: its own, or that of a copy where it is a view."""
    (top, _), (left, _) = how.pads
    tensor = x.tensor
    (span_h, span_w), (stride_h, stride_w) = how.spans, how.strides
    bottom = (y.h - 1) * stride_h + span_h - top - tensor.h
    right = (y.w - 1) * stride_w + span_w - left - tensor.w
    if max(top, left, bottom, right) <= 0:
        return tensor
    if tensor.base is not None:
        copy = _like(tensor, _meaning(x))
        it.ops.append(ops.Map(tensor, copy))
        tensor = copy
    tensor.need_halo(top, left, max(bottom, 0), max(right, 0))
    return tensor


def _gemm(it: _Lowering, node: ir.Node) -> None:
    x, weight = it.codes(node, 0), it.weight(node, 1)
    if node.op_type == "Gemm":
        a = node.attributes
        if a.get_float("alpha", 1.0) != 1 or a.get_float("beta", 1.0) != 1 or a.get_int("transA", 0) != 0:
            raise Cannot("it has alpha, beta or transA")
        codes = weight.codes if node.attributes.get_int("transB", 0) != 0 else weight.codes.T
    else:
        codes = weight.codes.T
    if len(x.shape) != 1 or codes.ndim != 2:
        raise Cannot(f"its input has the shape {('batch', *x.shape)}; the native engine multiplies vectors")
    # Behind a Flatten, a Gemm is a convolution whose window is the whole image.
    t = x.tensor
    codes = np.ascontiguousarray(codes).reshape(len(codes), t.c, t.h, t.w)
    how = Slide((t.h, t.w), (1, 1), (1, 1), ((0, 0), (0, 0)))
    _layer(it, node, x, Weight(codes, weight.scale), how)


def _add(it: _Lowering, node: ir.Node) -> None:
    a, b = it.codes(node, 0), it.codes(node, 1)
    quantizer, to = it.needed_quantizer(node)
    if a.shape != b.shape:
        raise Cannot(f"it broadcasts {a.shape} and {b.shape}")
    y, shape = it.new(node, to)
    of = (_meaning(a), _meaning(b), to)
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


def _may_take(it: _Lowering, node: ir.Node, which: int, op: Any) -> bool:
    dq = node.inputs[which]
    source = dq.producer() if dq is not None else None
    alone = source is not None and source.op_type == "DequantizeLinear" and sole_consumer(source.outputs[0]) is node
    first = source.inputs[0] if source is not None and source.inputs else None
    return isinstance(op, ops.Conv) and op.add is None and alone and first is not None and sole_consumer(first) is source


def _pool(it: _Lowering, node: ir.Node) -> None:
    x = it.codes(node, 0)
    of = _meaning(x)
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


def _reshape(it: _Lowering, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze: another shape over the same tensor, where images only become vectors."""
    x, shape = it.value(node, 0), it.shape(node)
    if not isinstance(x, Value) or math.prod(shape) != math.prod(x.shape):
        raise Cannot("it changes the batch")
    t = x.tensor
    if x.quantization is None and t.port is not None:
        it.values[node.outputs[0].name or ""] = Value(t, None, shape)
    elif len(shape) == 1 or (len(shape) == 3 and (shape == x.shape or (t.h * t.w == 1 and shape[1:] == (1, 1)))):
        it.values[node.outputs[0].name or ""] = dataclasses.replace(x, shape=shape)
    else:
        raise Cannot(f"it makes {shape} of {x.shape}: only vectors of images are lowered")


def _slice(it: _Lowering, node: ir.Node) -> None:
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


def _pad(it: _Lowering, node: ir.Node) -> None:
    x, shape = it.codes(node, 0), it.shape(node)
    of = _meaning(x)
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


def _concat(it: _Lowering, node: ir.Node) -> None:
    parts = [it.codes(node, i) for i in range(len(node.inputs))]
    quantizer, to = it.needed_quantizer(node)
    y, shape = it.new(node, to)
    axis = node.attributes.get_int("axis", 1) % (1 + len(shape))
    if axis != 1 or any(len(p.shape) == 1 and p.tensor.h * p.tensor.w > 1 for p in parts):
        raise Cannot("only channels are joined")
    first = 0
    for part in parts:
        of = _meaning(part)
        same = of.same(to) and (to.lo, to.hi) == (0, 255)
        goal = y.view(y.h, y.w, part.tensor.c, channel=first)
        it.ops.append(ops.Map(part.tensor, goal, None if same else _table(lambda v: v, of, to)))
        first += part.tensor.c
    it.name(node, quantizer, Value(y, to, shape))


def _activation(it: _Lowering, node: ir.Node) -> None:
    """A function of one number: a table of its 256 results."""
    x = it.codes(node, 0)
    quantizer, to = it.needed_quantizer(node)
    y = _like(x.tensor, to)
    it.ops.append(ops.Map(x.tensor, y, _table(lambda v: _evaluate(node, v), _meaning(x), to)))
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

RULES: dict[str, Callable[[_Lowering, ir.Node], None]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Add": _add,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Identity": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    **dict.fromkeys(ACTIVATIONS, _activation),
}
