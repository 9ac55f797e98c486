"""The ops of a plan that work on floats, and their records (the structs of native/src/kernels.h)."""

from __future__ import annotations

import dataclasses

import numpy as np

from hasten.graph import Array
from hasten.lower.plan import Record, Tensor
from hasten.patches import Slide

BLOCK = 16

ACTIVATIONS = (
    *("None", "Clip", "Gelu", "GeluTanh", "Sigmoid", "Tanh", "Silu", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu"),
    *("Exp", "Sqrt", "Erf", "Abs", "Neg"),
)
"""As `Activation` in kernels.h numbers them."""

BINARY = ("Only", "Add", "Sub", "Mul", "Div", "Max", "Min")
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")
NOTHING = np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of one number, with its parameters."""

    name: str
    a: float = 0.0
    b: float = 0.0

    @property
    def number(self) -> int:
        return ACTIVATIONS.index(self.name)


IDENTITY = Activation("None")


@dataclasses.dataclass(frozen=True, eq=False)
class End:
    """What a layer's floats become: activation(value + bias + other). bias: float32 (channels,)."""

    bias: Array | None = None
    other: Tensor | None = None
    activation: Activation = IDENTITY

    def some(self, channels: slice) -> End:
        """The part for some channels."""
        bias = None if self.bias is None else self.bias[channels]
        view = None
        if self.other is not None:
            view = self.other.view(self.other.h, self.other.w, channels.stop - channels.start, channel=channels.start)
        return End(bias, view, self.activation)

    def blob(self) -> Array:
        """The bias, filled up to whole blocks."""
        return NOTHING if self.bias is None else padded(self.bias.astype(np.float32))

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return () if self.other is None else (self.other,)

    @property
    def floats(self) -> tuple[float, float]:
        return self.activation.a, self.activation.b


def padded(values: Array, fill: float = 0.0) -> Array:
    """The last axis filled up to whole blocks."""
    width = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % BLOCK)]
    return np.pad(values, width, constant_values=fill)


