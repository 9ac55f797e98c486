"""Products, convolutions, pooling, normalization, resizing. Each follows ONNX's definition at opset 21; attributes are keyword arguments."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hasten.learn.values import floats, ints, number

Tensor = Any
Sizes = tuple[int, ...]

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    """α A' B' + β C; with α = β = 1 and B transposed, as exporters write a linear layer, it is torch's own."""
    a = a.T if transA else a
    if transB and alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1 and c.shape[0] == b.shape[0])):
        return F.linear(a, b, c)
    b = b.T if transB else b
    result = torch.matmul(a, b)
    result = result if alpha == 1.0 else alpha * result
    if c is None:
        return result.to(a.dtype)
    return (result + (c if beta == 1.0 else beta * c)).to(a.dtype)


def einsum(*values: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *values)


def padding(sizes: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes, auto_pad: str, pads: Sizes | None) -> tuple[Sizes, Sizes]:
    """(before, after) for each spatial axis; SAME gives ⌈size / stride⌉ outputs, the odd one after (UPPER) or before (LOWER)."""
    n = len(kernel)
    if auto_pad in ("NOTSET", ""):
        return (0,) * n if pads is None else pads[:n], (0,) * n if pads is None else pads[n:]
    if auto_pad == "VALID":
        return (0,) * n, (0,) * n
    whole = tuple(
        max((-(-s // st) - 1) * st + (k - 1) * d + 1 - s, 0) for s, k, st, d in zip(sizes, kernel, strides, dilations, strict=True)
    )
    less, more = tuple(p // 2 for p in whole), tuple(p - p // 2 for p in whole)
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def padded(x: Tensor, before: Sizes, after: Sizes, value: float = 0.0) -> Tensor:
    return F.pad(x, [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair], value=value)


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """x (N, C, …), w (M, C/group, …): one, two or three spatial axes."""
    n = w.ndim - 2
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    before, after = padding(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
    if before != after:
        x, before = padded(x, before, after), (0,) * n
    return CONV[n](x, w, b, strides, before, dilations, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """x (N, C, …), w (C, M/group, …). The whole result is made, then cut by the pads."""
    n = w.ndim - 2
    strides, dilations, extra = strides or (1,) * n, dilations or (1,) * n, output_padding or (0,) * n
    before, after = (0,) * n, (0,) * n
    if pads is not None:
        before, after = pads[:n], pads[n:]
    spans = tuple((s - 1) * st + (k - 1) * d + 1 for s, k, st, d in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True))
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape[-n:] if output_shape is not None else tuple(s * st for s, st in zip(x.shape[2:], strides, strict=True))
        whole = tuple(span + e - o for span, e, o in zip(spans, extra, wanted, strict=True))
        less, more = tuple(p // 2 for p in whole), tuple(p - p // 2 for p in whole)
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    if before == after and min(before) >= 0 and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return CONV_TRANSPOSE[n](x, w, b, strides, before, extra, group, dilations)
    y = CONV_TRANSPOSE[n](x, w, None, strides, 0, 0, group, dilations)
    y = padded(y, tuple(-p for p in before), tuple(e - p for e, p in zip(extra, after, strict=True)))
    return y if b is None else y + b.reshape([-1] + [1] * n)


def _pool_output(size: int, kernel: int, stride: int, dilation: int, before: int, after: int, ceil_mode: int) -> int:
    room = size + before + after - ((kernel - 1) * dilation + 1)
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def _windows(
    x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, before: Sizes, after: Sizes, ceil_mode: int, fill: float
) -> Tensor:
    """(N, C, outputs …, kernel …): every window of the padded x."""
    n = len(kernel)
    along = zip(x.shape[2:], kernel, strides, dilations, before, after, strict=True)
    counts = [_pool_output(size, k, st, d, b, a, ceil_mode) for size, k, st, d, b, a in along]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    reach = [(c - 1) * st + span for c, st, span in zip(counts, strides, spans, strict=True)]
    x = padded(x, before, tuple(r - s - b for r, s, b in zip(reach, x.shape[2:], before, strict=True)), fill)
    for axis in range(n):
        x = x.unfold(2 + axis, spans[axis], strides[axis])[..., :: dilations[axis]]
    return x


def max_pool(
    x: Tensor,
    *,
    outputs: int,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
) -> tuple[Tensor, ...]:
    """(values,) or (values, places in the whole tensor)."""
    n = len(kernel_shape)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    simple = before == after and all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True)) and x.is_floating_point()
    if outputs == 1 and simple:
        return (MAX_POOL[n](x, kernel_shape, strides, before, dilations, bool(ceil_mode)),)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    windows = _windows(x, kernel_shape, strides, dilations, before, after, ceil_mode, lowest)
    values, places = windows.flatten(-n).max(-1)
    if outputs == 1:
        return (values,)
    ahead = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if storage_order:
        ahead = torch.arange(x.numel(), device=x.device).reshape(*x.shape[:2], *reversed(x.shape[2:])).transpose(-1, -2)
    numbers = _windows(ahead.to(torch.float64), kernel_shape, strides, dilations, before, after, ceil_mode, -1.0).flatten(-n)
    return values, numbers.gather(-1, places.unsqueeze(-1)).squeeze(-1).to(torch.int64)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The mean of each window; of what lies within x, or within its pads too."""
    n = len(kernel_shape)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    simple = before == after and set(dilations) == {1} and all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True))
    if simple:
        return AVERAGE_POOL[n](x, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad))
    inside = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if count_include_pad:
        x, inside = padded(x, before, after), padded(inside, before, after, 1.0)
        before = after = (0,) * n
    take = functools.partial(_windows, kernel=kernel_shape, strides=strides, dilations=dilations, before=before, after=after)
    axes = tuple(range(-n, 0))
    return take(x, ceil_mode=ceil_mode, fill=0.0).sum(axes) / take(inside, ceil_mode=ceil_mode, fill=0.0).sum(axes)


def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    p: int = 2,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    n = len(kernel_shape)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    windows = _windows(x, kernel_shape, strides, dilations, before, after, ceil_mode, 0.0)
    return windows.abs().pow(p).sum(tuple(range(-n, 0))).pow(1 / p)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


class SumOfAll(torch.autograd.Function):
    """The sum over the processes, which every one of them gets; the gradient of each summand is the sum of the gradients that they all have."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class BatchNorm(torch.nn.Module):
    """Batch normalization (Ioffe and Szegedy, arXiv 1502.03167): in train mode by the batch's statistics, which move the running ones.

    The running ones follow ONNX's momentum, r ← m r + (1 − m) b, with the unbiased variance, as torch does. In eval mode they are used.
    Where several processes train together, the statistics are those of the whole batch: means and mean squares travel, and so do their gradients.
    """

    def __init__(self, outputs: int = 1, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0) -> None:
        super().__init__()
        self.epsilon, self.momentum = epsilon, 1 - momentum

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        if self.training and torch.distributed.is_initialized():
            return (self._together(x, scale, bias, mean, variance),)
        return (F.batch_norm(x, mean, variance, scale, bias, self.training, self.momentum, self.epsilon),)

    def _together(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        axes = [i for i in range(x.ndim) if i != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        exact = x.double()
        processes = torch.distributed.get_world_size()
        both = SumOfAll.apply(torch.stack([exact.mean(axes), exact.square().mean(axes)])) / processes
        middle, spread = both[0].to(x.dtype), (both[1] - both[0].square()).to(x.dtype)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * processes
            mean.lerp_(middle, self.momentum)
            variance.lerp_(spread * (count / max(1, count - 1)), self.momentum)
        factor = torch.rsqrt(spread + self.epsilon) * scale
        return (x - middle.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


class Dropout(torch.nn.Module):
    """Dropout (Srivastava et al., 2014): in train mode a part `ratio` of the values becomes 0 and the rest is scaled up; else nothing."""

    def __init__(self, outputs: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, ratio: Any = 0.5, training_mode: Any = None) -> tuple[Tensor, ...]:
        rate = 0.5 if ratio is None else number(ratio)
        if self.outputs == 1:
            return (F.dropout(x, rate, self.training),)
        kept = torch.rand_like(x) >= rate if self.training else torch.ones_like(x, dtype=torch.bool)
        return (x * kept / (1 - rate) if self.training else x), kept


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, outputs: int, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, ...]:
    """Over the axes from `axis` on; (y,), or with mean and inverse deviation."""
    axis = axis % x.ndim
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if outputs == 1:
        return (y,)
    axes = tuple(range(axis, x.ndim))
    return y, x.mean(axes, keepdim=True), torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """x divided by its p-norm along the axis; 0 stays 0."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else torch.linalg.vector_norm(x, 2, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


def mean_variance_norm(x: Tensor, *, axes: Sizes = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


def local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Over `size` neighbouring channels, one more after than before where size is even."""
    squares = (x * x).movedim(1, -1)
    summed = F.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * summed).pow(beta)


def grid_sample(x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, modes.get(mode, mode), padding_mode, bool(align_corners))


LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
SAME_NEAREST = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
"""Of a whole factor f these take input i // f for output i, as torch's nearest does: (i + ½) / f − ½ never lies halfway between two."""


def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: Sizes | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Every axis on its own: the result along it is a matrix (outputs, inputs) times the values. What torch has is left to torch."""
    along = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))
    shape = [int(x.shape[a]) for a in along]
    if scales is not None and len(floats(scales)):
        factors = list(floats(scales))
        wanted = [math.floor(n * f) for n, f in zip(shape, factors, strict=True)]
    else:
        wanted = list(ints(sizes))
        factors = [w / n for w, n in zip(wanted, shape, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            one = (min if keep_aspect_ratio_policy == "not_larger" else max)(factors)
            factors, wanted = [one] * len(wanted), [math.floor(n * one + 0.5) for n in shape]
    full = list(x.shape)
    for axis, size in zip(along, wanted, strict=True):
        full[axis] = size
    whole = all(f == int(f) for f in factors)
    here = coordinate_transformation_mode
    if x.ndim in LINEAR and full[:2] == list(x.shape[:2]) and not antialias and x.is_floating_point():
        same = all(math.isclose(w, n * f) for w, n, f in zip(wanted, shape, factors, strict=True))
        if mode == "nearest" and whole and (here, nearest_mode) in SAME_NEAREST:
            return F.interpolate(x, full[2:], mode="nearest")
        if mode == "linear" and same and here in ("half_pixel", "align_corners", "pytorch_half_pixel") and min(full[2:]) > 1:
            return F.interpolate(x, full[2:], mode=LINEAR[x.ndim], align_corners=here == "align_corners")
    corners = floats(roi) if here == "tf_crop_and_resize" else (0.0,) * (2 * len(along))
    for i, (axis, size, factor) in enumerate(zip(along, wanted, factors, strict=True)):
        if size == x.shape[axis] and factor == 1 and here != "tf_crop_and_resize":
            continue
        window = (float(corners[i]), float(corners[i + len(along)]))
        rule = (mode, here, nearest_mode, cubic_coeff_a, exclude_outside, extrapolation_value, antialias)
        matrix, fixed = interpolation(int(x.shape[axis]), size, float(factor), window, *rule)
        moved = torch.matmul(x.movedim(axis, -1).to(matrix.dtype if not x.is_floating_point() else x.dtype), matrix.T.to(x.dtype))
        x = (moved + fixed.to(x.dtype)).to(x.dtype).movedim(-1, axis)
    return x


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator,unused-ignore]
@functools.lru_cache(256)
def interpolation(
    inputs: int,
    outputs: int,
    factor: float,
    window: tuple[float, float],
    mode: str,
    coordinates: str,
    nearest: str,
    a: float,
    exclude_outside: int,
    outside: float,
    antialias: int,
) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) float32 weights along one axis, and what is added: `outside` where tf_crop_and_resize looks beyond the input.

    Cubic: Keys' kernel with parameter a (IEEE TASSP 29, 1981). Antialias: the kernel is stretched by 1 / factor where it shrinks.
    """
    place = np.arange(outputs, dtype=np.float64)
    length = factor * inputs
    if coordinates == "half_pixel":
        at = (place + 0.5) / factor - 0.5
    elif coordinates == "half_pixel_symmetric":
        at = inputs / 2 * (1 - outputs / length) + (place + 0.5) / factor - 0.5
    elif coordinates == "pytorch_half_pixel":
        at = (place + 0.5) / factor - 0.5 if length > 1 else np.zeros(outputs)
    elif coordinates == "align_corners":
        at = place * (inputs - 1) / (length - 1) if length > 1 else np.zeros(outputs)
    elif coordinates == "asymmetric":
        at = place / factor
    else:
        start, end = window
        step = (end - start) * (inputs - 1) / (length - 1) if length > 1 else 0.0
        at = start * (inputs - 1) + place * step if length > 1 else np.full(outputs, 0.5 * (start + end) * (inputs - 1))
    matrix = np.zeros((outputs, inputs))
    if mode == "nearest":
        rounded = {"floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_ceil": np.floor(at + 0.5)}.get(nearest, np.ceil(at - 0.5))
        matrix[np.arange(outputs), np.clip(rounded, 0, inputs - 1).astype(int)] = 1
    else:
        stretch = max(1.0, 1 / factor) if antialias else 1.0
        reach = stretch * (2 if mode == "cubic" else 1)
        for row, x in enumerate(at):
            taps = np.arange(math.floor(x - reach), math.ceil(x + reach) + 1)
            weights = _kernel((taps - x) / stretch, mode, a)
            if exclude_outside:
                weights = np.where((taps < 0) | (taps >= inputs), 0, weights)
            np.add.at(matrix[row], np.clip(taps, 0, inputs - 1), weights / weights.sum())
    fixed = np.zeros(outputs)
    if coordinates == "tf_crop_and_resize":
        beyond = (at < 0) | (at > inputs - 1)
        matrix[beyond], fixed[beyond] = 0, outside
    return torch.from_numpy(matrix.astype(np.float32)), torch.from_numpy(fixed.astype(np.float32))


def _kernel(distance: Any, mode: str, a: float) -> Any:
    d = np.abs(distance)
    if mode == "linear":
        return np.maximum(1 - d, 0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
