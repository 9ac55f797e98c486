"""Operators that compute value by value, and the reductions. Each follows ONNX's definition at opset 21; attributes are keyword arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hasten.learn.values import DTYPES, ints, number

Tensor = Any

UINT4, INT4 = FOUR_BITS = (21, 22)
"""ONNX's element types of 4 bits."""


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Whole numbers are divided towards zero, as ONNX does."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """The result has the base's type."""
    return torch.pow(base, exponent).to(base.dtype)


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """fmod = 1: the sign of the dividend, as C's fmod; else that of the divisor, as Python's %."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    return a << b if direction == "LEFT" else a >> b


def maximum(*values: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, values)


def minimum(*values: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, values)


def total(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values)


def average(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Between two numbers it is torch's hardtanh, whose gradient is five times as fast as clamp's and 0 at the bounds, as relu's is at 0."""
    if low is None and high is None:
        return x
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))
    least, most = None if low is None else number(low), None if high is None else number(high)
    if x.is_floating_point() and least is not None and most is not None and least <= most:
        return F.hardtanh(x, least, most)
    return torch.clamp(x, least, most)


def identity(x: Tensor) -> Tensor:
    return x


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Codes of 4 bits keep the lowest 4 bits of the whole number."""
    if to not in FOUR_BITS:
        return x.to(DTYPES[to])
    low = x.to(torch.int32) & 15
    return (torch.where(low > 7, low - 16, low) if to == INT4 else low).to(DTYPES[to])


def cast_like(x: Tensor, like: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """`to`: the type of `like`, in which 4 bits can be told from 8."""
    return cast(x, to=to)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """The slope is broadcast to x from the right: (C, 1, 1) is one for each channel."""
    return torch.where(x < 0, slope * x, x)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest value along the axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


Reduction = Callable[[Tensor, Sequence[int], bool], Tensor]


def _reducer(reduce: Reduction) -> Callable[..., Tensor]:
    """An ONNX Reduce operator from a function (x, axes, keep)."""

    def reduced(x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = () if axes is None else ints(axes)
        if not chosen and noop_with_empty_axes:
            return reduce(x.unsqueeze(0), (0,), False)
        return reduce(x, chosen or tuple(range(x.ndim)), bool(keepdims))

    return reduced


def _mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.div(x.sum(axes, keepdim=keep), math.prod(x.shape[a] for a in axes), rounding_mode="trunc").to(x.dtype)
    return x.mean(axes, keepdim=keep) if axes else x


def _sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype) if axes else x


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _largest(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Of nothing it is −∞ (False, the least whole number)."""
    if any(x.shape[a] == 0 for a in axes):
        return x.new_full(_left(x, axes, keep), -math.inf if x.is_floating_point() else _limits(x).min)
    return x.amax(axes, keepdim=keep) if axes else x


def _smallest(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Of nothing it is +∞ (True, the greatest whole number)."""
    if any(x.shape[a] == 0 for a in axes):
        return x.new_full(_left(x, axes, keep), math.inf if x.is_floating_point() else _limits(x).max)
    return x.amin(axes, keepdim=keep) if axes else x


def _left(x: Tensor, axes: Sequence[int], keep: bool) -> list[int]:
    gone = {a % x.ndim for a in axes}
    return [1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone]


def _limits(x: Tensor) -> Any:
    return torch.iinfo(torch.uint8 if x.dtype == torch.bool else x.dtype)


def _l2(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return torch.sqrt(_sum(x * x, axes, keep)).to(x.dtype)


reduce_mean = _reducer(_mean)
reduce_sum = _reducer(_sum)
reduce_prod = _reducer(_product)
reduce_max = _reducer(_largest)
reduce_min = _reducer(_smallest)
reduce_l1 = _reducer(lambda x, axes, keep: _sum(x.abs(), axes, keep))
reduce_l2 = _reducer(_l2)
reduce_sum_square = _reducer(lambda x, axes, keep: _sum(x * x, axes, keep))
reduce_log_sum = _reducer(lambda x, axes, keep: torch.log(_sum(x, axes, keep)))
reduce_log_sum_exp = _reducer(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep) if axes else x)


def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, torch.argmax)


def argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, torch.argmin)


def _arg(x: Tensor, axis: int, keepdims: int, last: int, find: Callable[..., Tensor]) -> Tensor:
    if not last:
        return find(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=bool(keepdims))


def cumulative_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(number(axis))
    x = x.flip(along) if reverse else x
    result = torch.cumsum(x, along, dtype=x.dtype)
    if exclusive:
        result = result - x
    return result.flip(along) if reverse else result
