"""remove_noops: remove operators that change nothing, and let one stand for a chain of reshapings, casts, slices or transposes. Effect: equivalent.

Removed: Identity and inference Dropout; Cast to the same type; Transpose and Reshape that change nothing, inverse pairs of them; Slice of all, Pad
by nothing, Expand and Tile to the same shape; Concat, Sum, Mean, Max or Min of one value, Split into one; reductions over axes of size 1 (their
shape alone changes); pooling of single elements; the second of two Relus, Abs, Signs, Ceils, Floors, Rounds; two Negs, two Nots.
Merged: Reshape, Flatten, Squeeze and Unsqueeze in a row (only the last shape counts), Casts where the first loses nothing, Transposes, Slices.
A Softmax along the last axis needs no matrix: reshapings around it that undo each other go (older opsets knew no other).

A shape is trusted where its sizes are known or its axes bear the same name.

When: always; exporters and other optimizers leave such nodes by the dozen.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import begin, constant
from hasten.model import Model, Step
from hasten.rewrite import Dims, Edit, Rule, become, dims, made_by, only_reader, plain, rewrite, same_dims
from hasten.task import BoundTask

RESHAPERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep the elements and their order and change the shape alone."""

FOREVER = (1 << 31) - 1
"""An end of a Slice at or beyond this is the end of the axis, however long it is."""


@dataclasses.dataclass(frozen=True)
class RemoveNoops:
    """No settings."""


def remove_noops(model: Model, settings: RemoveNoops, task: BoundTask | None) -> Model:
    """Apply RULES to every node, subgraphs and local functions included, until nothing changes."""
    edited = begin(model)
    changed = rewrite(edited, RULES)
    return model.then(edited, Step("remove_noops", dataclasses.asdict(settings), changed))


def _identity(node: ir.Node, edit: Edit) -> bool:
    value = node.inputs[0]
    return value is not None and edit.bypass(node, value)


def _dropout(node: ir.Node, edit: Edit) -> bool:
    """Inference alone: the door refuses training mode."""
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None and ((flag := constant(mode)) is None or flag.any()):
        return False
    return _identity(node, edit)


# --- casts


def _cast(node: ir.Node, edit: Edit) -> bool:
    value, to = node.inputs[0], ir.DataType(node.attributes["to"].as_int())
    if value is None or value.dtype is None:
        return False
    if value.dtype == to:
        return edit.bypass(node, value)
    before = made_by(value, "Cast")
    source = before.inputs[0] if before is not None else None
    if source is None or source.dtype is None or to not in DIGITS or not _lossless(source.dtype, value.dtype):
        return False
    node.replace_input_with(0, source)
    return True


DIGITS = {
    ir.DataType.BOOL: (0, 0, 1), ir.DataType.FLOAT16: (1, 15, 11), ir.DataType.FLOAT: (1, 127, 24), ir.DataType.DOUBLE: (1, 1023, 53),
    ir.DataType.INT8: (1, 7, 7), ir.DataType.INT16: (1, 15, 15), ir.DataType.INT32: (1, 31, 31), ir.DataType.INT64: (1, 63, 63),
    ir.DataType.UINT8: (0, 8, 8), ir.DataType.UINT16: (0, 16, 16), ir.DataType.UINT32: (0, 32, 32), ir.DataType.UINT64: (0, 64, 64),
}  # fmt: skip
"""Type → whether it has a sign, bits of its range, bits of precision."""

FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _lossless(narrow: ir.DataType, wide: ir.DataType) -> bool:
    """Whether the second type holds every value of the first."""
    if narrow not in DIGITS or wide not in DIGITS or (narrow in FLOATS and wide not in FLOATS) or ir.DataType.BOOL == wide != narrow:
        return False
    return all(a <= b for a, b in zip(DIGITS[narrow], DIGITS[wide], strict=True))


# --- the order of the axes


def _transpose(node: ir.Node, edit: Edit) -> bool:
    value, perm = node.inputs[0], _perm(node)
    if value is None or perm is None:
        return False
    if perm == list(range(len(perm))):
        return edit.bypass(node, value)
    before = made_by(value, "Transpose")
    first = _perm(before) if before is not None else None
    if before is None or first is None or before.inputs[0] is None:
        return False
    node.replace_input_with(0, before.inputs[0])
    node.attributes["perm"] = ir.AttrInt64s("perm", [first[p] for p in perm])
    return True


def _perm(node: ir.Node) -> list[int] | None:
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    shape = dims(node.inputs[0])
    return None if shape is None else list(range(len(shape)))[::-1]


# --- shapes


