"""THE arithmetic: scale from range, quantize, dequantize, requantize, pack. Observers, quantizers, the reference and the tests use it alone.

Affine quantization (Jacob et al., arXiv 1712.05877): x ≈ s (q − z), q a whole number in [lo, hi]. Rounding is half to even, as in ONNX.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BadInput

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of codes. `error`: relative RMS error on Gaussian data, symmetric abs-max scale over groups of 32 (a bound with slack;
    it teaches what a bit costs: naive 2-bit codes are worse than mean-scaled signs, 0.60)."""

    name: str
    bits: int
    signed: bool
    error: float

    @property
    def lo(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type that holds one code."""
        size = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"{'int' if self.signed else 'uint'}{size}")

    @property
    def stored(self) -> np.dtype[Any]:
        """The numpy type of the narrowest ONNX element type that holds one code: 4-bit codes and narrower ones two in a byte."""
        if self.bits > 4:
            return self.dtype
        import ml_dtypes

        return np.dtype(ml_dtypes.int4 if self.signed else ml_dtypes.uint4)


FORMATS = (
    Format("int32", 32, True, 1e-8),
    Format("int16", 16, True, 3e-5),
    Format("uint16", 16, False, 3e-5),
    Format("int8", 8, True, 0.006),
    Format("uint8", 8, False, 0.007),
    Format("int7", 7, True, 0.012),
    Format("int6", 6, True, 0.025),
    Format("int5", 5, True, 0.05),
    Format("int4", 4, True, 0.11),
    Format("uint4", 4, False, 0.12),
    Format("int3", 3, True, 0.26),
    Format("int2", 2, True, 0.70),
)


def format_of(name: str) -> Format:
    """The format of that name; BadInput lists what there is."""
    for f in FORMATS:
        if f.name == name:
            return f
    raise BadInput(f"there is no number format {name!r}; use one of {', '.join(f.name for f in FORMATS)}")


SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""No scale is smaller, so that no scale is zero or denormal (some kernels flush those to zero)."""


def affine(low: Array | float, high: Array | float, to: Format) -> tuple[Array, Array]:
    """(scale float32, zero point of `to.dtype`) for values from `low` to `high`, zero included so that it is exact."""
    low, high = np.minimum(np.asarray(low, np.float64), 0), np.maximum(np.asarray(high, np.float64), 0)
    scale = np.maximum((high - low) / (to.hi - to.lo), SMALLEST_SCALE).astype(np.float32)
    zero = np.clip(np.rint(to.lo - low / scale), to.lo, to.hi)
    return scale, zero.astype(to.dtype)


def symmetric(largest: Array | float, to: Format) -> Array:
    """Scale float32 for values of at most `largest` in magnitude around a zero point of 0; the code −2^(b−1) stays unused."""
    return np.maximum(np.asarray(largest, np.float64) / to.hi, SMALLEST_SCALE).astype(np.float32)


def quantize(x: Array, scale: Array | float, zero: Array | int, to: Format) -> Array:
    """Codes of x: clip(round(x / s) + z), in float32 and half to even as ONNX's QuantizeLinear; NaN is refused with ValueError."""
    if np.isnan(x).any():
        raise ValueError("NaN can't be quantized")
    codes = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32)) + np.asarray(zero, np.float32)
    return np.clip(codes, to.lo, to.hi).astype(to.dtype)


def dequantize(codes: Array, scale: Array | float, zero: Array | int) -> Array:
    """s (q − z) in float32."""
    difference = codes.astype(np.int32) - np.asarray(zero, np.int32)
    return (difference.astype(np.float32) * np.asarray(scale, np.float32)).astype(np.float32)


def requantize(sums: Array, multiplier: Array | float, zero: int, to: Format) -> Array:
    """Codes from exact int32 sums: clip(round(sum · m) + z), m = s_x s_w / s_y in float32, the product in float32, half to even.

    The one definition of integer truth (DESIGN «Integer truth»): bit for bit what onnxruntime's fused u8 × s8 kernels compute.
    The clamp stands before the rounding there (`lo − z ≤ v ≤ hi − z`), which gives the same codes.
    """
    value = sums.astype(np.float32) * np.asarray(multiplier, np.float32)
    return (np.rint(np.clip(value, to.lo - zero, to.hi - zero)).astype(np.int32) + zero).astype(to.dtype)


def combined_scale(x_scale: Array | float, w_scale: Array, y_scale: Array | float) -> Array:
    """s_x s_w / s_y in float32, multiplied before divided, as onnxruntime does."""
    return (np.float32(x_scale) * np.asarray(w_scale, np.float32)) / np.float32(y_scale)


def pack_int4(codes: Array) -> Array:
    """Two 4-bit codes in a byte, the first in the low half (ONNX's layout); an odd last one is padded with 0. (N,) → (⌈N/2⌉,) uint8."""
    low = codes.reshape(-1).astype(np.uint8) & 0xF
    if len(low) % 2:
        low = np.append(low, np.uint8(0))
    return (low[0::2] | (low[1::2] << 4)).astype(np.uint8)


def unpack_int4(packed: Array, count: int, signed: bool) -> Array:
    """The inverse: `count` codes as int8 or uint8."""
    both = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)[:count]
    return ((both.astype(np.int8) ^ 8) - 8).astype(np.int8) if signed else both.astype(np.uint8)
