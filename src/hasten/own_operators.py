"""Our own operators: what ONNX has no operator for, in the domain `hasten`, each a function with a body in ONNX's operators.

So any runtime runs the file: onnxruntime inlines the body and unpacks the weights once, while it loads. A native kernel may take a body's place.
None of our passes inlines them: the weights would be unpacked in the file.

A packed layer computes y = (x · w) · scale + bias, w in {−1, +1} (Binary…) or {−1, 0, +1} (Ternary…) in the weights' own `shape`, stored a row
for each output channel (`numerics.pack_signs`, `pack_ternary`). scale and bias hold one number for each channel, shaped to broadcast.
The bodies unpack with Mul, Floor and Sub alone, which every runtime folds: digit k of a byte c in base b is ⌊c/bᵏ⌋ − b ⌊c/bᵏ⁺¹⌋, exact in
float32.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

from hasten.graph import Array
from hasten.model import OPSET
from hasten.numerics import unpack_signs, unpack_ternary

DOMAIN, VERSION = "hasten", 1

PACKED = {"BinaryGemm": 1, "BinaryConv": 1, "TernaryGemm": 2, "TernaryConv": 2}
"""Layers with packed weights → bits of a weight. Inputs: x, packed weights, scale, bias."""

SIGNS = ("Sign", "Step")
"""1 where x ≥ 0, else −1 (Sign) or 0 (Step): ONNX's own Sign gives 0 at 0."""

_UNPACK = {
    1: ("{1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125}", 8, "0.5", "2.0", "value = Sub (twice, one)"),
    2: ("{1.0, 0.25, 0.0625, 0.015625}", 4, "0.25", "4.0", "value = Sub (digits, one)"),
}
"""Bits → powers of 1/b, digits in a byte, 1/b, b, how a digit becomes a weight."""

_SIGN = """
    zero = Constant <value = float {{0.0}}> ()
    yes = Constant <value = float {{1.0}}> ()
    no = Constant <value = float {{{no}}}> ()
    at_least = GreaterOrEqual (x, zero)
    y = Where (at_least, yes, no)
"""

_WEIGHTS = """
    powers = Constant <value = float[{count}] {powers}> ()
    inverse = Constant <value = float {{{inverse}}}> ()
    base = Constant <value = float {{{base}}}> ()
    one = Constant <value = float {{1.0}}> ()
    two = Constant <value = float {{2.0}}> ()
    first = Constant <value = int64[1] {{0}}> ()
    second = Constant <value = int64[1] {{1}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
    rows = Constant <value = int64[2] {{0, -1}}> ()
    size = Constant <value_ints : ints = @shape> ()
    columns = Constant <value_ints : ints = @columns> ()
    bytes = Cast <to = 1> (packed)
    each = Unsqueeze (bytes, last)
    shifted = Mul (each, powers)
    low = Floor (shifted)
    again = Mul (shifted, inverse)
    high = Floor (again)
    higher = Mul (high, base)
    digits = Sub (low, higher)
    twice = Mul (digits, two)
    {value}
    flat = Reshape (value, rows)
    used = Slice (flat, first, columns, second)
    w = Reshape (used, size)
"""

_GEMM = """
    turned = Transpose <perm = [1, 0]> (w)
    product = MatMul (x, turned)
"""

_CONV = """
    product = Conv <strides : ints = @strides, pads : ints = @pads, dilations : ints = @dilations, group : int = @group> (x, w)
"""

_AFFINE = """
    scaled = Mul (product, scale)
    y = Add (scaled, bias)
"""


def _text(name: str) -> str:
    """The function in ONNX's text form."""
    if name in SIGNS:
        return f"{name} (x) => (y) {{{_SIGN.format(no='-1.0' if name == 'Sign' else '0.0')}}}"
    powers, count, inverse, base, value = _UNPACK[PACKED[name]]
    weights = _WEIGHTS.format(powers=powers, count=count, inverse=inverse, base=base, value=value)
    conv = name.endswith("Conv")
    attributes = "shape, columns, strides, pads, dilations, group" if conv else "shape, columns"
    return f"{name} <{attributes}> (x, packed, scale, bias) => (y) {{{weights}{_CONV if conv else _GEMM}{_AFFINE}}}"


def function(name: str) -> ir.Function:
    """The function of one of our operators."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n{_text(name)}'))


def add_functions(edited: ir.Model) -> None:
    """Give the model the functions of those of our operators that it uses, and the domain."""
    for name in sorted({n.op_type for n in edited.graph if n.domain == DOMAIN}):
        if (name in PACKED or name in SIGNS) and (DOMAIN, name, "") not in edited.functions:
            edited.functions[DOMAIN, name, ""] = function(name)
            edited.opset_imports[DOMAIN] = VERSION


def is_packed(node: ir.Node | None) -> bool:
    """Whether a node is a layer with packed weights."""
    return node is not None and node.domain == DOMAIN and node.op_type in PACKED


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of a packed layer's weights: (out, in) or (out, in / group, ...)."""
    return tuple(node.attributes["shape"].as_ints())


def unpacked(node: ir.Node, packed: Array) -> Array:
    """A packed layer's weights as int8, in their own shape."""
    shape = weight_shape(node)
    columns = int(node.attributes["columns"].as_ints()[0])
    unpack = unpack_signs if PACKED[node.op_type] == 1 else unpack_ternary
    return unpack(packed, columns).reshape(shape)
