"""resolve_shapes: what is computed of shapes is worked out now, as far as the shapes are known. Effect: equivalent.

A Shape gives numbers and names of dynamic axes; Gather, Slice, Concat, Unsqueeze, Cast and arithmetic make others of them. What is all numbers
becomes a constant, whatever reads it. Where a dynamic axis is left: a Reshape takes -1 for one of them and 0 for those that stay where they are; an
Expand takes 1 where its input has the axis already; a Slice up to an axis's own length takes "to the end". So a batch of any size stays possible.

Over fold_constants: several dynamic axes, Expand, Slice, comparisons (an If that asks for a shape), subgraphs.

When: for exports that compute shapes while running (most torch exports do).
Cost: nothing at run time, and often a dozen small nodes less per Reshape; no data.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, settle
from hasten.model import Model, Step
from hasten.rewrite import Edit, dims, graph_of, plain
from hasten.shapes import infer_missing
from hasten.task import BoundTask

LARGEST = 64
"""Elements at most of what is followed: shapes are short."""

FOREVER = (1 << 63) - 1

WHOLE_TYPES = (ir.DataType.INT64, ir.DataType.INT32)


@dataclasses.dataclass(frozen=True)
class ResolveShapes:
    """No settings."""


def resolve_shapes(model: Model, settings: ResolveShapes, task: BoundTask | None) -> Model:
    """Follow every computation of shapes from Shape and Size on; write constants where the results are known."""
    edited = begin(model)
    changed = 0
    while found := _sweep(edited):
        changed += found
        infer_missing(edited)
    if changed:
        settle(edited)
    return model.then(edited, Step("resolve_shapes", dataclasses.asdict(settings), changed))


def _sweep(edited: ir.Model) -> int:
    edit, known = Edit(edited), _Known()
    return sum(_resolve(node, edit, known) for node in list(edit.nodes()) if node.graph is not None and plain(node))


class _Known:
    """What values hold, as far as it follows from shapes: arrays of whole numbers, truth values, names of axes, None for what is not known."""

    def __init__(self) -> None:
        self._values: dict[ir.Value, Array | None] = {}

    def of(self, value: ir.Value | None) -> Array | None:
        """The value's elements as an object array, None where not even its shape is known or it is no small whole numbers."""
        if value is None:
            return None
        if value not in self._values:
            array = constant(value)
            if array is not None:
                self._values[value] = array.astype(object) if array.dtype.kind in "ib" and array.size <= LARGEST else None
            else:
                self._values[value] = self._made(value)
        return self._values[value]

    def _made(self, value: ir.Value) -> Array | None:
        node = value.producer()
        rule = RULES.get(node.op_type) if node is not None and plain(node) and node.outputs[0] is value else None
        if node is None or rule is None:
            return None
        found = rule(node, self)
        return found if found is None or found.size <= LARGEST else None


def _resolve(node: ir.Node, edit: Edit, known: _Known) -> int:
    """Write what is known of this node; 1 if something was."""
    output = node.outputs[0]
    if node.op_type in RULES and all_numbers(found := known.of(output)) and not output.is_graph_output():
        if output.dtype is None or not output.uses() or found is None or not _fits(found, output.dtype):
            return 0
        number = edit.weight(node, f"{output.name}_known", found.astype(output.dtype.numpy()))
        ir.convenience.replace_all_uses_with(output, number)
        graph_of(node).remove(node, safe=True)
        return 1
    rule = {"Reshape": _target, "Expand": _expanded, "Slice": _sliced}.get(node.op_type)
    if rule is None:
        return 0
    changed = 0
    for index, array in rule(node, known).items():
        value = node.inputs[index]
        if value is not None and constant(value) is None and value.dtype is not None:
            node.replace_input_with(index, edit.weight(node, f"{value.name}_known", array.astype(value.dtype.numpy())))
            changed = 1
    return changed


def _fits(found: Array, dtype: ir.DataType) -> bool:
    """Whether the type holds the numbers: what overflows stays computed."""
    if dtype == ir.DataType.BOOL:
        return True
    limits = np.iinfo(dtype.numpy())
    return all(limits.min <= d <= limits.max for d in found.ravel())


# --- readers of shapes: input → constant to put there


