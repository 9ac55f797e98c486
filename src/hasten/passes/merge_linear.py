"""merge_linear: two layers with nothing between them become one, where that costs fewer products. Effect: rounding.

(x V + b) W + c is x (V W) + (b W + c); a convolution and one of 1x1 behind it likewise. With k inputs, m between and n outputs, k m + m n products
a row become k n: less wherever the middle is not narrow. A bottleneck (low rank, made on purpose by `factorize`) is left as it is. Computed in
float64, stored in the weights' type.

When: overparametrised training (linear stretches that were there to be trained), embeddings projected twice,
expansions whose activation was pruned.
Cost: nothing at run time; no data. The stretch then trains as one layer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import begin, constant, may_rewrite, settle
from hasten.model import Model, Skip, Step
from hasten.passes.products import bias_of, inputs_of, outputs_of, own_weights, rank, set_bias
from hasten.rewrite import Edit, graph_of, only_reader, plain
from hasten.task import BoundTask

PRODUCTS = ("Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class MergeLinear:
    """No settings."""


def merge_linear(model: Model, settings: MergeLinear, task: BoundTask | None) -> Model:
    """Merge each layer into the one before it; what would cost more products is skipped, with the counts."""
    edited = begin(model)
    skipped: list[Skip] = []
    changed = 0
    edit = Edit(edited)
    for second in [n for n in edit.nodes() if n.op_type in (*PRODUCTS, "Conv") and plain(n)]:
        while (first := _before(second)) is not None:
            apart, together = _products(first, second)
            if together >= apart:
                skipped.append(Skip(second.name or second.op_type, f"one layer would have {together} weights, the two have {apart}"))
                break
            if not may_rewrite(second):
                break
            _merge(first, second, edit)
            changed += 1
    if changed:
        settle(edited)
    return model.then(edited, Step("merge_linear", dataclasses.asdict(settings), changed, tuple(skipped)))


def _before(second: ir.Node) -> ir.Node | None:
    """The layer that alone feeds this one and can be one with it."""
    value = second.inputs[0]
    first = value.producer() if value is not None else None
    if first is None or first.graph is not second.graph or not only_reader(value):
        return None
    if not own_weights(first) or not own_weights(second):
        return None
    if second.op_type == "Conv":
        return first if first.op_type == "Conv" and _pointwise(second) and first.attributes.get_int("group", 1) == 1 else None
    has_bias = len(first.inputs) > 2 and first.inputs[2] is not None
    return first if first.op_type in PRODUCTS and (rank(value) == 2 or not has_bias) else None


def _pointwise(conv: ir.Node) -> bool:
    """A convolution of 1x1 that goes to every place and adds none."""
    weight = constant(conv.inputs[1])
    assert weight is not None
    plain_steps = all(s == 1 for s in conv.attributes.get_ints("strides", ())) and not any(conv.attributes.get_ints("pads", ()))
    return weight.ndim > 2 and all(k == 1 for k in weight.shape[2:]) and plain_steps and conv.attributes.get_int("group", 1) == 1


def _products(first: ir.Node, second: ir.Node) -> tuple[int, int]:
    """Weights, which is products a place: (of the two layers, of the one)."""
    kernel = int(np.prod(np.asarray(constant(first.inputs[1])).shape[2:], dtype=np.int64)) if first.op_type == "Conv" else 1
    k, m, n = inputs_of(first) * kernel, outputs_of(first), outputs_of(second)
    return k * m + m * n, k * n


def _merge(first: ir.Node, second: ir.Node, edit: Edit) -> None:
    """Let the second compute both; the first goes."""
    dtype = np.asarray(constant(second.inputs[1])).dtype
    name = f"{first.inputs[1].name}_{second.inputs[1].name}"  # type: ignore[union-attr]
    one, two = _matrix(first), _matrix(second)
    bias = bias_of(first) @ two + bias_of(second)
    merged = one @ two
    if second.op_type == "Conv":
        kernel = np.asarray(constant(first.inputs[1])).shape[1:]
        merged = merged.T.reshape(-1, *kernel)
        for attribute in ("strides", "pads", "dilations", "auto_pad", "kernel_shape"):
            second.attributes.pop(attribute, None)
            if attribute in first.attributes:
                second.attributes[attribute] = first.attributes[attribute]
    else:
        for attribute in ("alpha", "transB"):
            second.attributes.pop(attribute, None)
    second.replace_input_with(1, edit.weight(second, name, merged.astype(dtype)))
    if np.any(bias) or len(second.inputs) > 2:
        set_bias(second, bias, edit)
    second.replace_input_with(0, first.inputs[0])
    graph_of(first).remove(first, safe=True)


def _matrix(layer: ir.Node) -> np.ndarray:
    """The weights as (inputs, outputs) in float64, what alpha multiplies included; a kernel's places count as inputs."""
    weight = np.asarray(constant(layer.inputs[1]), np.float64)
    if layer.op_type == "Conv":
        return weight.reshape(len(weight), -1).T
    matrix = weight.T if layer.attributes.get_int("transB", 0) != 0 else weight
    return matrix * layer.attributes.get_float("alpha", 1.0) if layer.op_type == "Gemm" else matrix
