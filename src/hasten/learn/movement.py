"""Operators that move, cut, join and make tensors. Each follows ONNX's definition at opset 21; axes and shapes come as Python values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hasten.learn.values import DTYPES, ints, number

Tensor = Any


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """A 0 keeps the axis of x, unless allowzero."""
    sizes = ints(shape)
    if not allowzero:
        sizes = tuple(x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes))
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """(axes before `axis`, axes from it on)."""
    axis = axis % x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    rows = 1
    for n in x.shape[:axis]:
        rows = rows * n
    columns = 1
    for n in x.shape[axis:]:
        columns = columns * n
    return x.reshape(rows, columns)


def transpose(x: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    return x.permute(perm if perm is not None else tuple(reversed(range(x.ndim))))


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(ints(axes))


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    chosen = ints(axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


def concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(values, axis)


def split(x: Tensor, sizes: Any = None, *, outputs: int, axis: int = 0, num_outputs: int | None = None) -> tuple[Tensor, ...]:
    """Without sizes: equal parts, the last one smaller."""
    if sizes is not None:
        return tuple(torch.split(x, list(ints(sizes)), axis))
    size, parts = x.shape[axis], num_outputs or outputs
    each = -(-size // parts)
    return tuple(torch.split(x, [each] * (parts - 1) + [size - each * (parts - 1)], axis))


def cut(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """Slice. Python's rules are ONNX's, negative steps included."""
    first, last = ints(starts), ints(ends)
    along = range(len(first)) if axes is None else ints(axes)
    by = (1,) * len(first) if steps is None else ints(steps)
    for axis, a, b, step in zip(along, first, last, by, strict=True):
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(a, b, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.arange(*slice(a, b, step).indices(x.shape[axis]), device=x.device))
    return x


def pad(x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant") -> Tensor:
    """Negative pads cut. Modes besides `constant` take their values by index."""
    amounts = ints(pads)
    along = [a % x.ndim for a in (range(x.ndim) if axes is None else ints(axes))]
    before, after = dict(zip(along, amounts, strict=False)), dict(zip(along, amounts[len(along) :], strict=False))
    if mode == "constant":
        flat = [n for axis in reversed(range(x.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=0 if value is None else int(number(value))).to(torch.bool)
        return F.pad(x, flat, value=0 if value is None else number(value))
    for axis in along:
        size = x.shape[axis]
        index = torch.arange(-before[axis], size + after[axis], device=x.device)
        if mode == "edge":
            index = index.clamp(0, size - 1)
        elif mode == "wrap":
            index = index % size
        else:
            index = (index % (2 * size - 2)) if size > 1 else index * 0
            index = torch.where(index < size, index, 2 * size - 2 - index)
        x = x.index_select(axis, index)
    return x


def tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(ints(repeats))


def expand(x: Tensor, shape: Any) -> Tensor:
    """To the shape that x's and the given one broadcast to."""
    sizes = list(ints(shape))
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    return x.expand([x.shape[i - len(sizes)] if -i + len(sizes) <= x.ndim and n == 1 else n for i, n in enumerate(sizes)])


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """A number takes one place and drops the axis. Of a table of two axes it is an embedding, whose gradient is summed by row."""
    if not isinstance(indices, torch.Tensor):
        return x.select(axis, indices)
    size = x.shape[axis]
    indices = indices.to(torch.int64)
    indices = torch.where(indices < 0, indices + size, indices)
    if x.ndim == 2 and axis == 0 and x.is_floating_point():
        return F.embedding(indices, x)
    axis = axis % x.ndim
    picked = x.index_select(axis, indices.reshape(-1))
    return picked if indices.ndim == 1 else picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Each last row of `indices` is a place in x's axes after the batch ones."""
    depth, b = indices.shape[-1], batch_dims
    batch = x.shape[:b]
    index = [_positive(indices[..., i], x.shape[b + i]) for i in range(depth)]
    ones = [1] * (indices.ndim - 1 - b)
    leading = [torch.arange(n, device=x.device).reshape([n if j == i else 1 for j in range(b)] + ones) for i, n in enumerate(batch)]
    return x[(*leading, *index)]


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    indices = _positive(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, REDUCTIONS[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Each last row of `indices` is a place (or a block) of x that an update goes to."""
    depth = indices.shape[-1]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(depth):
        flat = flat * x.shape[i] + _positive(indices[..., i], x.shape[i])
    tail = x.shape[depth:]
    table = x.reshape(-1, *tail)
    source = updates.reshape(-1, *tail)
    rows = flat.reshape([-1] + [1] * len(tail)).expand(source.shape)
    if reduction == "none":
        return table.scatter(0, rows, source).reshape(x.shape)
    return table.scatter_reduce(0, rows, source, REDUCTIONS[reduction]).reshape(x.shape)


def _positive(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """(N, C b², H, W) → (N, C, H b, W b)."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """(N, C, H b, W b) → (N, b² C, H, W)."""
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    return tuple(x.shape)[start:end]


def size(x: Tensor) -> int:
    return x.numel()


def constant_of_shape(sizes: Any, *, value: Tensor | None = None) -> Tensor:
    if value is None:
        return torch.zeros(ints(sizes))
    return value.reshape(()).expand(ints(sizes)).clone()


def arange(start: Any, limit: Any, delta: Any, *, dtype: int = 7) -> Tensor:
    return torch.arange(number(start), number(limit), number(delta), dtype=DTYPES[dtype])


def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """values: (off, on); an index outside of [-depth, depth) gives all off."""
    count = int(number(depth))
    indices = indices.to(torch.int64)
    indices = torch.where(indices < 0, indices + count, indices)
    axis = axis % (indices.ndim + 1)
    places = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(indices.unsqueeze(axis) == places, values[1], values[0])


def triangle(x: Tensor, k: Any = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(number(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def top_k(x: Tensor, k: Any, *, outputs: int, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, ...]:
    """(values, indices), both in order; of equal values the one of the lower index comes first."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(number(k))
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    found = torch.arange(columns, device=x.device).unsqueeze(0) == torch.arange(rows, device=x.device).unsqueeze(1) + k
    return found.to(x.dtype if dtype is None else DTYPES[dtype])


def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `lengths[b]` steps of each sample b in reverse, the rest as it is."""
    steps = torch.arange(x.shape[time_axis], device=x.device).unsqueeze(1)
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    if batch_axis == 0:
        index = index.T
    return torch.gather(x, time_axis, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(x.shape))
