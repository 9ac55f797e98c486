"""moves: rules of the operators that compute nothing: where each channel goes when values are reshaped, joined, parted, padded, turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import constant
from hasten.shrink.sizes import Axis
from hasten.shrink.trace import FIXED, Axes, Trace, axes_of, because, given, inferred, numbers, size_of, sizes_of


def transpose(t: Trace, node: ir.Node) -> str | None:
    x = axes_of(t, node, 0)
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(x))))) or ()
    t.put(node.outputs[0], [x[i] for i in order])
    return None


def squeeze(t: Trace, node: ir.Node) -> str | None:
    x, named = axes_of(t, node, 0), numbers(node, 1)
    if named is None and given(node, 1) is not None:
        return "its axes are computed"
    gone = {a % len(x) for a in named} if named is not None else {i for i, a in enumerate(x) if not isinstance(a, np.ndarray) and a == 1}
    for i in gone:
        t.freeze(x[i], because(node, "the only position of that axis"))
    t.put(node.outputs[0], [a for i, a in enumerate(x) if i not in gone])
    return None


def unsqueeze(t: Trace, node: ir.Node) -> str | None:
    x, named = list(axes_of(t, node, 0)), numbers(node, 1)
    if named is None:
        return "its axes are computed"
    for axis in sorted(a % (len(x) + len(named)) for a in named):
        x.insert(axis, 1)
    t.put(node.outputs[0], x)
    return None


def concat(t: Trace, node: ir.Node) -> str | None:
    """End to end along one axis; along the others the same."""
    inputs = [axes_of(t, node, i) for i in range(len(node.inputs))]
    at = (node.attributes.get_int("axis", 0) or 0) % len(inputs[0])
    parts = [axes[at] for axes in inputs]
    whole = _laid(t, parts, because(node, "a part of unknown size stands beside it"))
    others = [[1 if i == at else a for i, a in enumerate(axes)] for axes in inputs]
    out = t.broadcast(others, because(node, FIXED))
    out[at] = whole
    t.put(node.outputs[0], out)
    return None


def _laid(t: Trace, parts: Sequence[Axis], why: str) -> Axis:
    """Axes end to end. Fixed parts between those of atoms get atoms that stay."""
    if not any(isinstance(p, np.ndarray) for p in parts):
        return sum(p for p in parts if isinstance(p, int)) if all(isinstance(p, int) for p in parts) else None
    if not all(isinstance(p, (np.ndarray, int)) for p in parts):
        for part in parts:
            t.freeze(part, why)
        return None
    laid = []
    for part in parts:
        if isinstance(part, int):
            part = t.fresh(part)
            t.freeze(part, "")
        assert isinstance(part, np.ndarray)
        laid.append(part)
    return np.concatenate(laid)


def split(t: Trace, node: ir.Node) -> str | None:
    x, stored = axes_of(t, node, 0), given(node, 1)
    at = node.attributes.get_int("axis", 0) % len(x)
    axis, sizes, count = x[at], numbers(node, 1), len(node.outputs)
    if stored is not None and sizes is None:
        return "its sizes are computed"
    if not isinstance(axis, np.ndarray):
        for number, value in enumerate(node.outputs):
            size = sizes[number] if sizes is not None else sizes_of(value, at, at + 1)[0]
            t.put(value, [*x[:at], size, *x[at + 1 :]])
        return None
    if sizes is None:
        each = -(-len(axis) // count)
        sizes = [min(each, len(axis) - i * each) for i in range(count)]
    parts = np.split(axis, np.cumsum(sizes)[:-1])
    t.mend(1, dict(enumerate(parts)))
    for value, part in zip(node.outputs, parts, strict=True):
        t.put(value, [*x[:at], t.part(part), *x[at + 1 :]])
    return None


def slice_(t: Trace, node: ir.Node) -> str | None:
    """Channels between two bounds: the bounds are counted anew."""
    x, (starts, ends, named, steps) = list(axes_of(t, node, 0)), (t.sizes.numbers(given(node, i)) for i in (1, 2, 3, 4))
    if named is None and given(node, 3) is not None:
        return "its axes are computed"
    bounds = t.sizes.of(given(node, 1)) or t.sizes.of(given(node, 2)) or []
    named = named if named is not None else list(range(len(bounds)))
    known = sizes_of(node.outputs[0], 0, len(x))
    for number, at in enumerate(a % len(x) for a in named):
        axis = x[at]
        if not isinstance(axis, np.ndarray):
            x[at] = known[at]
            continue
        step = steps[number] if steps is not None else (None if given(node, 4) is not None else 1)
        if starts is None or ends is None or step != 1:
            t.freeze(axis, because(node, "its bounds are computed, or it takes steps"))
            x[at] = known[at]
            continue
        start, end, _ = slice(starts[number], ends[number]).indices(len(axis))
        if start or end < len(axis):
            t.mend(1, {number: axis[:start]})
            t.mend(2, {number: axis[: max(start, end)]})
            x[at] = t.part(axis[start:end])
    t.put(node.outputs[0], x)
    return None


def pad(t: Trace, node: ir.Node) -> str | None:
    """Channels of a constant before and behind: they can go like others, with the number of them."""
    x, pads, named = list(axes_of(t, node, 0)), numbers(node, 1), numbers(node, 3)
    if named is None and given(node, 3) is not None:
        return "its axes are computed"
    known = sizes_of(node.outputs[0], 0, len(x))
    axes = [a % len(x) for a in named] if named is not None else list(range(len(x)))
    for number, at in enumerate(axes):
        axis = x[at]
        if not isinstance(axis, np.ndarray):
            x[at] = known[at]
            continue
        before, behind = (pads[number], pads[len(axes) + number]) if pads is not None else (-1, -1)
        if before == behind == 0:
            continue
        if min(before, behind) < 0 or node.attributes.get_string("mode", "constant") != "constant":
            t.freeze(axis, because(node, "it pads these channels by a computed number, or with copies of them"))
            x[at] = known[at]
            continue
        one, other = t.fresh(before), t.fresh(behind)
        t.mend(1, {number: one, len(axes) + number: other})
        x[at] = np.concatenate([one, axis, other])
    t.put(node.outputs[0], x)
    return None


def expand(t: Trace, node: ir.Node) -> str | None:
    """To the larger of both sizes, aligned at the right."""
    x, wanted, known = axes_of(t, node, 0), t.sizes.of(given(node, 1)), inferred(node.outputs[0])
    if wanted is None:
        return "its shape is computed"
    rank = max(len(x), len(wanted))
    out: Axes = []
    for at in range(rank):
        axis = x[at - rank + len(x)] if at >= rank - len(x) else 1
        entry = at - rank + len(wanted)
        size = wanted[entry] if entry >= 0 else 1
        if not isinstance(axis, np.ndarray) and axis == 1:
            out.append(size if size is not None or known is None else known[at])
            continue
        if isinstance(axis, np.ndarray) and not (isinstance(size, int) and size == 1):
            t.mend(1, {entry: axis})
        out.append(axis)
    t.put(node.outputs[0], out)
    return None


def tile(t: Trace, node: ir.Node) -> str | None:
    x, times = axes_of(t, node, 0), numbers(node, 1)
    if times is None:
        return "its repeats are computed"
    known = sizes_of(node.outputs[0], 0, len(x))
    t.put(node.outputs[0], [np.tile(a, n) if isinstance(a, np.ndarray) else k for a, n, k in zip(x, times, known, strict=True)])
    return None


def gather(t: Trace, node: ir.Node) -> str | None:
    """Rows of a table: which ones, the indices say, so none goes; the rows' other axes stay what they are."""
    x, indices = axes_of(t, node, 0), axes_of(t, node, 1)
    at = node.attributes.get_int("axis", 0) % len(x)
    source = node.inputs[0]
    assert source is not None
    t.freeze(x[at], "" if source.is_initializer() else because(node, "indices choose among these channels"))
    t.put(node.outputs[0], [*x[:at], *indices, *x[at + 1 :]])
    return None


