"""student: a smaller model of the teacher's kind, its weights inherited. No training, no data, no torch: what is left out is left out of the graph.

- `narrow:0.5` keeps half of the channels (units, heads, places of the hidden state) of every group that can lose some (shrink/groups.py): those of
  the largest L2 norm, each weight's share of it taken relative to the whole weight, so that no large layer speaks for all (Li et al., arXiv
  1608.08710; the sum over a group as in DepGraph, arXiv 2301.12900). At least one is left; 16 or more become a multiple of 8, which kernels like.
- `shallow:0.25` leaves out a quarter of the residual blocks whose input and output have the same shape (the block becomes its shortcut), spread
  evenly over the depth, for each kind of block apart, so that a transformer loses whole layers (Sanh et al., DistilBERT, arXiv 1910.01108). A model
  without such blocks loses hidden layers with their activation, where they map a shape to itself.

When: a user has one model and wants a smaller one; distillation then brings back what it can. Cost: the student starts far worse than the teacher.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from hasten import check
from hasten.errors import BadInput, Refused
from hasten.graph import Array, constant, finish, sole_consumer, take_place
from hasten.model import Model, Skip
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.shrink.groups import Group, couple
from hasten.shrink.keep import keep

ROUND = 8
"""Twice so many channels and more become a multiple of it."""

ACTIVATIONS = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Elu",
    "Selu",
    "Gelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Tanh",
    "Softplus",
)
LAYERS = ("Conv", "Gemm", "MatMul")
TELLING = (*LAYERS, *ACTIVATIONS, "BatchNormalization", "LayerNormalization", "Softmax")
"""Operators that tell one kind of block from another: what only computes shapes and masks does not."""


@dataclasses.dataclass(frozen=True)
class Student:
    """`recipe`: narrow:SHARE keeps that share of the channels, shallow:SHARE leaves out that share of the blocks; above 0, below 1."""

    recipe: str

    def __post_init__(self) -> None:
        if self.way not in ("narrow", "shallow") or not 0 < self.share < 1:
            raise BadInput(
                f"student {self.recipe!r} is not understood; expected narrow:SHARE (keeps that share of the channels) or shallow:SHARE "
                "(leaves out that share of the blocks), SHARE above 0 and below 1, such as narrow:0.5"
            )

    @property
    def way(self) -> str:
        return self.recipe.partition(":")[0]

    @property
    def share(self) -> float:
        try:
            return float(self.recipe.partition(":")[2])
        except ValueError:
            return math.nan


def make(teacher: Model, recipe: str) -> Model:
    """The student that `recipe` makes of the teacher; its last Step says what was left out and what could not be.

    Raises BadInput where the recipe is not understood, Refused where nothing can be left out.
    """
    settings = Student(recipe)
    # Exports compute shapes and transposed weights while running; folded, a channel can be followed through them.
    model = fold_constants(teacher, FoldConstants(), None)
    student = (narrow if settings.way == "narrow" else shallow)(model, settings)
    if student.fits_in_memory:
        check.oracle(student)
    return student


def narrow(model: Model, settings: Student) -> Model:
    """The model with that share of every group's channels."""
    coupled = couple(model)
    kept = {g.name: _strongest(coupled.model, g, count) for g in coupled.groups if (count := _count(g, settings.share)) < g.channels}
    if not kept:
        why = "; ".join(skip.why for skip in coupled.frozen[:2]) or "it has no layer between two others"
        raise Refused(f"student {settings.recipe}: no channels of this model can be left out ({why}); try shallow:{settings.share:g}")
    inexact = [
        Skip(g.node, f"{g.name}: narrowed, but not as if zeroed: {g.inexact}") for g in coupled.groups if g.name in kept and g.inexact
    ]
    return finish(coupled.model, keep(coupled, kept), settings, "student", len(kept), [*coupled.frozen, *inexact])


def _count(group: Group, share: float) -> int:
    """How many channels stay."""
    wish = share * group.channels
    rounded = ROUND * round(wish / ROUND) if wish >= 2 * ROUND else math.floor(wish + 0.5)
    return max(1, min(rounded, group.channels))