def runs(x: Tensor, slide: Slide, weights: Array) -> tuple[Array, Array]:
    """(offsets int32 (S,), weights (channels, S, run)): the inputs that lie together, from an output's first pixel on.

    Where pixels touch, a row of the window is one run; where rows touch too, the window is: all of a Gemm behind a Flatten.
    """
    (kernel_h, kernel_w), (dilation_h, dilation_w) = slide.kernel, slide.dilations
    (top, _), (left, _) = slide.pads
    w = weights.transpose(0, 2, 3, 1)
    begin = (np.arange(kernel_h) * dilation_h - top) * x.row - left * x.pixel
    if dilation_w == 1 and x.pixel == x.c:
        if kernel_h > 1 and dilation_h == 1 and x.row == kernel_w * x.pixel:
            return begin[:1].astype(np.int32), w.reshape(len(w), 1, -1)
        return begin.astype(np.int32), w.reshape(len(w), kernel_h, -1)
    taps = (begin[:, None] + np.arange(kernel_w) * dilation_w * x.pixel).reshape(-1)
    return taps.astype(np.int32), w.reshape(len(w), kernel_h * kernel_w, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class ConvF32:
    """A convolution, Gemm or MatMul: float32 weights (channels, inputs, kernel h, kernel w)."""

    x: Tensor
    y: Tensor
    weights: Array
    slide: Slide
    end: End

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x, *self.end.reads)

    def record(self) -> Record:
        offsets, w = runs(self.x, self.slide, self.weights)
        channels, count, run = w.shape
        blocks = -(-channels // BLOCK)
        w = np.pad(w, ((0, blocks * BLOCK - channels), (0, 0), (0, 0))) if channels % BLOCK else w
        packed = w.reshape(blocks, BLOCK, count * run).transpose(0, 2, 1).astype(np.float32)
        numbers = (*self.slide.strides, count, run, self.end.activation.number)
        return Record(20, numbers, self.end.floats, (offsets, packed, self.end.blob()))


@dataclasses.dataclass(frozen=True, eq=False)
class ConvBF16(ConvF32):
    """The same with weights, and inputs while it runs, rounded to bfloat16; sums are float32. Each run of inputs must be even."""

    def record(self) -> Record:
        offsets, w = runs(self.x, self.slide, self.weights)
        channels, count, run = w.shape
        blocks = -(-channels // BLOCK)
        w = np.pad(w, ((0, blocks * BLOCK - channels), (0, 0), (0, 0))) if channels % BLOCK else w
        packed = bfloat16(w).reshape(blocks, BLOCK, count * run // 2, 2).transpose(0, 2, 1, 3)
        numbers = (*self.slide.strides, count, run // 2, self.end.activation.number)
        return Record(33, numbers, self.end.floats, (offsets, packed, self.end.blob()))


def bfloat16(values: Array) -> Array:
    """The upper 16 bits of float32 numbers, rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)  # the sum of a NaN's bits may be no NaN's


@dataclasses.dataclass(frozen=True, eq=False)
class DepthwiseF32:
    """One filter for each channel: float32 weights (channels, kernel h, kernel w)."""

    x: Tensor
    y: Tensor
    weights: Array
    slide: Slide
    end: End

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x, *self.end.reads)

    def record(self) -> Record:
        (top, _), (left, _) = self.slide.pads
        rows = np.arange(self.slide.kernel[0]) * self.slide.dilations[0] - top
        columns = np.arange(self.slide.kernel[1]) * self.slide.dilations[1] - left
        taps = (rows[:, None] * self.x.row + columns * self.x.pixel).reshape(-1).astype(np.int32)
        packed = padded(self.weights.reshape(len(self.weights), -1).T.astype(np.float32))
        return Record(21, (*self.slide.strides, len(taps), self.end.activation.number), self.end.floats, (taps, packed, self.end.blob()))


@dataclasses.dataclass(frozen=True, eq=False)
class PoolF32:
    """Maximum or average over windows."""

    x: Tensor
    y: Tensor
    average: bool
    slide: Slide
    counts_padding: bool

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        (top, _), (left, _) = self.slide.pads
        return Record(22, (*self.slide.kernel, *self.slide.strides, top, left, int(self.counts_padding), int(self.average)))


@dataclasses.dataclass(frozen=True, eq=False)
class Elementwise:
    """activation(x ∘ other), or activation(x); what has size 1 where y has more is repeated."""

    x: Tensor
    y: Tensor
    other: Tensor | None = None
    operation: str = "Only"
    activation: Activation = IDENTITY

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.other is None else (self.x, self.other)

    def record(self) -> Record:
        return Record(23, (BINARY.index(self.operation), self.activation.number), (self.activation.a, self.activation.b))


@dataclasses.dataclass(frozen=True, eq=False)
class Reduce:
    """A sum, mean, largest number or L2 norm over rows, pixels or channels."""

    x: Tensor
    y: Tensor
    over: tuple[bool, bool, bool]
    operation: str

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(24, (*map(int, self.over), REDUCTIONS.index(self.operation)))


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
    """LayerNormalization over the channels of x + other (or of x); `rms`: the mean stays in."""

    x: Tensor
    y: Tensor
    gamma: Array
    beta: Array | None
    epsilon: float
    other: Tensor | None = None
    rms: bool = False

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.other is None else (self.x, self.other)

    def record(self) -> Record:
        beta = NOTHING if self.beta is None else self.beta.astype(np.float32)
        return Record(25, (int(self.rms),), (self.epsilon,), (self.gamma.astype(np.float32), beta))


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax:
    """Over the channels."""

    x: Tensor
    y: Tensor

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(26, ())


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """softmax(scale · Q Kᵀ + bias) V for each head; positions are rows. bias: (heads or 1, queries or 1, keys) as rows, pixels, channels."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    y: Tensor
    heads: int
    scale: float
    bias: Tensor | None = None

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.queries, self.keys, self.values, *(() if self.bias is None else (self.bias,)))

    def record(self) -> Record:
        return Record(27, (self.heads,), (self.scale,))


@dataclasses.dataclass(frozen=True, eq=False)
class Gather:
    """Rows of a float32 table (rows, channels) by whole numbers."""

    x: Tensor
    y: Tensor
    table: Array

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(28, (len(self.table),), (), (self.table.astype(np.float32),))


@dataclasses.dataclass(frozen=True, eq=False)
class Cast:
    """64-bit whole numbers to floats."""

    x: Tensor
    y: Tensor

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(29, ())


@dataclasses.dataclass(frozen=True, eq=False)
class Arrange:
    """Planes (channels, h, w) to pixels, or pixels to planes."""

    x: Tensor
    y: Tensor
    to_planes: bool

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(30, (int(self.to_planes),))


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """The numbers of x, which is dense, in another order: `sizes` of y's axes, and how far apart in x their neighbours lie."""

    x: Tensor
    y: Tensor
    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(34, (*self.sizes, *self.strides))


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizePixels:
    """Floats to codes: clip(round(x / s) + z), with a scale for each channel, float32 (channels,)."""

    x: Tensor
    y: Tensor
    scale: Array
    zero: int
    lo: int = 0
    hi: int = 255

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(31, (self.zero, self.lo, self.hi), (), (padded(self.scale.astype(np.float32), 1.0),))


@dataclasses.dataclass(frozen=True, eq=False)
class DequantizePixels:
    """Codes to floats: s (q − z)."""

    x: Tensor
    y: Tensor
    scale: float
    zero: int

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def record(self) -> Record:
        return Record(32, (self.zero,), (self.scale,))
