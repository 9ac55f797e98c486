"""reference: the oracle. Float models run in onnxruntime with graph optimisation off; quantized ones on the integer codes, in numpy.

The integer reference computes what onnxruntime's fused u8 × s8 kernels compute, bit for bit: exact int32 sums, one combined float32 scale,
`numerics.requantize`. A float evaluation of a QDQ graph is another function: on MobileNetV2 most logits differ by more than a step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hasten import check
from hasten.graph import Array, constant, sole_consumer
from hasten.model import IR_VERSION, OPSET, Model, Skip
from hasten.numerics import FORMATS, Format, added, addition, combined_scale, dequantize, quantize, requantize
from hasten.patches import patches, slide
from hasten.runtimes import Feeds, Outputs, Target

MOVERS = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "DepthToSpace", "SpaceToDepth")


class Reference:
    """Slow and right. One thread, no fused float kernels."""

    name = "reference"
    hints = ("float32",)

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        if target.precision != "float32":
            return (Skip("", f"the reference computes in float32 or in codes, not in {target.precision}"),)
        return ()

    def compile(self, model: Model | Path, target: Target) -> FloatSession | IntegerSession:
        model = Model.load(model) if isinstance(model, Path) else model
        quantized = any(node.op_type == "QuantizeLinear" for node in model.ir.graph)
        return IntegerSession(model) if quantized else FloatSession(model)


class FloatSession:
    """onnxruntime with graph optimisation off."""

    batch: int | None = None

    def __init__(self, model: Model) -> None:
        self._session = check.oracle(model)
        self._names = [p.name for p in model.outputs]

    def run(self, feeds: Feeds) -> Outputs:
        return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """A quantized tensor: codes, scale (float32), zero point."""

    codes: Array
    scale: Array
    zero: Array

    @property
    def floats(self) -> Array:
        return dequantize(self.codes, self.scale, self.zero)

    @property
    def centred(self) -> Array:
        """q − z as float64: sums of products of these are exact."""
        return self.codes.astype(np.float64) - float(self.zero)


class IntegerSession:
    """A QDQ graph evaluated node by node: on codes where an operator stands between DQ and Q, else in float."""

    batch: int | None = None

    def __init__(self, model: Model) -> None:
        self._graph, self._functions = model.ir.graph, model.ir.functions
        self._names = [p.name for p in model.outputs]
        self._float_nodes: dict[str, Any] = {}

    def run(self, feeds: Feeds) -> Outputs:
        values = self._evaluate(feeds)
        return {name: _floats(values[name]) for name in self._names}

    def codes(self, feeds: Feeds) -> dict[str, Array]:
        """The codes that every QuantizeLinear gives, by the name of its output."""
        values = self._evaluate(feeds)
        return {
            node.outputs[0].name or "": values[node.outputs[0].name or ""].codes for node in self._graph if node.op_type == "QuantizeLinear"
        }

    def _evaluate(self, feeds: Feeds) -> dict[str, Any]:
        values: dict[str, Any] = dict(feeds)
        for node in self._graph:
            name = node.outputs[0].name or ""
            if name in values:
                continue
            if node.op_type == "QuantizeLinear":
                values[name] = self._quantize(node, values)
            elif node.op_type == "DequantizeLinear":
                values[name] = _read_dq(node, values)
            elif (quantizer := quantizer_of(node)) is not None and node.op_type in INTEGER:
                inputs = [values.get(v.name or "") if v is not None else None for v in node.inputs]
                if isinstance(inputs[0], Codes):
                    q = quantizer.outputs[0].name or ""
                    values[q] = INTEGER[node.op_type](node, inputs, _target(quantizer))
                    values[name] = values[q]
                    continue
                self._run_float(node, values)
            elif node.op_type in PRODUCTS and isinstance(values.get(node.inputs[0].name or ""), Codes):  # type: ignore[union-attr]
                inputs = [values.get(v.name or "") if v is not None else None for v in node.inputs]
                values[name] = _product(node, inputs)
            else:
                self._run_float(node, values)
        return values

    def _quantize(self, node: ir.Node, values: dict[str, Any]) -> Codes:
        value = values[node.inputs[0].name or ""]  # type: ignore[union-attr]
        scale, zero, to = _target(node)
        if scale.ndim:
            shape = [1] * _floats(value).ndim
            shape[node.attributes.get_int("axis", 1)] = -1
            return Codes(quantize(_floats(value), scale.reshape(shape), zero.reshape(shape), to), scale, zero)
        if isinstance(value, Codes) and value.scale == scale and value.zero == zero:
            return value
        return Codes(quantize(_floats(value), scale, zero, to), scale, zero)

    def _run_float(self, node: ir.Node, values: dict[str, Any]) -> None:
        """One node in onnxruntime, alone, in float (or on codes, where it only moves them)."""
        found = {v.name or "": values[v.name or ""] if v.name in values else constant(v) for v in node.inputs if v is not None}
        source = next((v for v in found.values() if isinstance(v, Codes)), None)
        moves = node.op_type in MOVERS and source is not None
        arrays: dict[str, Any] = {k: (v.codes if moves else v.floats) if isinstance(v, Codes) else v for k, v in found.items()}
        session = self._session(node, arrays, moves)
        for output, result in zip(node.outputs, session.run(None, arrays), strict=True):
            values[output.name or ""] = dataclasses.replace(source, codes=result) if moves and source is not None else result

    def _session(self, node: ir.Node, arrays: dict[str, Array], moves: bool) -> Any:
        key = f"{node.name}:{moves}"
        if key not in self._float_nodes:
            import onnxruntime as ort

            proto = ir.to_proto(node)
            types = {k: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in arrays.items()}
            inputs = [onnx.helper.make_tensor_value_info(k, types[k], [None] * v.ndim) for k, v in arrays.items()]
            outputs = [onnx.ValueInfoProto(name=o.name) for o in node.outputs]
            graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
            imports = [onnx.helper.make_opsetid(domain, 1) for domain in {"com.microsoft", node.domain} - {""}]
            own = self._functions.get((node.domain, node.op_type, ""))
            functions = [] if own is None else [ir.to_proto(own)]
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 3
            imports.append(onnx.helper.make_opsetid("", OPSET))
            model = onnx.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=imports, functions=functions)
            self._float_nodes[key] = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return self._float_nodes[key]


def _floats(value: Any) -> Array:
    return value.floats if isinstance(value, Codes) else value


def _read_dq(node: ir.Node, values: dict[str, Any]) -> Any:
    """What a DequantizeLinear gives: the codes behind it, for whoever reads codes; a stored weight stays with its scales."""
    source = node.inputs[0]
    assert source is not None
    value = values.get(source.name or "")
    if isinstance(value, Codes):
        return dataclasses.replace(value, scale=_required(node.inputs[1]), zero=_required(node.inputs[2]))
    codes = value if value is not None else constant(source)
    scale = constant(node.inputs[1])
    assert codes is not None
    assert scale is not None
    if scale.ndim == 0:
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), codes.dtype)
        return Codes(codes, scale, np.asarray(zero))
    shape = [1] * codes.ndim
    shape[node.attributes.get_int("axis", 1)] = -1
    return Weight(codes, scale, (codes.astype(np.float32) * scale.reshape(shape)).astype(np.float32))


class Weight(np.ndarray[Any, Any]):
    """Dequantized weights that remember their codes (zero point 0) and their scale for each channel."""

    codes: Array
    scale: Array

    def __new__(cls, codes: Array, scale: Array, floats: Array) -> Weight:
        self = np.asarray(floats).view(cls)
        self.codes, self.scale = codes, scale
        return self


def _required(value: ir.Value | None) -> Array:
    """A constant that must be there: scales and zero points of Q and DQ."""
    array = constant(value)
    assert array is not None, "scales and zero points are constants with the zero point given"
    return array


def quantizer_of(node: ir.Node) -> ir.Node | None:
    """The one QuantizeLinear that reads the node's result, perhaps behind a Relu or Clip that its range makes needless."""
    reader = sole_consumer(node.outputs[0])
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        reader = sole_consumer(reader.outputs[0])
    return reader if reader is not None and reader.op_type == "QuantizeLinear" else None


