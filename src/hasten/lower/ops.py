"""The ops of a plan: what each computes, and the record that the engine reads (native/src/kernels.h has the other half)."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from hasten.graph import Array
from hasten.lower.float_ops import End, padded
from hasten.lower.plan import Record, Tensor
from hasten.numerics import addition, addition_fixed, fixed_multiplier
from hasten.patches import Slide

BLOCK, GROUP, DEPTHWISE_BLOCK = 16, 4, 64
CODES, CODES_FIXED, VALUES, VALUES_FIXED, VALUE_CODES = range(5)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What uint8 codes mean: s (q − z), s a float32; lo, hi: the codes that occur (the bounds of an activation that was taken into them)."""

    scale: float
    zero: int
    lo: int = 0
    hi: int = 255

    def same(self, other: Quantization) -> bool:
        """Whether a code means the same."""
        return self.scale == other.scale and self.zero == other.zero


@dataclasses.dataclass(frozen=True, eq=False)
class Quantize:
    """Floats of an input, in planes, to codes: clip(round(x / s) + z)."""

    x: Tensor
    y: Tensor
    to: Quantization

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        to = self.to
        return Record(1, (to.zero, to.lo, to.hi, self.y.pixel > self.y.c), (to.scale,))


@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
    """A residual that is added to a layer's codes: y = clip(round(a r_a + (b r_b + r_c))). `second`: the layer is b, not a."""

    other: Tensor
    a: Quantization
    b: Quantization
    to: Quantization
    second: bool = False

    @functools.cached_property
    def factors(self) -> tuple[np.float32, np.float32, np.float32]:
        a, b, to = self.a, self.b, self.to
        return addition(*(np.asarray(v) for v in (a.scale, a.zero, b.scale, b.zero, to.scale, to.zero)))

    @functools.cached_property
    def fixed(self) -> tuple[int, int, int, int]:
        return addition_fixed(self.factors)

    def numbers(self, fixed: bool) -> tuple[int, ...]:
        return (int(self.second), self.to.lo, self.to.hi, *(self.fixed if fixed else (0, 0, 0, 0)))


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """What convolutions of all kinds share: int8 weights (channels, inputs, *kernel), bias as int32 codes, x's zero point, how sums end.

    scale: s_x s_w / s_y for each channel where codes come out (`to`), s_x s_w where floats do (`to` is None).
    fixed: whole numbers alone. `unit`: what 1 is worth in the whole numbers that stand for float results then.
    """

    x: Tensor
    y: Tensor
    weights: Array
    bias: Array
    scale: Array
    x_zero: int
    slide: Slide
    to: Quantization | None
    fixed: bool

    @property
    def finish(self) -> int:
        return (CODES if self.to is not None else VALUES) + self.fixed

    @functools.cached_property
    def folded_bias(self) -> Array:
        """Bias minus the zero point of x times the weights' sum, so that the kernel multiplies codes as they are."""
        sums = self.weights.astype(np.int64).sum(axis=tuple(range(1, self.weights.ndim)))
        return (self.bias.astype(np.int64) - self.x_zero * sums).astype(np.int32)

    @functools.cached_property
    def unit(self) -> float:
        """A power of two: the largest result that the weights allow has 30 bits in it."""
        if self.to is not None or not self.fixed:
            return 1.0
        size = np.abs(self.weights.astype(np.int64)).sum(axis=tuple(range(1, self.weights.ndim))) * 255 + np.abs(self.bias.astype(np.int64))
        most = float((size * self.scale.astype(np.float64)).max())
        return float(2.0 ** (int(np.frexp(max(most, 2.0**-40))[1]) - 30))

    def ends(self, order: Array) -> tuple[Array, ...]:
        """(bias, scale) or (bias, factor, shift), one for each place of `order`: channels, −1 where a block is filled up."""
        used = order >= 0

        def laid(values: Array, fill: float) -> Array:
            return np.where(used, values[order], fill).astype(values.dtype)

        if not self.fixed:
            return laid(self.folded_bias, 0), laid(self.scale.astype(np.float32), 1)
        factor, shift = fixed_multiplier(self.scale.astype(np.float64) / self.unit)
        return laid(self.folded_bias, 0), laid(factor, 0), laid(shift, 1)

    def bounds(self) -> tuple[int, int, int]:
        return (self.to.zero, self.to.lo, self.to.hi) if self.to is not None else (0, 0, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Conv(Layer):
    """A convolution, Gemm or MatMul of uint8 codes with int8 weights (channels, inputs, kernel h, kernel w), perhaps with a residual sum.

    Where floats come out (`to` is None) `end` is what becomes of them. step: they are quantized then, with this scale for each channel, float32
    (channels,); `to` has the zero point.
    """

    add: Sum | None = None
    end: End | None = None
    step: Array | None = None

    @property
    def reads(self) -> tuple[Tensor, ...]:
        beside = () if self.end is None else self.end.reads
        return (self.x, *beside) if self.add is None else (self.x, self.add.other)

    @property
    def finish(self) -> int:
        return VALUE_CODES if self.step is not None else super().finish

    def segments(self) -> tuple[Array, Array]:
        """(offsets int32 (S,), weights (channels, S, run)): the runs of inputs that lie together, from an output's first pixel on.

        A row of the window is one run where it is dense; the bytes between the channels and the next pixel get weights of zero. Rows that
        touch are one run together: all of a Gemm behind a Flatten.
        """
        x, (kernel_h, kernel_w), (dilation_h, dilation_w) = self.x, self.slide.kernel, self.slide.dilations
        (top, _), (left, _) = self.slide.pads
        w = self.weights.transpose(0, 2, 3, 1)
        rows = np.arange(kernel_h) * dilation_h - top
        begin = rows * x.row - left * x.pixel
        dense = -(-kernel_w * x.pixel // GROUP) * kernel_h
        if dilation_w == 1 and dense <= -(-x.c // GROUP) * kernel_h * kernel_w:
            w = np.pad(w, ((0, 0),) * 3 + ((0, x.pixel - x.c),)).reshape(len(w), kernel_h, kernel_w * x.pixel)
            if kernel_h > 1 and dilation_h == 1 and x.row == kernel_w * x.pixel:
                return begin[:1].astype(np.int32), w.reshape(len(w), 1, -1)
            return begin.astype(np.int32), w
        taps = (begin[:, None] + np.arange(kernel_w) * dilation_w * x.pixel).reshape(-1)
        return taps.astype(np.int32), w.reshape(len(w), kernel_h * kernel_w, -1)

    def record(self) -> Record:
        offsets, w = self.segments()
        channels, count, run = w.shape
        blocks, groups = -(-channels // BLOCK), -(-run // GROUP)
        w = np.pad(w, ((0, blocks * BLOCK - channels), (0, 0), (0, groups * GROUP - run)))
        packed = w.reshape(blocks, BLOCK, count, groups, GROUP).transpose(0, 2, 3, 1, 4)
        order = np.arange(blocks * BLOCK)
        order[channels:] = -1
        numbers = (*self.slide.strides, count, groups, self.finish, *self.bounds())
        floats: tuple[float, ...] = (self.unit,)
        if self.add is not None:
            numbers += self.add.numbers(self.fixed)
            floats += tuple(float(f) for f in self.add.factors)
        blobs = (offsets, packed.astype(np.int8), *self.ends(order))
        if self.end is not None:
            numbers += (0,) * (15 - len(numbers)) + (self.end.activation.number,)
            floats += (0.0, 0.0, 0.0, *self.end.floats)
            blobs += (self.end.blob(), *(() if self.step is None else (padded(self.step.astype(np.float32), 1.0),)))
        return Record(2, numbers, floats, blobs)


@dataclasses.dataclass(frozen=True, eq=False)
class Depthwise(Layer):
    """One filter for each channel: weights (channels, 1, kernel h, kernel w)."""

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def taps(self) -> tuple[Array, Array]:
        """(offsets int32 (groups · 4,), weights (channels, groups · 4)): column by column, each filled up to groups of four with weights of 0."""
        kernel_h, kernel_w = self.slide.kernel
        (top, _), (left, _) = self.slide.pads
        high = -(-kernel_h // GROUP) * GROUP
        rows = np.minimum(np.arange(high), kernel_h - 1) * self.slide.dilations[0] - top
        columns = np.arange(kernel_w) * self.slide.dilations[1] - left
        offsets = columns[:, None] * self.x.pixel + rows * self.x.row
        w = np.pad(self.weights[:, 0].transpose(0, 2, 1), ((0, 0), (0, 0), (0, high - kernel_h)))
        return offsets.reshape(-1).astype(np.int32), w.reshape(len(w), -1)

    @property
    def together(self) -> int:
        """How many pixels of few channels fill one block, where they lie together."""
        x, y = self.x, self.y
        wished = DEPTHWISE_BLOCK // y.c if DEPTHWISE_BLOCK % y.c == 0 else 1
        dense = x.pixel == x.c and y.pixel == y.c and self.slide.strides[1] == 1
        return wished if dense and y.w % wished == 0 else 1

    def record(self) -> Record:
        offsets, w = self.taps()
        channels = len(w) * self.together
        blocks, groups = -(-channels // DEPTHWISE_BLOCK), len(offsets) // GROUP
        channel = np.arange(blocks * DEPTHWISE_BLOCK)
        channel = np.where(channel < channels, channel % len(w), -1)
        # Of a block's 64 channels, 16 run + 4 vector + lane goes to that vector, at 4 run + lane: the order in which bytes interleave.
        order = channel.reshape(blocks, 4, 4, 4).transpose(0, 2, 1, 3).reshape(-1)
        packed = np.where(order[:, None] >= 0, w[order], 0).astype(np.int8)
        packed = packed.reshape(blocks, DEPTHWISE_BLOCK, groups, GROUP).transpose(0, 2, 1, 3)
        numbers = (*self.slide.strides, groups, self.finish, *self.bounds(), self.together)
        return Record(3, numbers, (), (offsets, packed, *self.ends(order)))


@dataclasses.dataclass(frozen=True, eq=False)
class Add:
    """The sum of two quantized tensors."""

    x: Tensor
    y: Tensor
    sum: Sum
    fixed: bool

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x, self.sum.other)

    def record(self) -> Record:
        return Record(4, (int(self.fixed), *(0,) * 7, *self.sum.numbers(self.fixed)), (0.0, *map(float, self.sum.factors)))


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Maximum or average over windows; `of`, `to`: what the codes mean before and behind (alike for a maximum)."""

    x: Tensor
    y: Tensor
    average: bool
    slide: Slide
    counts_padding: bool
    of: Quantization
    to: Quantization
    fixed: bool

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    @property
    def multiplier(self) -> tuple[int, int]:
        """(factor, shift) of s_x / (s_y · positions); windows are whole in fixed point."""
        positions = self.slide.kernel[0] * self.slide.kernel[1]
        factor, shift = fixed_multiplier(float(self.of.scale) / (float(self.to.scale) * positions))
        return int(factor), int(shift)

    def record(self) -> Record:
        (top, _), (left, _) = self.slide.pads
        fixed = self.multiplier if self.fixed and self.average else (0, 1)
        numbers = (*self.slide.kernel, *self.slide.strides, top, left, int(self.counts_padding), self.of.zero)
        numbers += (self.to.zero, self.to.lo, self.to.hi, int(self.fixed), *fixed)
        return Record(6 if self.average else 5, numbers, (self.of.scale, self.to.scale))


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """A code for each code (`table`, uint8 (256,); None: a copy), or one code everywhere (`constant`, and x is not read)."""

    x: Tensor
    y: Tensor
    table: Array | None = None
    constant: int = -1

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.constant < 0 else ()

    def record(self) -> Record:
        return Record(7, (1, 1, self.constant), (), () if self.table is None else (self.table,))


@dataclasses.dataclass(frozen=True, eq=False)
class Dequantize:
    """Codes to the floats of an output, in planes."""

    x: Tensor
    y: Tensor
    of: Quantization

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(8, (self.of.zero,), (self.of.scale,))
