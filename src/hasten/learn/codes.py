"""Arithmetic on integer codes, differentiable: what onnxruntime's fused kernels compute, with the gradients of quantization-aware training.

A tensor of codes is x = q − z: whole numbers in float32 within [lo − z, hi − z], beside a step s and a zero point z; its value is s x. The
forward pass is `numerics.requantize`: exact sums, one combined float32 scale, half to even. Backwards, rounding has the gradient 1
(straight-through estimator, Bengio et al., arXiv 1308.3432) and clipping 1 strictly inside, else 0. That gives the learned step size's rule (LSQ,
Esser et al., arXiv 1902.08153): with v the value before, v̂ = s round(clip(v/s)) and c the nearer end of the codes,

    ∂v̂/∂s = round(v/s) − v/s   inside,   c   outside,      ∂v̂/∂v = 1 inside, 0 outside,

because a reader of the codes takes them s times, and the quotient v/s has the derivative −v/s² inside.

Sums of whole numbers are exact in float32 below 2²⁴, so a product whose largest possible sum is not is divided into pieces along its depth,
each exact, which are added in float64. A bias is rounded to a code that float32 holds, so adding it rounds once, as int32 → float32 does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.learn.spatial import conv

EXACT = 1 << 24
"""Float32 holds every whole number up to this."""

BIAS_LIMIT = float(2**31 - 256)


class Rounded(torch.autograd.Function):
    """round(clip(v)), half to even; the gradient passes strictly between the bounds."""

    @staticmethod
    def forward(v: Tensor, lo: float, hi: float) -> Tensor:
        return torch.clamp(v, lo, hi).round_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bounds = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.ops.aten.hardtanh_backward(gradients[0], ctx.saved_tensors[0], *ctx.bounds), None, None


class Requantized(torch.autograd.Function):
    """round(clip((sums + b) m)), b and m one number a channel (in a shape that meets sums'); both gradients in few passes over memory.

    With g the gradient where v = (sums + b) m is strictly inside: g m to the sums, Σ g m to b, Σ g v / m to m.
    """

    @staticmethod
    def forward(sums: Tensor, b: Tensor, m: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
        v = (sums + b).mul_(m)
        return torch.clamp(v, lo, hi).round_(), v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, b, m, *ctx.bounds = inputs
        ctx.save_for_backward(b, m, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        b, m, v = ctx.saved_tensors
        g = torch.ops.aten.hardtanh_backward(gradients[0], v, *ctx.bounds)
        to_m = (g * v).sum_to_size(m.shape) / m
        g = g * m
        return g, g.sum_to_size(b.shape), to_m, None, None


class Scaled(torch.autograd.Function):
    """x itself; its gradient is multiplied by `factor`."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def rounded(v: Tensor, lo: float, hi: float) -> Tensor:
    found: Tensor = Rounded.apply(v, float(lo), float(hi))
    return found


def step(log: Tensor, *, factor: float) -> Tensor:
    """s = exp(log), so no step can become negative, and an optimizer moves each in proportion to itself.

    factor: LSQ's 1/√(N Q) on the gradient of s (section 2.2), N the values that share the step, Q its largest code.
    """
    scaled: Tensor = Scaled.apply(torch.exp(log), factor)
    return scaled


def quantize(x: Tensor, s: Tensor, *, lo: int, hi: int, axis: int = -1) -> Tensor:
    """Codes (less their zero point; so are lo and hi) of float values. s: (1,), or one for each place along `axis`."""
    return rounded(x / _along(s, x.ndim, axis), lo, hi)


def dequantize(x: Tensor, s: Tensor) -> Tensor:
    """s x, the value of codes."""
    return x * s


def bias(b: Tensor, x_step: Tensor, w_step: Tensor) -> Tensor:
    """Codes of a bias at the step s_x s_w: whole numbers that float32 and int32 hold."""
    return rounded(b.double() / (x_step * w_step).double(), -BIAS_LIMIT, BIAS_LIMIT).float()


def requantize(parts: list[Tensor], b: Tensor | None, m: Tensor, *, lo: int, hi: int) -> Tensor:
    """`numerics.requantize` less the zero point: round(clip(sums · m)), the sums in exact parts, b and m in shapes that meet them."""
    if len(parts) > 1:
        return rounded(_summed(parts, b) * m, lo, hi)
    codes: Tensor = Requantized.apply(parts[0], torch.zeros_like(m) if b is None else b, m, float(lo), float(hi))[0]
    return codes


def conv_codes(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    x_step: Tensor,
    w_step: Tensor,
    y_step: Tensor,
    *,
    lo: int,
    hi: int,
    largest: int,
    **attributes: Any,
) -> Tensor:
    """QLinearConv. x (N, C, …), w (M, C/group, …), b (M,); steps (1,), (M,), (1,)."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    m = ((x_step * w_step) / y_step).reshape(shape)
    return requantize(_conv_parts(x, w, largest, attributes), None if b is None else b.reshape(shape), m, lo=lo, hi=hi)


def product_codes(
    x: Tensor, w: Tensor, b: Tensor | None, x_step: Tensor, w_step: Tensor, y_step: Tensor, *, lo: int, hi: int, largest: int, turned: int
) -> Tensor:
    """QGemm, QLinearMatMul. x (…, K), w (K, M), turned (M, K)."""
    return requantize(_product_parts(x, w, largest, turned), b, (x_step * w_step) / y_step, lo=lo, hi=hi)


def product(x: Tensor, w: Tensor, b: Tensor | None, x_step: Tensor, w_step: Tensor, *, largest: int, turned: int) -> Tensor:
    """QGemm and MatMulIntegerToFloat with a float result: sums times s_x s_w."""
    return _summed(_product_parts(x, w, largest, turned), b) * (x_step * w_step)


def add(
    a: Tensor, b: Tensor, a_step: Tensor, b_step: Tensor, y_step: Tensor, *, a_zero: int, b_zero: int, zero: int, lo: int, hi: int
) -> Tensor:
    """QLinearAdd, in the order of its fused multiply-adds (see `runtimes.reference`)."""
    ra, rb = a_step / y_step, b_step / y_step
    fixed = zero - _fused(torch.full_like(ra, a_zero), ra, rb * b_zero)
    total = _fused(a + a_zero, ra, _fused(b + b_zero, rb, fixed))
    return rounded(total, lo + zero, hi + zero) - zero


def global_average_pool(x: Tensor, x_step: Tensor, y_step: Tensor, *, lo: int, hi: int) -> Tensor:
    """QLinearGlobalAveragePool: exact sums times s_x / (s_y · positions)."""
    axes = tuple(range(2, x.ndim))
    positions = x[0, 0].numel()
    sums = x.double().sum(axes, keepdim=True).float()
    return rounded(sums * (x_step / (y_step * float(positions))), lo, hi)


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """x · factor + addend, rounded once to float32."""
    return (x.double() * factor.double() + addend.double()).float()


def _along(s: Tensor, rank: int, axis: int) -> Tensor:
    if s.numel() == 1:
        return s
    return s.reshape([-1 if a == axis % rank else 1 for a in range(rank)])


def _summed(parts: list[Tensor], b: Tensor | None) -> Tensor:
    """The sum as int32 → float32 gives it. One part is exact and so is b: their float32 sum is rounded once."""
    if len(parts) == 1:
        return parts[0] if b is None else parts[0] + b
    total = parts[0].double()
    for part in parts[1:]:
        total = total + part
    return (total if b is None else total + b.double()).float()


def _conv_parts(x: Tensor, w: Tensor, largest: int, attributes: dict[str, Any]) -> list[Tensor]:
    """Exact sums of slices of the input channels."""
    channels, taps = w.shape[1], w[0, 0].numel()
    size = EXACT // (taps * largest)
    if size >= channels:
        return [conv(x, w, None, **attributes)]
    if size == 0:  # one channel alone could pass the limit
        return [conv(x.double(), w.double(), None, **attributes), torch.zeros((), dtype=torch.float64)]
    group = attributes.get("group", 1)
    wide = x.unflatten(1, (group, channels))
    return [conv(wide[:, :, at : at + size].flatten(1, 2), w[:, at : at + size], None, **attributes) for at in range(0, channels, size)]


def _product_parts(x: Tensor, w: Tensor, largest: int, turned: int) -> list[Tensor]:
    """Exact sums of slices of the depth."""
    columns = w if turned else w.T  # (M, K)
    depth, size = columns.shape[1], EXACT // largest
    if size >= depth:
        return [torch.nn.functional.linear(x, columns)]
    return [torch.nn.functional.linear(x[..., at : at + size], columns[:, at : at + size]) for at in range(0, depth, size)]
