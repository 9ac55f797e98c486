"""patches: what a convolution's kernel reads at each place of its output (im2col).

With x padded, place o of the output (along one axis) reads x[o·stride + k·dilation] for each place k of the kernel: a view of x, so only what is
asked for is copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array


@dataclasses.dataclass(frozen=True)
class Slide:
    """How a kernel goes over its input, by spatial axis. `pads`: (before, behind); a negative one cuts."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """What the kernel reaches over."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def out(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The sizes of the output, for those of an input."""
        return tuple((n + sum(pad) - span) // s + 1 for n, pad, span, s in zip(sizes, self.pads, self.spans, self.strides, strict=True))


def each(node: ir.Node, name: str, count: int, default: int = 1) -> tuple[int, ...]:
    """An attribute that has a number for each axis, or its default."""
    return tuple(node.attributes.get_ints(name, ()) or (default,) * count)


def slide(node: ir.Node, kernel: tuple[int, ...], sizes: Sequence[int] = ()) -> Slide:
    """How a convolution's kernel goes over an input of these spatial sizes; they matter only where auto_pad is SAME."""
    axes = len(kernel)
    found = Slide(kernel, each(node, "strides", axes), each(node, "dilations", axes), ((0, 0),) * axes)
    auto = node.attributes.get_string("auto_pad", None) or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):  # ⌈n / stride⌉ places; an odd zero goes behind, or before
        totals = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(sizes, found.strides, found.spans, strict=True)]
        pads = [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    elif auto == "NOTSET":
        given = each(node, "pads", 2 * axes, 0)
        pads = list(zip(given[:axes], given[axes:], strict=True))
    else:
        return found
    return dataclasses.replace(found, pads=tuple(pads))


def patches(x: Array, how: Slide, chosen: Array | None = None) -> Array:
    """(places, channels, *kernel) of a batch x (samples, channels, *sizes): at all places of its output, a sample after the other, or at those
    whose numbers are `chosen`."""
    x = np.pad(x, [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in how.pads)])
    x = x[:, :, *(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in zip(how.pads, x.shape[2:], strict=True))]
    axes = len(how.kernel)
    seen = np.lib.stride_tricks.sliding_window_view(x, how.spans, tuple(range(2, 2 + axes)))
    seen = seen[:, :, *(slice(None, None, step) for step in (*how.strides, *how.dilations))]
    seen = np.moveaxis(seen, 1, 1 + axes)  # (samples, *places, channels, *kernel)
    if chosen is None:
        return seen.reshape(-1, *seen.shape[1 + axes :])
    found: Array = seen[np.unravel_index(chosen, seen.shape[: 1 + axes])]
    return found


def drawn(count: int, rng: np.random.Generator, limit: int) -> Array:
    """Of `count` places at most `limit`, in order."""
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))
