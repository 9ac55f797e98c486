"""inputs: what the rows of a layer's weight matrix (see `weights`) are summed with: im2col, in the matrix's own order of columns.

With X = `columns(layer, x)` and M the matrix, the layer's outputs are X Mᵀ (and its bias), for each group apart.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph import Array


def refusal(node: ir.Node) -> str:
    """Why `columns` does not know the inputs of a layer, empty where it does."""
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return "the inputs of a recurrent layer's weights are inside it; method magnitude needs none"
    if node.op_type == "ConvTranspose" and (
        "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    ):
        return "its padding depends on the size of the output; method magnitude needs no inputs"
    return ""


def columns(node: ir.Node, shape: tuple[int, ...], x: Array) -> Array:
    """(groups, samples, columns of the matrix) of a batch x of the layer's inputs; shape: that of its weight.

    A convolution has a sample for each place of its output: the patch that its kernel sees, with zeros where that is padding.
    """
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        x = x.T
    if node.op_type in ("Gemm", "MatMul"):
        return x.reshape(1, -1, x.shape[-1])
    kernel, axes = shape[2:], len(shape) - 2
    group = node.attributes.get_int("group", 1)
    strides, dilations = (_each(node, name, axes) for name in ("strides", "dilations"))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, x.shape[2:], spans, strides)
    if node.op_type == "ConvTranspose":
        # y = a convolution with the turned kernel over x with zeros between its places: its patches, and the kernel's places from behind.
        x, pads = _spread(node, x, strides), [(s - 1 - b, s - 1 - e) for s, (b, e) in zip(spans, pads, strict=True)]
        pads = [(b, e + more) for (b, e), more in zip(pads, _each(node, "output_padding", axes, 0), strict=True)]
        strides = [1] * axes
    x = np.pad(x, [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in pads)])
    x = x[(slice(None), slice(None), *(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in zip(pads, x.shape[2:], strict=True)))]
    counts = [(n - span) // stride + 1 for n, span, stride in zip(x.shape[2:], spans, strides, strict=True)]
    places = list(np.ndindex(*kernel))
    if node.op_type == "ConvTranspose":
        places = places[::-1]
    patches = []
    for place in places:
        starts = [k * d for k, d in zip(place, dilations, strict=True)]
        cut = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, counts, strides, strict=True)]
        patches.append(np.moveaxis(x[(slice(None), slice(None), *cut)], 1, -1).reshape(-1, group, x.shape[1] // group))
    return np.stack(patches, axis=2).transpose(1, 0, 2, 3).reshape(group, len(patches[0]), -1)


def _each(node: ir.Node, name: str, axes: int, default: int = 1) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [default] * axes


def _pads(node: ir.Node, sizes: tuple[int, ...], spans: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """(begin, end) for each axis."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max((-(-n // stride) - 1) * stride + span - n, 0) for n, span, stride in zip(sizes, spans, strides, strict=True)]
        return [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    given = _each(node, "pads", 2 * len(sizes), 0) if auto == "NOTSET" else [0] * 2 * len(sizes)
    return list(zip(given[: len(sizes)], given[len(sizes) :], strict=True))


def _spread(node: ir.Node, x: Array, strides: list[int]) -> Array:
    """x with stride − 1 zeros between its places."""
    spread = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    return spread
