"""merge_siblings: layers of one kind that read the same value become one layer and a Split (queries, keys and values). Effect: rounding.

[y₁, y₂, …] = Split(x [W₁, W₂, …] + [b₁, b₂, …]): the output channels lie side by side. Conv, MatMul and Gemm with constant weights; all attributes
and all shapes but the number of output channels must agree. Biases come along, also those that are an Add behind each MatMul.

When: for attention, gates and branches whose single layers are too small to fill the machine (few rows, few channels): one call in place of three,
and the input is read once. Large layers gain nothing and pay for the Split, which copies their outputs; so measure. No recipe of the search holds it.
Cost: a Split; nothing else at run time. Quantized per tensor the merged layers share one range. No data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, may_rewrite, settle
from hasten.model import Model, Skip, Step
from hasten.passes.products import bias_behind, outputs_of
from hasten.rewrite import Edit, dims, graph_of, only_reader, plain
from hasten.task import BoundTask

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class MergeSiblings:
    """No settings."""


def merge_siblings(model: Model, settings: MergeSiblings, task: BoundTask | None) -> Model:
    """Merge every family of layers that agree; those that share an input and do not agree are skipped, each with the reason."""
    edited = begin(model)
    edit, changed = Edit(edited), 0
    skipped: list[Skip] = []
    families: dict[object, list[ir.Node]] = {}
    readers: dict[object, int] = {}
    for node in edit.nodes():
        if node.op_type in LAYERS and plain(node) and node.inputs[0] is not None and constant(node.inputs[0]) is None:
            kin = (node.op_type, id(node.graph), node.inputs[0])
            readers[kin] = readers.get(kin, 0) + 1
            families.setdefault((kin, *_geometry(node)), []).append(node)
    for key, family in families.items():
        if len(family) > 1:
            if may_rewrite(family[0]):
                _merge(family, edit)
                changed += len(family) - 1
        elif readers[key[0]] > 1:  # type: ignore[index]
            why = _refusal(family[0]) or "no other layer on its input has its attributes and its weights' shape"
            skipped.append(Skip(family[0].name or family[0].op_type, why))
    if changed:
        settle(edited)
    return model.then(edited, Step("merge_siblings", dataclasses.asdict(settings), changed, tuple(skipped)))


def _refusal(node: ir.Node) -> str:
    """Why a layer can't be put beside others, empty if it can."""
    weight = constant(node.inputs[1])
    if weight is None or any(v is not None and constant(v) is None for v in node.inputs[2:]):
        return "its weights are computed, not constant"
    if not all(only_reader(v) for v in node.inputs[1:] if v is not None):
        return "another layer has the same weights"
    if node.attributes.get_int("group", 1) != 1:
        return "its channels are grouped"
    if node.op_type == "MatMul" and (weight.ndim != 2 or dims(node.inputs[0]) is None):
        return "its weights are not a matrix, or the rank of its input is not known"
    if node.op_type == "Gemm" and (bias := _bias(node)) is not None and bias.shape not in ((outputs_of(node),), (1, outputs_of(node))):
        return "its bias is not one number per output channel"
    return ""


def _geometry(node: ir.Node) -> tuple[object, ...]:
    """What must agree in a family; the node itself where it can be in none."""
    if _refusal(node):
        return (node,)
    weight = constant(node.inputs[1])
    assert weight is not None
    attributes = tuple(sorted((a.name, str(a.value)) for a in node.attributes.values()))
    shape = list(weight.shape)
    del shape[_axis(node)]
    return (attributes, tuple(shape), str(weight.dtype), bias_behind(node) is None)


def _axis(node: ir.Node) -> int:
    """The weights' axis of output channels."""
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0 else 1


def _bias(node: ir.Node) -> Array | None:
    return constant(node.inputs[2]) if len(node.inputs) > 2 else None


def _merge(family: list[ir.Node], edit: Edit) -> None:
    """One layer where the first stood, its bias, and the Split that gives each its own output back."""
    first, graph = family[0], graph_of(family[0])
    additions = [bias_behind(n) for n in family]
    sizes = [outputs_of(n) for n in family]
    weights = [c for n in family if (c := constant(n.inputs[1])) is not None]
    name = first.name or first.op_type
    inputs = [first.inputs[0], edit.weight(first, f"{first.inputs[1].name}_merged", np.concatenate(weights, _axis(first)))]  # type: ignore[union-attr]
    biases = [_bias(n) for n in family]
    if any(b is not None for b in biases):
        both = np.concatenate([np.zeros(s, weights[0].dtype) if b is None else b.ravel() for b, s in zip(biases, sizes, strict=True)])
        inputs.append(edit.weight(first, f"{name}_bias", both))
    layer = ir.node(first.op_type, inputs, name=edit.unique(f"{name}_merged"))
    for attribute in first.attributes.values():
        layer.attributes[attribute.name] = attribute
    whole = _named(layer.outputs[0], first.outputs[0], edit, sum(sizes), 1 if first.op_type == "Conv" else -1)
    new = [layer]
    if additions[0] is not None:
        terms = [next(c for v in add.inputs if (c := constant(v)) is not None) for add in additions if add is not None]
        add = ir.node("Add", [whole, edit.weight(first, f"{name}_term", np.concatenate(terms))], name=edit.unique(f"{name}_term_add"))
        whole = _named(add.outputs[0], first.outputs[0], edit, sum(sizes), -1)
        new.append(add)
    ends = [n if add is None else add for n, add in zip(family, additions, strict=True)]
    cut = edit.weight(first, f"{name}_sizes", np.array(sizes, np.int64))
    axis = 1 if first.op_type == "Conv" else -1
    split = ir.node("Split", [whole, cut], {"axis": axis}, num_outputs=len(family), name=edit.unique(f"{name}_split"))
    new.append(split)
    graph.insert_before(first, new)
    for end, value in zip(ends, split.outputs, strict=True):
        old = end.outputs[0]
        value.type, value.shape, value.name = old.type, old.shape, edit.unique(f"{old.name}_part")
        edit.bypass(end, value)
    for node in family:
        if node.graph is not None:
            graph.remove(node, safe=True)


def _named(value: ir.Value, like: ir.Value, edit: Edit, channels: int, axis: int) -> ir.Value:
    """A new value of the merged layer, with type and shape of a single one but for the channels."""
    value.name, value.type = edit.unique(f"{like.name}_merged"), like.type
    if like.shape is not None:
        shape = list(like.shape)
        shape[axis] = channels
        value.shape = ir.Shape(shape)
    return value
