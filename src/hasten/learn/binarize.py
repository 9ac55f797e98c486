"""binarize: weights and activations of one bit, trained, stored packed. Effect: trained.

A layer y = W x + b becomes y = α (sign(W) · sign(x)) + b, with sign(v) = 1 where v ≥ 0, else −1, and α = mean |W| of each output channel, which
makes α sign(W) the nearest such weights (XNOR-Net, arXiv 1603.05279; the scale of its activations is left to the batch norm behind). Ternary
weights are 0 up to 0.7 mean |W| and α sign(W) beyond, α the mean magnitude there (arXiv 1605.04711). The latent real W is trained through
straight-through estimators (BNN, arXiv 1602.02830): ∂sign(x)/∂x := 1 where |x| ≤ 1, else 0; ∂sign(W)/∂W := 1, W kept within [−1, 1]. α is a
function of W and has its own gradient. The activation before such a layer is replaced by the sign (or by the step, 0 and 1), the batch norm
before it sets the threshold. The float model is where the weights start, and the teacher where no other one comes.

The file holds the bits; each layer is a function of the domain `hasten` (see own_operators.py), so onnxruntime runs it as it is.

When: where the size of the file counts most: 32 times smaller layers (16 times ternary), for some loss of accuracy. It needs batch norm behind
the layers and training data.
Cost: that of `distill`. On x86 no runtime has a kernel for it: the weights are unpacked while it loads, and it computes as fast as in float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, unique_name
from hasten.learn import job
from hasten.learn.executor import Executor, build
from hasten.learn.guided import guide
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import logits
from hasten.learn.operators import Op
from hasten.learn.spatial import conv
from hasten.learn.zeros import goal_of
from hasten.model import Model, Skip
from hasten.numerics import TERNARY_THRESHOLD, pack_signs, pack_ternary
from hasten.own_operators import DOMAIN, SIGNS, add_functions
from hasten.task import BoundTask, Split

WEIGHTS, ACTIVATIONS, ENDS = ("binary", "ternary"), ("sign", "step", "real"), ("real", "weights", "binary")


@dataclasses.dataclass(frozen=True)
class Binarize(Loop):
    __doc__ = (Loop.__doc__ or "") + (
        "\n    `weights`: binary or ternary. `activations`: sign (−1 and 1), step (0 and 1), or real (weights alone). `first`, `last`: real "
        "(left as\n    they are), weights (only their weights), or binary (as the others). `scaled`: a scaling factor for each output channel. "
        "`keep`: names of\n    layers left real. `soft`, `hard`: weights of the losses against the teacher's scores at `temperature` and against "
        "the labels.\n"
    )
    weight_decay: float = 0.0
    weights: str = "binary"
    activations: str = "sign"
    first: str = "real"
    last: str = "real"
    scaled: bool = True
    keep: tuple[str, ...] = ()
    temperature: float = 4.0
    soft: float = 0.5
    hard: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("weights", WEIGHTS), ("activations", ACTIVATIONS), ("first", ENDS), ("last", ENDS)):
            if getattr(self, name) not in known:
                raise BadInput(f"binarize: {name} {getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if not self.temperature > 0:
            raise BadInput(f"binarize: temperature is {self.temperature}, expected a number above 0")
        if self.soft < 0 or self.hard < 0 or self.soft + self.hard == 0:
            raise BadInput(f"binarize: the weights soft {self.soft} and hard {self.hard} must be 0 or more, and one of them above 0")
        if goal_of("binarize", self) is not None:
            raise BadInput("binarize: a weight of one bit has no zero, so there is no sparsity; leave it out (--weights ternary has zeros)")


def binarize(model: Model, settings: Binarize, task: BoundTask | None) -> Model:
    """The model with packed layers. Raises Refused without training data or without a layer to binarize, and what `loop.fit` raises."""
    trainee, trained = job.run("binarize", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    return packed(model, settings, trainee.executor)


def packed(model: Model, settings: Binarize, executor: Executor) -> Model:
    """The model with the bits of the latent weights that the executor holds."""
    latent, skipped = with_latent_weights(model, settings)
    edited = executor.into(latent)
    changed = _pack(edited)
    add_functions(edited)
    return finish(model, edited, settings, "binarize", changed, [*skipped, *job.without_norm(model)])


def prepare(model: Model, settings: Binarize, task: BoundTask) -> Trainee:
    """The graph with latent weights as a module, the teacher (the model itself where no other one came), and the sum of the two losses."""
    latent, _ = with_latent_weights(model, settings)
    _check_inputs(latent, job.training_data("binarize", task))
    value, _ = logits(model, task.output)
    executor = build(latent, more=ROWS, taps=(value,))
    at = len(executor.outputs) - 1
    losses, teach = guide("binarize", model, task, executor, at, settings)
    names = [n.inputs[1].name or "" for n in latent.ir.graph if n.op_type in LATENT and n.inputs[1] is not None]
    bounded = [executor.weights[name] for name in names]

    def keep_within_bounds() -> None:
        for weight in bounded:
            weight.clamp_(-1, 1)

    return Trainee(
        executor,
        losses,
        executor.outputs.index(task.output),
        teach=teach,
        after_step=keep_within_bounds,
    )


def _check_inputs(latent: Model, split: Split) -> None:
    """Raises BadInput where signs are taken of an input that has none."""
    names = {
        v.name
        for n in latent.ir.graph
        if n.domain == DOMAIN and n.op_type in SIGNS
        for v in [_moved_from(n.inputs[0])]
        if v.is_graph_input()
    }
    for name, values in split.samples.take(split.indices[:64]).items():
        if name in names and values.min() >= 0:
            raise BadInput(
                f"binarize: input {name!r} is never negative ({values.min():g} to {values.max():g}), so its sign says nothing; "
                "centre it (--preprocess with a mean), or leave the first layer its real input (--first weights)"
            )


def _moved_from(value: ir.Value | None) -> ir.Value:
    """Where the values come from, behind what only moves them."""
    assert value is not None
    while (node := value.producer()) is not None and node.op_type in MOVERS and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


# --- the graph that is trained: Sign, Step, and layers with latent weights

LAYERS = ("Conv", "Gemm", "MatMul")
LATENT = {f"Latent{name}": name for name in LAYERS}

REPLACED = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Softplus", "Softsign",
    "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Activations: a sign takes their place."""