def _strongest(model: Model, group: Group, count: int) -> Array:
    """The channels of the largest norm, in ascending order; the first ones among equals."""
    stored = {m.weight: w.const_value for m in group.members if (w := model.ir.graph.initializers.get(m.weight)) is not None}
    members = [m for m in group.members if stored.get(m.weight) is not None]
    matrices = [m for m in members if len(stored[m.weight].shape) > 1]  # type: ignore[union-attr]
    scores = np.zeros(group.channels)
    for member in matrices or members:
        tensor = stored[member.weight]
        assert tensor is not None
        array = np.moveaxis(tensor.numpy().astype(np.float64), member.axis, 0)
        power = np.square(array).reshape(len(array), -1).sum(1)[member.positions].sum(1)
        scores += power / total if (total := power.sum()) > 0 else 0
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def shallow(model: Model, settings: Student) -> Model:
    """The model without that share of its residual blocks, or of its hidden layers where it has no such block."""
    edited = model.edit()
    blocks, skipped = _residual_blocks(edited.graph)
    if not blocks:
        blocks = list(_hidden_layers(edited.graph))
    chosen = _chosen(blocks, settings.share)
    if not chosen:
        found = f"{len(blocks)} of them are too few for this share" if blocks else "it has none"
        raise Refused(
            f"student {settings.recipe}: only residual blocks, or hidden layers, that map a shape to itself can be left out, and {found}; "
            f"try narrow:{1 - settings.share:g}"
        )
    passed: dict[int, ir.Value] = {}
    for block in chosen:
        # Where the block before is gone too, its shortcut is this one's.
        source = passed.get(id(block.source), block.source)
        take_place(block.result, source)
        passed[id(block.result)] = source
    for node in edited.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    skipped += [Skip(b.name, "kept: others of its kind are left out") for b in blocks if b not in chosen]
    return finish(model, edited, settings, "student", len(chosen), skipped)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What maps `source` to `result` of the same shape. `kind`: its operators."""

    name: str
    source: ir.Value
    result: ir.Value
    kind: tuple[str, ...]


def _chosen(blocks: list[Block], share: float) -> list[Block]:
    """That share of the blocks of each kind; where there are too few of each, of all together."""
    kinds = [[b for b in blocks if b.kind == kind] for kind in dict.fromkeys(b.kind for b in blocks)]
    found = [b for kind in kinds for b in _spread(kind, math.ceil(share * len(kind) - 0.5))]
    return found or _spread(blocks, math.floor(share * len(blocks) + 0.5))


def _spread(blocks: list[Block], count: int) -> list[Block]:
    """So many of the blocks, at even distances."""
    return [blocks[int((i + 0.5) * len(blocks) / count)] for i in range(count)]


def _residual_blocks(graph: ir.Graph) -> tuple[list[Block], list[Skip]]:
    """The innermost x + f(x) with weights in f, and those Adds whose shortcut is not x itself."""
    nodes = list(graph)
    number = {id(node): i for i, node in enumerate(nodes)}
    before: dict[int, int] = {}  # value → the nodes that it depends on, as bits
    found: list[Block] = []
    skipped: list[Skip] = []
    adds = 0
    layers = sum(1 << i for i, node in enumerate(nodes) if node.op_type in LAYERS)
    for i, node in enumerate(nodes):
        bits = 1 << i
        for value in node.inputs:
            bits |= before.get(id(value), 0)
        for value in node.outputs:
            before[id(value)] = bits
        if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
            continue
        one, other = node.inputs
        if one is None or other is None or constant(one) is not None or constant(other) is not None:
            continue
        for source, branch in ((one, other), (other, one)):
            inside = before.get(id(branch), 0) & ~before.get(id(source), 0)
            own = [nodes[k] for k in range(i) if inside >> k & 1]
            reads = any(source is v for n in own for v in n.inputs)
            apart = all(
                number.get(id(u.node), -1) == i or inside >> number[id(u.node)] & 1
                for n in own
                if n.op_type in LAYERS
                for u in n.outputs[0].uses()
            )
            if reads and apart and inside & layers and not inside & adds and _same_shape(source, branch):
                found.append(Block(node.name or "", source, node.outputs[0], tuple(n.op_type for n in own if n.op_type in TELLING)))
                adds |= 1 << i
                break
        else:
            a, b = before.get(id(one), 0), before.get(id(other), 0)
            if a & b and (a ^ b) & layers and a & ~b and b & ~a:
                skipped.append(
                    Skip(node.name or "", "kept: its shortcut is not its input but computed (another shape), or blocks stand within it")
                )
    return found, skipped


def _hidden_layers(graph: ir.Graph) -> Iterator[Block]:
    """Layers that map a hidden value to one of its shape, with the norm, bias and activation behind them."""
    for node in graph:
        if node.op_type not in LAYERS or len(node.inputs) < 2 or constant(node.inputs[1]) is None:
            continue
        source, result, kind = node.inputs[0], node.outputs[0], [node.op_type]
        active = False
        while (reader := sole_consumer(result)) is not None and (
            reader.op_type in ("BatchNormalization", *ACTIVATIONS)
            or (reader.op_type == "Add" and any(constant(v) is not None for v in reader.inputs))
        ):
            active |= reader.op_type in ACTIVATIONS
            result = reader.outputs[0]
            kind.append(reader.op_type)
        if (
            source is None
            or source.producer() is None
            or not active
            or result.is_graph_output()
            or source.shape is None
            or source.shape != result.shape
        ):
            continue
        grouped = node.attributes.get_int("group", 1) > 1
        yield Block(node.name or "", source, result, (*kind, "grouped" if grouped else ""))


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values that are added have the same shape: known sizes are equal, and the same axes are dynamic."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        m == n if isinstance(m, int) and isinstance(n, int) else isinstance(m, int) == isinstance(n, int)
        for m, n in zip(a.shape, b.shape, strict=True)
    )