def _target(node: ir.Node, known: _Known) -> dict[int, Array]:
    wanted, source = known.of(node.inputs[1]), dims(node.inputs[0])
    if wanted is None or wanted.ndim != 1 or node.attributes.get_int("allowzero", 0) != 0:
        return {}
    target = [d if isinstance(d, int) else -1 for d in wanted]
    for i, d in enumerate(wanted):
        # One -1 is enough for one axis; the first of several are named by where they stay.
        if target.count(-1) > 1 and isinstance(d, str) and source is not None and i < len(source) and source[i] == d:
            target[i] = 0
    return {1: np.array(target, np.int64)} if target.count(-1) <= 1 else {}


def _expanded(node: ir.Node, known: _Known) -> dict[int, Array]:
    wanted, source = known.of(node.inputs[1]), dims(node.inputs[0])
    if wanted is None or wanted.ndim != 1 or source is None:
        return {}
    there = (None,) * (len(wanted) - len(source)) + source[max(0, len(source) - len(wanted)) :]
    shape = [1 if isinstance(d, str) and d == s else d for d, s in zip(wanted, there, strict=True)]
    return {1: np.array(shape, np.int64)} if all(isinstance(d, int) for d in shape) else {}


def _sliced(node: ir.Node, known: _Known) -> dict[int, Array]:
    """The ends alone: an axis's own name is where it ends, if the step is forward."""
    ends, source = known.of(node.inputs[2]), dims(node.inputs[0])
    if ends is None or source is None or (len(node.inputs) < 4 and len(ends) > len(source)):
        return {}
    axes = known.of(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(len(ends)).astype(object)
    steps = known.of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(len(ends), object)
    if not all_numbers(axes) or not all_numbers(steps) or axes is None or steps is None or np.any(steps < 0):
        return {}
    last = np.iinfo(node.inputs[2].dtype.numpy()).max if node.inputs[2] is not None and node.inputs[2].dtype is not None else FOREVER
    found = [last if isinstance(e, str) and source[a] == e else e for e, a in zip(ends, axes, strict=True)]
    return {2: np.array(found, np.int64)} if all(isinstance(e, int) for e in found) else {}


def all_numbers(array: Array | None) -> bool:
    """Whether every element is a number or a truth value, none a name or unknown."""
    return array is not None and all(isinstance(d, int) for d in array.ravel())


# --- operators on what is known

_Rule = Callable[[ir.Node, _Known], Array | None]


def _array(elements: list[Any], shape: tuple[int, ...] | None = None) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array if shape is None else array.reshape(shape)


def _shape(node: ir.Node, known: _Known) -> Array | None:
    shape = dims(node.inputs[0])
    if shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    rank = len(shape)
    low, high = (min(max(b + rank if b < 0 else b, 0), rank) for b in (start, end))
    return _array(list(shape[low:high]))


def _size(node: ir.Node, known: _Known) -> Array | None:
    shape = dims(node.inputs[0])
    return _array([math.prod(shape)], ()) if shape is not None and all(isinstance(d, int) for d in shape) else None


def _same(node: ir.Node, known: _Known) -> Array | None:
    return known.of(node.inputs[0])


def _cast(node: ir.Node, known: _Known) -> Array | None:
    found, to = known.of(node.inputs[0]), node.attributes["to"].as_int()
    if found is None or to not in (*WHOLE_TYPES, ir.DataType.BOOL):
        return None
    if to in WHOLE_TYPES:
        return _array([int(d) if isinstance(d, int) else d for d in found.ravel()], found.shape)
    return _array([bool(d) if isinstance(d, int) else None for d in found.ravel()], found.shape)


def _gather(node: ir.Node, known: _Known) -> Array | None:
    data, index, axis = known.of(node.inputs[0]), known.of(node.inputs[1]), node.attributes.get_int("axis", 0)
    if data is None or data.ndim == 0 or not all_numbers(index) or index is None:
        return None
    picks = index.astype(np.int64)
    if picks.size and (picks.min() < -data.shape[axis] or picks.max() >= data.shape[axis]):
        return None
    taken = np.empty((*data.shape[: axis % data.ndim], *picks.shape, *data.shape[axis % data.ndim + 1 :]), object)
    taken[...] = np.take(data, picks, axis)
    return taken


def _slice(node: ir.Node, known: _Known) -> Array | None:
    data = known.of(node.inputs[0])
    bounds = [known.of(v) for v in node.inputs[1:] if v is not None]
    if data is None or not all(all_numbers(b) for b in bounds) or any(v is None for v in node.inputs[1:]):
        return None
    starts, ends, *rest = (b for b in bounds if b is not None)
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    cut = [slice(None)] * data.ndim
    for s, e, a, t in zip(starts, ends, axes, steps, strict=True):
        cut[int(a)] = slice(int(s), int(e), int(t))
    return data[tuple(cut)]


def _concat(node: ir.Node, known: _Known) -> Array | None:
    parts = [known.of(v) for v in node.inputs]
    if any(p is None or p.ndim == 0 for p in parts):
        return None
    return np.concatenate([p for p in parts if p is not None], node.attributes["axis"].as_int())


def _reshaped(node: ir.Node, known: _Known) -> Array | None:
    """Squeeze, Unsqueeze and Reshape of few numbers: the inferred shape says what comes out, and the axes where they are constant."""
    data, shape = known.of(node.inputs[0]), dims(node.outputs[0])
    if data is None:
        return None
    if shape is None or not all(isinstance(d, int) for d in shape):
        axes = known.of(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op_type == "Reshape" or not all_numbers(axes) or axes is None:
            return None
        if node.op_type == "Unsqueeze":
            return np.expand_dims(data, tuple(int(a) for a in axes))
        return np.squeeze(data, tuple(int(a) for a in axes))
    return data.reshape(shape) if math.prod(shape) == data.size else None  # type: ignore[arg-type]


def _elementwise(function: Callable[[Any, Any], Any], left: int | None = None, right: int | None = None) -> _Rule:
    """`function` of two numbers; a name stays itself beside a neutral element, on the left or the right."""

    def one(a: Any, b: Any) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        if b is not None and not isinstance(b, str) and b == right:
            return a
        return b if a is not None and not isinstance(a, str) and a == left else None

    def rule(node: ir.Node, known: _Known) -> Array | None:
        pair = [known.of(v) for v in node.inputs]
        first, *rest = pair
        if first is None or any(r is None for r in rest) or not rest:
            return first if not rest else None
        for other in (r for r in rest if r is not None):
            a, b = np.broadcast_arrays(first, other)
            first = _array([one(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True)], a.shape)
        return first

    return rule


def _equal(node: ir.Node, known: _Known) -> Array | None:
    """A name equals itself, and no negative number."""
    one, other = (known.of(v) for v in node.inputs)
    if one is None or other is None:
        return None
    a, b = np.broadcast_arrays(one, other)
    return _array([_equal_elements(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True)], a.shape)


def _equal_elements(a: Any, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    if a == b:
        return True
    numbers = [d for d in (a, b) if isinstance(d, int)]
    return False if len(numbers) == 2 or any(d < 0 for d in numbers) else None


def _divided(a: int, b: int) -> int | None:
    """Whole numbers are divided towards zero; shapes are not negative."""
    return a // b if b > 0 and a >= 0 else None


def _not(node: ir.Node, known: _Known) -> Array | None:
    found = known.of(node.inputs[0])
    return None if found is None else _array([None if d is None else not d for d in found.ravel()], found.shape)


def _where(node: ir.Node, known: _Known) -> Array | None:
    parts = [known.of(v) for v in node.inputs]
    if any(p is None for p in parts):
        return None
    mask, yes, no = np.broadcast_arrays(*(p for p in parts if p is not None))
    picked = [None if m is None else y if m else n for m, y, n in zip(mask.ravel(), yes.ravel(), no.ravel(), strict=True)]
    return _array(picked, mask.shape)


def _filled(node: ir.Node, known: _Known) -> Array | None:
    shape = known.of(node.inputs[0])
    fill = node.attributes["value"].as_tensor().numpy().ravel()[0] if "value" in node.attributes else None
    if not all_numbers(shape) or shape is None or fill is None or fill.dtype.kind not in "ib" or math.prod(shape.tolist()) > LARGEST:
        return None
    return np.full(tuple(shape.tolist()), fill.item(), object)


RULES: dict[str, _Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Reshape"), _reshaped),
    "Add": _elementwise(operator.add, 0, 0),
    "Sub": _elementwise(operator.sub, right=0),
    "Mul": _elementwise(operator.mul, 1, 1),
    "Div": _elementwise(_divided, right=1),
    "Max": _elementwise(max),
    "Min": _elementwise(min),
    "Equal": _equal,
    "Less": _elementwise(operator.lt),
    "LessOrEqual": _elementwise(operator.le),
    "Greater": _elementwise(operator.gt),
    "GreaterOrEqual": _elementwise(operator.ge),
    "And": _elementwise(lambda a, b: a and b),
    "Or": _elementwise(lambda a, b: a or b),
    "Not": _not,
    "Where": _where,
    "ConstantOfShape": _filled,
}
"""Operator → what it makes of what is known."""