def _reshape(node: ir.Node, edit: Edit) -> bool:
    value = node.inputs[0]
    if value is None:
        return False
    if _same_elements(dims(value), dims(node.outputs[0])):
        return edit.bypass(node, value)
    before = made_by(value, *RESHAPERS)
    source = before.inputs[0] if before is not None else None
    if source is None:
        return False
    if _same_elements(dims(source), dims(node.outputs[0])):
        return edit.bypass(node, source)
    if node.op_type == "Reshape" and (wanted := constant(node.inputs[1])) is not None and wanted.all():
        node.replace_input_with(0, source)
        return True
    target = reshape_target(dims(source), dims(node.outputs[0])) if only_reader(value) else None
    if target is None:
        return False
    become(node, "Reshape", [source, edit.weight(node, f"{node.name or 'reshape'}_shape", np.array(target, np.int64))])
    return True


def reshape_target(source: Dims | None, shape: Dims | None) -> list[int] | None:
    """The second input of a Reshape that gives `shape` from `source`: sizes, at most one -1, and 0 for an axis that stays where it is."""
    if shape is None or 0 in shape:
        return None
    target = [d if isinstance(d, int) else -1 for d in shape]
    if target.count(-1) > 1:
        target = [0 if d == -1 and _stays(source, shape, i) else d for i, d in enumerate(target)]
    return target if target.count(-1) <= 1 else None


def _stays(source: Dims | None, shape: Dims, axis: int) -> bool:
    return source is not None and axis < len(source) and shape[axis] is not None and source[axis] == shape[axis]


def _same_elements(one: Dims | None, other: Dims | None) -> bool:
    """Whether two shapes of the same elements are the same: one axis may be unknown, for the others say how long it is."""
    if one is None or other is None or len(one) != len(other):
        return False
    differ = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a is None or a != b]
    if not differ:
        return True
    (axis, *more) = differ
    both = isinstance(one[axis], int) and isinstance(other[axis], int)
    return not more and not both and all(isinstance(d, int) and d > 0 for i, d in enumerate(one) if i != axis)


def _expand(node: ir.Node, edit: Edit) -> bool:
    value, shape = node.inputs[0], constant(node.inputs[1])
    before, after = dims(value), dims(node.outputs[0])
    if value is None or before is None:
        return False
    keeps = shape is not None and len(shape) <= len(before)
    if keeps and shape is not None:
        keeps = all(s == 1 or s == d for s, d in zip(shape.tolist(), before[len(before) - len(shape) :], strict=True))
    return (keeps or same_dims(before, after)) and edit.bypass(node, value)


def _tile(node: ir.Node, edit: Edit) -> bool:
    repeats = constant(node.inputs[1])
    return repeats is not None and bool(np.all(repeats == 1)) and _identity(node, edit)


def _reduction(node: ir.Node, edit: Edit) -> bool:
    """Over axes of size 1 nothing is summed up: what is left is the change of shape."""
    value, shape = node.inputs[0], dims(node.inputs[0])
    if value is None or shape is None:
        return False
    axes = np.empty(0, np.int64) if len(node.inputs) < 2 or node.inputs[1] is None else constant(node.inputs[1])
    if axes is None:
        return False
    over = sorted({int(a) % len(shape) for a in axes})
    if not over and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return edit.bypass(node, value)
    over = over or list(range(len(shape)))
    if any(shape[a] != 1 for a in over):
        return False
    if node.attributes.get_int("keepdims", 1) or not over:
        return edit.bypass(node, value)
    become(node, "Squeeze", [value, edit.weight(node, f"{node.name or 'squeeze'}_axes", np.array(over, np.int64))])
    return True


# --- parts and borders


def _slice(node: ir.Node, edit: Edit) -> bool:
    value, shape, cut = node.inputs[0], dims(node.inputs[0]), _cut(node)
    if value is None or cut is None:
        return False
    if all(_whole(None if shape is None else shape[axis], part) for axis, part in cut.items()):
        return edit.bypass(node, value)
    before = made_by(value, "Slice")
    source = before.inputs[0] if before is not None else None
    first = _cut(before) if before is not None and only_reader(value) else None
    if source is None or first is None:
        return False
    whole, merged = dims(source), dict(first)
    for axis, part in cut.items():
        if axis in first:
            size = None if whole is None else whole[axis]
            if not isinstance(size, int):
                return False
            both = range(size)[first[axis]][part]
            if len(both) == 0:
                return False
            part = slice(both.start, both.stop if both.stop >= 0 else -FOREVER, both.step)
        merged[axis] = part
    name, axes = node.name or "slice", sorted(merged)
    columns = ([merged[a].start for a in axes], [merged[a].stop for a in axes], axes, [merged[a].step for a in axes])
    wishes = ("starts", "ends", "axes", "steps")
    weights = [edit.weight(node, f"{name}_{wish}", np.array(c, np.int64)) for wish, c in zip(wishes, columns, strict=True)]
    become(node, "Slice", [source, *weights])
    return True


