"""Rules that compute on floats one by one, in pairs, or along axes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant, scalar, sole_consumer
from hasten.lower import float_ops as ops
from hasten.lower.ends import activation_of, of_channels
from hasten.lower.float_ops import IDENTITY
from hasten.lower.plan import Tensor
from hasten.lower.walk import ORDER, Cannot, Laid, Value, Walk, bounds_of, image, settled

REPEAT = ("Add", "Sub", "Mul", "Div", "Max", "Min")
"""Functions of two; where one has size 1, it is repeated."""


def elementwise(it: Walk, node: ir.Node) -> None:
    """A function of two, the smaller repeated; an activation behind it goes along."""
    shape = it.shape(node)
    if len(node.inputs) != 2:
        raise Cannot("it has more or fewer than two operands")
    if all(it.values.get(v.name or "") is None for v in node.inputs if v is not None):
        raise Cannot("both its operands are constants: fold it first, with `hasten simplify`")
    if _of_rows(it, node, shape):
        return
    found = [operand(it, node, i, shape) for i in range(2)]
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
            operands.append(constant_tensor(one))
        elif isinstance(k, Value | Laid) and k.shape == shape:
            operands.append(it.rows(k).tensor)
        else:
            return False
    function, names = _activation_behind(node)
    y = Tensor(math.prod(shape[:-1]), 1, shape[-1], "float32")
    it.ops.append(ops.Elementwise(operands[0], y, operands[1], node.op_type, function))
    it.values.update(dict.fromkeys(names, it.reshaped(Value(y, None, (y.h, y.c)), shape)))
    return True


def operand(it: Walk, node: ir.Node, index: int, shape: tuple[int, ...]) -> Value:
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
    return Value(constant_tensor(stored.reshape(sizes)), None, sizes)


def constant_tensor(array: Array) -> Tensor:
    """A constant of a shape without the batch, pixel by pixel."""
    c, h, w = image(array.shape)
    lying = array.transpose(1, 2, 0) if array.ndim == 3 else array.reshape(h, w, c)
    return Tensor(h, w, c, "float32", constant=np.ascontiguousarray(lying, np.float32))


def _activation_behind(node: ir.Node) -> tuple[ops.Activation, tuple[str, ...]]:
    """(what the node's only reader does to each number, if it is an activation; the names of what is computed then)."""
    reader, name = sole_consumer(node.outputs[0]), node.outputs[0].name or ""
    function = activation_of(reader) if reader is not None else None
    return (IDENTITY, (name,)) if reader is None or function is None else (function, (name, reader.outputs[0].name or ""))


def activation(it: Walk, node: ir.Node) -> None:
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


def power(it: Walk, node: ir.Node) -> None:
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
            ops.Elementwise(constant_tensor(np.ones(1, np.float32)), y, root, "Div"),
        ]
    else:
        raise Cannot("only the powers 2, 3, 1/2 and -1/2 are lowered")
    it.values[node.outputs[0].name or ""] = Value(y, None, x.shape)


def reciprocal(it: Walk, node: ir.Node) -> None:
    x = it.floats(node, 0)
    y = Tensor(x.tensor.h, x.tensor.w, x.tensor.c, "float32")
    it.put(ops.Elementwise(constant_tensor(np.ones(1, np.float32)), y, x.tensor, "Div"), node, None, Value(y, None, x.shape))


def reduce(it: Walk, node: ir.Node) -> None:
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


def softmax(it: Walk, node: ir.Node) -> None:
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
