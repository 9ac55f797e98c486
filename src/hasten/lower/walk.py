"""The walk down a graph, node by node: what is known of each value, the ops so far, and what the rules for nodes ask.

A quantized tensor is followed on its codes. An operator between DequantizeLinear and QuantizeLinear becomes one op on codes (`code_rules`); a Relu
or Clip in front of the QuantizeLinear becomes bounds of the codes, which is the same, for rounding keeps order. What is not quantized is computed
in float32 (`float_rules`); where the two meet, codes are made floats or floats codes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, scalar, sole_consumer
from hasten.lower import float_ops, ops
from hasten.lower.ops import Quantization
from hasten.lower.plan import INPUT, OUTPUT, Plan, Tensor
from hasten.lower.plan import Port as PlanPort
from hasten.model import Model, Skip
from hasten.numerics import format_of, quantize

UINT8 = format_of("uint8")


class Cannot(Exception):
    """Why a node can't be lowered, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value of the graph: where it lies, what its codes mean (None: floats), its shape without the batch.

    A tensor of shape (channels, h, w) lies as h × w × channels. A flattened one keeps its tensor: (c·h·w,) over h × w × c. A sequence of shape
    (positions, channels) is one of `positions` rows of one pixel.
    """

    tensor: Tensor
    quantization: Quantization | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """Stored int8 codes behind a DequantizeLinear, zero point 0, and their scale for each place of an axis (or one for all)."""

    codes: Array
    scale: Array
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Unscaled:
    """Codes that each channel has its own scale for: what they mean is said by the DequantizeLinear behind them."""

    tensor: Tensor
    zero: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Laid:
    """A value whose axes lie in another order than any kernel reads: behind a Transpose, or a Reshape before one.

    shape: without the batch. order: the axes of `shape` that are longer than 1, from the outermost in memory to the innermost; all of it is dense.
    """

    tensor: Tensor
    quantization: Quantization | None
    shape: tuple[int, ...]
    order: tuple[int, ...]


Rules = Mapping[str, Callable[["Walk", ir.Node], None]]


class Walk:
    """The walk down the graph: `values` by name, and the ops so far.

    hopeless: that an operator without a rule computes on what an input gave, so that no clean-up will take it away.
    """

    def __init__(self, model: Model, fixed: bool, on_codes: Rules, on_floats: Rules, bfloat16: bool = False) -> None:
        self.model, self.graph, self.fixed, self.bfloat16 = model, model.ir.graph, fixed, bfloat16
        self.on_codes, self.on_floats = on_codes, on_floats
        self.values: dict[str, Any] = {}
        self.ops: list[Any] = []
        self.names: dict[Any, str] = {}
        self.batch: int | None = None
        self._made: dict[Any, Tensor] = {}
        self._moved: dict[Any, Value] = {}
        self.hopeless, self._computed = False, {v.name for v in self.graph.inputs}
        self._batch: dict[str, int] = {}

    def run(self) -> tuple[Plan | None, tuple[Skip, ...]]:
        """The plan; or None, and each node that can't be lowered with its reason."""
        skips: list[Skip] = []
        try:
            inputs = [self._input(i, v) for i, v in enumerate(self.graph.inputs)]
        except Cannot as e:
            self.hopeless = True
            return None, (Skip("", str(e)),)
        for node in self.graph:
            if self._fed(node) and node.op_type not in ("Shape", "Size"):
                self._computed.update(v.name for v in node.outputs)
            if node.op_type == "Constant" or node.outputs[0].name in self.values:
                continue
            try:
                self._lower(node)
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

    def _lower(self, node: ir.Node) -> None:
        """By the rule on codes where something quantized is read, else, or where that can't be, by the one on floats."""
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        known = [self.values.get(v.name or "") for v in node.inputs if v is not None]
        quantized = any(isinstance(v, Unscaled) or (isinstance(v, Value) and v.quantization is not None) for v in known)
        codes = quantized or self.fixed or name in ("QuantizeLinear", "DequantizeLinear")
        on_codes = self.on_codes.get(name) if codes else None
        on_floats = None if self.fixed else self.on_floats.get(name)
        if self.elsewhere(node) and name not in BATCH_ANYWHERE:
            raise Cannot("its batch is not the first axis")
        so_far = len(self.ops), dict(self._made), dict(self._moved)

        def undo() -> None:
            del self.ops[so_far[0] :]
            self._made, self._moved = dict(so_far[1]), dict(so_far[2])

        if on_codes is not None:
            try:
                on_codes(self, node)
                return
            except Cannot as e:
                undo()
                if e is FOLLOWS or on_floats is None:
                    raise
        if on_floats is None:
            if any(v is UNKNOWN for v in known):
                raise FOLLOWS
            self.hopeless |= self._fed(node) and name not in ("If", "Loop")
            raise Cannot(f"the native engine has no {name}{' on 8-bit codes' if self.fixed else ''}")
        try:
            on_floats(self, node)
        except Cannot:
            undo()
            raise

    def _fed(self, node: ir.Node) -> bool:
        """Whether it reads what an input's numbers, and not its shape alone, made."""
        return any(v is not None and v.name in self._computed for v in node.inputs)

    def _sign(self, name: str) -> None:
        """Remember for whom the newest ops were made."""
        for op in reversed(self.ops):
            if op in self.names:
                break
            self.names[op] = name

    # Ports

    def _input(self, number: int, value: ir.Value) -> PlanPort:
        name, shape = value.name or "", value.shape
        types = {ir.DataType.FLOAT: "float32"} if self.fixed else {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}
        if value.dtype not in types:
            raise Cannot(f"input {name} is {value.dtype}; the native engine takes {' and '.join(types.values())}")
        type_ = types[value.dtype]
        sizes = sizes_behind_batch(shape)
        if shape is None or sizes is None:
            raise Cannot(f"input {name} must have a fixed shape behind its batch, came {shape}; fix it with --shape")
        batch = shape.dims[0] if isinstance(shape.dims[0], int) else -1
        if batch == -1:
            self._batch[str(shape.dims[0].value)] = 1  # type: ignore[union-attr]
        if batch > 1:
            raise Cannot(f"input {name} has the fixed batch {batch}; the native engine takes 1 or a free one")
        if self.batch not in (None, batch):
            raise Cannot("some inputs have a free batch and others a fixed one")
        self.batch = batch
        self.values[name] = Value(port(sizes, (INPUT, number), type_), None, sizes)
        return PlanPort(name, type_, (batch, *sizes))

    def _output(self, number: int, value: ir.Value) -> PlanPort:
        name = value.name or ""
        found = self.values.get(name)
        declared = self.sample(value)
        if declared is not None and declared[1] != 0 and self.batch != 1:
            raise Cannot(f"output {name} counts its samples by another axis than the first")
        batch = () if declared is not None and declared[1] is None else (self.batch or -1,)
        if isinstance(found, Laid) and found.quantization is None:
            if found.order != tuple(sorted(found.order)):
                found = self.moved(found, tuple(sorted(found.order)))
            t = found.tensor
            self.ops.append(float_ops.Elementwise(t, Tensor(t.h, t.w, t.c, "float32", port=(OUTPUT, number))))
            return PlanPort(name, "float32", (*batch, *found.shape))
        if not isinstance(found, Value):
            raise Cannot(f"output {name} is none of the values that were lowered, or its axes lie in another order")
        tensor, place = found.tensor, (OUTPUT, number)
        y = Tensor(tensor.h, tensor.w, tensor.c, "float32", port=place)
        if found.quantization is not None:
            if len(found.shape) == 1 and tensor.h * tensor.w > 1 and self.fixed:
                raise Cannot(f"output {name} is a flattened image, which would have to be written channel by channel")
            of = found.quantization
            flat = len(found.shape) == 2
            self.ops.append(float_ops.DequantizePixels(tensor, y, of.scale, of.zero) if flat else ops.Dequantize(tensor, y, of))
        elif tensor.type != "float32":
            raise Cannot(f"output {name} is an input")
        elif in_planes_outside(found) and tensor.port is None:
            self.ops.append(float_ops.Arrange(tensor, y, to_planes=True))
        elif self._may_be_written_outside(tensor):
            tensor.port = place
        elif self.fixed:
            raise Cannot(f"output {name} is an input, or is read by other nodes too")
        else:
            self.ops.append(float_ops.Elementwise(tensor, y))
        return PlanPort(name, "float32", (*batch, *found.shape))

    def _may_be_written_outside(self, tensor: Tensor) -> bool:
        """Whether this memory can be the caller's: one op writes all of it, none reads it."""
        makers = [op for op in self.ops if op.y.root is tensor]
        read = any(t.root is tensor for op in self.ops for t in op.reads)
        return (
            not read
            and len(makers) == 1
            and makers[0].y is tensor
            and tensor.port is None
            and tensor.pixel == tensor.c
            and not any(tensor.halo)
        )

    # What the rules ask

    def value(self, node: ir.Node, index: int) -> Any:
        """What is known of an input; a Cannot if it is a float that no op takes."""
        source = node.inputs[index]
        found = self.values.get(source.name or "") if source is not None else None
        if found is UNKNOWN:
            raise FOLLOWS
        if found is None:
            raise Cannot(f"its input {source.name if source is not None else index} is a constant, or missing")
        return found

    def codes(self, node: ir.Node, index: int) -> Value:
        """An input that must be quantized."""
        found = self.value(node, index)
        if not isinstance(found, Value) or found.quantization is None:
            raise Cannot("it computes in float: only what stands between DequantizeLinear and QuantizeLinear is lowered")
        return found

    def floats(self, node: ir.Node, index: int) -> Value:
        """An input as floats that lie pixel by pixel."""
        return self.as_floats(self.value(node, index))

    def as_floats(self, found: Any) -> Value:
        """The same value as floats that lie pixel by pixel: codes are dequantized, an image of the caller's is brought in order; once each."""
        if isinstance(found, Laid):
            found = self._in_order(found)
        if not isinstance(found, Value):
            raise Cannot("it reads what is no float32 tensor: a weight's codes, or a shape")
        tensor, of = found.tensor, found.quantization
        if of is not None:
            y = self._once((tensor, of.scale, of.zero), lambda y: float_ops.DequantizePixels(tensor, y, of.scale, of.zero), tensor)
        elif tensor.type != "float32":
            raise Cannot(f"it computes on {tensor.type}; only Gather and Cast read whole numbers")
        elif tensor.port is not None and tensor.port[0] == INPUT and in_planes_outside(found):
            y = self._once((tensor, "pixels"), lambda y: float_ops.Arrange(tensor, y, to_planes=False), tensor)
        else:
            return found
        return Value(y, None, found.shape)

    def _in_order(self, x: Laid) -> Value:
        """As the kernels read it; moved, once, where it does not lie so."""
        if x.quantization is not None or len(x.shape) > 3:
            raise Cannot(f"the axes of its input lie in another order than it reads them, and it has the shape {('batch', *x.shape)}")
        key = (x.tensor, x.order, x.shape)
        if key not in self._moved:
            found = settled(self.moved(x, tuple(a for a in ORDER[len(x.shape)] if x.shape[a] > 1)))
            assert isinstance(found, Value)
            self._moved[key] = found
        return self._moved[key]

    def _once(self, key: Any, make: Callable[[Tensor], Any], like: Tensor) -> Tensor:
        if key not in self._made:
            self._made[key] = Tensor(like.h, like.w, like.c, "float32")
            self.ops.append(make(self._made[key]))
        return self._made[key]

    def reshaped(self, x: Value | Laid, shape: tuple[int, ...]) -> Value | Laid:
        """Another shape over the same numbers: no op, or one that moves what does not lie together."""
        if math.prod(shape) != math.prod(x.shape):
            raise Cannot("it changes the batch")
        if shape == x.shape:
            return x
        t = x.tensor
        if isinstance(x, Value) and t.port is not None and len(shape) <= 3:
            return Value(port(shape, t.port, t.type), None, shape)
        if isinstance(x, Value) and len(shape) == 1 and len(x.shape) == 3:
            return dataclasses.replace(x, shape=shape)  # flattened
        laid = self.laid(x)
        order = regrouped(laid.shape, laid.order, shape)
        if order is None:
            laid = self.moved(laid, tuple(sorted(laid.order)))
            order = regrouped(laid.shape, laid.order, shape)
            assert order is not None
        return settled(dataclasses.replace(laid, shape=shape, order=order))

    def transposed(self, x: Value | Laid, perm: tuple[int, ...]) -> Value | Laid:
        """The axes in another order, the batch not counted: the numbers stay where they are."""
        laid = self.laid(x)
        return settled(dataclasses.replace(laid, shape=tuple(x.shape[p] for p in perm), order=tuple(perm.index(a) for a in laid.order)))

    def part(self, x: Value | Laid, axis: int, begin: int, count: int, drop: bool = False) -> Value | Laid:
        """`count` of an axis's places, from `begin` on; `drop`: one place, without the axis."""
        shape = (*x.shape[:axis], *(() if drop else (count,)), *x.shape[axis + 1 :])
        laid = self.laid(x)
        if laid.shape[axis] == 1:
            return self.reshaped(x, shape)
        at = laid.order.index(axis)
        sizes = [laid.shape[a] for a in laid.order]
        outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
        t = laid.tensor.as_shape(outer, 1, sizes[at] * inner).view(outer, 1, count * inner, channel=begin * inner)
        kept = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        order = tuple(a for a in laid.order if kept[a] > 1)
        if order == tuple(sorted(order)) and (shape == (outer, count * inner) or (len(shape) == 1 and outer == 1)):
            return Value(t, x.quantization, shape)  # a sequence's channels, or a position
        copy = Tensor(t.h, t.w, t.c, t.type, t.fill)
        self.ops.append(ops.Map(t, copy) if t.type == "uint8" else float_ops.Elementwise(t, copy))
        found = settled(Laid(copy, x.quantization, kept, order))
        return self.reshaped(found, shape) if drop else found

    def laid(self, x: Value | Laid) -> Laid:
        """The value with the order of its axes in memory; copied where it does not lie together."""
        if isinstance(x, Laid):
            return x
        if x.tensor.type not in ("uint8", "float32"):
            raise Cannot(f"it moves numbers of {x.tensor.type}")
        if x.quantization is None:
            x = self.as_floats(x)
        t, shape = x.tensor, x.shape
        flattened = len(shape) == 1 and t.h * t.w > 1 and t.c > 1
        if flattened:
            shape = (t.c, t.h, t.w)
        if t.port is not None or (t.base is not None and not t.dense) or any(t.root.halo) or t.wide > t.c or t.constant is not None:
            copy = Tensor(t.h, t.w, t.c, t.type, t.fill)
            self.ops.append(ops.Map(t, copy) if t.type == "uint8" else float_ops.Elementwise(t, copy))
            t = copy
        t.root.flat = True  # a halo that came later would part what lies together
        found = Laid(t, x.quantization, shape, tuple(a for a in ORDER[len(shape)] if shape[a] > 1))
        if not flattened:
            return found
        return dataclasses.replace(self.moved(found, tuple(sorted(found.order))), shape=x.shape, order=(0,))

    def moved(self, x: Laid, order: tuple[int, ...]) -> Laid:
        """The same value, its numbers moved so that the axes lie in this order."""
        if x.tensor.type != "float32" or len(order) > 4:
            raise Cannot(f"it would have to move numbers of {x.tensor.type} along {len(order)} axes")
        strides = {a: math.prod(x.shape[b] for b in x.order[i + 1 :]) for i, a in enumerate(x.order)}
        fill = (1,) * (4 - len(order))
        sizes, apart = (*fill, *(x.shape[a] for a in order)), (*(0 for _ in fill), *(strides[a] for a in order))
        y = Tensor(1, 1, math.prod(sizes), "float32")
        self.ops.append(float_ops.Move(x.tensor, y, sizes, apart))  # type: ignore[arg-type]
        return dataclasses.replace(x, tensor=y, order=order)

    def weight(self, node: ir.Node, index: int, axis: int) -> Weight:
        """A stored weight whose output channels are this axis."""
        found = self.value(node, index)
        if not isinstance(found, Weight):
            raise Cannot("its second operand is no stored 8-bit weight")
        if found.scale.size > 1 and found.axis != axis:
            raise Cannot(f"its weights have scales along axis {found.axis}; the sums' are along axis {axis}")
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
            low, high = bounds_of(clip)
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
        return pixels(shape, fill=like.zero), shape

    def shape(self, node: ir.Node) -> tuple[int, ...]:
        """The sizes of the node's result, of one sample."""
        found = self.sample(node.outputs[0])
        if found is None:
            raise Cannot(f"the shape of its result is not known: {node.outputs[0].shape}")
        return found[0]

    def rows(self, x: Value | Laid) -> Value:
        """The value as a sequence of its last axis, whatever stands before it: (…, channels) as (positions, channels)."""
        found = self.reshaped(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        return self.as_floats(found)

    def keep(self, output: ir.Value, x: Value | Laid) -> None:
        """The value under the output's name, in the shape that it is declared with: an axis of size 1 may have become the batch's."""
        declared = self.sample(output)
        self.values[output.name or ""] = x if declared is None or declared[0] == x.shape else self.reshaped(x, declared[0])

    def sample(self, value: ir.Value) -> tuple[tuple[int, ...], int | None] | None:
        """(the sizes of one sample, the axis that counts samples), of a value whose shape is known.

        Mostly that axis is the first; exporters of attention move it, or make one axis of it and another: 16·batch is 16 of a sample, and None the
        axis.
        """
        dims = value.shape.dims if value.shape is not None else ()
        free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
        if not dims or len(free) > 1:
            return None
        if not free and self.batch == 1 and dims[0] != 1:
            return tuple(d for d in dims if isinstance(d, int)), None
        if not free:
            return tuple(d for d in dims[1:] if isinstance(d, int)), 0
        (at,) = free
        times = self._times(dims[at], at)
        if times is None:
            return None
        if times == 1:
            return tuple(d for i, d in enumerate(dims) if i != at), at  # type: ignore[misc]
        return tuple(d if isinstance(d, int) else times for d in dims), None

    def _times(self, dim: Any, at: int) -> int | None:
        """How many places of an axis belong to each sample; 1: it is the batch. None: nobody knows."""
        text = str(dim.value)
        several = re.fullmatch(r"(\d+)\*(\w+)|(\w+)\*(\d+)", text)
        if several is not None and self._batch.get(several[2] or several[3]) == 1:
            return int(several[1] or several[4])
        return self._batch.get(text, 1 if at == 0 else None)

    def learn(self, output: ir.Value, size: int) -> None:
        """That a sample of this value has so many numbers: what its one axis of unknown length is, then."""
        dims = output.shape.dims if output.shape is not None else ()
        free = [d for d in dims if not isinstance(d, int)]
        rest = math.prod(d for d in dims if isinstance(d, int))
        if len(free) == 1 and rest > 0 and size % rest == 0:
            self._batch.setdefault(str(free[0].value), size // rest)

    def axis(self, value: ir.Value, axis: int) -> int:
        """Which of a sample's axes an axis of the value is. Raises Cannot where it is that of the samples."""
        rank = len(value.shape) if value.shape is not None else 0
        found = self.sample(value)
        axis %= max(1, rank)
        if found is None or axis == found[1] or not isinstance(value.shape[axis], int):  # type: ignore[index]
            raise Cannot("it works along the batch")
        return axis if found[1] is None or axis < found[1] else axis - 1

    def elsewhere(self, node: ir.Node) -> bool:
        """Whether the samples are counted by another axis than the first, of what the node reads or gives."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.shape is not None and constant(v) is None]
        return any((found := self.sample(v)) is not None and found[1] != 0 for v in values)


UNKNOWN = object()
BATCH_ANYWHERE = frozenset(
    (
        *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Gather", "Split", "MatMul", "Gemm", "Add", "Sub", "Mul", "Div"),
        *("Relu", "Gelu", "Tanh", "Sigmoid", "Clip", "Shape", "Softmax", "LayerNormalization", "com.microsoft::SkipLayerNormalization"),
    )
)
"""Operators whose rules do not take the first axis for the batch."""

SIZES = object()
"""What computes shapes: the plan has them all."""
FOLLOWS = Cannot("it reads what could not be lowered")
MOST_REASONS = 20


def sizes_behind_batch(shape: ir.Shape | None) -> tuple[int, ...] | None:
    """The sizes behind the batch, None where there are none or one is not known."""
    sizes = tuple(d for d in shape.dims[1:] if isinstance(d, int)) if shape is not None else ()
    return sizes if shape is not None and len(sizes) == len(shape) - 1 else None


def port(shape: tuple[int, ...], place: tuple[int, int], type_: str = "float32") -> Tensor:
    """The tensor of a port: an image there lies in planes."""
    c, h, w = image(shape)
    return Tensor(h, w, c, type_, port=place)


def pixels(shape: tuple[int, ...], type_: str = "uint8", fill: int = 0) -> Tensor:
    c, h, w = image(shape)
    return Tensor(h, w, c, type_, fill)


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, h, w) of a shape without the batch: a vector's, a sequence's (positions, channels), an image's."""
    if len(shape) > 3 or math.prod(shape) < 1:
        raise Cannot(f"the native engine has vectors, sequences and images, not the shape {('batch', *shape)}")
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return shape[1], shape[0], 1
    return shape[0] if shape else 1, 1, 1


ORDER = {0: (), 1: (0,), 2: (0, 1), 3: (1, 2, 0)}
"""The axes of a shape without the batch, as they lie: of an image (channels, h, w) pixel by pixel."""


def settled(x: Laid) -> Value | Laid:
    """As the kernels read it, if it lies so."""
    if tuple(a for a in ORDER.get(len(x.shape), (-1,)) if a < 0 or x.shape[a] > 1) != x.order:
        return x
    c, h, w = image(x.shape)
    return Value(x.tensor.as_shape(h, w, c), x.quantization, x.shape)


def regrouped(shape: tuple[int, ...], order: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """How the axes of `new` lie, where `shape` lies as `order` says; None where a reshape would have to move numbers.

    The axes fall into groups, each as large before as behind; a group must lie together.
    """
    a = b = 0
    while a < len(shape) or b < len(new):
        before, behind = [a] if a < len(shape) else [], [b] if b < len(new) else []
        sizes = [shape[a] if before else 1, new[b] if behind else 1]
        a, b = a + 1, b + 1
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                before.append(a)
                sizes[0] *= shape[a]
                a += 1
            else:
                behind.append(b)
                sizes[1] *= new[b]
                b += 1
        old, made = tuple(i for i in before if shape[i] > 1), tuple(len(shape) + i for i in behind if new[i] > 1)
        if old:
            at = order.index(old[0])
            if order[at : at + len(old)] != old:
                return None
            order = (*order[:at], *made, *order[at + len(old) :])  # marked as new by what is added to them
    return tuple(i - len(shape) for i in order)


def in_planes_outside(x: Value) -> bool:
    """Whether a caller's order is another than ours: an image's, flattened or not."""
    t = x.tensor
    return (len(x.shape) == 3 or len(x.shape) == 1) and t.c > 1 and t.h * t.w > 1


def bounds_of(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    limits = [scalar(v) if v is not None else None for v in node.inputs[1:3]] + [None, None]
    given = [v is not None for v in node.inputs[1:3]] + [False, False]
    if any(g and limit is None for g, limit in zip(given, limits, strict=False)):
        raise Cannot("a Clip's bounds are not constants")
    return -math.inf if limits[0] is None else limits[0], math.inf if limits[1] is None else limits[1]


def channel_axis(node: ir.Node, rank: int) -> int | None:
    """The node's axis, if it is that of the channels; `rank` without the batch."""
    axis = node.attributes.get_int("axis", 1) % (rank + 1)
    return axis if axis == (2 if rank == 2 else 1) else None


def zero_of(node: ir.Node) -> int:
    """The one zero point of a QuantizeLinear or DequantizeLinear on uint8."""
    found = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1, np.uint8)
    if found is None or found.dtype != np.uint8 or (found != found.reshape(-1)[0]).any():
        raise Cannot("activations are quantized to uint8 with one constant zero point")
    return int(found.reshape(-1)[0])
