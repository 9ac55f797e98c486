"""kernels: what the native engine's kernels do in a second, beside the peak that one core reaches: `hasten benchmark --kernels`.

One thread; an operation is a product or a sum, so a multiply-accumulate is two, and what a kernel multiplies to fill its tiles counts for
nothing. The time is the best of many single calls: what else the machine does only adds to it. The share is of the engine's own peak on 8 bits,
float32 or bfloat16, a loop of such products that loads nothing, measured before and behind the kernels.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import Unsupported
from hasten.voice import voice

if TYPE_CHECKING:
    from hasten.lower.plan import Plan
    from hasten.measure.worker import Arrays
    from hasten.model import Model

SECONDS, CALLS, LEAST = 0.3, 2000, 20
"""For each case of the grid, and each model: the time it takes, the calls at most, and at least."""


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """A kernel of a plan: the node it was made for (in the grid: the kind of layer), its shape as text, operations, best and median seconds.

    share: of the peak, a number from 0 to 1. It and the rate are None for what multiplies nothing (a pool, a table).
    """

    name: str
    kernel: str
    shape: str
    operations: float
    seconds: float
    median: float
    share: float | None

    @property
    def rate(self) -> float | None:
        """Operations a second."""
        return self.operations / self.seconds if self.operations else None


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What was measured: `of` a model or the grid, at which level of instructions, and the peaks in operations a second, by the kernels' types."""

    of: str
    isa: str
    peaks: dict[str, float]
    batch: int
    kernels: tuple[KernelTime, ...]

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        for row, kernel in zip(found["kernels"], self.kernels, strict=True):
            row["rate"] = kernel.rate
        return found


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution of the grid; a product of matrices is one whose pixels are its rows. `inputs` → `outputs` channels; depthwise where it is.

    types: u8s8, f32 or bf16.
    """

    name: str
    h: int
    w: int
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    types: str = "u8s8"


GRID = (
    Case("GEMM", 1, 512, 512, 512),
    Case("convolution", 56, 56, 64, 64, 3),
    Case("convolution", 32, 32, 16, 16, 3),
    Case("convolution", 16, 16, 32, 32, 3),
    Case("convolution", 8, 8, 64, 64, 3),
    Case("convolution", 7, 7, 512, 512, 3),
    Case("convolution", 56, 56, 64, 128, 3, 2),
    Case("convolution", 56, 56, 64, 256),
    Case("convolution", 56, 56, 96, 24),
    Case("first layer", 224, 224, 3, 32, 3, 2),
    Case("first layer", 224, 224, 3, 64, 7, 2),
    Case("first layer", 28, 28, 1, 8, 3),
    Case("depthwise", 56, 56, 96, 96, 3, depthwise=True),
    Case("depthwise", 112, 112, 96, 96, 3, 2, depthwise=True),
    Case("one row", 1, 1, 784, 128),
    Case("one row", 1, 1, 512, 1000),
    Case("GEMM", 1, 512, 512, 512, types="f32"),
    Case("convolution", 56, 56, 64, 64, 3, types="f32"),
    Case("convolution", 32, 32, 16, 16, 3, types="f32"),
    Case("depthwise", 56, 56, 96, 96, 3, depthwise=True, types="f32"),
    Case("one row", 1, 1, 784, 128, types="f32"),
    Case("GEMM", 1, 512, 512, 512, types="bf16"),
    Case("convolution", 56, 56, 64, 64, 3, types="bf16"),
)
"""What is measured where no model is given: layers of the networks in the benchmarks, and the two that everybody measures."""


def case_plan(case: Case) -> Plan:
    """The case as a plan of three ops: codes of the input, the layer, floats of its codes; on floats, pixels of the input, the layer, planes."""
    from hasten.lower import float_ops, ops
    from hasten.lower.plan import INPUT, OUTPUT, Plan, Port, Tensor
    from hasten.patches import Slide

    rng = np.random.default_rng(0)
    pad, codes = case.kernel // 2, ops.Quantization(1 / 64, 128)
    how = Slide((case.kernel,) * 2, (case.stride,) * 2, (1, 1), ((pad, pad),) * 2)
    h, w = how.out((case.h, case.w))
    given = Tensor(case.h, case.w, case.inputs, "float32", port=(INPUT, 0))
    x = Tensor(case.h, case.w, case.inputs, fill=codes.zero, wide=ops.GROUP if 1 < case.inputs < ops.GROUP else 0)
    x.need_halo(pad, pad, pad, pad)
    y, gives = Tensor(h, w, case.outputs, fill=codes.zero), Tensor(h, w, case.outputs, "float32", port=(OUTPUT, 0))
    each = 1 if case.depthwise else case.inputs
    ports = (Port("x", "float32", (1, case.inputs, case.h, case.w)),), (Port("y", "float32", (1, case.outputs, h, w)),)
    if case.types != "u8s8":
        x, y = dataclasses.replace(x, type="float32", fill=0, wide=0), dataclasses.replace(y, type="float32", fill=0)
        floats = rng.standard_normal((case.outputs, each, case.kernel, case.kernel)).astype(np.float32)
        made = float_ops.DepthwiseF32 if case.depthwise else {"f32": float_ops.ConvF32, "bf16": float_ops.ConvBF16}[case.types]
        on_floats = made(x, y, floats[:, 0] if case.depthwise else floats, how, float_ops.End())
        around = float_ops.Arrange(given, x, to_planes=False), float_ops.Arrange(y, gives, to_planes=True)
        return Plan(*ports, (around[0], on_floats, around[1]), "float", ("input", case.name, "output"))
    weights = rng.integers(-127, 128, (case.outputs, each, case.kernel, case.kernel)).astype(np.int8)
    depth = each * case.kernel**2
    scale = np.full(case.outputs, 40 / (64 * 73 * math.sqrt(depth)), np.float32)  # codes deviate by 64 and 73; those that come out by 40
    bias = np.zeros(case.outputs, np.int32)
    layer = (ops.Depthwise if case.depthwise else ops.Conv)(x, y, weights, bias, scale, codes.zero, how, codes, False)
    return Plan(*ports, (ops.Quantize(given, x, codes), layer, ops.Dequantize(y, gives, codes)), "float", ("input", case.name, "output"))


def of_grid(grid: tuple[Case, ...] | None = None, seconds: float | None = None) -> Kernels:
    """Every case of the grid, GRID by default, for so long each. Raises Unsupported where the engine was not built."""
    if grid is None:  # where the processor has no such products, bfloat16 is the scalar reference
        grid = tuple(case for case in GRID if case.types != "bf16" or _engine().isa() == "avx512bf16")
    seconds = SECONDS if seconds is None else seconds
    found, peaks = [], _peaks()
    for number, case in enumerate(grid):
        voice().step("kernels", number, len(grid))
        plan = case_plan(case)
        feeds = {"x": np.random.default_rng(1).standard_normal((1, case.inputs, case.h, case.w)).astype(np.float32)}
        found.append(_measured(plan, feeds, 1, seconds)[1])
    voice().step("kernels", len(grid), len(grid))
    return _kernels("the grid", peaks, 1, found)


def of_model(name: str, model: Model, feeds: Arrays, batch: int = 1, seconds: float = 5 * SECONDS) -> Kernels:
    """Every kernel of a model, on a batch. Raises Unsupported with the node that stands in the way."""
    from hasten.lower import lower

    peaks = _peaks()
    found = _measured(lower(model), feeds, batch, seconds)
    return _kernels(name, peaks, batch, found)


def _engine() -> Any:
    from hasten.runtimes.native import ABSENT, available

    if not available():
        raise Unsupported(f"native: {ABSENT}")
    from hasten import _native

    return _native


TYPES = ("u8s8", "f32", "bf16")


def _peaks() -> dict[str, float]:
    engine = _engine()
    return {types: engine.peak(types) for types in TYPES}


def _kernels(of: str, before: dict[str, float], batch: int, found: list[KernelTime]) -> Kernels:
    """With the shares of the higher peak, of those before the kernels and those behind them."""
    peaks = {types: max(peak, before[types]) for types, peak in _peaks().items()}
    rows = tuple(dataclasses.replace(k, share=k.rate / peaks[types_of(k.kernel)] if k.rate is not None else None) for k in found)
    return Kernels(of, _engine().isa(), peaks, batch, rows)


def types_of(kernel: str) -> str:
    """What a kernel that multiplies multiplies: a word of its name."""
    return next(types for types in TYPES if f"_{types}_" in kernel)


def _measured(plan: Plan, feeds: Arrays, batch: int, seconds: float) -> list[KernelTime]:
    """Every kernel of a plan in the order of execution; the share is filled in when the peak is known."""
    try:
        engine = _engine().Model.from_bytes(plan.to_bytes(), 1, batch)
    except (ValueError, NotImplementedError, MemoryError) as e:
        raise Unsupported(f"native: {e}") from e
    given = dict(feeds)
    engine.profile(given, 3)
    spent: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(spent) < LEAST or (len(spent) < CALLS and time.perf_counter() < end):
        spent.append([took for _, _, took in engine.profile(given, 1)])
    least, median = np.min(spent, axis=0), np.median(spent, axis=0)
    kernels = [kernel for kernel, _, _ in engine.profile(given, 1)]
    rows = zip(plan.names, kernels, plan.ops, least, median, strict=True)
    return [KernelTime(n, k, _shape(op), 2.0 * _products(op) * batch, max(float(a), 1e-9), float(b), None) for n, k, op, a, b in rows]


def _products(op: Any) -> float:
    """Multiplications of one sample that the layer asks for; 0 for what is no layer."""
    from hasten.lower.float_ops import Attention

    if isinstance(op, Attention):
        return float(op.queries.h * op.keys.h * (op.queries.c + op.values.c))
    weights = getattr(op, "weights", None)
    return 0.0 if weights is None else float(weights.size) * op.y.h * op.y.w


def _shape(op: Any) -> str:
    """`3 × 3 by 2, 64 → 128 at 56 × 56`: window, stride, channels, sizes of what is read; `784 → 128` of one row, `512 rows, …` of several."""
    from hasten.lower.float_ops import Attention, ConvF32, DepthwiseF32
    from hasten.lower.ops import Depthwise, Layer

    if isinstance(op, Attention):
        return f"{op.heads} heads, {op.queries.h} positions" + (f" to {op.keys.h}" if op.keys.h != op.queries.h else "") + f", {op.y.c}"
    x, y = op.x, op.y
    at = f" at {x.h} × {x.w}" if x.h * x.w > 1 else ""
    if not isinstance(op, Layer | ConvF32 | DepthwiseF32):
        return f"{x.c}{at}"
    if (y.h, y.w) == (1, 1) and op.slide.kernel == (x.h, x.w):
        return f"{op.weights[0].size} → {y.c}"
    if 1 in (x.h, x.w) and op.slide.kernel == (1, 1):
        return f"{x.h * x.w} rows, {x.c} → {y.c}"
    high, wide = op.slide.kernel
    by = f" by {' × '.join(map(str, sorted(set(op.slide.strides))))}" if op.slide.strides != (1, 1) else ""
    channels = str(y.c) if isinstance(op, Depthwise | DepthwiseF32) else f"{x.c} → {y.c}"
    return f"{high} × {wide}{by}, {channels}{at}"