MOVERS = (
    "MaxPool",
    "Flatten",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Dropout",
    "Identity",
    "Slice",
    "DepthToSpace",
    "SpaceToDepth",
)
"""What may stand between an activation and a layer: it moves values and makes none (MaxPool: the sign of the largest is the largest sign)."""

MEANS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")


def with_latent_weights(model: Model, settings: Binarize) -> tuple[Model, list[Skip]]:
    """The graph that is trained, and what is left real. Raises Refused where no layer is left to binarize."""
    edited = model.edit()
    graph = edited.graph
    layers = [n for n in graph if n.op_type in LAYERS and n.domain == "" and constant(n.inputs[1]) is not None]
    if unknown := sorted(set(settings.keep) - {n.name for n in layers}):
        raise BadInput(f"binarize: there is no layer {unknown[0]!r} to keep; there are {', '.join(n.name or '' for n in layers)}")
    first, last = _ends(layers)
    skipped = []
    chosen: dict[ir.Node, bool] = {}
    for node in layers:
        modes = [mode for mode, end in ((settings.first, first), (settings.last, last)) if node in end]
        if why := _refusal(node, settings) or next((_left(m, node in first) for m in modes if m == "real"), ""):
            skipped.append(Skip(node.name or "", why))
            continue
        chosen[node] = settings.activations != "real" and "weights" not in modes
    signed = {n for n, yes in chosen.items() if yes}
    for node in [n for n in chosen if n in signed]:
        if why := _sign_input(graph, node, signed, settings.activations):
            skipped.append(Skip(node.name or "", why))
            del chosen[node]
    if not chosen:
        reasons = "; ".join(f"{s.node}: {s.why}" for s in skipped[:4])
        raise Refused(f"binarize: no layer can be binarized ({reasons or 'there is no Conv, Gemm or MatMul with constant weights'})")
    for node in chosen:
        node.domain, node.op_type = DOMAIN, f"Latent{node.op_type}"
        node.attributes["kind"] = ir.AttrString("kind", settings.weights)
        node.attributes["scaled"] = ir.AttrInt64("scaled", int(settings.scaled))
    graph.sort()
    edited.opset_imports[DOMAIN] = 1
    return Model(edited, model.history), skipped


def _left(mode: str, is_first: bool) -> str:
    name = "first" if is_first else "last"
    return f"the {name} layer stays {mode} (asked for by `{name}`)"


def _refusal(node: ir.Node, settings: Binarize) -> str:
    """Why a layer stays real, empty if it need not."""
    weight = constant(node.inputs[1])
    assert weight is not None
    value = node.inputs[1]
    assert value is not None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if node.name in settings.keep:
        return "asked for by `keep`"
    if weight.dtype != np.float32 or not value.is_initializer():
        return "its weights are not float32"
    if len(tuple(value.uses())) > 1:
        return "its weights are read by other nodes too"
    if node.op_type != "Conv" and weight.ndim != 2:
        return "its weights are not a matrix"
    if node.op_type == "Conv" and weight.shape[1] == 1 and node.attributes.get_int("group", 1) > 1:
        return f"it is depthwise: {int(np.prod(weight.shape[2:]))} signs for each channel say too little"
    if node.op_type == "Conv" and node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "it has auto_pad, and its padding would depend on the size of the input"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "it transposes its input"
    if len(node.inputs) > 2 and node.inputs[2] is not None and (bias is None or bias.size not in (1, _channels(node, weight))):
        return "its bias is not one number per output channel"
    return ""