def _target(quantizer: ir.Node) -> tuple[Array, Array, Format]:
    """(scale, zero point, format) that a QuantizeLinear writes."""
    scale, zero = _required(quantizer.inputs[1]), _required(quantizer.inputs[2])
    return scale, zero, next(f for f in FORMATS if f.name == zero.dtype.name)


Output = tuple[Array, Array, Format]


def _requantized(sums: Array, multiplier: Array | float, output: Output) -> Codes:
    scale, zero, to = output
    return Codes(requantize(sums, multiplier, int(zero), to), scale, zero)


def _bias(node: ir.Node, inputs: list[Any], channels: int) -> Array:
    """The int32 codes of the bias."""
    bias = inputs[2] if len(inputs) > 2 else None
    return np.zeros(channels) if bias is None else bias.codes.astype(np.float64)


def _conv(node: ir.Node, inputs: list[Any], output: Output) -> Codes:
    """QLinearConv: exact sums plus bias, times s_x s_w / s_y."""
    x, w = inputs[0], inputs[1]
    sums = conv_sums(node, x.centred, w.codes.astype(np.float64)) + _bias(node, inputs, len(w.codes)).reshape(
        1, -1, *[1] * (x.codes.ndim - 2)
    )
    multiplier = combined_scale(x.scale, w.scale, output[0]).reshape(1, -1, *[1] * (x.codes.ndim - 2))
    return _requantized(sums.astype(np.int32), multiplier, output)