def constant_of_shape(t: Trace, node: ir.Node) -> str | None:
    """As a weight, where the shape is constant; where it is that of another value, its axes are too."""
    wanted = t.sizes.of(given(node, 0))
    if wanted is None:
        return "its shape is computed"
    value = node.attributes.get_tensor("value", None)
    if constant(node.inputs[0]) is None or (value is not None and not value.dtype.is_floating_point()):
        t.put(node.outputs[0], list(wanted))
        return None
    axes: Axes = []
    for number, size in enumerate(wanted):
        axis: Axis = size
        if isinstance(size, int) and size > 1:
            axis = t.site(node.outputs[0].name or "", number, size)
            t.mend(0, {number: axis})
        axes.append(axis)
    t.put(node.outputs[0], axes)
    return None


def flatten(t: Trace, node: ir.Node) -> str | None:
    x = axes_of(t, node, 0)
    at = node.attributes.get_int("axis", 1)
    at = at + len(x) if at < 0 else at
    t.put(node.outputs[0], [axis for part in (x[:at], x[at:]) for axis in (_regroup(t, node, part, [None]) if part else [1])])
    return None


def reshape(t: Trace, node: ir.Node) -> str | None:
    """Equal products of sizes are matched from both ends; between them axes are merged and parted."""
    x, wanted, known = axes_of(t, node, 0), t.sizes.of(given(node, 1)), inferred(node.outputs[0])
    if wanted is None:
        return "its target is computed"
    sizes: list[Any] = []
    for entry, size in enumerate(wanted):
        if isinstance(size, int) and size == 0 and not node.attributes.get_int("allowzero", 0) and entry < len(x):
            size = x[entry]
        if size is None or (isinstance(size, int) and size < 0):
            size = known[entry] if known is not None and isinstance(known[entry], int) else None
        sizes.append(size_of(size))
    out = _matched(t, node, x, sizes)
    t.mend(1, {entry: axis for entry, axis in enumerate(out) if isinstance(axis, np.ndarray)})
    t.put(node.outputs[0], out)
    return None