def _channels(node: ir.Node, weight: Array) -> int:
    transposed = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0)
    return int(weight.shape[0] if transposed else weight.shape[1])


def _ends(layers: list[ir.Node]) -> tuple[set[ir.Node], set[ir.Node]]:
    """(layers with no layer before them, layers with no layer behind them)."""
    first = {n for n in layers if not any(m in layers for m in _before(n.inputs[0]))}
    fed = {m for n in layers for m in _before(n.inputs[0]) if m in layers}
    return first, {n for n in layers if n not in fed}


def _before(value: ir.Value | None) -> Iterator[ir.Node]:
    """Every node that the value depends on."""
    todo, seen = [value], set()
    while todo:
        found = todo.pop()
        node = found.producer() if found is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += node.inputs


def _sign_input(graph: ir.Graph, layer: ir.Node, signed: set[ir.Node], activations: str) -> str:
    """Let the layer read signs. Returns why it can't, empty once it does."""
    value = _moved_from(layer.inputs[0])
    node = value.producer()
    if node is not None and node.domain == DOMAIN:
        return ""
    if node is not None and node.op_type in REPLACED and node.domain == "":
        if all(reader in signed for reader in _readers(node.outputs[0])):
            node.domain, node.op_type = DOMAIN, activations.capitalize()
            node.attributes.clear()
            node.resize_inputs(1)
            return ""
        if value is not layer.inputs[0]:
            return f"the {node.op_type} before it is read elsewhere too"
        layer.replace_input_with(0, _signed(graph, layer, node.inputs[0], activations))
        return ""
    if _never_negative(value):
        return "what it reads is never negative: the sign of it says nothing"
    layer.replace_input_with(0, _signed(graph, layer, layer.inputs[0], activations))
    return ""


