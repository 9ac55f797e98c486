"""quantize_static: 8-bit weights and activations as one QDQ file that onnxruntime and OpenVINO both run in integers. Effect: lossy.

Weights: int8, symmetric, one scale a channel. Activations: uint8, affine, one scale a tensor, from calibration. Biases: int32 at scale s_x s_w.
(Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342.) Bias correction: quantizing W to Ŵ shifts an output on
average by (Ŵ − W) E[x̂], which the bias takes back (Nagel et al., arXiv 1906.04721, section 4.2). E[x̂], the mean of the quantized input, is
seen in calibration. The shift that clipping x makes is left alone: it comes from a few outliers, and taking it back on every sample more
than doubled the error of MobileNetV2 (0.064 → 0.166 of the logits).

Smoothing: a transformer's activations have a few channels of large values, which waste the codes of all others. For any S > 0,
x W = (x S⁻¹)(S W), with s_c = max|x_c|^α / max|W_c|^(1−α), moves part of the range into the weights (SmoothQuant, Xiao et al.,
arXiv 2211.10438). Here it costs no operator: Q divides each channel by its own scale s·s_c, and DQ multiplies all by s.

Where Q and DQ stand: around every input of a quantized operator, and behind every Conv (after the Relu or Clip that follows it), because
onnxruntime runs a Conv in integers only where it also writes integers. A Gemm or MatMul may write floats. Operators that only move values
(Reshape, Transpose, MaxPool …) pass the scale on.

When: for convolutions and products on CPUs that multiply 8-bit integers, with some hundred samples to calibrate on.
Cost: a quarter of the bytes of the weights; method auto passes over the calibration samples several times (seconds for a
small model, minutes for a large one). On small models the Q and DQ around a layer may take more time than they save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.calibrate import tensors
from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, scalar, sole_consumer, unique_name
from hasten.measure.machine import machine
from hasten.model import Model, Skip
from hasten.numerics import Format, affine, dequantize, format_of, quantize, symmetric
from hasten.quantize.observers import Means, Observer, symmetric_mse
from hasten.task import BoundTask

METHODS = ("mean", "mse", "minmax", "percentile")
TRIED = METHODS[:3]
"""What method `auto` chooses from, by the error of the outputs on calibration samples."""

TRIAL_SAMPLES = 64
ACTIVATIONS = ("auto", "uint8", "int8")
WEIGHTED = ("Conv", "Gemm", "MatMul")
MOVERS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Identity", "DepthToSpace", "SpaceToDepth")
"""They only move or choose values: input and output share one scale."""
COMBINERS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Pad", "Resize", "LeakyRelu", "ReduceMean")
"""Quantized where an input is quantized already (a convolution's output, say): on codes they cost a quarter of the memory traffic."""


@dataclasses.dataclass(frozen=True)
class QuantizeStatic:
    """`method`: how a range is chosen from what calibration sees: mean (of the samples' own extremes), mse, minmax or percentile (which
    keeps that share, in percent); auto takes the one of the first three with the least error of the outputs on calibration samples.
    `activations`: auto takes uint8, with 7-bit weights on x86 CPUs without VNNI, whose 16-bit sums saturate.
    `attention`: also the products of two activations. `smooth`: SmoothQuant's α for the inputs of MatMul, 0 for none.
    `exclude`: names of nodes that stay float. `samples`: at most so many calibrate."""

    method: str = "auto"
    percentile: float = 99.99
    activations: str = "auto"
    per_channel: bool = True
    bias_correction: bool = True
    attention: bool = False
    smooth: float = 0.6
    samples: int = 256
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in ("auto", *METHODS):
            raise BadInput(f"quantize_static: method {self.method!r} is unknown; use one of auto, {', '.join(METHODS)}")
        if self.activations not in ACTIVATIONS:
            raise BadInput(f"quantize_static: activations {self.activations!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
        if not 50 < self.percentile <= 100:
            raise BadInput(f"quantize_static: percentile is {self.percentile}, expected a number above 50 and up to 100")
        if not 0 <= self.smooth < 1:
            raise BadInput(f"quantize_static: smooth is {self.smooth}, expected α from 0 (none) to below 1")
        if self.samples < 1:
            raise BadInput(f"quantize_static: samples is {self.samples}, expected at least 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """What will be quantized: the operators, the tensors that get Q and DQ, those that must be signed, and what is left alone."""

    nodes: tuple[ir.Node, ...]
    tensors: tuple[ir.Value, ...]
    signed: frozenset[ir.Value]
    skipped: tuple[Skip, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Formats:
    """Which number format what has: `activation` and `weight`, but for the tensors and for the weights of the nodes that are named here.

    `inputs`: nodes that read their input through a pair of Q and DQ of their own, narrower than the tensor's (a 4-bit layer behind a sum).
    """

    activation: Format
    weight: Format
    tensors: Mapping[str, Format] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Format] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, Format] = dataclasses.field(default_factory=dict)

    def of(self, tensor: str) -> Format:
        return self.tensors.get(tensor, self.activation)

    def of_weights(self, node: str) -> Format:
        return self.weights.get(node, self.weight)


@dataclasses.dataclass(frozen=True, eq=False)
class Coded:
    """A model with Q, DQ and codes, not yet finished. `floats`: what was coded and in which format, by the codes' name: weights, biases."""

    edited: ir.Model
    placement: Placement
    floats: dict[str, tuple[Array, Format]]


def quantize_static(model: Model, settings: QuantizeStatic, task: BoundTask | None) -> Model:
    """Quantize what can be; the rest is skipped with the reason. Raises Refused where there is neither data nor an observation."""
    if task is None or (task.observation is None and task.calibrate is None):
        raise Refused("quantize_static needs data to calibrate on, and none came; give --data, or use quantize-dynamic")
    coded = code(model, task.observation or observe(model, settings, task), settings, formats(settings))
    skipped = list(coded.placement.skipped)
    return finish(model, coded.edited, settings, "quantize_static", len(coded.placement.nodes), skipped)


def code(model: Model, seen: dict[str, Any], settings: QuantizeStatic, to: Formats) -> Coded:
    """Q, DQ and codes where `place` says, from what calibration saw. Raises Refused where that was of another model."""
    edited = model.edit()
    editor = _Editor(edited.graph, seen, settings, to, place(edited, settings))
    editor.run()
    return Coded(edited, editor.placement, editor.floats)


def observe(model: Model, settings: QuantizeStatic, task: BoundTask, to: Formats | None = None) -> dict[str, Any]:
    """What calibration sees, as plain JSON values: ranges of the tensors to quantize, and the channels' means of the inputs of weights once
    quantized to these ranges (a second look at the same samples).

    Tensors that no more weights follow keep their whole range, whatever the method: in class scores the extremes are what counts. Those of
    fewer than 8 bits (`to`: those of the settings, if left out) take the range of the least squared error.
    """
    edited = model.edit()
    placement = place(edited, settings)
    to = to or formats(settings)
    axes: dict[Any, int] = {
        n.inputs[0]: 1 if n.op_type == "Conv" else -1
        for n in placement.nodes
        if n.op_type in WEIGHTED and constant(n.inputs[1]) is not None
    }
    channels = {v.name or "": axis for v, axis in axes.items()}
    shares = _smoothing(edited, placement, settings, task) if settings.smooth else {}
    observers = {v.name or "": Observer() for v in placement.tensors}
    head = {v.name for v in placement.tensors if not _reaches_weights(v)}
    samples = 0
    for name, value, here in tensors(edited, list(observers), settings.samples, task):
        try:
            observers[name].see(value / np.asarray(shares[name], np.float32) if name in shares else value)
        except ValueError as e:
            raise Refused(f"quantize_static: tensor {name!r}: {e} on the calibration data; look at the data and the model") from e
        samples = here
    choices: dict[str, dict[str, Any]] = {}
    for method in TRIED if settings.method == "auto" else (settings.method,):
        ranges = {
            name: list(o.minmax() if name in head else _range(o, method, settings.percentile, to.of(name))) for name, o in observers.items()
        }
        choices[method] = {"samples": samples, "method": method, "ranges": ranges, "shares": shares}
        if settings.bias_correction:
            choices[method]["means"] = _coded_means(edited, channels, choices[method], to, settings, task)
        if to.inputs:
            sources = {n.name or "": n.inputs[0].name or "" for n in placement.nodes if n.inputs[0] is not None}
            choices[method]["inputs"] = {node: list(observers[sources[node]].mse(fmt)) for node, fmt in to.inputs.items()}
    errors = {method: _output_error(model, settings, task, seen, to) for method, seen in choices.items()} if len(choices) > 1 else {}
    return choices[min(errors, key=lambda m: errors[m])] if errors else next(iter(choices.values()))


def _smoothing(edited: ir.Model, placement: Placement, settings: QuantizeStatic, task: BoundTask) -> dict[str, list[float]]:
    """s_c for each channel of the tensors that only MatMuls with constant weights read in codes, their geometric mean 1."""
    chosen = set(placement.nodes)
    weights: dict[str, list[Array]] = {}
    for value in placement.tensors:
        readers = [n for n, _ in value.uses() if n in chosen]
        matrices = [constant(n.inputs[1]) if n.op_type == "MatMul" and n.inputs[0] is value else None for n in readers]
        producer = value.producer()
        if readers and all(m is not None for m in matrices) and (producer is None or producer not in chosen):
            weights[value.name or ""] = [np.abs(m).max(axis=1) for m in matrices if m is not None]
    peaks: dict[str, Array] = {}
    for name, x, _ in tensors(edited, list(weights), settings.samples, task) if weights else ():
        largest = np.abs(x).max(axis=tuple(range(x.ndim - 1)))
        peaks[name] = np.maximum(peaks[name], largest) if name in peaks else largest
    shares = {}
    for name, peak in peaks.items():
        raw = np.maximum(peak, 1e-5) ** settings.smooth / np.maximum(np.max(weights[name], axis=0), 1e-5) ** (1 - settings.smooth)
        shares[name] = [float(s) for s in raw / np.exp(np.mean(np.log(raw)))]
    return shares


def _coded_means(
    edited: ir.Model, channels: dict[str, int], seen: dict[str, Any], to: Formats, settings: QuantizeStatic, task: BoundTask
) -> dict[str, list[float]]:
    """The mean of each channel of the named tensors, once smoothed and quantized to their ranges."""
    coded = {name: Means(axis) for name, axis in channels.items()}
    for name, value, _ in tensors(edited, list(coded), min(settings.samples, TRIAL_SAMPLES), task):
        low, high = seen["ranges"][name]
        scale, zero = affine(low, high, to.of(name))
        if name in seen["shares"]:
            value = value / np.asarray(seen["shares"][name], np.float32)
        coded[name].see(dequantize(quantize(value, scale, zero, to.of(name)), scale, zero))
    return {name: means.means() for name, means in coded.items()}


def _output_error(model: Model, settings: QuantizeStatic, task: BoundTask, seen: dict[str, Any], to: Formats) -> float:
    """‖quantized − float‖ / ‖float‖ over the model's float outputs on TRIAL_SAMPLES of the calibration split, each output counted alike."""
    quantized = finish(model, code(model, seen, settings, to).edited, settings, "quantize_static", 0, [])
    names = [p.name for p in model.outputs if p.dtype == "float32"]
    error, scale = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-30)
    both = (tensors(m.edit(), names, TRIAL_SAMPLES, task) for m in (model, quantized))
    for (name, a, _), (_, b, _) in zip(*both, strict=True):
        error[name] += float(np.sum((a.astype(np.float64) - b) ** 2))
        scale[name] += float(np.sum(a.astype(np.float64) ** 2))
    return sum(error[n] / scale[n] for n in names)


def formats(settings: QuantizeStatic) -> Formats:
    """Those of activations and weights for these settings on this machine."""
    isa = machine().isa
    name = "uint8" if settings.activations == "auto" else settings.activations
    saturates = settings.activations == "auto" and "avx2" in isa and not {"avx512_vnni", "avx_vnni"} & set(isa)
    return Formats(format_of(name), format_of("int7" if saturates else "int8"))


def place(edited: ir.Model, settings: QuantizeStatic) -> Placement:
    """Decide what is quantized, walking down the graph once."""
    graph = edited.graph
    skipped: list[Skip] = []
    nodes: list[ir.Node] = []
    tensors: dict[ir.Value, None] = {}
    signed: set[ir.Value] = set()
    written: set[ir.Value] = set()
    for node in graph:
        if node.op_type in WEIGHTED:
            if why := _refusal(node, settings):
                skipped.append(Skip(node.name or "", why))
                continue
            nodes.append(node)
            for value in _activations(node):
                tensors[value] = None
            if node.op_type == "MatMul" and constant(node.inputs[1]) is None and node.inputs[1] is not None:
                signed.add(node.inputs[1])
            if node.op_type == "Conv":
                tensors[_end(node)] = None
                written.add(_end(node))
        elif node.op_type in MOVERS or node.op_type in COMBINERS:
            inputs = list(_activations(node))
            if node.name in settings.exclude or not inputs or not _joins(node, inputs, written):
                continue
            nodes.append(node)
            for value in inputs:
                tensors[value] = None
            end = _end(node) if node.op_type in COMBINERS else node.outputs[0]
            tensors[end] = None
            written.add(end)
        elif node.op_type in ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum"):
            skipped.append(Skip(node.name or "", f"{node.op_type} has no integer kernel in the runtimes; it stays float"))
    floats = [v for v in tensors if v.dtype == ir.DataType.FLOAT]
    return Placement(tuple(nodes), tuple(floats), frozenset(signed), tuple(skipped))


def _refusal(node: ir.Node, settings: QuantizeStatic) -> str:
    """Why an operator with weights stays float, empty if it need not."""
    if node.name in settings.exclude:
        return "excluded by the settings"
    if any(v is not None and v.dtype not in (None, ir.DataType.FLOAT) for v in node.inputs):
        return "its values are not float32"
    weights = constant(node.inputs[1])
    if weights is None:
        if node.op_type != "MatMul" or constant(node.inputs[0]) is not None:
            return "its weights are computed, not constant"
        return "" if settings.attention else "it multiplies two activations; `attention` quantizes it too"
    if constant(node.inputs[0]) is not None:
        return "its input is constant"
    if node.op_type == "MatMul" and weights.ndim != 2:
        return f"its weights have {weights.ndim} axes; only matrices are quantized"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "its first input is transposed"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return "its bias is computed, not constant"
    if (
        node.op_type == "Gemm"
        and len(node.inputs) > 2
        and (bias := constant(node.inputs[2])) is not None
        and bias.size not in (1, _channels(node))
    ):
        return "its bias is a matrix, not one number a channel"
    return ""


def _activations(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node that are float activations."""
    inputs = node.inputs if node.op_type in ("Add", "Mul", "Concat", "MatMul") else node.inputs[:1]
    for value in inputs:
        if value is not None and constant(value) is None and value.dtype == ir.DataType.FLOAT:
            yield value


def _joins(node: ir.Node, inputs: list[ir.Value], written: set[ir.Value]) -> bool:
    """Whether a mover or combiner is computed on codes: all its inputs are activations, and a quantized operator wrote one as codes.

    A residual stream that MatMuls read in codes and nobody writes in codes (a transformer's) stays float: it is what errors pile up in.
    """
    if node.op_type in ("Add", "Mul") and len(inputs) != 2:
        return False
    if node.op_type == "ReduceMean" and node.outputs[0].shape is not None and len(inputs[0].shape or ()) != 4:
        return False
    if node.op_type == "Pad" and (scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0) != 0.0:
        return False
    if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") != "constant":
        return False
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    return any(value in written for value in inputs) and _leads_on(_end(node) if node.op_type in COMBINERS else node.outputs[0])


def _leads_on(value: ir.Value) -> bool:
    """Whether a result is read, perhaps moved, by what can be quantized.

    The last mover or combiner before the graph's end gains little from codes, and its result would have 256 levels: among a thousand
    class scores that makes ties (SqueezeNet's agreement with float was 1 point lower).
    """
    todo, seen = [value], set()
    while todo:
        value = todo.pop()
        for user, _ in value.uses():
            if user.op_type in WEIGHTED or user.op_type in COMBINERS:
                return True
            if user.op_type in MOVERS and id(user) not in seen:
                seen.add(id(user))
                todo += user.outputs
    return False


def _end(node: ir.Node) -> ir.Value:
    """The tensor at which a node's result is quantized: behind the Relu or Clip that follows, which the codes' own range then replaces."""
    value = node.outputs[0]
    reader = sole_consumer(value)
    if reader is not None and (reader.op_type == "Relu" or _is_bounded(reader)):
        return reader.outputs[0]
    return value


def _is_bounded(node: ir.Node) -> bool:
    """A Clip with constant bounds that hold zero: codes of that range need no Clip."""
    if node.op_type != "Clip":
        return False
    low, high = (scalar(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    given = [node.inputs[i] for i in (1, 2) if len(node.inputs) > i and node.inputs[i] is not None]
    return all(constant(v) is not None for v in given) and (low is None or low <= 0) and (high is None or high > 0)


def _channels(node: ir.Node) -> int:
    weights = constant(node.inputs[1])
    assert weights is not None
    return weights.shape[_channel_axis(node)]


def _channel_axis(node: ir.Node) -> int:
    """The axis of the weights that runs over output channels."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0 else 1


def _reaches_weights(value: ir.Value) -> bool:
    """Whether an operator with weights, or a product of activations, comes after the tensor."""
    todo, seen = [value], set()
    while todo:
        for user, _ in todo.pop().uses():
            if user.op_type in WEIGHTED:
                return True
            if user not in seen:
                seen.add(user)
                todo += user.outputs
    return False


def _range(observer: Observer, method: str, percentile: float, to: Format) -> tuple[float, float]:
    if method == "mse" or to.bits < 8:
        return observer.mse(to)
    if method == "percentile":
        return observer.percentile(percentile)
    return observer.mean() if method == "mean" else observer.minmax()


@dataclasses.dataclass(eq=False)
class _Editor:
    """Writes the codes, scales, Q and DQ into the graph."""

    graph: ir.Graph
    seen: dict[str, Any]
    settings: QuantizeStatic
    formats: Formats
    placement: Placement
    floats: dict[str, tuple[Array, Format]] = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        names = [v.name for v in self.placement.tensors]
        if missing := [n for n in names if n not in self.seen["ranges"]]:
            raise Refused(f"quantize_static: the plan's calibration has no range for tensor {missing[0]!r}; it was made for another model")
        self._scales: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._share_scales()
        chosen = set(self.placement.nodes)
        for value in self.placement.tensors:
            self._insert_pair(value, chosen)
        for node in self.placement.nodes:
            if node.op_type in WEIGHTED and constant(node.inputs[1]) is not None:
                source = _source(node.inputs[0])
                self._quantize_weights(node, source, self._narrow(node, source))
        self.graph.sort()

    def _share_scales(self) -> None:
        """One scale for a mover's input and output: that of the input, or a Clip's own bounds for what stands behind it."""
        for value in self.placement.tensors:
            producer = value.producer()
            if producer is not None and producer in set(self.placement.nodes) and producer.op_type in MOVERS:
                source = producer.inputs[0]
                if source in self._scales:
                    self._scales[value] = self._scales[source]
                    continue
            low, high = self.seen["ranges"][value.name]
            to = format_of("int8") if value in self.placement.signed else self.formats.of(value.name or "")
            if to.signed:
                largest = max(-low, high)
                scale, zero = symmetric(largest, to), np.zeros((), to.dtype)
                if producer is not None and (producer.op_type == "Relu" or _is_bounded(producer)):
                    scale, zero = affine(low, high, to)
            else:
                scale, zero = affine(low, high, to)
            if (
                producer is not None
                and _is_bounded(producer)
                and len(producer.inputs) > 2
                and (top := scalar(producer.inputs[2])) is not None
            ):
                # onnxruntime drops a Clip whose bounds the codes keep: the largest code must not stand a rounding above the bound.
                while float(dequantize(np.asarray(to.hi), scale, zero)) > top:
                    scale = np.nextafter(scale, np.float32(0))
            self._scales[value] = self._stored(value.name or "", scale, zero, to)

    def _stored(self, base: str, scale: Array, zero: Array, to: Format) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a tensor as initializers."""
        return (
            add_weight(self.graph, f"{base}_scale", np.asarray(scale, np.float32).reshape(())),
            add_weight(self.graph, f"{base}_zero_point", np.asarray(zero).reshape(()).astype(to.stored)),
        )

    def _narrow(self, node: ir.Node, source: ir.Value) -> ir.Value:
        """The scale of the codes that a node reads: those of its input, or of a narrower pair of its own, which is inserted here."""
        to = self.formats.inputs.get(node.name or "")
        if to is None:
            return self._scales[source][0]
        base = f"{source.name}_{node.name}"
        low, high = self.seen["inputs"][node.name]
        scale, zero = self._stored(base, *affine(low, high, to), to)
        x = node.inputs[0]
        assert x is not None
        node.replace_input_with(0, self._pair(x, base, scale, zero, [scale, zero], {}).outputs[0])
        return scale

    def _shares(self, value: ir.Value) -> Array | None:
        """s_c of a smoothed tensor, None for others."""
        shares = self.seen["shares"].get(value.name)
        return None if shares is None else np.asarray(shares, np.float32)

    def _insert_pair(self, value: ir.Value, chosen: set[ir.Node]) -> None:
        """value → Q → DQ → its quantized readers; every reader where the value is a quantized operator's result."""
        scale, zero = self._scales[value]
        producer = value.producer()
        everywhere = producer is not None and (producer in chosen or self._is_tail(producer, chosen))
        if producer is not None and producer in chosen and producer.op_type in ("Gemm", "MatMul") and not everywhere:
            everywhere = False
        readers = [(n, i) for n, i in value.uses() if everywhere or n in chosen]
        to_codes, attributes = [scale, zero], {}
        if (shares := self._shares(value)) is not None:
            s, z = constant(scale), constant(zero)
            assert s is not None
            assert z is not None
            to_codes = [
                add_weight(
                    self.graph, f"{value.name}_channel_scales", np.maximum(s * shares, np.finfo(np.float32).tiny).astype(np.float32)
                ),
                add_weight(self.graph, f"{value.name}_channel_zero_points", np.full(shares.shape, z)),
            ]
            attributes = {"axis": -1}
        dq = self._pair(value, value.name or "", scale, zero, to_codes, attributes)
        for node, index in readers:
            node.replace_input_with(index, dq.outputs[0])
        if value.is_graph_output() and producer is not None and producer.op_type != "Gemm" and everywhere:
            self._move_output(value, dq)

    def _pair(
        self, value: ir.Value, base: str, scale: ir.Value, zero: ir.Value, to_codes: list[ir.Value], attributes: dict[str, Any]
    ) -> ir.Node:
        """Q (with the scales `to_codes`) and DQ behind a value; the DQ."""
        q = ir.node("QuantizeLinear", [value, *to_codes], attributes, name=unique_name(self.graph, f"{base}_q_node"))
        dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{q.name}_dq")
        assert zero.dtype is not None
        for node, suffix, dtype in ((q, "q", zero.dtype), (dq, "dq", ir.DataType.FLOAT)):
            node.outputs[0].name = unique_name(self.graph, f"{base}_{suffix}")
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
        self.graph.extend([q, dq])
        return dq

    def _move_output(self, value: ir.Value, dq: ir.Node) -> None:
        """The graph's output is what the DQ writes, under the output's own name."""
        position = list(self.graph.outputs).index(value)
        name, inner = value.name, unique_name(self.graph, f"{value.name}_float")
        value.name, dq.outputs[0].name = inner, name
        dq.outputs[0].shape = value.shape
        self.graph.outputs[position] = dq.outputs[0]

    def _is_tail(self, node: ir.Node, chosen: set[ir.Node]) -> bool:
        """A Relu or Clip right behind a chosen operator."""
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return node.op_type in ("Relu", "Clip") and source is not None and source in chosen

    def _quantize_weights(self, node: ir.Node, source: ir.Value, x_scale_value: ir.Value) -> None:
        """Codes for weights and bias, the bias corrected for what the weights' rounding shifts."""
        to = self.formats.of_weights(node.name or "")
        weights, axis = constant(node.inputs[1]), _channel_axis(node)
        assert weights is not None
        if (shares := self._shares(source)) is not None:
            weights = weights * shares[:, None]
        if node.op_type == "Gemm":
            weights = weights * np.float32(node.attributes.get_float("alpha", 1.0))
            node.attributes.pop("alpha", None)
        x_scale = float(np.asarray(constant(x_scale_value)))
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and node.op_type == "Gemm":
            bias = np.broadcast_to(bias.reshape(-1), (_channels(node),)) * np.float32(node.attributes.get_float("beta", 1.0))
        node.attributes.pop("beta", None)
        others = tuple(a for a in range(weights.ndim) if a != axis)
        if to.bits < 7:
            scale = symmetric_mse(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1), to)
        else:
            largest = np.abs(weights).max(axis=others) if self.settings.per_channel else np.full(weights.shape[axis], np.abs(weights).max())
            scale = symmetric(largest, to)
        if bias is not None:
            # A bias is stored as int32 at scale s_x s_w: a channel of tiny weights must not make it overflow.
            scale = np.maximum(scale, (np.abs(bias) / (x_scale * (2**31 - 256))).astype(np.float32))
        shape = [-1 if a == axis else 1 for a in range(weights.ndim)]
        codes = quantize(weights, scale.reshape(shape), 0, to)
        if self.settings.bias_correction and node.op_type != "MatMul":
            error = dequantize(codes, scale.reshape(shape), 0).astype(np.float64) - weights
            shift = _mean_output(node, error, self.seen["means"][source.name])
            bias = (np.zeros(len(scale)) if bias is None else bias.astype(np.float64)) - shift
            limit = x_scale * scale.astype(np.float64) * (2**31 - 256)
            bias = np.clip(bias, -limit, limit)
        base = node.inputs[1].name or "weight"  # type: ignore[union-attr]
        node.replace_input_with(1, self._constant_dq(base, weights, to, codes, scale, axis))
        if bias is not None:
            bias_scale = (np.float32(x_scale) * scale).astype(np.float32)
            bias_codes = np.clip(np.rint(bias / bias_scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
            node.resize_inputs(3)
            node.replace_input_with(2, self._constant_dq(f"{base}_bias", bias, format_of("int32"), bias_codes, bias_scale, 0))

    def _constant_dq(self, base: str, floats: Array, to: Format, codes: Array, scale: Array, axis: int) -> ir.Value:
        """codes → DQ: the weight as the graph reads it."""
        inputs = [
            add_weight(self.graph, f"{base}_codes", codes.astype(to.stored)),
            add_weight(self.graph, f"{base}_scale", scale),
            add_weight(self.graph, f"{base}_zero_point", np.zeros(scale.shape, to.stored)),
        ]
        self.floats[inputs[0].name or ""] = (np.asarray(floats, np.float32), to)
        dq = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=unique_name(self.graph, f"{base}_dq_node"))
        dq.outputs[0].name = unique_name(self.graph, f"{base}_dq")
        dq.outputs[0].type, dq.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
        self.graph.append(dq)
        return dq.outputs[0]


def _source(value: ir.Value | None) -> ir.Value:
    """The tensor behind a Q → DQ pair."""
    dq = None if value is None else value.producer()
    assert dq is not None and dq.inputs[0] is not None
    q = dq.inputs[0].producer()
    assert q is not None and q.inputs[0] is not None
    return q.inputs[0]


def _mean_output(node: ir.Node, weights: Array, means: list[float]) -> Array:
    """W E[x] for each output channel (zero padding is neglected)."""
    mean = np.asarray(means)
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        per_channel = weights.reshape(*weights.shape[:2], -1).sum(axis=2)  # (out, in/group)
        of_group = np.repeat(mean.reshape(group, -1), weights.shape[0] // group, axis=0)
        total: Array = (per_channel * of_group).sum(axis=1)
        return total
    return weights @ mean if _channel_axis(node) == 0 else mean @ weights
