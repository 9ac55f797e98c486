"""What a value is as a polynomial of others: 0.5·x·(1 + T) and x·(0.5·T + 0.5) are the same terms, in whatever order an exporter wrote them."""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from hasten.graph import constant, scalar

Terms = dict[tuple[int, ...], float]
"""Exponents of the variables → coefficient: {(1, 0): 0.5, (1, 1): 0.5} is 0.5·x + 0.5·x·T."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Pow")
PRODUCTS = {"Mul": (1, 1), "Div": (1, -1), "Reciprocal": (-1,)}
"""Operators of products → the exponents of what they read."""

DEPTH, DEGREE = 8, 4
"""No activation is written with more operators in a row, or higher powers."""

EXACT = 1e-4
"""Relative error of a coefficient: exporters round 1/√2 and √(2/π) to as few as five digits, and `check.FLOAT32` allows 2e-4."""


def terms(value: ir.Value | None, variables: Sequence[ir.Value], depth: int = DEPTH) -> Terms | None:
    """The value as a polynomial of `variables` with numbers for coefficients, None where it is none."""
    for index, variable in enumerate(variables):
        if value is variable:
            return {tuple(int(i == index) for i in range(len(variables))): 1.0}
    if (number := scalar(value)) is not None:
        return {(0,) * len(variables): number}
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ARITHMETIC or node.domain != "" or depth == 0:
        return None
    parts = [terms(v, variables, depth - 1) for v in node.inputs]
    return _combined(node.op_type, [p for p in parts if p is not None]) if None not in parts else None


def _combined(operator: str, parts: list[Terms]) -> Terms | None:
    one = parts[0]
    if operator == "Neg":
        return {e: -c for e, c in one.items()}
    other = parts[1]
    if operator in ("Add", "Sub"):
        sign = 1 if operator == "Add" else -1
        return {e: one.get(e, 0.0) + sign * other.get(e, 0.0) for e in {*one, *other}}
    if operator == "Mul":
        return _product(one, other)
    number = other.get((0,) * len(next(iter(other)))) if len(other) == 1 else None
    if operator == "Div":
        return {e: c / number for e, c in one.items()} if number else None
    if number is None or number not in range(1, DEGREE + 1):
        return None
    power = one
    for _ in range(int(number) - 1):
        power = _product(power, one) or {}
    return power or None


def _product(one: Terms, other: Terms) -> Terms | None:
    """None where the degree grows beyond what an activation has."""
    found: Terms = {}
    for a, c in one.items():
        for b, d in other.items():
            exponents = tuple(i + j for i, j in zip(a, b, strict=True))
            if sum(exponents) > DEGREE:
                return None
            found[exponents] = found.get(exponents, 0.0) + c * d
    return found


def alike(found: Terms | None, wanted: Mapping[tuple[int, ...], float]) -> bool:
    """Whether two polynomials are the same up to the rounding of their coefficients."""
    return found is not None and all(
        math.isclose(found.get(e, 0.0), wanted.get(e, 0.0), rel_tol=EXACT, abs_tol=1e-9) for e in {*found, *wanted}
    )


def factors(value: ir.Value | None, variables: Sequence[ir.Value], depth: int = DEPTH) -> dict[ir.Value, int] | None:
    """The value as a product of powers of `variables` and of constants, arrays too: exponents, none of them 0. None where it is none."""
    if value is not None and (value in variables or constant(value) is not None):
        return {value: 1}
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in PRODUCTS or node.domain != "" or depth == 0:
        return None
    powers: collections.Counter[ir.Value] = collections.Counter()
    for source, sign in zip(node.inputs, PRODUCTS[node.op_type], strict=True):
        part = factors(source, variables, depth - 1)
        if part is None:
            return None
        for leaf, exponent in part.items():
            powers[leaf] += sign * exponent
    return {leaf: exponent for leaf, exponent in powers.items() if exponent}


def origins(value: ir.Value | None, depth: int = DEPTH) -> Iterator[ir.Value]:
    """The value and all that it is computed from by arithmetic, numbers aside: what may be its variable. The nearest first."""
    todo, seen = [(value, depth)], set()
    while todo:
        value, depth = todo.pop(0)
        if value is None or value in seen or scalar(value) is not None:
            continue
        seen.add(value)
        yield value
        node = value.producer()
        if node is not None and node.op_type in ARITHMETIC and node.domain == "" and depth > 0:
            todo += [(v, depth - 1) for v in node.inputs]


def results(value: ir.Value, operators: Collection[str] = ARITHMETIC, depth: int = DEPTH) -> Iterator[ir.Node]:
    """The node that makes the value, and all that arithmetic (or these operators of it) in the same graph makes of it. The nearest first."""
    node = value.producer()
    if node is None:
        return
    todo, seen = [(node, depth)], set()
    while todo:
        node, depth = todo.pop(0)
        if node in seen:
            continue
        seen.add(node)
        yield node
        if depth > 0:
            readers = (use.node for use in node.outputs[0].uses())
            todo += [(n, depth - 1) for n in readers if n.op_type in operators and n.domain == "" and n.graph is node.graph]
