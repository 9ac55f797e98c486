"""sparsify: a training under which structure switches itself off. Effect: trained.

Minimises E[ℓ] + Σ λ Ω(g) over groups g of weights, Ω(g) = √|g| ‖g‖₂ (group lasso, Yuan and Lin, 2006; for a single number it is |g|). After each
step of the optimizer with rate η comes the proximal step of the penalty, which gives exact zeros where a penalty's gradient only comes near:

    g ← g · max(0, 1 − η λ √|g| / ‖g‖₂)

With `sgd` this is that objective's proximal gradient (its momentum of 0.9 makes the loss count ten times). With `adamw` it is decoupled from the
gradient's size, as its weight decay is: the loss pulls with at most about η a step, the penalty with η λ, so a λ between 0 and 1 leaves what the
loss pulls at steadily, and the sum of η λ over all steps must exceed the size of what is to reach zero (1 for gates and for most scales).

Groups: single weights (`weights`); the weights of an output channel (`channels`, arXiv 1608.03665); the scale of each channel of a batch norm
(`norms`, network slimming, arXiv 1708.06519); a gate on each residual branch (`branches`) and on each attention head (`heads`), which start at 1:
y = x + γ F(x), and γ_h times what head h gives (arXiv 1707.01213, 1905.10650). Under a batch norm the size of the weights before it means
nothing, so there `norms` is the penalty that decides. After the training gates are multiplied into the weights next to them where that is the
same, and a branch whose gate is zero is left out. Channels and heads that reached zero are reported and stand as zeros in the weights: what
removes them is a step of `shrink`.

When: before structured pruning, to learn what can go.
Cost: that of `train`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, sole_consumer, take_place, unique_name
from hasten.learn import job
from hasten.learn.executor import Executor, build
from hasten.learn.guided import guide
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import logits
from hasten.learn.zeros import zeros as zeros_of
from hasten.model import Model, Skip
from hasten.task import BoundTask

KINDS = ("weights", "channels", "norms", "branches", "heads")


@dataclasses.dataclass(frozen=True)
class Sparsify(Loop):
    __doc__ = (
        (Loop.__doc__ or "")
        + """
    The penalties' λ, 0 for none: `weights` (single ones), `channels` (output channels of layers), `norms` (batch norm's scales), `branches`
    (residual ones), `heads` (of attention). `soft`, `hard`: weights of the losses against the scores of a teacher (the model itself where no
    other one came) at `temperature`, and against the labels. The last epoch's weights are kept.
    """
    )
    weight_decay: float = 0.0
    weights: float = 0.0
    channels: float = 0.0
    norms: float = 0.2
    branches: float = 0.0
    heads: float = 0.0
    temperature: float = 4.0
    soft: float = 0.0
    hard: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in KINDS:
            if getattr(self, name) < 0:
                raise BadInput(f"sparsify: {name} is {getattr(self, name)}, expected 0 (none) or more")
        if not any(getattr(self, name) for name in KINDS):
            raise BadInput(f"sparsify: every penalty is 0; give at least one of {', '.join(KINDS)}")
        if self.average:
            raise BadInput(f"sparsify: an average of weights (average {self.average}) has no exact zeros; leave --average out")
        if not self.temperature > 0 or self.soft < 0 or self.hard < 0 or self.soft + self.hard == 0:
            raise BadInput(
                f"sparsify: temperature {self.temperature} must be above 0, the weights soft {self.soft} and hard {self.hard} 0 or more, "
                "and one of them above 0"
            )


@dataclasses.dataclass(frozen=True)
class Group:
    """The groups of one initializer. kind: of KINDS; where: the layer, in words; axis: each place along it is a group (None: each number)."""

    kind: str
    name: str
    where: str
    axis: int | None = None


def sparsify(model: Model, settings: Sparsify, task: BoundTask | None) -> Model:
    """The trained model with its zeros. Raises Refused without training data, or where there is nothing to penalise; what `loop.fit` raises."""
    trainee, trained = job.run("sparsify", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    return settled(model, settings, trainee.executor, trainee.zeros.notes())


def prepare(model: Model, settings: Sparsify, task: BoundTask) -> Trainee:
    """The graph with its gates as a module, its losses, and the proximal step."""
    gated, groups = with_gates(model, settings)
    value, final = logits(model, task.output)
    executor = build(gated, taps=(value,) if final else ())
    judged = executor.outputs.index(task.output)
    at = len(executor.outputs) - 1 if final else judged
    losses, teach = guide("sparsify", model, task, executor, at, settings)
    return Trainee(
        executor,
        losses,
        judged,
        teach=teach,
        proximal=proximal_step(executor, groups, settings),
        keep_last=True,
        zeros=zeros_of("sparsify", gated, executor.weights, settings),
    )


def proximal_step(executor: Executor, groups: list[Group], settings: Sparsify) -> Callable[[float], None]:
    """What is done to the parameters after a step with rate η."""
    chosen = [(executor.weights[g.name], g.axis, float(getattr(settings, g.kind))) for g in groups]

    def step(rate: float) -> None:
        for weight, axis, strength in chosen:
            weight.copy_(proximal(weight, axis, rate * strength))

    return step


def proximal(w: Tensor, axis: int | None, threshold: float) -> Tensor:
    """argmin over v of ‖v − w‖² / 2 + threshold Σ √|g| ‖v_g‖, g the places along `axis`, or each number."""
    if axis is None:
        return w.sign() * (w.abs() - threshold).clamp(min=0)
    others = [i for i in range(w.ndim) if i != axis]
    size = w.square().sum(others, keepdim=True).sqrt() if others else w.abs()
    count = w.numel() / w.shape[axis]
    return w * (1 - threshold * count**0.5 / size.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0)


# --- what is penalised

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def with_gates(model: Model, settings: Sparsify) -> tuple[Model, list[Group]]:
    """The graph with a gate of 1 wherever one is asked for, and all groups. Raises Refused where there is none."""
    edited = model.edit()
    graph = edited.graph
    groups: list[Group] = []
    for node in list(graph):
        name = node.name or node.op_type
        if settings.branches and node.op_type == "Add" and (index := residual_branch(node)) is not None:
            groups.append(Group("branches", _gate(graph, node, index, (1,)), name))
        if settings.heads and (heads := attention_heads(node)):
            reader = sole_consumer(node.outputs[0])
            if reader is not None:
                groups.append(Group("heads", _gate(graph, reader, 0, (heads, 1, 1)), name, axis=0))
    last = {n for n in graph if n.op_type in LAYERS and not _feeds_layer(n)}
    for node in graph:
        name = node.name or node.op_type
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if weight is None or not weight.is_initializer() or len(tuple(weight.uses())) != 1 or weight.dtype != ir.DataType.FLOAT:
            continue
        if node.op_type in LAYERS and node.domain == "" and weight.name:
            if settings.weights:
                groups.append(Group("weights", weight.name, name))
            if settings.channels and node not in last and node.op_type != "ConvTranspose":
                transposed = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0)
                axis = 0 if transposed else len(weight.shape or ()) - 1
                groups.append(Group("channels", weight.name, name, axis))
        if settings.norms and node.op_type == "BatchNormalization" and weight.name:
            groups.append(Group("norms", weight.name, name, axis=0))
    if not groups:
        asked = ", ".join(kind for kind in KINDS if getattr(settings, kind))
        raise Refused(f"sparsify: the model has nothing that the penalties apply to ({asked}); ask for others of {', '.join(KINDS)}")
    graph.sort()
    return Model(edited, model.history), groups


def residual_branch(add: ir.Node) -> int | None:
    """Which input of an Add is a branch that begins where the other input comes from (the shortcut), None if neither is."""
    values = list(add.inputs)
    if any(v is None or constant(v) is not None for v in values):
        return None
    for index in (0, 1):
        branch, shortcut = values[index], values[1 - index]
        if branch is not shortcut and branch is not None and shortcut is not None and _depends(branch, shortcut):
            return index
    return None


def _depends(value: ir.Value, on: ir.Value) -> bool:
    todo, seen = [value], set()
    while todo:
        found = todo.pop()
        if found is on:
            return True
        node = found.producer()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [v for v in node.inputs if v is not None]
    return False


def attention_heads(node: ir.Node) -> int:
    """How many heads the product of attention weights and values has, its result (N, heads, T, width); 0 where the node is none."""
    if node.op_type != "MatMul" or node.inputs[0] is None or constant(node.inputs[1]) is not None:
        return 0
    before = node.inputs[0].producer()
    while before is not None and before.op_type in ("Dropout", "Identity", "Where", "IsNaN", "Cast") and before.inputs[-1] is not None:
        before = (before.inputs[-1] if before.op_type == "Where" else before.inputs[0]).producer()  # type: ignore[union-attr]
    shape = node.outputs[0].shape
    if before is None or before.op_type != "Softmax" or shape is None or len(shape) != 4:
        return 0
    return shape[1] if isinstance(shape[1], int) and shape[1] > 1 else 0


def _feeds_layer(node: ir.Node) -> bool:
    """Whether another layer reads on from here."""
    todo, seen = list(node.outputs), set()
    while todo:
        for reader, _ in todo.pop().uses():
            if reader in seen:
                continue
            if reader.op_type in LAYERS:
                return True
            seen.add(reader)
            todo += reader.outputs
    return False


def _gate(graph: ir.Graph, reader: ir.Node, index: int, shape: tuple[int, ...]) -> str:
    """Multiply what the reader reads at `index` with a new weight of ones; its name."""
    value = reader.inputs[index]
    assert value is not None
    gate = add_weight(graph, f"{value.name}_gate", np.ones(shape, np.float32))
    made = ir.node("Mul", [value, gate], name=unique_name(graph, f"{reader.name}_gated"))
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = unique_name(graph, f"{value.name}_gated"), value.type, value.shape
    graph.insert_before(reader, made)
    reader.replace_input_with(index, made.outputs[0])
    return gate.name or ""


# --- what became of it


def settled(model: Model, settings: Sparsify, executor: Executor, kept: Sequence[Skip] = ()) -> Model:
    """The model with the trained weights: gates multiplied in, branches of gate zero left out, all zeros counted in the history."""
    gated, groups = with_gates(model, settings)
    edited = executor.into(gated)
    graph = edited.graph
    notes = _counted(graph, groups)
    for group in groups:
        if group.kind in ("branches", "heads"):
            gate = graph.initializers[group.name]
            (mul,) = (node for node, _ in gate.uses())
            if why := _settle(graph, mul, constant(gate), group):
                notes.append(Skip(group.where, why))
    return finish(model, edited, settings, "sparsify", len(executor.weights), [*notes, *kept, *job.without_norm(model)])


WORDS = {
    "weights": "weights",
    "channels": "output channels",
    "norms": "channels of batch norm (their scale)",
    "branches": "residual branches",
    "heads": "attention heads",
}


def _counted(graph: ir.Graph, groups: list[Group]) -> list[Skip]:
    """For each kind how many groups are zero, and in which layers."""
    notes = []
    for kind in KINDS:
        found = [(g, zeros(constant(graph.initializers[g.name]), g.axis)) for g in groups if g.kind == kind]
        if not found:
            continue
        zero, total = sum(z for _, (z, _) in found), sum(n for _, (_, n) in found)
        each = "; ".join(f"{g.where} {z} of {n}" for g, (z, n) in found if z)
        notes.append(Skip("", f"{zero} of {total} {WORDS[kind]} reached zero{f': {each}' if each else ''}"))
    return notes


def zeros(array: Array | None, axis: int | None) -> tuple[int, int]:
    """(groups that are zero, groups)."""
    assert array is not None
    if axis is None:
        return int(np.sum(array == 0)), array.size
    others = tuple(i for i in range(array.ndim) if i != axis)
    return int(np.sum(np.all(array == 0, axis=others))), array.shape[axis]


def _settle(graph: ir.Graph, mul: ir.Node, gate: Array | None, group: Group) -> str:
    """Take the gate out of the graph: into the weights beside it, or with its branch. Returns why it stays, empty once it is gone."""
    assert gate is not None
    (reader,) = (node for node, _ in mul.outputs[0].uses())
    before = mul.inputs[0]
    assert before is not None
    if group.kind == "branches" and not gate.any():
        shortcut = next(v for v in reader.inputs if v is not mul.outputs[0])
        assert shortcut is not None
        if reader.outputs[0].is_graph_output() and (shortcut.is_graph_input() or shortcut.is_graph_output()):
            return "its branch is zero and its shortcut is the model's own input and output: the gate stays"
        take_place(reader.outputs[0], shortcut)
        graph.remove([reader, mul], safe=True)
        return ""
    if np.all(gate == 1) or (_into_norm(graph, mul, gate) if group.kind == "branches" else _into_projection(graph, mul, gate)):
        take_place(mul.outputs[0], before)
        graph.remove(mul, safe=True)
        return ""
    return "its gate stays in the graph: there are no weights beside it that could take it up"


def _into_norm(graph: ir.Graph, mul: ir.Node, gate: Array) -> bool:
    """γ (a x + b) = (γ a) x + γ b: into the scale and bias of the batch norm before it."""
    value = mul.inputs[0]
    norm = value.producer() if value is not None else None
    if norm is None or norm.op_type != "BatchNormalization" or sole_consumer(norm.outputs[0]) is not mul:
        return False
    for index in (1, 2):
        array = constant(norm.inputs[index])
        if array is None:
            return False
        norm.replace_input_with(index, add_weight(graph, f"{norm.inputs[index].name}_gated", array * gate))  # type: ignore[union-attr]
    return True


def _into_projection(graph: ir.Graph, mul: ir.Node, gate: Array) -> bool:
    """Heads side by side go through one product: its rows of head h, times the gate of h."""
    reader = sole_consumer(mul.outputs[0])
    moved = False
    while reader is not None and reader.op_type in ("Transpose", "Reshape"):
        if reader.op_type == "Transpose" and list(reader.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
            return False
        moved = moved or reader.op_type == "Transpose"
        reader = sole_consumer(reader.outputs[0])
    if reader is None or not moved or reader.op_type not in ("MatMul", "Gemm"):
        return False
    weight = constant(reader.inputs[1])
    turned = reader.op_type == "Gemm" and reader.attributes.get_int("transB", 0) != 0
    rows = weight.shape[1 if turned else 0] if weight is not None and weight.ndim == 2 else 0
    if weight is None or not rows or rows % len(gate):
        return False
    factor = np.repeat(gate.ravel(), rows // len(gate))
    scaled = weight * (factor if turned else factor[:, None])
    reader.replace_input_with(1, add_weight(graph, f"{reader.inputs[1].name}_gated", scaled.astype(np.float32)))  # type: ignore[union-attr]
    return True
