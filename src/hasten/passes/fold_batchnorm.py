"""fold_batchnorm: batch norm at inference is an affine map per channel, so it goes into the weights before it. Effect: rounding.

y = γ (x − μ) / √(σ² + ε) + β = a x + (β − a μ) with a = γ / √(σ² + ε).
(Ioffe and Szegedy, arXiv 1502.03167; folding as in Jacob et al., arXiv 1712.05877, section 3.2.)

When: for every model with batch norm that is done with learning.
Cost: nothing at run time; no data. A model that still has to learn wants its batch norm back.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import begin, constant, may_rewrite, settle
from hasten.model import Model, Skip, Step
from hasten.own_operators import is_packed
from hasten.passes.fold_affine import absorb, refusal
from hasten.passes.products import LAYERS
from hasten.rewrite import Edit, plain
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class FoldBatchnorm:
    """No settings."""


def fold_batchnorm(model: Model, settings: FoldBatchnorm, task: BoundTask | None) -> Model:
    """Fold every BatchNormalization into the layer with weights before it; the others are skipped, each with the reason."""
    edited = begin(model)
    skipped: list[Skip] = []
    changed = 0
    edit = Edit(edited)
    for norm in [n for n in edit.nodes() if n.op_type == "BatchNormalization" and plain(n)]:
        before = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        why = _refusal(norm, before)
        if before is None or why:
            skipped.append(Skip(norm.name or "", why))
            continue
        if not may_rewrite(norm):
            continue
        gamma, beta, mean, variance = (np.asarray(constant(v), np.float64) for v in norm.inputs[1:5])
        factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        absorb(norm, before, factor, beta - factor * mean, edit)
        changed += 1
    if changed:
        settle(edited)
    return model.then(edited, Step("fold_batchnorm", dataclasses.asdict(settings), changed, tuple(skipped)))


def _refusal(norm: ir.Node, before: ir.Node | None) -> str:
    """Why this batch norm can't be folded, empty if it can."""
    if before is None:
        return "it stands first: there are no weights before it"
    if before.op_type not in LAYERS and not is_packed(before):
        return f"it follows {before.op_type}, which has no weights"
    if any(constant(v) is None for v in norm.inputs[1:5]):
        return "its scale, bias, mean or variance is computed, not constant"
    return refusal(norm, before)
