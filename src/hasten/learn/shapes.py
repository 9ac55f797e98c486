"""Arithmetic on shapes, in Python: what stands between a Shape and the Reshape that reads it stays whole numbers.

A value is a number (rank 0) or a tuple of them (rank 1); under `torch.compile` the numbers are symbols, and no tensor breaks the graph.
Each function has the arguments of the operator of its name in `operators.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from hasten.learn.values import ints, number

Value = Any


def _each(function: Callable[..., Any]) -> Callable[..., Value]:
    """An operator that works value by value: numbers and tuples of one are broadcast."""

    def applied(*values: Value) -> Value:
        lengths = [len(v) for v in values if isinstance(v, tuple)]
        if not lengths:
            return function(*values)
        length = next((n for n in lengths if n != 1), 1)
        columns = [v * length if isinstance(v, tuple) and len(v) == 1 else v if isinstance(v, tuple) else (v,) * length for v in values]
        return tuple(function(*row) for row in zip(*columns, strict=True))

    return applied


def _divide(a: Any, b: Any) -> Any:
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


add, sub, mul, div = _each(operator.add), _each(operator.sub), _each(operator.mul), _each(_divide)
mod, neg = _each(operator.mod), _each(operator.neg)
maximum, minimum = _each(max), _each(min)
equal, greater, less = _each(operator.eq), _each(operator.gt), _each(operator.lt)
where = _each(lambda condition, a, b: a if condition else b)


def identity(value: Value) -> Value:
    return value


def cast(value: Value, *, to: int, saturate: int = 1) -> Value:
    return tuple(+v for v in value) if isinstance(value, tuple) else +value


def gather(value: Value, indices: Value, *, axis: int = 0) -> Value:
    return tuple(value[i] for i in indices) if isinstance(indices, tuple) else value[indices]


def concat(*values: Value, axis: int) -> Value:
    return tuple(v for part in values for v in part)


def unsqueeze(value: Value, axes: Value) -> Value:
    return (value,)


def squeeze(value: Value, axes: Value = None) -> Value:
    return number(value)


def cut(value: Value, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Value:
    return value[number(starts) : number(ends) : 1 if steps is None else number(steps)]


def shape(value: Value, *, start: int = 0, end: int | None = None) -> Value:
    return ((len(value),) if isinstance(value, tuple) else ())[start:end]


def size(value: Value) -> Value:
    return len(value) if isinstance(value, tuple) else 1


def product(value: Value, axes: Value = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Value:
    result = 1
    for v in ints(value):
        result = result * v
    return (result,) if keepdims and isinstance(value, tuple) else result


def reshape(value: Value, to: Value, *, allowzero: int = 0) -> Value:
    return ints(value) if len(ints(to)) else number(value)


def constant_of_shape(sizes: Value, *, value: Any = None) -> Value:
    filled = 0 if value is None else number(value)
    return (filled,) * number(sizes) if len(sizes) else filled
