"""equalize: give every channel that goes into a depthwise convolution the same range, so that one scale serves them all. Effect: lossy.

One activation scale a tensor wastes codes on channels of small range, and depthwise networks have channels whose ranges differ a
hundredfold. For y = f(A x) with f(s z) = s f(z) for s > 0 (Relu), and a depthwise B: B y = (B S) f(S⁻¹ A x) for any diagonal S > 0: row c
of A and its bias are divided by s_c, channel c of B is multiplied by it (Nagel et al., arXiv 1906.04721, section 4.1, cross-layer
equalization). Where weights have a scale for each channel, as here, that costs the weights nothing. A Clip [0, u] is not homogeneous:
clipping at u after the division clips channel c at u s_c, which lies at or above the largest value that calibration saw.

When: before quantize_static, for depthwise networks (MobileNets). The search puts it there by itself.
Cost: one pass over the calibration samples; nothing at run time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.calibrate import tensors
from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, scalar, sole_consumer
from hasten.model import Model, Skip
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class Equalize:
    """`samples`: at most so many of the calibration split are looked at. `smallest`: no channel is scaled by less than this share."""

    samples: int = 256
    smallest: float = 1e-3

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadInput(f"equalize: samples is {self.samples}, expected at least 1")
        if not 0 < self.smallest <= 1:
            raise BadInput(f"equalize: smallest is {self.smallest}, expected a share above 0 and up to 1")


def equalize(model: Model, settings: Equalize, task: BoundTask | None) -> Model:
    """Rescale each pair Conv → (Relu | Clip) → depthwise Conv. Raises Refused where there is neither data nor an observation."""
    if task is None or (task.observation is None and task.calibrate is None):
        raise Refused("equalize needs data to see the channels' ranges, and none came; give --data")
    seen = task.observation or observe(model, settings, task)
    edited = model.edit()
    skipped: list[Skip] = []
    changed = 0
    for before, value, after in _pairs(edited, skipped):
        peaks = np.asarray(seen["peaks"][value.name])
        if peaks.max() <= 0:
            skipped.append(Skip(after.name or "", "no channel before it is ever active on the calibration data"))
            continue
        _rescale(edited.graph, before, after, np.maximum(peaks / peaks.max(), settings.smallest))
        changed += 1
    return finish(model, edited, settings, "equalize", changed, skipped)


def observe(model: Model, settings: Equalize, task: BoundTask) -> dict[str, Any]:
    """The largest value of each channel that goes into a depthwise convolution, over the calibration split."""
    edited = model.edit()
    names = [value.name or "" for _, value, _ in _pairs(edited, [])]
    peaks: dict[str, Array] = {}
    for name, value, _ in tensors(edited, names, settings.samples, task) if names else ():
        largest = np.abs(value).max(axis=(0, *range(2, value.ndim)))
        peaks[name] = np.maximum(peaks[name], largest) if name in peaks else largest
    return {"peaks": {name: [float(p) for p in peak] for name, peak in peaks.items()}}


def _pairs(edited: ir.Model, skipped: list[Skip]) -> Iterator[tuple[ir.Node, ir.Value, ir.Node]]:
    """(Conv before, tensor between, depthwise Conv after); what can't be paired is skipped with the reason."""
    for after in list(edited.graph):
        if not _is_depthwise(after):
            continue
        value = after.inputs[0]
        assert value is not None
        before, why = value.producer(), ""
        if sole_consumer(value) is not after:
            why = "the tensor before it has other readers"
        elif before is not None and before.op_type in ("Relu", "Clip"):
            why = _not_homogeneous(before)
            inner = before.inputs[0]
            before = inner.producer() if inner is not None and sole_consumer(inner) is before else None
        if not why and (before is None or before.op_type != "Conv" or constant(before.inputs[1]) is None):
            why = "no Conv with constant weights stands before it (through Relu or Clip alone)"
        if why:
            skipped.append(Skip(after.name or "", why))
        else:
            assert before is not None
            yield before, value, after


def _is_depthwise(node: ir.Node) -> bool:
    """A Conv with one input channel a group, and constant weights."""
    weights = constant(node.inputs[1]) if node.op_type == "Conv" else None
    return weights is not None and weights.shape[1] == 1 and node.attributes.get_int("group", 1) == weights.shape[0] > 1


def _not_homogeneous(node: ir.Node) -> str:
    """Why f(s z) = s f(z) does not hold nearly enough for an activation, empty if it does."""
    if node.op_type == "Clip":
        low = scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        high = scalar(node.inputs[2]) if len(node.inputs) > 2 else None
        if low is None or low > 0 or (low != 0 and high is not None) or (high is not None and high <= 0):
            return "the Clip before it has bounds other than 0 and a number above"
    return ""


def _rescale(graph: ir.Graph, before: ir.Node, after: ir.Node, shares: Array) -> None:
    """Row c of `before` over s_c, channel c of `after` times s_c; new weights, the old ones stay as they are."""
    for node, factors in ((before, 1 / shares), (after, shares)):
        weights = constant(node.inputs[1])
        assert weights is not None
        scaled = weights * factors.reshape(-1, *[1] * (weights.ndim - 1)).astype(weights.dtype)
        node.replace_input_with(1, add_weight(graph, f"{node.inputs[1].name}_equalized", scaled))  # type: ignore[union-attr]
    bias = constant(before.inputs[2]) if len(before.inputs) > 2 else None
    if bias is not None:
        scaled = (bias / shares).astype(bias.dtype)
        before.replace_input_with(2, add_weight(graph, f"{before.inputs[2].name}_equalized", scaled))  # type: ignore[union-attr]
