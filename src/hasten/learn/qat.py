"""qat: quantization-aware training: the network learns with the codes that it will be deployed with. Effect: trained.

It starts from what `quantize_static` makes: the same Q and DQ at the same places, the ranges from calibration (on training samples), batch
norm folded. Then weights w, biases and the logarithms of all steps s learn together, one step a channel of weights and one a tensor of
activations; zero points stay. The forward pass computes ŵ = s round(clip(w/s)) and the same of activations, on the codes (learn/codes.py):
what is trained is bit for bit what onnxruntime's fused u8 × s8 kernels compute. Gradients: straight-through (arXiv 1308.3432; Jacob et al.,
arXiv 1712.05877), those of s by LSQ (Esser et al., arXiv 1902.08153):

    ∂v̂/∂s = round(v/s) − v/s   inside,   the nearer end of the codes outside;   times 1/√(N Q).

The float model teaches: T² KL(softmax(v/T) ‖ softmax(z/T)) to its scores v (arXiv 1503.02531), no labels needed.

Fewer bits: `activations` are those of the inputs of layers with weights, as in the papers; sums, pools and a residual stream keep 8 bits, and
a layer reads such a tensor through a narrower pair of its own. onnxruntime has no kernel for codes of fewer than 8 bits: it runs such a layer
as float on the dequantized values, right but not faster than float. There the float path is the definition; the training, on codes, equals it
up to the rounding of float sums.

When: static quantization costs too much accuracy (4 bits nearly always; depthwise layers at 8), and there is data to train on.
Cost: a step takes 1.7 to 2 times that of `train` (eager; `benchmarks/qat.py cost`); a few epochs are enough. What runs afterwards costs what a
statically quantized model does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hasten.errors import BadInput
from hasten.graph import Array, add_weight, constant, finish, scalar, unique_name
from hasten.learn import codes, job
from hasten.learn.executor import build
from hasten.learn.guided import guide
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import logits
from hasten.learn.operators import Op
from hasten.learn.zeros import zeros
from hasten.model import Model, Skip
from hasten.numerics import FORMATS, Format, format_of
from hasten.passes.fold_batchnorm import FoldBatchnorm, fold_batchnorm
from hasten.quantize import quantize_static as static
from hasten.runtimes.reference import PRODUCTS, quantizer_of
from hasten.shrink.weights import Weight, weights
from hasten.shrink.weights import weight as weight_of
from hasten.task import BoundTask

DOMAIN = "hasten.qat"
"""Operators that only the trained graph has; no file holds them."""

ROWS = {
    f"{DOMAIN}::Step": Op(codes.step),
    f"{DOMAIN}::Quantize": Op(codes.quantize),
    f"{DOMAIN}::Dequantize": Op(codes.dequantize),
    f"{DOMAIN}::Bias": Op(codes.bias),
    f"{DOMAIN}::Conv": Op(codes.conv_codes),
    f"{DOMAIN}::ProductCodes": Op(codes.product_codes),
    f"{DOMAIN}::Product": Op(codes.product),
    f"{DOMAIN}::Add": Op(codes.add),
    f"{DOMAIN}::GlobalAveragePool": Op(codes.global_average_pool),
}

BELOW = 2e-6
"""A step that a Clip bounds stays this far below the bound in its logarithm, so that no rounding of exp passes it."""


@dataclasses.dataclass(frozen=True)
class Qat(Loop):
    __doc__ = (Loop.__doc__ or "") + (
        "\n    `weights`, `activations`: bits of codes (weights 2 to 8; activations 4 or 8). `first_last`: those of the first and the last layer."
        "\n    `mixed`: layers of their own, as node=weights/activations, such as conv1=4/8. `soft`: the weight of the float model's scores (of "
        "the\n    teacher's, where there is one) at `temperature`; `hard`: that of the task's own loss. `step_rate`: factor of the learning rate "
        "for\n    the steps. `samples`: of the training data, to calibrate the start by `method` (see quantize-static). `exclude`: nodes that stay "
        "float.\n"
    )
    epochs: int = 10
    rate: float = 1e-4
    weight_decay: float = 1e-4
    weights: int = 8
    activations: int = 8
    first_last: int = 8
    mixed: tuple[str, ...] = ()
    temperature: float = 4.0
    soft: float = 1.0
    hard: float = 0.0
    step_rate: float = 10.0
    method: str = "auto"
    samples: int = 256
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weights", "activations", "first_last"):
            _check_bits(name, getattr(self, name), activations=name != "weights")
        _mixed(self.mixed)
        for name in ("soft", "hard"):
            if getattr(self, name) < 0:
                raise BadInput(f"qat: the weight {name} is {getattr(self, name)}, expected 0 (none) or more")
        if not self.soft and not self.hard:
            raise BadInput("qat: soft and hard are both 0; give at least one of them a weight")
        for name in ("temperature", "step_rate"):
            if not getattr(self, name) > 0:
                raise BadInput(f"qat: {name} is {getattr(self, name)}, expected a number above 0")
        if self.precision != "float32":
            raise BadInput(f"qat: precision {self.precision} would round the sums of codes; use float32")
        self.static()

    def static(self) -> static.QuantizeStatic:
        """The static quantizer's settings that this training starts from."""
        return static.QuantizeStatic(self.method, samples=self.samples, exclude=self.exclude, smooth=0.0)


