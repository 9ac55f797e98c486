"""push_transposes: move each Transpose down the graph until it meets its inverse. Effect: rounding (a reduction may add up in another order).

Frameworks that compute channels last (Keras, TensorFlow) leave a Transpose before and after every convolution. The numbers between two of them
are only stored in another order, so an elementwise operator may run before the Transpose just as well as after it; what meets its inverse goes.

When: for models that were trained channels last (Keras, TensorFlow).
Cost: nothing at run time; no data. If no Transpose would be saved, the graph stays as it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, add_weight, begin, constant, may_rewrite, settle, sole_consumer, take_place, unique_name
from hasten.model import Model, Step
from hasten.task import BoundTask

Perm = tuple[int, ...]

UNARY = frozenset(
    "Abs Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not "
    "Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tan Tanh ThresholdedRelu".split()
)
"""Elementwise in their first input; further inputs are scalars (Clip's bounds)."""

VARIADIC = frozenset("Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu Sub Sum Where Xor".split())
"""Elementwise in all inputs, which broadcast."""

REDUCTIONS = frozenset("ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare".split())


@dataclasses.dataclass(frozen=True)
class PushTransposes:
    """No settings."""


def push_transposes(model: Model, settings: PushTransposes, task: BoundTask | None) -> Model:
    """Push, cancel, and permute the weights behind a flattening. If no Transpose would be saved, the graph stays as it was."""
    edited = begin(model)
    saved = 0
    if any(_pushing(node) is not None for node in edited.graph):
        trial = edited.clone()
        before = _moved(trial.graph)
        while sum(_push(node) for node in list(trial.graph)):
            continue
        settle(trial)
        saved = before - _moved(trial.graph)
        edited = trial if saved > 0 else edited
    return model.then(edited, Step("push_transposes", dataclasses.asdict(settings), max(saved, 0)))


def _moved(graph: ir.Graph) -> int:
    """How many values per sample are moved by Transposes of something computed."""
    return sum(_size(node.inputs[0]) for node in graph if node.op_type == "Transpose" and constant(node.inputs[0]) is None)


def _size(value: ir.Value | None) -> int:
    """Elements, an axis of unknown size counted as one."""
    return math.prod(d for d in (value.shape or () if value is not None else ()) if isinstance(d, int))


def _push(node: ir.Node) -> bool:
    """Let the node run before the Transposes that feed it, if its operator allows that. True if it did."""
    push = _pushing(node)
    if push is None or not may_rewrite(node):
        return False
    push()
    return True


def _pushing(node: ir.Node) -> Callable[[], None] | None:
    """What lets the node run before the Transposes that feed it, or makes one Transpose of two; None where that can't be."""
    if node.graph is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Transpose":
        return None if None in (_perm(node.inputs[0]), _perm(node.outputs[0])) else lambda: _merge(node)
    rule = RULES.get(node.op_type)
    perms = {p for v in node.inputs if (p := _perm(v)) is not None} if rule is not None else set()
    adapt = rule(node, perms.pop()) if rule is not None and len(perms) == 1 else None
    if adapt is None:
        return None

    def push() -> None:
        after = adapt()
        for output in list(node.outputs):
            _transpose_output(node, output, after)

    return push


Adapt = Callable[[], Perm]
"""Lets a node read the Transposes' inputs and adapts it; gives the permutation that its output then needs."""

# Each rule changes nothing: it gives what would, or None: not here.


def _first_input(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt() -> Perm:
        _take_source(node, 0)
        return perm

    return None if _perm(node.inputs[0]) is None else adapt


def _elementwise(node: ir.Node, perm: Perm) -> Adapt | None:
    """Constants are transposed at once; a computed input that broadcasts (a gate per channel) is transposed where it comes in, being small."""
    large = max(_size(v) for v in node.inputs if _perm(v) is not None)
    moved: dict[int, Array | None] = {}
    for i, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or _perm(value) is not None or (array is not None and array.size == 1 and array.ndim <= len(perm)):
            continue
        if array is not None and array.ndim <= len(perm):
            moved[i] = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(_inverse(perm))
        elif array is None and value.shape is not None and len(value.shape) == len(perm) and _size(value) < large:
            moved[i] = None
        else:
            return None

    def adapt() -> Perm:
        graph = _graph(node)
        for i, value in enumerate(node.inputs):
            if value is not None and i in moved:
                array = moved[i]
                node.replace_input_with(
                    i, _transposed(graph, node, value, _inverse(perm)) if array is None else add_weight(graph, f"{value.name}_moved", array)
                )
            elif _perm(value) is not None:
                _take_source(node, i)
        return perm

    return adapt


def _reduction(node: ir.Node, perm: Perm) -> Adapt | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or axes.size == 0 or _perm(node.inputs[0]) is None:
        return None
    moved = sorted(perm[int(a)] for a in axes.ravel())

    def adapt() -> Perm:
        _take_source(node, 0)
        node.replace_input_with(1, add_weight(_graph(node), f"{node.name or node.op_type}_axes", np.array(moved, np.int64)))
        if node.attributes.get_int("keepdims", 1):
            return perm
        left = [p for i, p in enumerate(perm) if p not in moved]
        return tuple(sorted(left).index(p) for p in left)

    return adapt


def _concat(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt() -> Perm:
        for i in range(len(node.inputs)):
            _take_source(node, i)
        node.attributes["axis"] = ir.AttrInt64("axis", perm[node.attributes["axis"].as_int()])
        return perm

    return None if any(_perm(v) is None for v in node.inputs) else adapt


def _split(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt() -> Perm:
        _take_source(node, 0)
        node.attributes["axis"] = ir.AttrInt64("axis", perm[node.attributes.get_int("axis", 0)])
        return perm

    return adapt


def _pad(node: ir.Node, perm: Perm) -> Adapt | None:
    pads = constant(node.inputs[1])
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    moved = pads.reshape(2, -1)[:, list(_inverse(perm))].ravel()

    def adapt() -> Perm:
        _take_source(node, 0)
        node.replace_input_with(1, add_weight(_graph(node), f"{node.name or 'Pad'}_pads", moved))
        return perm

    return adapt


def _flatten(node: ir.Node, perm: Perm) -> Adapt | None:
    """Flattening to (batch, features) before a product with constant weights: the weights' rows change their order instead."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    product = sole_consumer(output)
    if perm[0] != 0 or product is None or product.op_type not in ("MatMul", "Gemm") or product.inputs[0] is not output:
        return None
    weight = constant(product.inputs[1])
    shape = list(source.shape or ())[1:]
    sizes = [d for d in shape if isinstance(d, int)]
    if weight is None or weight.ndim != 2 or not sizes or len(sizes) < len(shape) or product.attributes.get_int("transA", 0) != 0:
        return None
    transposed = product.attributes.get_int("transB", 0) == 1
    rows = weight.T if transposed else weight
    if rows.shape[0] != math.prod(sizes) or output.shape is None or len(output.shape) != 2:
        return None
    order = np.arange(rows.shape[0]).reshape(sizes).transpose([p - 1 for p in _inverse(perm)[1:]]).ravel()
    moved = rows[order].T if transposed else rows[order]

    def adapt() -> Perm:
        _take_source(node, 0)
        product.replace_input_with(1, add_weight(_graph(node), f"{product.inputs[1].name}_moved", moved))  # type: ignore[union-attr]
        return (0, 1)

    return adapt


RULES: dict[str, Callable[[ir.Node, Perm], Adapt | None]] = {
    **dict.fromkeys(UNARY, _first_input),
    **dict.fromkeys(VARIADIC, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Flatten": _flatten,
    "Reshape": _flatten,
}
"""Operator → what lets it run before a Transpose."""


def _merge(node: ir.Node) -> None:
    """Two Transposes in a row are one, or none."""
    first, second = _perm(node.inputs[0]), _perm(node.outputs[0])
    assert first is not None and second is not None
    merged = tuple(first[p] for p in second)
    _take_source(node, 0)
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if merged != tuple(range(len(merged))):
        node.attributes["perm"] = ir.AttrInt64s("perm", merged)
    elif output.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
        node.op_type = "Identity"
        node.attributes.clear()
    else:
        take_place(output, source)
        _graph(node).remove(node, safe=True)


def _perm(value: ir.Value | None) -> Perm | None:
    """The permutation of the Transpose that makes the value, None if another node does."""
    node = value.producer() if value is not None else None
    if (
        node is None
        or node.op_type != "Transpose"
        or node.domain != ""
        or "perm" not in node.attributes
        or constant(node.inputs[0]) is not None
    ):
        return None
    return tuple(node.attributes["perm"].as_ints())


def _inverse(perm: Sequence[int]) -> Perm:
    return tuple(int(i) for i in np.argsort(perm))


def _take_source(node: ir.Node, index: int) -> None:
    """Read what the Transpose at this input reads."""
    value = node.inputs[index]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    node.replace_input_with(index, producer.inputs[0])


def _transpose_output(node: ir.Node, output: ir.Value, perm: Perm) -> None:
    """Put the Transpose behind the node; it takes over the output's readers, and its name where the graph's caller knows it."""
    if perm == tuple(range(len(perm))):
        return
    graph, shape, name = _graph(node), output.shape, output.name
    new = _transposed(graph, None, output, perm)
    new.shape = shape
    after = new.producer()
    assert after is not None
    graph.insert_after(node, after)
    take_place(output, new)
    after.replace_input_with(0, output)
    output.shape = None if shape is None else ir.Shape([shape[i] for i in _inverse(perm)])
    output.name = output.name or unique_name(graph, f"{name}_moved")


def _transposed(graph: ir.Graph, before: ir.Node | None, value: ir.Value, perm: Perm) -> ir.Value:
    """The value through a new Transpose, which is placed before that node, or left to the caller to place."""
    node = ir.node("Transpose", [value], {"perm": list(perm)}, name=unique_name(graph, f"{value.name}_order"))
    new = node.outputs[0]
    new.name = unique_name(graph, f"{value.name}_ordered")
    new.type = None if value.dtype is None else ir.TensorType(value.dtype)
    new.shape = None if value.shape is None else ir.Shape([value.shape[i] for i in perm])
    if before is not None:
        graph.insert_before(before, node)
    return new


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
