"""Quantized operators, with float results where a float is defined: what a runtime's integer kernels give is `runtimes/reference.py`."""

from __future__ import annotations

from typing import Any

import torch

from hasten.learn.spatial import conv
from hasten.learn.values import DTYPES

Tensor = Any

RANGES = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 21: (0, 15), 22: (-8, 7)}
"""Lowest and highest code of ONNX's integer types."""


def _spread(value: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point as it meets x: one number, one for each place along the axis, or one for each block of it."""
    if block:
        return value.repeat_interleave(block, axis)
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 2, saturate: int = 1
) -> Tensor:
    """q = clamp(round(x / s) + z), half to even; the range is that of output_dtype."""
    low, high = RANGES[output_dtype]
    codes = torch.round(x / _spread(scale, x, axis, block_size))
    if zero is not None:
        codes = codes + _spread(zero.to(torch.float32), x, axis, block_size)
    return torch.clamp(codes, low, high).to(torch.int32).to(DTYPES[output_dtype])


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0) -> Tensor:
    """s (q − z), of the scale's type."""
    centred = codes.to(torch.float32)
    if zero is not None:
        centred = centred - _spread(zero.to(torch.float32), codes, axis, block_size)
    return centred.to(scale.dtype) * _spread(scale, codes, axis, block_size)


def dynamic_quantize(x: Tensor, *, outputs: int) -> tuple[Tensor, ...]:
    """(uint8 codes, scale, zero point) from the range of x, 0 included."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    zero = torch.round(torch.clamp(-low / scale, 0, 255)).nan_to_num(0)
    codes = torch.clamp(torch.round(x / scale) + zero, 0, 255).nan_to_num(0)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(codes: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """q − z as float64: sums of products of these are exact."""
    value = codes.to(torch.float64)
    if zero is None:
        return value
    zero = zero.to(torch.float64)
    return value - (
        zero if zero.numel() == 1 or zero.ndim > 1 else zero.reshape([-1 if i == axis % value.ndim else 1 for i in range(value.ndim)])
    )


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """Exact sums, int32; zero points for the whole, each row of a, each column of b."""
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).to(torch.int32)


def conv_integer(x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None, **attributes: Any) -> Tensor:
    """Exact sums, int32; w's zero point for the whole or each output channel."""
    return conv(_centred(x, x_zero, 1), _centred(w, w_zero, 0), None, **attributes).to(torch.int32)
