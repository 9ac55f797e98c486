"""simplify_algebra: arithmetic with constants that can be said in fewer operators. Effect: rounding (constants are combined in float64).

Neutral elements go: x + 0, x − 0, x · 1, x / 1, x¹, x and true, x or false, max(x, x); never where the constant's shape would widen the result.
Constants in a row become one: (x + a) + b = x + (a + b), (x a) / b = x (a / b), b − (a − x) = x + (b − a), also ((x a) + b) c = x (a c) + b c.
0 − x = −x. x / c = x · (1 / c), unless a step follows (Floor, Round, a comparison …) and 1 / c is not exact. A MatMul of matrices and the constant
added to it become a Gemm. What is added and taken away again with large numbers is left: models round in that way.

When: always; frameworks write scales, biases and normalizations one operator at a time.
Cost: nothing at run time; no data. Where x is −0, x + 0 gave +0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant
from hasten.model import Model, Step
from hasten.rewrite import Edit, Rule, become, dims, keeps_shape, made_by, only_reader, rewrite
from hasten.task import BoundTask

LARGEST_TERM = 16.0
"""Larger terms that cancel each other swallow digits of what they are added to, and a model may mean that (x + 2²³ − 2²³ rounds)."""

STEPS = frozenset("Floor Ceil Round Cast Mod Equal Less LessOrEqual Greater GreaterOrEqual Sign ArgMax ArgMin TopK QuantizeLinear".split())
"""Operators that make a jump of a last digit."""

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1, "And": True, "Or": False, "Xor": False}
ORDERED = ("Sub", "Div", "Pow")
"""The neutral element of these stands on the right alone."""


@dataclasses.dataclass(frozen=True)
class SimplifyAlgebra:
    """No settings."""


def simplify_algebra(model: Model, settings: SimplifyAlgebra, task: BoundTask | None) -> Model:
    """Apply RULES to every node, subgraphs and local functions included, until nothing changes."""
    edited = begin(model)
    changed = rewrite(edited, RULES)
    return model.then(edited, Step("simplify_algebra", dataclasses.asdict(settings), changed))


def _with_constant(node: ir.Node) -> tuple[int, ir.Value, Array] | None:
    """(index of the computed input, that input, the constant at the other)."""
    if len(node.inputs) != 2:
        return None
    for index in (0, 1):
        value, number = node.inputs[index], constant(node.inputs[1 - index])
        if value is not None and number is not None and constant(value) is None and number.size:
            return index, value, number
    return None


def _neutral(node: ir.Node, edit: Edit) -> bool:
    found = _with_constant(node)
    if found is None:
        return False
    index, value, number = found
    if (index == 1 and node.op_type in ORDERED) or not np.all(number == NEUTRAL[node.op_type]):
        return False
    return keeps_shape(value, number) and edit.bypass(node, value)


def _both_the_same(node: ir.Node, edit: Edit) -> bool:
    first = node.inputs[0]
    return first is not None and all(v is first for v in node.inputs) and edit.bypass(node, first)


def _negation(node: ir.Node, edit: Edit) -> bool:
    """0 − x."""
    found = _with_constant(node)
    if found is None or found[0] == 0 or found[2].any() or not keeps_shape(found[1], found[2]) or found[2].dtype.kind not in "fi":
        return False
    become(node, "Neg", [found[1]])
    return True


# --- sums: each Add or Sub with a constant is sign · x + term


def _sum(node: ir.Node) -> tuple[ir.Value, int, Array] | None:
    found = _with_constant(node)
    if found is None:
        return None
    index, value, number = found
    if number.dtype.kind not in "fi":
        return None
    if node.op_type == "Add":
        return value, 1, number
    return (value, 1, -number) if index == 0 else (value, -1, number)


def _merge_sums(node: ir.Node, edit: Edit) -> bool:
    outer = _sum(node)
    before = made_by(outer[0], "Add", "Sub") if outer is not None else None
    inner = _sum(before) if before is not None else None
    if outer is None or inner is None or not only_reader(outer[0]):
        return False
    (_, sign, term), (value, inner_sign, inner_term) = outer, inner
    total, largest = _exact(inner_term) * sign + _exact(term), np.maximum(np.abs(term), np.abs(inner_term))
    cancels = term.dtype.kind == "f" and np.any((largest > LARGEST_TERM) & (np.abs(total) < largest / 2))
    if cancels or total.size > max(term.size, inner_term.size) or not _representable(total, term.dtype, False):
        return False
    number = edit.weight(node, f"{node.name or 'sum'}_term", total.astype(term.dtype))
    become(node, "Add" if sign * inner_sign > 0 else "Sub", [value, number] if sign * inner_sign > 0 else [number, value])
    return True


# --- products: each Mul or Div with a constant is factor · x or factor / x


def _product(node: ir.Node) -> tuple[ir.Value, bool, Array] | None:
    """(x, whether it is divided by, the factor in float64)."""
    found = _with_constant(node)
    if found is None:
        return None
    index, value, number = found
    if number.dtype.kind != "f" and not (node.op_type == "Mul" and number.dtype.kind == "i"):
        return None
    if node.op_type == "Div" and index == 0:
        return (value, False, 1 / number.astype(np.float64)) if np.all(number != 0) else None
    return value, node.op_type == "Div", _exact(number)


def _merge_products(node: ir.Node, edit: Edit) -> bool:
    outer = _product(node)
    before = made_by(outer[0], "Mul", "Div") if outer is not None else None
    inner = _product(before) if before is not None else None
    if outer is None or inner is None or not only_reader(outer[0]):
        return False
    (_, below, factor), (value, inner_below, inner_factor) = outer, inner
    if below and not np.all(inner_factor):
        return False
    total = factor / inner_factor if below else factor * inner_factor
    dtype = _dtype(node)
    if total.size > max(factor.size, inner_factor.size) or not _representable(total, dtype, np.all(factor) and np.all(inner_factor)):
        return False
    if _jumps(node):
        return False
    number = edit.weight(node, f"{node.name or 'product'}_factor", total.astype(dtype))
    divided = below != inner_below
    become(node, "Div" if divided else "Mul", [number, value] if divided else [value, number])
    return True


def _distribute(node: ir.Node, edit: Edit) -> bool:
    """((x a) + b) c = x (a c) + b c: three operators become two."""
    outer = _product(node)
    addition = made_by(outer[0], "Add", "Sub") if outer is not None else None
    middle = _sum(addition) if addition is not None else None
    product = made_by(middle[0], "Mul", "Div") if middle is not None else None
    inner = _product(product) if product is not None else None
    if outer is None or middle is None or inner is None or addition is None or product is None:
        return False
    (_, below, c), (_, sign, b), (value, inner_below, a) = outer, middle, inner
    if below or inner_below or c.dtype.kind != "f" or not (only_reader(outer[0]) and only_reader(middle[0])) or _jumps(node):
        return False
    factor, term, dtype = a * c * sign, b.astype(np.float64) * c, _dtype(node)
    small = factor.size <= max(a.size, c.size) and term.size <= max(b.size, c.size)
    if not small or not _representable(factor, dtype, np.all(a) and np.all(c)) or not _representable(term, dtype, False):
        return False
    name = node.name or "affine"
    scaled = edit.before(node, "Mul", [value, edit.weight(node, f"{name}_factor", factor.astype(dtype))])
    become(node, "Add", [scaled, edit.weight(node, f"{name}_term", term.astype(dtype))])
    return True


def _reciprocal(node: ir.Node, edit: Edit) -> bool:
    """A division by a constant is a product with its reciprocal."""
    found = _with_constant(node)
    if found is None or found[0] == 1 or found[2].dtype.kind != "f" or not np.all(found[2]):
        return False
    _, value, number = found
    inverse = 1 / number.astype(np.float64)
    exact = np.all(np.abs(np.frexp(number)[0]) == 0.5)
    if not _representable(inverse, number.dtype, True) or (_jumps(node) and not exact):
        return False
    become(node, "Mul", [value, edit.weight(node, f"{node.name or 'division'}_factor", inverse.astype(number.dtype))])
    return True


def _to_gemm(node: ir.Node, edit: Edit) -> bool:
    """A MatMul of matrices, and a constant added to it."""
    found = _with_constant(node)
    product = made_by(found[1], "MatMul") if found is not None else None
    if found is None or product is None or not only_reader(found[1]) or product.graph is not node.graph:
        return False
    _, value, number = found
    matrices = all((shape := dims(v)) is not None and len(shape) == 2 for v in product.inputs)
    if not matrices or number.ndim > 2 or number.dtype.kind != "f" or not keeps_shape(value, number):
        return False
    become(node, "Gemm", [*product.inputs, next(v for v in node.inputs if v is not value)])
    return True


def _exact(number: Array) -> Array:
    return number.astype(np.float64) if number.dtype.kind == "f" else number


def _dtype(node: ir.Node) -> np.dtype[Any]:
    number = next(c for v in node.inputs if (c := constant(v)) is not None)
    return number.dtype


def _representable(number: Array, dtype: np.dtype[Any], nonzero: bool | np.bool_) -> bool:
    """Whether the numbers lie in the normal range of the type."""
    if dtype.kind != "f":
        return True
    info = np.finfo(dtype)
    size = np.abs(number)
    return bool(np.all(np.isfinite(size)) and np.all(size <= info.max) and (not nonzero or np.all(size >= info.tiny)))


def _jumps(node: ir.Node) -> bool:
    """Whether a step reads the result, for which the last digit may count."""
    return any(use.node.op_type in STEPS for use in node.outputs[0].uses())


RULES: dict[str, tuple[Rule, ...]] = {
    "Add": (_neutral, _merge_sums, _to_gemm),
    "Sub": (_neutral, _negation, _merge_sums),
    "Mul": (_neutral, _merge_products, _distribute),
    "Div": (_neutral, _merge_products, _reciprocal),
    "Pow": (_neutral,),
    "And": (_neutral, _both_the_same),
    "Or": (_neutral, _both_the_same),
    "Xor": (_neutral,),
    "Max": (_both_the_same,),
    "Min": (_both_the_same,),
}
"""Operator → what may be said of it, in this order."""
