"""Rules that move, join and part values, or give them another shape: on floats, and where no number moves on codes too."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from hasten.graph import constant, scalar
from hasten.lower import float_ops as ops
from hasten.lower.float_numbers import REPEAT, constant_tensor, operand
from hasten.lower.plan import INPUT, Tensor
from hasten.lower.walk import SIZES, Cannot, Laid, Value, Walk, image, pixels


def reshape(it: Walk, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: another shape over the same numbers."""
    x = it.value(node, 0)
    if x is SIZES:
        it.values[node.outputs[0].name or ""] = SIZES
        return
    if not isinstance(x, Value | Laid):
        raise Cannot("it reshapes a weight at run time")
    it.learn(node.outputs[0], math.prod(x.shape))
    it.values[node.outputs[0].name or ""] = it.reshaped(x, it.shape(node))


def transpose(it: Walk, node: ir.Node) -> None:
    """Another order of the axes: the numbers stay where they are."""
    x, source = it.value(node, 0), node.inputs[0]
    perm = tuple(node.attributes.get_ints("perm", ())) or tuple(range(len(node.outputs[0].shape or ())))[::-1]
    found = it.sample(source) if source is not None else None
    if not isinstance(x, Value | Laid) or source is None or found is None or not perm:
        raise Cannot("it transposes a weight at run time, or its shape is not known")
    of_a_sample = [p for p in perm if p != found[1]]
    it.keep(node.outputs[0], it.transposed(x, tuple(sorted(of_a_sample).index(p) for p in of_a_sample)))


def position(it: Walk, node: ir.Node) -> None:
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


def split(it: Walk, node: ir.Node) -> None:
    """Parts of an axis, one behind the other."""
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


def inside(it: Walk, tensor: Tensor) -> Tensor:
    """The tensor in the arena, where parts of it can be read."""
    if tensor.root.port is None:
        return tensor
    copy = Tensor(tensor.h, tensor.w, tensor.c, "float32")
    it.ops.append(ops.Elementwise(tensor, copy))
    return copy


def cast(it: Walk, node: ir.Node) -> None:
    """Whole numbers of the caller's as floats; floats as they are."""
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


def sizes(it: Walk, node: ir.Node) -> None:
    """What computes shapes: nothing is computed, all of them are known."""
    it.values[node.outputs[0].name or ""] = SIZES


def expand(it: Walk, node: ir.Node) -> None:
    """Repeats; where all readers repeat by themselves, nothing."""
    shape = it.shape(node)
    x = operand(it, node, 0, shape)
    readers = [use.node for use in node.outputs[0].uses()]
    if len(x.shape) != len(shape):
        raise Cannot("it adds an axis")
    if readers and not node.outputs[0].is_graph_output() and all(r.op_type in REPEAT or r.op_type == "MultiHeadAttention" for r in readers):
        it.values[node.outputs[0].name or ""] = x
        return
    c, h, w = image(shape)
    y = Tensor(h, w, c, "float32")
    it.put(ops.Elementwise(x.tensor, y), node, None, Value(y, None, shape))


def concat(it: Walk, node: ir.Node) -> None:
    """Each part where it belongs in the result."""
    if any(it.values.get(v.name or "") is SIZES for v in node.inputs if v is not None):
        it.values[node.outputs[0].name or ""] = SIZES
        return
    shape = it.shape(node)
    parts = [it.floats(node, i) if constant(v) is None else operand(it, node, i, shape) for i, v in enumerate(node.inputs)]
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


def pad(it: Walk, node: ir.Node) -> None:
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
    it.ops.append(ops.Elementwise(constant_tensor(np.full((1,), number, np.float32)), y))
    it.ops.append(ops.Elementwise(t, y.view(t.h, t.w, t.c, (before.get("h", 0), before.get("w", 0)), channel=before.get("c", 0))))
    it.values[node.outputs[0].name or ""] = Value(y, None, shape)


def slices(it: Walk, node: ir.Node) -> None:
    """A part of a value, another look at the same numbers."""
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
    t = inside(it, x.tensor)
    it.values[node.outputs[0].name or ""] = Value(
        t.view(h, w, c, (begin["h"], begin["w"]), (step["h"], step["w"]), begin["c"]), None, shape
    )
