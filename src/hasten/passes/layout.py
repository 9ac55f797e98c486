"""How the axes of a value lie in what it was made of: through Reshape, Transpose, Squeeze and Unsqueeze back to the layer before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, constant

Axis = tuple[str, int | None]
"""A letter and a size; None: known at run time only."""

Layout = tuple[tuple[Axis, ...], ...]
"""For each axis of a value, the letters that it holds, the outermost first: (("b", None),), (("h", 4), ("d", 8))."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A value that holds the same numbers in another order: where the letters lie in it, and the factor that is still to be applied."""

    value: ir.Value
    layout: Layout
    factor: float = 1.0

    @property
    def sizes(self) -> dict[str, int | None]:
        """Letter → size."""
        return dict(axis for group in self.layout for axis in group)


def layout(value: ir.Value, letters: str) -> Layout | None:
    """Each axis a letter of its own; None where the rank is another one, or unknown."""
    if value.shape is None or len(value.shape) != len(letters):
        return None
    return tuple(((letter, d if isinstance(d, int) else None),) for letter, d in zip(letters, value.shape, strict=True))


def views(view: View) -> Iterator[View]:
    """The value itself, and what it was made of by moving numbers and by factors that are constant; the nearest first."""
    found: View | None = view
    while found is not None:
        yield found
        found = _before(found)


def _before(view: View) -> View | None:
    node = view.value.producer()
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    source, here = node.inputs[0], view.layout
    if node.op_type in ("Mul", "Div"):
        return _unscaled(view, node)
    if source.shape is None:
        return None
    if node.op_type == "Transpose" and "perm" in node.attributes:
        perm = node.attributes["perm"].as_ints()
        return View(source, tuple(here[list(perm).index(i)] for i in range(len(perm))), view.factor)
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
        grouped = regrouped([axis for group in here for axis in group], tuple(source.shape))
        return None if grouped is None else View(source, grouped, view.factor)
    return None


def _unscaled(view: View, node: ir.Node) -> View | None:
    for index, source in enumerate(node.inputs[: 2 if node.op_type == "Mul" else 1]):
        number = known(node.inputs[1 - index])
        if number is None or number.size != 1 or source is None or source.shape is None or len(source.shape) != len(view.layout):
            continue
        factor = float(number.reshape(()))
        if math.isfinite(factor) and factor != 0:
            return View(source, view.layout, view.factor * factor if node.op_type == "Mul" else view.factor / factor)
    return None


def regrouped(axes: Sequence[Axis], shape: Sequence[object]) -> Layout | None:
    """The letters, in order, laid into axes of these sizes; None where an axis would begin or end inside a letter.

    From both ends towards the one axis of unknown size, if there is one, which takes what is left.
    """
    left, rest = list(shape), list(axes)
    front: list[tuple[Axis, ...]] = []
    back: list[tuple[Axis, ...]] = []
    for sizes, groups, at in ((left, front, 0), (left, back, -1)):
        while sizes and isinstance(sizes[at], int):
            wanted, taken, product = sizes.pop(at), [], 1
            if wanted == 1 and rest and rest[at][1] == 1:
                taken.append(rest.pop(at))
            while product != wanted:
                if not rest or rest[at][1] is None or product > wanted:  # type: ignore[operator]
                    return None
                taken.append(rest.pop(at))
                product *= taken[-1][1] or 1
            groups.append(tuple(taken if at == 0 else reversed(taken)))
    if len(left) > 1:
        return None
    if left:
        front.append(tuple(rest))
    elif any(size != 1 for _, size in rest):
        return None
    return (*front, *reversed(back))


def known(value: ir.Value | None, depth: int = 8) -> Array | None:
    """The value where it follows from constants and from sizes that are known; NaN for a size that is not.

    torch writes the factor of attention so: 1 / √(the last size of the queries' shape).
    """
    array = constant(value)
    if array is not None:
        return np.asarray(array, np.float64) if array.dtype.kind in "fiu" and array.size < 64 else None
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or depth == 0 or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Shape":
        if node.inputs[0].shape is None:
            return None
        sizes = [float(d) if isinstance(d, int) else math.nan for d in node.inputs[0].shape]
        return np.array(sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))])
    inputs = [known(v, depth - 1) for v in node.inputs]
    if any(i is None for i in inputs):
        return None
    with np.errstate(all="ignore"):
        return _computed(node, [i for i in inputs if i is not None])


def _computed(node: ir.Node, inputs: list[Array]) -> Array | None:
    one = inputs[0]
    if node.op_type == "Cast":
        return one
    if node.op_type == "Sqrt":
        return np.sqrt(one)
    if node.op_type == "Reciprocal":
        return 1 / one
    if node.op_type == "Mul":
        return one * inputs[1]
    if node.op_type == "Div" and node.outputs[0].dtype is not None and node.outputs[0].dtype.is_floating_point():
        return one / inputs[1]
    if node.op_type == "Gather" and one.ndim == 1:
        return one[inputs[1].astype(np.int64)]
    if node.op_type == "Slice" and one.ndim == 1 and (len(inputs) < 5 or inputs[4].ravel()[0] == 1):
        start, end = (int(min(max(i.ravel()[0], -len(one)), len(one))) for i in inputs[1:3])
        return one[start:end]
    return None
