"""quantize_dynamic: 8-bit weights, activations quantized as they come; needs no data. Effect: lossy.

MatMul and Gemm with constant weights become DynamicQuantizeLinear → MatMulInteger → Cast → Mul by s_x s_w (→ Add bias): the pattern that
onnxruntime fuses into one kernel (DynamicQuantizeMatMul). The range of each input is found while running, so the error is that of minmax
calibration on the very sample. A Conv is left alone: ConvInteger is slower than the float kernels in every runtime here.

When: for models whose work is matrix products (MLPs, transformers), and where there is nothing to calibrate on.
Cost: a quarter of the bytes of the weights; each call finds the ranges of its own inputs, which small products do not earn back.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.errors import BadInput
from hasten.graph import add_weight, constant, finish, take_place, unique_name
from hasten.measure.machine import machine
from hasten.model import Model, Skip
from hasten.numerics import format_of, quantize, symmetric
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class QuantizeDynamic:
    """`per_channel`: one scale a column of the weights. `smallest`: weights of fewer numbers than this stay float. `exclude`: node names."""

    per_channel: bool = True
    smallest: int = 4096
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.smallest < 0:
            raise BadInput(f"quantize_dynamic: smallest is {self.smallest}, expected a number of weights of at least 0")


def quantize_dynamic(model: Model, settings: QuantizeDynamic, task: BoundTask | None) -> Model:
    """Quantize every MatMul and Gemm with a constant matrix; the rest is skipped with the reason."""
    edited = model.edit()
    graph = edited.graph
    skipped: list[Skip] = []
    changed = 0
    inputs: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        if node.op_type in ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN"):
            skipped.append(Skip(node.name or "", f"{node.op_type} with dynamic ranges is slower than float in the runtimes"))
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        if why := _refusal(node, settings):
            skipped.append(Skip(node.name or "", why))
            continue
        _replace(graph, node, settings, inputs)
        changed += 1
    graph.sort()
    return finish(model, edited, settings, "quantize_dynamic", changed, skipped)


def _refusal(node: ir.Node, settings: QuantizeDynamic) -> str:
    """Why a product stays float, empty if it need not."""
    weights = constant(node.inputs[1])
    if node.name in settings.exclude:
        return "excluded by the settings"
    if weights is None or constant(node.inputs[0]) is not None:
        return "it multiplies two activations, or two constants"
    if weights.ndim != 2 or weights.dtype != np.float32:
        return f"its weights are {weights.dtype} with {weights.ndim} axes; only float32 matrices are quantized"
    if weights.size < settings.smallest:
        return f"its {weights.size} weights are fewer than {settings.smallest}: quantizing the input would cost more than it saves"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "its first input is transposed"
        if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
            return "its bias is computed, not constant"
    return ""


def _replace(graph: ir.Graph, node: ir.Node, settings: QuantizeDynamic, quantized: dict[ir.Value, ir.Node]) -> None:
    weights, x, old = constant(node.inputs[1]), node.inputs[0], node.outputs[0]
    assert weights is not None and x is not None
    base = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    if node.op_type == "Gemm":
        weights = (weights.T if node.attributes.get_int("transB", 0) else weights) * np.float32(node.attributes.get_float("alpha", 1.0))
    # Without VNNI, x86 sums pairs of u8 × s8 products in 16 bits, which saturate unless the weights keep to 7 bits.
    isa = machine().isa
    to = format_of("int7" if "avx2" in isa and not {"avx512_vnni", "avx_vnni"} & set(isa) else "int8")
    largest = np.abs(weights).max(axis=0) if settings.per_channel else np.abs(weights).max()
    scale = symmetric(largest, to)
    codes = add_weight(graph, f"{base}_codes", quantize(weights, scale, 0, to).astype(np.int8))
    scales = add_weight(graph, f"{base}_scale", np.asarray(scale))
    zeros = add_weight(graph, f"{base}_zero_point", np.zeros(np.shape(scale), np.int8))

    def put(op: str, arguments: list[ir.Value], outputs: int = 1, **attributes: int) -> ir.Node:
        made = ir.node(op, arguments, attributes, num_outputs=outputs, name=unique_name(graph, f"{old.name}_{op}"))
        for number, value in enumerate(made.outputs):
            value.name = unique_name(graph, f"{old.name}_{op}_{number}")
        graph.insert_before(node, made)
        return made

    if x not in quantized:
        quantized[x] = put("DynamicQuantizeLinear", [x], 3)
    codes_x, scale_x, zero_x = quantized[x].outputs
    sums = put("MatMulInteger", [codes_x, codes, zero_x, zeros]).outputs[0]
    floats = put("Cast", [sums], to=int(ir.DataType.FLOAT)).outputs[0]
    product = put("Mul", [floats, put("Mul", [scale_x, scales]).outputs[0]])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        shifted = bias * np.float32(node.attributes.get_float("beta", 1.0))
        product = put("Add", [product.outputs[0], add_weight(graph, f"{base}_bias", shifted)])
    new = product.outputs[0]
    new.type, new.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
    take_place(old, new)
    graph.remove(node, safe=True)