def _cut(node: ir.Node) -> dict[int, slice] | None:
    """Axis → what a Slice with constant bounds leaves of it; ONNX's bounds are Python's."""
    shape = dims(node.inputs[0])
    given = [None if v is None else constant(v) for v in node.inputs[1:]]
    if any(v is not None and c is None for v, c in zip(node.inputs[1:], given, strict=True)):
        return None
    starts, ends, axes, steps = (*given, None, None)[:4]
    assert starts is not None and ends is not None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    if shape is None and np.any(axes < 0):
        return None
    where = [int(a) if a >= 0 else int(a) + len(shape or ()) for a in axes]
    return {w: slice(int(s), int(e), int(t)) for w, s, e, t in zip(where, starts, ends, steps, strict=True)}


def _whole(size: int | str | None, part: slice) -> bool:
    if isinstance(size, int):
        return part.step == 1 and range(size)[part] == range(size)
    return bool(part.step == 1 and (part.start == 0 or part.start <= -FOREVER) and part.stop >= FOREVER)


def _pad(node: ir.Node, edit: Edit) -> bool:
    pads = constant(node.inputs[1])
    return pads is not None and not pads.any() and _identity(node, edit)


def _softmax(node: ir.Node, edit: Edit) -> bool:
    """Along the last axis, which the reshaping before it leaves whole and the one behind it gives its place back."""
    before = made_by(node.inputs[0], *RESHAPERS)
    after = next(iter(node.outputs[0].uses())).node if only_reader(node.outputs[0]) else None
    if before is None or after is None or after.op_type not in RESHAPERS or not plain(after) or after.graph is not node.graph:
        return False
    source, flat = dims(before.inputs[0]), dims(node.inputs[0])
    if not source or not flat or not isinstance(source[-1], int) or source[-1] != flat[-1] or not same_dims(source, dims(after.outputs[0])):
        return False
    if node.attributes.get_int("axis", -1) not in (-1, len(flat) - 1):
        return False
    become(node, node.op_type, [before.inputs[0]], {"axis": -1})
    node.outputs[0].shape = before.inputs[0].shape  # type: ignore[union-attr]
    return edit.bypass(after, node.outputs[0])


def _one_input(node: ir.Node, edit: Edit) -> bool:
    return len(node.inputs) == 1 and _identity(node, edit)


def _split(node: ir.Node, edit: Edit) -> bool:
    return len(node.outputs) == 1 and _identity(node, edit)


def _pool(node: ir.Node, edit: Edit) -> bool:
    """A window of one element, moved by one, without a border."""
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    border = [*_ints(node, "pads"), *(d - 1 for d in (*_ints(node, "kernel_shape"), *_ints(node, "strides")))]
    return not any(border) and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and _identity(node, edit)


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


# --- the same operator twice


def _again(*operators: str) -> Rule:
    """f(g(x)) = g(x) for these g."""

    def rule(node: ir.Node, edit: Edit) -> bool:
        return made_by(node.inputs[0], *operators) is not None and _identity(node, edit)

    return rule


def _back(node: ir.Node, edit: Edit) -> bool:
    """f(f(x)) = x."""
    before = made_by(node.inputs[0], node.op_type)
    return before is not None and before.inputs[0] is not None and edit.bypass(node, before.inputs[0])


WHOLE = ("Ceil", "Floor", "Round")

RULES: dict[str, tuple[Rule, ...]] = {
    "Identity": (_identity,),
    "Dropout": (_dropout,),
    "Cast": (_cast,),
    "Transpose": (_transpose,),
    **dict.fromkeys(RESHAPERS, (_reshape,)),
    "Expand": (_expand,),
    "Tile": (_tile,),
    "Slice": (_slice,),
    "Pad": (_pad,),
    **dict.fromkeys(("Softmax", "LogSoftmax"), (_softmax,)),
    **dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min"), (_one_input,)),
    "Split": (_split,),
    **dict.fromkeys(("MaxPool", "AveragePool"), (_pool,)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), (_reduction,)),
    "Relu": (_again("Relu"),),
    "Abs": (_again("Abs", "Relu"),),
    "Sign": (_again("Sign"),),
    **dict.fromkeys(WHOLE, (_again(*WHOLE),)),
    **dict.fromkeys(("Neg", "Not"), (_back,)),
}
"""Operator → what may be said of it."""
