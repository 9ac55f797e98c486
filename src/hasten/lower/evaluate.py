"""evaluate: what a plan in fixed point computes, in numpy: the numbers that exported C code is held to, and judged by."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.graph import Array
from hasten.lower import ops
from hasten.lower.plan import INPUT, OUTPUT, Plan, Tensor
from hasten.numerics import format_of, multiply_fixed, quantize
from hasten.patches import Slide

SAMPLES = 32
"""Taken at once: the patches of a convolution are copied for each."""


def input_codes(plan: Plan, feeds: Mapping[str, Array]) -> list[Array]:
    """The codes (samples, h, w, c) of each input, in the model's order, from its floats."""
    found = {}
    for op in plan.ops:
        if isinstance(op, ops.Quantize) and op.x.port is not None:
            x = np.asarray(feeds[plan.inputs[op.x.port[1]].name], np.float32)
            planes = x.reshape(len(x), op.y.c, op.y.h, op.y.w)
            found[op.x.port[1]] = quantize(planes.transpose(0, 2, 3, 1), op.to.scale, op.to.zero, format_of("uint8"))
    return [found[i] for i in range(len(plan.inputs))]


def whole_numbers(plan: Plan, codes: Sequence[Array]) -> list[Array]:
    """Each output as the C code gives it, (samples, h, w, c): uint8 codes, or int32 in the unit of the layer that makes it. codes: of the inputs."""
    parts = [_run(plan, [c[i : i + SAMPLES] for c in codes]) for i in range(0, len(codes[0]), SAMPLES)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def values(plan: Plan, numbers: Sequence[Array]) -> dict[str, Array]:
    """The model's outputs by name, float32 in ONNX's shapes, from those whole numbers."""
    found = {}
    for op in plan.ops:
        if op.y.port is None or op.y.port[0] != OUTPUT:
            continue
        port, of = plan.outputs[op.y.port[1]], numbers[op.y.port[1]]
        if isinstance(op, ops.Dequantize):
            y = (of.astype(np.float32) - np.float32(op.of.zero)) * np.float32(op.of.scale)
        else:
            y = of.astype(np.float32) * np.float32(op.unit)
        found[port.name] = y.transpose(0, 3, 1, 2).reshape(len(y), *port.dims[1:])
    return found


def _run(plan: Plan, codes: Sequence[Array]) -> list[Array]:
    memory: dict[Tensor, Array] = {}
    outputs: dict[int, Array] = {}

    def at(t: Tensor) -> Array:
        if t.base is None:
            if t not in memory:
                memory[t] = np.zeros((len(codes[0]), t.h, t.w, t.c), np.uint8)
            return memory[t]
        part: Array = at(t.base)[:, t.start[0] :: t.stride[0], t.start[1] :: t.stride[1], t.channel : t.channel + t.c][:, : t.h, : t.w]
        return part

    for op in plan.ops:
        match op:
            case ops.Quantize():
                assert op.x.port is not None and op.x.port[0] == INPUT
                at(op.y)[:] = codes[op.x.port[1]]
            case ops.Dequantize():
                assert op.y.port is not None
                outputs[op.y.port[1]] = at(op.x)
            case ops.Layer() if op.to is None:
                assert op.y.port is not None
                factor, shift = op.ends(np.arange(len(op.bias)))[1:]
                limits = np.iinfo(np.int32)
                y = np.clip(multiply_fixed(_sums(op, at(op.x)), factor, shift), limits.min, limits.max)
                outputs[op.y.port[1]] = y.astype(np.int32)
            case ops.Layer():
                factor, shift = op.ends(np.arange(len(op.bias)))[1:]
                y = _clipped(multiply_fixed(_sums(op, at(op.x)), factor, shift), op.to)
                if isinstance(op, ops.Conv) and op.add is not None:
                    y = _added(at(op.add.other), y, op.add) if op.add.second else _added(y, at(op.add.other), op.add)
                at(op.y)[:] = y
            case ops.Add():
                at(op.y)[:] = _added(at(op.x), at(op.sum.other), op.sum)
            case ops.Pool():
                at(op.y)[:] = _pooled(op, at(op.x))
            case ops.Map():
                x = at(op.x)
                at(op.y)[:] = op.constant if op.constant >= 0 else x if op.table is None else op.table[x]
            case _:
                raise AssertionError(f"evaluate has no {type(op).__name__}")
    return [outputs[i] for i in range(len(plan.outputs))]


def _sums(op: Any, x: Array) -> Array:
    """int32 sums (samples, h, w, channels): exact in float64, then modulo 2^32."""
    seen = _windows(x.astype(np.float64) - op.x_zero, op.slide, op.y, 0)
    if isinstance(op, ops.Depthwise):
        sums = np.einsum("nhwcij,cij->nhwc", seen, op.weights[:, 0].astype(np.float64))
    else:
        w = op.weights.astype(np.float64).reshape(len(op.weights), -1)
        sums = seen.reshape(-1, w.shape[1]) @ w.T
    return (sums.reshape(len(x), op.y.h, op.y.w, -1).astype(np.int64) + op.bias).astype(np.int32)


def _windows(x: Array, how: Slide, y: Tensor, fill: int) -> Array:
    """What the kernel sees at each place of y: (samples, h, w, channels, kernel h, kernel w)."""
    before = [p for p, _ in how.pads]
    needed = [(n - 1) * s + span for n, s, span in zip((y.h, y.w), how.strides, how.spans, strict=True)]
    behind = [max(n - p - size, 0) for n, p, size in zip(needed, before, x.shape[1:3], strict=True)]
    padded = np.pad(x, ((0, 0), (before[0], behind[0]), (before[1], behind[1]), (0, 0)), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, how.spans, (1, 2))[:, :: how.strides[0], :: how.strides[1]]
    part: Array = seen[:, : y.h, : y.w, :, :: how.dilations[0], :: how.dilations[1]]
    return part


def _pooled(op: Any, x: Array) -> Array:
    if not op.average:
        return _windows(x, op.slide, op.y, 0).max(axis=(4, 5))
    sums = sum(
        _windows(x.astype(np.int32) - op.of.zero, op.slide, op.y, 0)[..., i, j] for i, j in itertools.product(*map(range, op.slide.kernel))
    )
    factor, shift = op.multiplier
    return _clipped(multiply_fixed(np.asarray(sums), np.asarray(factor), np.asarray(shift)), op.to)


def _clipped(numbers: Array, to: Any) -> Array:
    return np.clip(numbers + to.zero, to.lo, to.hi).astype(np.uint8)


def _added(a: Array, b: Array, how: Any) -> Array:
    fa, fb, fc, shift = how.fixed
    return np.clip((a.astype(np.int32) * fa + b.astype(np.int32) * fb + fc) >> shift, how.to.lo, how.to.hi).astype(np.uint8)
