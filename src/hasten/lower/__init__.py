"""lower: a model as a plan for the native engine (`native/`): a flat list of kernels with packed weights and a static memory plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.errors import BadInput, Unsupported
from hasten.history import Skip
from hasten.lower.plan import Plan

if TYPE_CHECKING:
    from hasten.model import Model

MODES = ("float", "fixed")
PRECISIONS = ("float32", "bfloat16")


def lower(model: Model, requantize: str = "float", precision: str = "float32") -> Plan:
    """The plan of a model: of float32, or quantized to uint8 activations and int8 weights (QDQ), in whole or in part.

    requantize: how sums of codes become codes. "float": onnxruntime's arithmetic, bit for bit; "fixed": whole numbers alone (arXiv 1712.05877),
    within a code of it, for processors without floating point: then all of the model must be quantized.
    precision: what float layers multiply in. "bfloat16": products of numbers with 8 significant bits, summed in float32.
    Raises Unsupported with the first node that stands in the way, BadInput for another mode or precision.
    """
    plan, skips = _lowered(model, requantize, precision)
    if plan is None:
        more = f" (and {len(skips) - 1} more)" if len(skips) > 1 else ""
        raise Unsupported(f"native: {skips[0].node + ': ' if skips[0].node else ''}{skips[0].why}{more}")
    return plan


def unsupported(model: Model, requantize: str = "float") -> tuple[Skip, ...]:
    """Each node that the native engine can't take, and why; empty: `lower` will work."""
    return _lowered(model, requantize, "float32")[1]


def _lowered(model: Model, requantize: str, precision: str) -> tuple[Plan | None, tuple[Skip, ...]]:
    from hasten.lower.lowering import lower_graph

    if requantize not in MODES:
        raise BadInput(f"there is no requantization {requantize!r}; use one of {', '.join(MODES)}")
    if precision not in PRECISIONS:
        raise BadInput(f"there is no precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    return lower_graph(model, requantize, precision)