def qat(model: Model, settings: Qat, task: BoundTask | None) -> Model:
    """The quantized model, its codes and steps trained. Raises Refused without training data, and what `loop.fit` raises."""
    trainee, trained = job.run("qat", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    assert isinstance(trainee, Coded)
    return finish(model, trainee.deployed(), settings, "qat", len(trainee.layers), [*trainee.skipped, *trainee.zeros.notes()])


def prepare(model: Model, settings: Qat, task: BoundTask) -> Coded:
    """The statically quantized graph on codes as a module, and the float model as its teacher."""
    split = job.training_data("qat", task)
    if any(node.op_type == "BatchNormalization" for node in model.ir.graph):
        model = fold_batchnorm(model, FoldBatchnorm(), None)
    to = formats(model, settings)
    seen = static.observe(
        model, settings.static(), dataclasses.replace(task, calibrate=job.spread(split, settings.samples), observation=None), to
    )
    start = static.code(model, seen, settings.static(), to)
    trained, layers, steps = _Rewriter(start).run()
    value, final = logits(trained, task.output)
    executor = build(trained, more=ROWS, taps=(value,) if final else ())
    judged = executor.outputs.index(task.output)
    at = len(executor.outputs) - 1 if final else judged
    losses, teach = guide("qat", model, task, executor, at, settings)
    steps = tuple(s for s in steps if s.name in executor.weights)
    bounds = [(executor.weights[s.name], math.log(s.most) - BELOW) for s in steps if s.most < math.inf]
    return Coded(
        executor,
        losses,
        judged,
        teach=teach,
        after_step=_keep(bounds) if bounds else None,
        rates={s.name: settings.step_rate for s in steps},
        zeros=zeros("qat", model, executor.weights, settings, [*(layer.matrix for layer in layers), *weights(trained.ir.graph)[0]]),
        start=start,
        layers=layers,
        steps=steps,
        skipped=start.placement.skipped,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A learned step. name: of its logarithm in the trained graph; scale: of the initializer that it becomes; most: what it must stay below."""

    name: str
    scale: str
    most: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer with weights: names in the trained graph (weight, bias, steps) and in the file (codes and scales); where channels lie; the weight as
    a matrix."""

    weight: str
    w_step: str
    x_step: str
    codes: str
    scale: str
    axis: int
    to: Format
    matrix: Weight
    bias: str | None = None
    bias_codes: str | None = None
    bias_scale: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Coded(Trainee):
    """A trainee on codes, and what its parameters become in the file."""

    start: static.Coded = dataclasses.field(kw_only=True)
    layers: tuple[Layer, ...] = dataclasses.field(kw_only=True)
    steps: tuple[Step, ...] = dataclasses.field(kw_only=True)
    skipped: tuple[Skip, ...] = ()

    def deployed(self) -> ir.Model:
        """The statically quantized graph with the trained codes and scales in it, and what was trained beside them."""
        edited = self.start.edited.clone()
        found: dict[str, Array] = {}
        with torch.no_grad():
            for name, tensor in {**self.executor.weights, **self.executor.buffers}.items():
                if name in edited.graph.initializers:
                    found[name] = tensor.numpy()
            value = {s.name: torch.exp(self.executor.weights[s.name]) for s in self.steps}
            for s in self.steps:
                found[s.scale] = value[s.name].numpy()
            for layer in self.layers:
                w, b = self.executor.weights[layer.weight], layer.bias
                coded = codes.quantize(w, value[layer.w_step], lo=layer.to.lo, hi=layer.to.hi, axis=layer.axis)
                found[layer.codes] = coded.numpy()
                if b is not None and layer.bias_codes is not None and layer.bias_scale is not None:
                    x_step, w_step = value[layer.x_step], value[layer.w_step]
                    found[layer.bias_codes] = codes.bias(self.executor.weights[b], x_step, w_step).double().numpy()
                    found[layer.bias_scale] = (x_step * w_step).numpy()
        for name, array in found.items():
            tensor = edited.graph.initializers[name].const_value
            assert tensor is not None
            put = np.array(array.reshape(tensor.shape.numpy()), dtype=tensor.dtype.numpy())
            put.flags.writeable = False
            edited.graph.initializers[name].const_value = ir.Tensor(put, dtype=tensor.dtype, name=name)
        return edited


def formats(model: Model, settings: Qat) -> static.Formats:
    """Which tensors and weights have how many bits. Raises BadInput where `mixed` names no layer that is quantized."""
    placement = static.place(model.edit(), settings.static())
    base = static.formats(settings.static())
    layers = [n for n in placement.nodes if n.op_type in static.WEIGHTED and constant(n.inputs[1]) is not None]
    wanted = {n.name or "": (settings.weights, settings.activations) for n in layers}
    for n in (*layers[:1], *layers[-1:]):
        wanted[n.name or ""] = (settings.first_last, settings.first_last)
    for name, own in _mixed(settings.mixed).items():
        if name not in wanted:
            raise BadInput(f"qat: mixed names {name!r}, which is no layer that is quantized; there are {', '.join(wanted)}")
        wanted[name] = own
    chosen = {n for n in placement.nodes if n.op_type in static.MOVERS}
    bits: dict[ir.Value, int] = {}
    for value in placement.tensors:
        # A mover has one scale on both sides, and onnxruntime moves no codes of 4 bits; sums, pools and the graph's end read 8.
        of_mover = value.producer() in chosen
        readers = [wanted[n.name or ""][1] if n in layers else 8 for n, _ in value.uses()]
        bits[value] = 8 if of_mover or value.is_graph_output() else max(readers, default=8)
    narrow = {n.name or "": format_of("uint4") for n in layers if n.inputs[0] is not None and wanted[n.name or ""][1] < bits[n.inputs[0]]}
    return dataclasses.replace(
        base,
        tensors={v.name or "": format_of("uint4") for v, b in bits.items() if b == 4},
        weights={name: format_of(f"int{w}") for name, (w, _) in wanted.items() if w < base.weight.bits},
        inputs=narrow,
    )


def _check_bits(name: str, bits: int, *, activations: bool) -> None:
    if activations and bits not in (4, 8):
        raise BadInput(f"qat: {name} is {bits} bits, expected 4 or 8 (ONNX has no activations in between)")
    if not 2 <= bits <= 8:
        raise BadInput(f"qat: {name} is {bits} bits, expected 2 to 8; `hasten binarize` has 1")


def _mixed(texts: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """`conv1=4/8` … as {conv1: (4, 8)}. Raises BadInput."""
    found = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        w, _, x = bits.partition("/")
        if not name or not w.isdecimal() or not x.isdecimal():
            raise BadInput(f"qat: mixed {text!r} is not understood; expected node=weights/activations in bits, such as conv1=4/8")
        _check_bits(f"the weights of {name}", int(w), activations=False)
        _check_bits(f"the input of {name}", int(x), activations=True)
        found[name] = (int(w), int(x))
    return found


def _keep(bounds: list[tuple[torch.nn.Parameter, float]]) -> Callable[[], None]:
    """Keeps logarithms of steps below their bounds."""

    def keep() -> None:
        for parameter, most in bounds:
            parameter.clamp_(max=most)

    return keep


@dataclasses.dataclass(frozen=True, eq=False)
class _Codes:
    """A value that holds codes less their zero point; its step, and that step's initializer in the file."""

    value: ir.Value
    step: ir.Value
    scale: ir.Value
    zero: int
    to: Format

    @property
    def bounds(self) -> dict[str, int]:
        return {"lo": self.to.lo - self.zero, "hi": self.to.hi - self.zero}

    @property
    def largest(self) -> int:
        return max(self.zero - self.to.lo, self.to.hi - self.zero)


class _Rewriter:
    """Goes through the quantized graph as `reference.IntegerSession` does, and writes the graph that computes on codes in its place."""

    def __init__(self, start: static.Coded) -> None:
        self.floats = start.floats
        self.model = start.edited.clone()
        self.graph = self.model.graph
        self.coded: dict[ir.Value, _Codes] = {}
        self.stored: dict[ir.Value, ir.Node] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        self.made: dict[str, tuple[Step, ir.Value]] = {}
        self.layers: list[Layer] = []

    def run(self) -> tuple[Model, tuple[Layer, ...], tuple[Step, ...]]:
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.outputs[0] not in self.coded and not self._on_codes(node):
                for index, value in enumerate(node.inputs):
                    if value in self.coded and value is not None:
                        node.replace_input_with(index, self._floats(value))
        for position, value in enumerate(list(self.graph.outputs)):
            if value in self.coded:
                floats = self._floats(value)
                value.name, floats.name = unique_name(self.graph, f"{value.name}_coded"), value.name
                self.graph.outputs[position] = floats
        self.graph.sort()
        RemoveUnusedNodesPass()(self.model)
        return Model(self.model), tuple(self.layers), tuple(step for step, _ in self.made.values())

    def _quantize(self, node: ir.Node) -> None:
        """Codes of a float value; codes of the same step are taken as they are."""
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        if output in self.coded:
            return
        known = self.coded.get(source)
        if known is not None and known.scale is node.inputs[1]:
            self.coded[output] = known
            return
        target = self._target(node)
        value = self._new("Quantize", [self._floats(source), target.step], target.bounds, output)
        self.coded[output] = dataclasses.replace(target, value=value)

    def _dequantize(self, node: ir.Node) -> None:
        source = node.inputs[0]
        if source in self.coded and source is not None:
            self.coded[node.outputs[0]] = self.coded[source]
        elif source is not None and source.name in self.floats:
            self.stored[node.outputs[0]] = node

    def _on_codes(self, node: ir.Node) -> bool:
        """Write the node so that it works on codes; False where it does not."""
        x = self.coded.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if x is None:
            return False
        if node.op_type in static.MOVERS:
            node.replace_input_with(0, x.value)
            self.coded[node.outputs[0]] = dataclasses.replace(x, value=node.outputs[0])
            return True
        quantizer = quantizer_of(node)
        other = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type == "Add" and quantizer is not None and other in self.coded and other is not None:
            y, b = self._target(quantizer), self.coded[other]
            zeros = {"a_zero": x.zero, "b_zero": b.zero, "zero": y.zero}
            self._write("Add", [x.value, b.value, x.step, b.step, y.step], y.bounds | zeros, y, node, quantizer)
            return True
        if node.op_type == "GlobalAveragePool" and quantizer is not None:
            y = self._target(quantizer)
            self._write("GlobalAveragePool", [x.value, x.step, y.step], y.bounds, y, node, quantizer)
            return True
        if other in self.stored and other is not None and (node.op_type in PRODUCTS or (node.op_type == "Conv" and quantizer is not None)):
            self._layer(node, x, self.stored[other], quantizer)
            return True
        return False

    def _layer(self, node: ir.Node, x: _Codes, weights: ir.Node, quantizer: ir.Node | None) -> None:
        """A layer with weights: floats that are coded in every step, and sums of the codes."""
        stored, scale = weights.inputs[0], weights.inputs[1]
        assert stored is not None and scale is not None and stored.name is not None and scale.name is not None
        floats, to = self.floats[stored.name]
        axis = weights.attributes.get_int("axis", 1)
        weight = add_weight(self.graph, f"float/{stored.name}", floats)
        w_step = self._step(scale, floats.size // floats.shape[axis], to.hi)
        w = self._new("Quantize", [weight, w_step], {"lo": to.lo, "hi": to.hi, "axis": axis}, weights.outputs[0])
        layer = Layer(
            weight.name or "",
            self.made[scale.name][0].name,
            self.made[x.scale.name or ""][0].name,
            stored.name,
            scale.name,
            axis,
            to,
            weight_of(node, floats.shape, weight.name or ""),
        )
        b = None
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            held = self.stored[node.inputs[2]]
            assert held.inputs[0] is not None and held.inputs[1] is not None
            name = held.inputs[0].name or ""
            kept = add_weight(self.graph, f"float/{name}", self.floats[name][0])
            b = self._new("Bias", [kept, x.step, w_step], {}, held.outputs[0])
            layer = dataclasses.replace(layer, bias=kept.name, bias_codes=name, bias_scale=held.inputs[1].name)
        self.layers.append(layer)
        attributes: dict[str, Any] = {"largest": x.largest * -to.lo}
        if node.op_type == "Conv":
            attributes |= {a.name: a for a in node.attributes.values()}
        else:
            attributes["turned"] = node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
        if quantizer is not None:
            y = self._target(quantizer)
            operator = "Conv" if node.op_type == "Conv" else "ProductCodes"
            self._write(operator, [x.value, w, b, x.step, w_step, y.step], attributes | y.bounds, y, node, quantizer)
        else:
            output = node.outputs[0]
            value = self._new("Product", [x.value, w, b, x.step, w_step], attributes, output)
            for reader, index in list(output.uses()):
                reader.replace_input_with(index, value)
            if output.is_graph_output():
                position = list(self.graph.outputs).index(output)
                output.name, value.name = unique_name(self.graph, f"{output.name}_coded"), output.name
                self.graph.outputs[position] = value

    def _write(
        self, operator: str, inputs: list[ir.Value | None], attributes: dict[str, Any], y: _Codes, node: ir.Node, quantizer: ir.Node
    ) -> None:
        """An operator that gives codes, in place of the node, of the Relu or Clip behind it, and of the quantizer."""
        value = self._new(operator, inputs, attributes, quantizer.outputs[0])
        self.coded[quantizer.outputs[0]] = dataclasses.replace(y, value=value)
        between = node.outputs[0]
        while between is not quantizer.inputs[0]:
            self.coded[between] = self.coded[quantizer.outputs[0]]
            between = next(iter(between.uses())).node.outputs[0]
        self.coded[between] = self.coded[quantizer.outputs[0]]

    def _floats(self, value: ir.Value) -> ir.Value:
        """The value as floats."""
        known = self.coded.get(value)
        if known is None:
            return value
        if known.value not in self.values:
            self.values[known.value] = self._new("Dequantize", [known.value, known.step], {}, value)
        return self.values[known.value]

    def _target(self, quantizer: ir.Node) -> _Codes:
        """What a QuantizeLinear writes, its value not yet made."""
        scale, source = quantizer.inputs[1], quantizer.inputs[0]
        zero = constant(quantizer.inputs[2])
        assert scale is not None and zero is not None and source is not None
        to = next(f for f in FORMATS if f.name == zero.dtype.name)
        shape = () if source.shape is None else tuple(source.shape)[1:]
        count = math.prod(d for d in shape if isinstance(d, int))
        found = _Codes(quantizer.outputs[0], scale, scale, int(zero), to)
        return dataclasses.replace(found, step=self._step(scale, count, found.largest, _bound(source, found)))

    def _step(self, scale: ir.Value, count: int, largest: int, most: float = math.inf) -> ir.Value:
        """The step that an initializer of the file holds, learned: made once."""
        name = scale.name or ""
        if name not in self.made:
            start = np.log(np.atleast_1d(np.asarray(constant(scale), np.float64)))
            if most < math.inf:
                start = np.minimum(start, math.log(most) - BELOW)
            log = add_weight(self.graph, f"step/{name}", start.astype(np.float32))
            factor = 1 / math.sqrt(max(1, count) * max(1, largest))
            self.made[name] = (Step(log.name or "", name, most), self._new("Step", [log], {"factor": factor}, scale))
        return self.made[name][1]

    def _new(self, operator: str, inputs: list[ir.Value | None], attributes: dict[str, Any], like: ir.Value) -> ir.Value:
        node = ir.node(operator, inputs, attributes, domain=DOMAIN, name=unique_name(self.graph, f"{like.name}_{operator.lower()}_node"))
        node.outputs[0].name = unique_name(self.graph, f"{like.name}_{operator.lower()}")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), like.shape
        self.graph.append(node)
        return node.outputs[0]


def _bound(value: ir.Value, to: _Codes) -> float:
    """The largest step at which no code stands outside the bounds of the Clip that gives the value: onnxruntime then drops the Clip."""
    node = value.producer()
    if node is None or node.op_type != "Clip":
        return math.inf
    low, high = (scalar(node.inputs[i]) if len(node.inputs) > i and node.inputs[i] is not None else None for i in (1, 2))
    above = math.inf if high is None or to.bounds["hi"] == 0 else high / to.bounds["hi"]
    below = math.inf if low is None or to.bounds["lo"] == 0 else low / to.bounds["lo"]
    return min(above, below) if min(above, below) > 0 else math.inf