def _readers(value: ir.Value) -> Iterator[ir.Node | None]:
    """Who reads the value, through what only moves values; None for the graph's output."""
    if value.is_graph_output():
        yield None
    for node, index in value.uses():
        if node.op_type in MOVERS and node.domain == "" and index == 0:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _never_negative(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in (*MEANS, *MOVERS) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Exp", "Sqrt", "Abs")


def _signed(graph: ir.Graph, layer: ir.Node, value: ir.Value | None, activations: str) -> ir.Value:
    assert value is not None
    made = ir.Node(DOMAIN, activations.capitalize(), [value], name=unique_name(graph, f"{layer.name}_{activations}"), num_outputs=1)
    made.outputs[0].name = unique_name(graph, f"{value.name}_{activations}")
    made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
    graph.insert_before(layer, made)
    return made.outputs[0]


# --- its arithmetic


class _Sign(torch.autograd.Function):
    """1 where x ≥ 0, else `low`; the gradient passes where |x| ≤ 1, times half the distance of the two values."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.low = low
        return torch.where(x >= 0, x.new_ones(()), x.new_full((), low))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1) * ((1 - ctx.low) / 2), None


class _Codes(torch.autograd.Function):
    """The codes of weights (rows, columns): signs, or −1, 0, 1. The gradient passes unchanged: the latent weights are kept within [−1, 1]."""

    @staticmethod
    def forward(ctx, w: Tensor, kind: str) -> Tensor:  # type: ignore[no-untyped-def]
        return codes_of(w, kind)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient, None


def codes_of(w: Tensor, kind: str) -> Tensor:
    """`numerics.binary` and `ternary` in torch: the codes of rows (N, K)."""
    if kind == "binary":
        return torch.where(w >= 0, w.new_ones(()), w.new_full((), -1.0))
    return w.sign() * _kept(w)


def scale_of(w: Tensor, kind: str) -> Tensor:
    """Their scale: one number for each row, with its gradient by w."""
    size = w.abs()
    if kind == "binary":
        return size.mean(1)
    kept = _kept(w)
    return (size * kept).sum(1) / kept.sum(1).clamp(min=1)


def _kept(w: Tensor) -> Tensor:
    size = w.detach().abs()
    return (size > TERNARY_THRESHOLD * size.mean(1, keepdim=True)).to(w.dtype)


def sign(x: Tensor) -> Tensor:
    """−1 and 1; the clipped straight-through estimator."""
    result: Tensor = _Sign.apply(x, -1.0)
    return result


def step(x: Tensor) -> Tensor:
    """0 and 1; the same estimator, half as steep."""
    result: Tensor = _Sign.apply(x, 0.0)
    return result


def latent_gemm(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kind: str,
    scaled: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """(x · codes) · scale + b. With signs for x the sums are whole numbers, exact in any order, so the packed file gives the same bits."""
    rows = w if transB else w.T
    y = functional.linear(x, _Codes.apply(rows, kind))
    y = y * _factor(rows, kind, scaled, alpha)
    return y if b is None else y + beta * b if beta != 1 else y + b


def latent_matmul(x: Tensor, w: Tensor, *, kind: str, scaled: int) -> Tensor:
    """The same without a bias, w (in, out)."""
    return latent_gemm(x, w, kind=kind, scaled=scaled)


def latent_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kind: str,
    scaled: int,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The same for a convolution; its padding is 0, between the two signs."""
    rows, per_channel = w.flatten(1), (-1, *[1] * (w.ndim - 2))
    codes = _Codes.apply(rows, kind).view_as(w)
    y: Tensor = conv(
        x, codes, None, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides
    )
    y = y * _factor(rows, kind, scaled, 1.0).view(per_channel)
    return y if b is None else y + b.view(per_channel)


def _factor(rows: Tensor, kind: str, scaled: int, alpha: float) -> Tensor:
    factor = scale_of(rows, kind) if scaled else rows.new_ones(len(rows))
    return factor if alpha == 1 else factor * alpha


ROWS = {
    f"{DOMAIN}::Sign": Op(sign),
    f"{DOMAIN}::Step": Op(step),
    f"{DOMAIN}::LatentGemm": Op(latent_gemm),
    f"{DOMAIN}::LatentMatMul": Op(latent_matmul),
    f"{DOMAIN}::LatentConv": Op(latent_conv),
}
"""What the executor runs in place of the functions' bodies: the same values, and gradients."""


# --- the graph that is shipped


def _pack(edited: ir.Model) -> int:
    """Replace the layers with latent weights by packed ones. Returns how many weights there are in them."""
    graph, count = edited.graph, 0
    for node in [n for n in graph if n.domain == DOMAIN and n.op_type in LATENT]:
        value = node.inputs[1]
        weight = constant(value)
        assert weight is not None and value is not None
        kind = node.attributes.get_string("kind", "")
        is_conv = LATENT[node.op_type] == "Conv"
        turned = not is_conv and node.attributes.get_int("transB", 0) == 0
        shaped = np.ascontiguousarray(weight.T if turned else weight)
        rows = torch.tensor(shaped.reshape(len(shaped), -1))
        factor = _factor(rows, kind, node.attributes.get_int("scaled", 1), node.attributes.get_float("alpha", 1.0)).numpy()
        pack: Callable[[Array], Array] = pack_signs if kind == "binary" else pack_ternary
        packed = pack(codes_of(rows, kind).numpy())
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        shift = np.zeros(len(rows), np.float32) if bias is None else np.broadcast_to(bias.ravel(), (len(rows),))
        shift = shift * np.float32(node.attributes.get_float("beta", 1.0))
        per_channel = (-1, *[1] * (shaped.ndim - 2)) if is_conv else (-1,)
        attributes: dict[str, list[int] | int] = {"shape": list(shaped.shape), "columns": [int(rows.shape[1])]}
        if is_conv:
            attributes |= _conv_attributes(node, shaped.ndim - 2)
        name = value.name or "weight"
        made = ir.node(
            f"{kind.capitalize()}{'Conv' if is_conv else 'Gemm'}",
            [
                node.inputs[0],
                add_weight(graph, f"{name}_packed", packed),
                add_weight(graph, f"{name}_scale", factor.reshape(per_channel)),
                add_weight(graph, f"{name}_bias", shift.astype(np.float32).reshape(per_channel)),
            ],
            attributes,
            domain=DOMAIN,
            name=node.name,
            outputs=[ir.Value(name=f"{node.outputs[0].name}_packed", type=node.outputs[0].type, shape=node.outputs[0].shape)],
        )
        graph.insert_before(node, made)
        _take_name(graph, node.outputs[0], made.outputs[0])
        graph.remove(node, safe=True)
        count += rows.numel()
    return count


def _take_name(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read wherever `old` is, under its name."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name = name


def _conv_attributes(node: ir.Node, axes: int) -> dict[str, list[int] | int]:
    """All of them written out: a function's attributes have no defaults."""
    found = {k: node.attributes[k].as_ints() if k in node.attributes else None for k in ("strides", "pads", "dilations")}
    return {
        "strides": list(found["strides"] or [1] * axes),
        "pads": list(found["pads"] or [0] * 2 * axes),
        "dilations": list(found["dilations"] or [1] * axes),
        "group": node.attributes.get_int("group", 1),
    }
