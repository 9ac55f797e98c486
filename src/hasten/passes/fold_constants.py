"""fold_constants: compute once, now, what does not depend on the input. Effect: rounding (folded in numpy, not in the runtime).

When: for exports that compute shapes, masks or scales from constants while running (most torch exports do).
Cost: nothing at run time; the file grows by at most `size_limit` bytes for each folded result. No data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from hasten.errors import BadInput
from hasten.graph import begin, constant, lift_constants, may_rewrite, settle
from hasten.model import Model, Skip, Step, all_nodes
from hasten.rewrite import Edit, dims
from hasten.shapes import infer_missing
from hasten.task import BoundTask

GENERATORS = ("ConstantOfShape", "Expand", "Tile", "Range", "RandomNormal", "RandomUniform")
"""Operators that make much from little: folding them is what blows files up."""


@dataclasses.dataclass(frozen=True)
class FoldConstants:
    """`size_limit`: a folded result of more bytes than this stays computed, unless it replaces weights at least as large."""

    size_limit: int = 65536

    def __post_init__(self) -> None:
        if self.size_limit < 0:
            raise BadInput(f"fold_constants: size_limit is {self.size_limit}, expected a number of bytes of at least 0")


def fold_constants(model: Model, settings: FoldConstants, task: BoundTask | None) -> Model:
    """Fold with onnxscript's folder, and write what is known of a Reshape's shape. Batch norm is kept, the model's own functions are not inlined,
    generators whose result would be large stay.
    """
    from onnxscript.optimizer import fold_constants as fold

    edited = begin(model)
    before, limit = sum(1 for _ in all_nodes(edited.graph)), max(settings.size_limit, _largest(model))

    def folded() -> bool:
        def should_fold(node: ir.Node) -> bool | None:
            return None if _small_enough(node, settings) and may_rewrite(node) else False

        return bool(fold(edited, input_size_limit=limit, output_size_limit=limit, should_fold=should_fold))

    changed = 0
    with _quiet():
        known, again = _known(edited), True
        while again:
            if again := folded():
                changed += 1
                infer_missing(edited)
            # The folder gives what an Identity reads the shape of what it writes, too late for the nodes that it has passed by then.
            again, known = again or _known(edited) > known, _known(edited)
    edit = Edit(edited)
    for body in [f.graph for f in edited.functions.values() if f.graph.initializers]:
        # Those of a branch that was taken: a function has none.
        weights = list(body.initializers.values())
        body.initializers.clear()
        for value in weights:
            edit.hold(body[0], value)
    changed += sum(_write_shape(node, edit) for node in list(edit.nodes()) if node.op_type == "Reshape" and node.domain == "")
    changed += lift_constants(edited)
    if changed:
        settle(edited)
        changed = max(changed, before - sum(1 for _ in all_nodes(edited.graph)))
    skipped = [
        Skip(n.name or n.op_type, f"its result would take {_bytes(n)} bytes in the file, {settings.size_limit} are allowed")
        for n in all_nodes(edited.graph)
        if n.op_type in GENERATORS and all(v is None or v.is_initializer() for v in n.inputs)
    ]
    return model.then(edited, Step("fold_constants", dataclasses.asdict(settings), changed, tuple(skipped)))


def _known(edited: ir.Model) -> int:
    """How much is known of the shapes that Identities read."""
    bodies: list[ir.Graph | ir.Function] = [edited.graph, *edited.functions.values()]
    nodes = (node for body in bodies for node in all_nodes(body))
    shapes = [node.inputs[0].shape for node in nodes if node.op_type == "Identity" and node.inputs[0] is not None]
    return sum(1 + sum(isinstance(d, int) for d in shape) for shape in shapes if shape is not None)


def _write_shape(node: ir.Node, edit: Edit) -> bool:
    """Let a Reshape to a computed shape read a constant where at most one size of the result is unknown."""
    shape = dims(node.outputs[0])
    target = [d if isinstance(d, int) else -1 for d in shape or ()]
    if shape is None or constant(node.inputs[1]) is not None or target.count(-1) > 1 or 0 in target or not may_rewrite(node):
        return False
    node.replace_input_with(1, edit.weight(node, f"{node.name or 'reshape'}_shape", np.array(target, np.int64)))
    return True


def _small_enough(node: ir.Node, settings: FoldConstants) -> bool:
    return node.op_type not in GENERATORS or _bytes(node) <= settings.size_limit


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxscript logs "Evaluation failed" for a node that onnx's reference can't compute. It leaves such a node as it is, so nothing is lost."""
    logger = logging.getLogger("onnxscript.optimizer._constant_folding")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _largest(model: Model) -> int:
    """Bytes of the model's largest weight: folding a transposed weight of that size makes nothing larger."""
    return max((v.const_value.nbytes for v in model.ir.graph.initializers.values() if v.const_value is not None), default=0)


def _bytes(node: ir.Node) -> int:
    """Bytes of a node's first output where its shape is known, else more than any limit."""
    value = node.outputs[0]
    if value.shape is None or value.dtype is None or not all(isinstance(d, int) for d in value.shape):
        return 1 << 62
    size = 1
    for d in value.shape:
        size *= int(d)  # type: ignore[arg-type]
    return size * value.dtype.bitwidth // 8