def conv_sums(node: ir.Node, x: Array, w: Array) -> Array:
    """The convolution's exact sums: x (N, C, *D), w (M, C/group, *K) as float64 whole numbers, so every sum below 2⁵³ is exact."""
    n, group, how = len(x), node.attributes.get_int("group", 1), slide(node, w.shape[2:], x.shape[2:])
    # (N · positions, C, taps) → (N, group, positions, C/group · taps)
    columns = patches(x, how).reshape(n, -1, group, math.prod(w.shape[1:])).swapaxes(1, 2)
    rows = w.reshape(group, len(w) // group, -1)
    sums = (
        np.einsum("ngpk,gmk->ngmp", columns, rows, optimize=True) if group > 1 else (columns[:, 0] @ rows[0].T).transpose(0, 2, 1)[:, None]
    )
    result: Array = sums.reshape(n, len(w), *how.out(x.shape[2:]))
    return result


def _gemm_sums(node: ir.Node, inputs: list[Any]) -> tuple[Array, Array]:
    """(exact sums with bias, scales of the weights' columns) of a Gemm or MatMul on codes."""
    x, w = inputs[0], inputs[1]
    codes = w.centred if isinstance(w, Codes) else w.codes.astype(np.float64)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        codes = codes.T
    return x.centred @ codes + _bias(node, inputs, codes.shape[-1]), w.scale


def _gemm(node: ir.Node, inputs: list[Any], output: Output) -> Codes:
    """QGemm, QLinearMatMul."""
    sums, scales = _gemm_sums(node, inputs)
    return _requantized(sums.astype(np.int32), combined_scale(inputs[0].scale, scales, output[0]), output)


def _product(node: ir.Node, inputs: list[Any]) -> Array:
    """QGemm and MatMulIntegerToFloat with a float result: sums times s_x s_w."""
    sums, scales = _gemm_sums(node, inputs)
    return sums.astype(np.int32).astype(np.float32) * (inputs[0].scale * scales)


def _add(node: ir.Node, inputs: list[Any], output: Output) -> Codes:
    """QLinearAdd (`numerics.added`)."""
    (a, b), (scale, zero, to) = inputs, output
    factors = addition(a.scale, a.zero, b.scale, b.zero, scale, zero)
    return Codes(added(a.codes, b.codes, factors, to), scale, zero)


def _global_average_pool(node: ir.Node, inputs: list[Any], output: Output) -> Codes:
    """QLinearGlobalAveragePool: exact sums, times s_x / (s_y · positions)."""
    x = inputs[0]
    positions = math.prod(x.codes.shape[2:])
    sums = x.centred.sum(axis=tuple(range(2, x.codes.ndim)), keepdims=True).astype(np.int32)
    return _requantized(sums, np.asarray(np.float32(x.scale) / np.float32(np.float32(output[0]) * np.float32(positions))), output)


PRODUCTS = ("Gemm", "MatMul")
INTEGER: dict[str, Callable[[ir.Node, list[Any], Output], Codes]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Add": _add,
    "GlobalAveragePool": _global_average_pool,
}

RUNTIME = Reference()
