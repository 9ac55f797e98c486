"""inputs: what the rows of a layer's weight matrix (see `weights`) are summed with: im2col, in the matrix's own order of columns.

With X = `columns(layer, x)` and M the matrix, the layer's outputs are X Mᵀ (and its bias), for each group apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array
from hasten.patches import each, patches, slide


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
    how = slide(node, shape[2:], x.shape[2:])
    if node.op_type == "ConvTranspose":
        # y = a convolution with the turned kernel over x with zeros between its places: its patches, and the kernel's places from behind.
        x, more = _spread(x, how.strides), each(node, "output_padding", x.ndim - 2, 0)
        pads = tuple((s - 1 - b, s - 1 - e + m) for s, (b, e), m in zip(how.spans, how.pads, more, strict=True))
        how = dataclasses.replace(how, strides=(1,) * len(pads), pads=pads)
    found = patches(x, how)
    found = found.reshape(*found.shape[:2], -1)  # (samples, channels, places of the kernel)
    if node.op_type == "ConvTranspose":
        found = found[:, :, ::-1]
    group = node.attributes.get_int("group", 1)
    return found.reshape(len(found), group, -1, found.shape[2]).transpose(1, 0, 3, 2).reshape(group, len(found), -1)


def _spread(x: Array, strides: tuple[int, ...]) -> Array:
    """x with stride − 1 zeros between its places."""
    spread = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    return spread
