"""push_transposes: move each Transpose down the graph until it meets its inverse. Effect: rounding (a reduction may add up in another order).

Frameworks that compute channels last (Keras, TensorFlow) leave a Transpose before and after every convolution. The numbers between two of them
are only stored in another order, so an elementwise operator may run before the Transpose just as well as after it; what meets its inverse goes.

Branches, loops' bodies and local functions are graphs of their own: a Transpose stays in the one it stands in. One that is pushed into a loop would
run each time, and one that is pushed out of a branch would run where the branch is not taken.

When: for models that were trained channels last (Keras, TensorFlow).
Cost: nothing at run time; no data. If no Transpose would be saved, the graph stays as it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, may_rewrite, settle, sole_consumer, take_place
from hasten.model import Model, Step
from hasten.rewrite import Edit, graph_of, plain
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
    """Push, cancel, and permute the weights behind a flattening. A graph in which no Transpose would be saved stays as it was; so does each graph
    in it (branches, loops' bodies) and each function, apart from the others."""
    edited = begin(model)
    saved = 0
    for index in [i for i, graph in enumerate(Edit(edited).graphs()) if any(_pushing(node) is not None for node in graph)]:
        trial = edited.clone()
        edit = Edit(trial)
        graph = list(edit.graphs())[index]
        before = _moved(graph)
        while sum(_push(node, edit) for node in list(graph)):
            continue
        settle(trial)
        if (gain := before - _moved(graph)) > 0:
            edited, saved = trial, saved + gain
    return model.then(edited, Step("push_transposes", dataclasses.asdict(settings), saved))


def _moved(graph: ir.Graph) -> int:
    """How many values per sample are moved by Transposes of something computed."""
    return sum(_size(node.inputs[0]) for node in graph if node.op_type == "Transpose" and constant(node.inputs[0]) is None)


def _size(value: ir.Value | None) -> int:
    """Elements, an axis of unknown size counted as one."""
    return math.prod(d for d in (value.shape or () if value is not None else ()) if isinstance(d, int))


def _push(node: ir.Node, edit: Edit) -> bool:
    """Let the node run before the Transposes that feed it, if its operator allows that. True if it did."""
    push = _pushing(node)
    if push is None or not may_rewrite(node):
        return False
    push(edit)
    return True


def _pushing(node: ir.Node) -> Callable[[Edit], None] | None:
    """What lets the node run before the Transposes that feed it, or makes one Transpose of two; None where that can't be."""
    if node.graph is None or not plain(node) or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Transpose":
        return None if None in (_perm(node, 0), _own_perm(node)) else lambda edit: _merge(node)
    rule = RULES.get(node.op_type)
    perms = {p for i in range(len(node.inputs)) if (p := _perm(node, i)) is not None} if rule is not None else set()
    adapt = rule(node, perms.pop()) if rule is not None and len(perms) == 1 else None
    if adapt is None:
        return None

    def push(edit: Edit) -> None:
        after = adapt(edit)
        for output in list(node.outputs):
            _transpose_output(node, output, after, edit)

    return push


Adapt = Callable[[Edit], Perm]
"""Lets a node read the Transposes' inputs and adapts it; gives the permutation that its output then needs."""

# Each rule changes nothing: it gives what would, or None: not here.


def _first_input(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt(edit: Edit) -> Perm:
        _take_source(node, 0)
        return perm

    return None if _perm(node, 0) is None else adapt


def _elementwise(node: ir.Node, perm: Perm) -> Adapt | None:
    """Constants are transposed at once; a computed input that broadcasts (a gate per channel) is transposed where it comes in, being small."""
    large = max(_size(v) for i, v in enumerate(node.inputs) if _perm(node, i) is not None)
    moved: dict[int, Array | None] = {}
    for i, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or _perm(node, i) is not None or (array is not None and array.size == 1 and array.ndim <= len(perm)):
            continue
        if array is not None and array.ndim <= len(perm):
            moved[i] = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(_inverse(perm))
        elif array is None and value.shape is not None and len(value.shape) == len(perm) and _size(value) < large:
            moved[i] = None
        else:
            return None

    def adapt(edit: Edit) -> Perm:
        for i, value in enumerate(node.inputs):
            if value is not None and i in moved:
                array = moved[i]
                node.replace_input_with(
                    i, _transposed(edit, node, value, _inverse(perm)) if array is None else edit.weight(node, f"{value.name}_moved", array)
                )
            elif _perm(node, i) is not None:
                _take_source(node, i)
        return perm

    return adapt


def _reduction(node: ir.Node, perm: Perm) -> Adapt | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or axes.size == 0 or _perm(node, 0) is None:
        return None
    moved = sorted(perm[int(a)] for a in axes.ravel())

    def adapt(edit: Edit) -> Perm:
        _take_source(node, 0)
        node.replace_input_with(1, edit.weight(node, f"{node.name or node.op_type}_axes", np.array(moved, np.int64)))
        if node.attributes.get_int("keepdims", 1):
            return perm
        left = [p for i, p in enumerate(perm) if p not in moved]
        return tuple(sorted(left).index(p) for p in left)

    return adapt


def _concat(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt(edit: Edit) -> Perm:
        for i in range(len(node.inputs)):
            _take_source(node, i)
        node.attributes["axis"] = ir.AttrInt64("axis", perm[node.attributes["axis"].as_int()])
        return perm

    return None if any(_perm(node, i) is None for i in range(len(node.inputs))) else adapt


def _split(node: ir.Node, perm: Perm) -> Adapt | None:
    def adapt(edit: Edit) -> Perm:
        _take_source(node, 0)
        node.attributes["axis"] = ir.AttrInt64("axis", perm[node.attributes.get_int("axis", 0)])
        return perm

    return adapt


def _pad(node: ir.Node, perm: Perm) -> Adapt | None:
    pads = constant(node.inputs[1])
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    moved = pads.reshape(2, -1)[:, list(_inverse(perm))].ravel()

    def adapt(edit: Edit) -> Perm:
        _take_source(node, 0)
        node.replace_input_with(1, edit.weight(node, f"{node.name or 'Pad'}_pads", moved))
        return perm

    return adapt


def _flatten(node: ir.Node, perm: Perm) -> Adapt | None:
    """Flattening to (batch, features) before a product with constant weights: the weights' rows change their order instead."""
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    product = sole_consumer(output)
    if (
        perm[0] != 0
        or product is None
        or product.op_type not in ("MatMul", "Gemm")
        or product.inputs[0] is not output
        or not plain(product)
    ):
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

    def adapt(edit: Edit) -> Perm:
        _take_source(node, 0)
        product.replace_input_with(1, edit.weight(product, f"{product.inputs[1].name}_moved", moved))  # type: ignore[union-attr]
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
    first, second = _perm(node, 0), _own_perm(node)
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
        graph_of(node).remove(node, safe=True)


def _perm(node: ir.Node, index: int) -> Perm | None:
    """The permutation of the Transpose in the node's own graph that makes this input, None if anything else does.

    From around a loop's body nothing is pushed into it: there it would run once, in the body each time.
    """
    value = node.inputs[index]
    before = value.producer() if value is not None else None
    return None if before is None or before.graph is not node.graph else _own_perm(before)


def _own_perm(node: ir.Node) -> Perm | None:
    """The permutation, None where the node is no Transpose of something computed."""
    if node.op_type != "Transpose" or not plain(node) or "perm" not in node.attributes or constant(node.inputs[0]) is not None:
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


def _transpose_output(node: ir.Node, output: ir.Value, perm: Perm, edit: Edit) -> None:
    """Put the Transpose behind the node; it takes over the output's readers, and its name where the graph's caller knows it."""
    if perm == tuple(range(len(perm))):
        return
    shape, name = output.shape, output.name
    new = _transposed(edit, None, output, perm)
    new.shape = shape
    after = new.producer()
    assert after is not None
    graph_of(node).insert_after(node, after)
    take_place(output, new)
    after.replace_input_with(0, output)
    output.shape = None if shape is None else ir.Shape([shape[i] for i in _inverse(perm)])
    output.name = output.name or edit.unique(f"{name}_moved")


def _transposed(edit: Edit, before: ir.Node | None, value: ir.Value, perm: Perm) -> ir.Value:
    """The value through a new Transpose, which is placed before that node, or left to the caller to place."""
    node = ir.node("Transpose", [value], {"perm": list(perm)}, name=edit.unique(f"{value.name}_order"))
    new = node.outputs[0]
    new.name = edit.unique(f"{value.name}_ordered")
    new.type = None if value.dtype is None else ir.TensorType(value.dtype)
    new.shape = None if value.shape is None else ir.Shape([value.shape[i] for i in perm])
    if before is not None:
        graph_of(before).insert_before(before, node)
    return new
