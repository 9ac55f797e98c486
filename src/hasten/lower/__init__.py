"""lower: a model as a plan for the native engine (`native/`): a flat list of kernels with packed weights and a static memory plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.errors import BadInput, Unsupported
from hasten.history import Skip
from hasten.lower.plan import Plan

if TYPE_CHECKING:
    from hasten.model import Model

MODES = ("float", "fixed")


def lower(model: Model, requantize: str = "float") -> Plan:
    """The plan of a model quantized to uint8 activations and int8 weights (QDQ).

    requantize: how sums become codes. "float": onnxruntime's arithmetic, bit for bit; "fixed": whole numbers alone (arXiv 1712.05877), within a
    code of it, for processors without floating point.
    Raises Unsupported with the first node that stands in the way, BadInput for another mode.
    """
    plan, skips = _lowered(model, requantize)
    if plan is None:
        more = f" (and {len(skips) - 1} more)" if len(skips) > 1 else ""
        raise Unsupported(f"native: {skips[0].node + ': ' if skips[0].node else ''}{skips[0].why}{more}")
    return plan


def unsupported(model: Model, requantize: str = "float") -> tuple[Skip, ...]:
    """Each node that the native engine can't take, and why; empty: `lower` will work."""
    return _lowered(model, requantize)[1]


def _lowered(model: Model, requantize: str) -> tuple[Plan | None, tuple[Skip, ...]]:
    from hasten.lower.lowering import lower_graph

    if requantize not in MODES:
        raise BadInput(f"there is no requantization {requantize!r}; use one of {', '.join(MODES)}")
    return lower_graph(model, requantize)