def _matched(t: Trace, node: ir.Node, x: Axes, sizes: list[Any]) -> Axes:
    """The axes of the output of sizes `sizes` (int, name, None)."""
    front = _segments([size_of(a) for a in x], sizes)
    used_in, used_out = sum(len(i) for i, _ in front), sum(len(o) for _, o in front)
    back = _segments([size_of(a) for a in x[used_in:]][::-1], sizes[used_out:][::-1])
    back_in, back_out = sum(len(i) for i, _ in back), sum(len(o) for _, o in back)
    out: Axes = []
    start_in = start_out = 0
    middle = ([None] * (len(x) - used_in - back_in), [None] * (len(sizes) - used_out - back_out))
    for ins, outs in (*front, middle, *reversed(back)):
        part, wanted = x[start_in : start_in + len(ins)], sizes[start_out : start_out + len(outs)]
        out += _regroup(t, node, part, wanted)
        start_in, start_out = start_in + len(ins), start_out + len(outs)
    return out


def _segments(ins: list[Any], outs: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Runs of sizes with the same product, from the left, as far as they are known. Equal names are equal sizes."""
    found: list[tuple[list[Any], list[Any]]] = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        a, b = [ins[i]], [outs[j]]
        i, j = i + 1, j + 1
        if a != b or a == [None]:
            while all(isinstance(s, int) for s in a + b) and math.prod(a) != math.prod(b):
                if math.prod(a) < math.prod(b):
                    if i == len(ins):
                        return found
                    a.append(ins[i])
                    i += 1
                else:
                    if j == len(outs):
                        return found
                    b.append(outs[j])
                    j += 1
            if not all(isinstance(s, int) for s in a + b):
                return found
        found.append((a, b))
    return found


def _regroup(t: Trace, node: ir.Node, x: Axes, sizes: list[Any]) -> Axes:
    """Axes merged and parted, (a, b) → (c, d) of the same product. The atoms go on along one axis of more than one position, the outermost that
    can lose some; those that then lie at one position of it become one channel: of C = heads · width, whole heads go."""
    arrays = [i for i, a in enumerate(x) if isinstance(a, np.ndarray)]
    if not arrays:
        if len(x) == 1 and len(sizes) == 1:
            return [x[0] if isinstance(x[0], int) else sizes[0] if sizes[0] is not None else x[0]]
        whole = [size_of(a) for a in x]
        if len(sizes) == 1 and sizes[0] is None and all(isinstance(s, int) for s in whole):
            return [math.prod(whole)]  # type: ignore[arg-type]
        return list(sizes)
    if len(x) == 1 and len(sizes) == 1:
        return [x[0]]
    inner = [size_of(a) for a in x]
    if sizes.count(None) == 1 and len(sizes) == 1 and all(isinstance(s, int) for s in inner):
        sizes = [math.prod(inner)]
    if not all(isinstance(s, int) for s in [*inner, *sizes]) or math.prod(inner) != math.prod(sizes):  # type: ignore[arg-type]
        for i in arrays:
            t.freeze(x[i], because(node, "it is merged with, or parted into, axes of unknown size"))
        return list(sizes)
    for i in arrays[1:]:
        t.freeze(x[i], because(node, "it is merged with another axis of channels"))
    at = arrays[0]
    shape = [1] * len(x)
    shape[at] = -1
    atoms = x[at]
    assert isinstance(atoms, np.ndarray)
    spread = np.broadcast_to(atoms.reshape(shape), inner).reshape(sizes)  # type: ignore[arg-type]
    targets = [i for i, s in enumerate(sizes) if s > 1] or [0]
    target = targets[t.choices.get(t.index, 0)]
    if len(targets) > 1:
        t.parted[t.index] = (atoms, len(targets))
    rows = np.moveaxis(spread, target, 0).reshape(sizes[target], -1)
    if rows.shape[1] > 1:
        t.together(rows)
    return [rows[:, 0] if i == target else s for i, s in enumerate(sizes)]


def depth_to_space(t: Trace, node: ir.Node) -> str | None:
    x, block = axes_of(t, node, 0), node.attributes.get_int("blocksize", 1) or 1
    channel = x[1]
    if isinstance(channel, np.ndarray):
        crd = node.attributes.get_string("mode", "DCR") == "CRD"
        rows = channel.reshape(-1, block * block) if crd else channel.reshape(block * block, -1).T
        t.together(rows)
        channel = rows[:, 0]
    t.put(node.outputs[0], [x[0], channel if isinstance(channel, np.ndarray) else sizes_of(node.outputs[0], 1, 2)[0], None, None])
    return None


def space_to_depth(t: Trace, node: ir.Node) -> str | None:
    """Output channel = place in the block · C + c."""
    x, block = axes_of(t, node, 0), node.attributes.get_int("blocksize", 1) or 1
    out = np.tile(x[1], block * block) if isinstance(x[1], np.ndarray) else sizes_of(node.outputs[0], 1, 2)[0]
    t.put(node.outputs[0], [x[0], out, None, None])
    return None


def shape_of(t: Trace, node: ir.Node) -> str | None:
    """Whole numbers that follow what is removed; who reads them as sizes is mended."""
    t.put(
        node.outputs[0], [len(axes_of(t, node, 0))] if node.op_type == "Shape" and not node.attributes else inferred(node.outputs[0]) or []
    )
    return None
