"""fold_activations: successive Relu and Clip become one; Pad with zeros goes into the Conv or AveragePool after it. Effect: equivalent.

When: for exports with chains of Relu and Clip, or with a Pad before each Conv.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from hasten.graph import apply_rules, begin, constant, scalar, settle
from hasten.model import Model, Step
from hasten.rewrite import Edit, become, made_by, only_reader, rewrite
from hasten.task import BoundTask

CLIPS = ("Relu", "Clip")
CONVOLUTIONS = ("Conv", "ConvInteger")


@dataclasses.dataclass(frozen=True)
class FoldActivations:
    """No settings."""


def fold_activations(model: Model, settings: FoldActivations, task: BoundTask | None) -> Model:
    """Apply onnxscript's rules for Conv∘Pad, and our own for AveragePool∘Pad and for Relu and Clip in a row."""
    from onnxscript.rewriter.rules.common import _fuse_pad_into_conv

    edited = begin(model)
    changed = apply_rules(edited, _fuse_pad_into_conv.rules, _may_pad)
    if changed:
        settle(edited)
    changed += rewrite(edited, {"AveragePool": (_padded_mean,), **dict.fromkeys(CLIPS, (_clipped_twice,))})
    return model.then(edited, Step("fold_activations", dataclasses.asdict(settings), changed))


def _clipped_twice(node: ir.Node, edit: Edit) -> bool:
    """min(max(min(max(x, a), b), c), d) = min(max(x, max(a, c)), min(max(b, c), d)); a Relu is a Clip from 0 on."""
    before = made_by(node.inputs[0], *CLIPS)
    if before is None or not only_reader(node.inputs[0]):
        return False
    first, second = _bounds(before), _bounds(node)
    if first is None or second is None:
        return False
    (a, b), (c, d) = first, second
    both = (max(a, c), min(max(b, c), d))
    if both == (0, math.inf):
        become(node, "Relu", before.inputs[:1])
        return True
    known = next(array for n in (before, node) for v in n.inputs[1:] if (array := constant(v)) is not None)
    name = node.name or "clip"
    limits = [edit.weight(node, f"{name}_bound", np.array(limit, known.dtype)) if abs(limit) < math.inf else None for limit in both]
    become(node, "Clip", [before.inputs[0], *limits])
    return True


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip keeps its values between, None where that is computed."""
    if node.op_type == "Relu":
        return 0, math.inf
    arrays = [None if v is None else constant(v) for v in node.inputs[1:]]
    if any(v is not None and (array is None or array.size != 1) for v, array in zip(node.inputs[1:], arrays, strict=True)):
        return None
    low, high = ([None if array is None else array.item() for array in arrays] + [None, None])[:2]
    return -math.inf if low is None else low, math.inf if high is None else high


def _may_pad(node: ir.Node) -> bool:
    """A convolution behind a Pad; or one whose padding is computed, which the rules write out first."""
    return node.op_type in CONVOLUTIONS and ("auto_pad" in node.attributes or made_by(node.inputs[0], "Pad") is not None)


def _padded_mean(node: ir.Node, edit: Edit) -> bool:
    """A mean over windows counts the zeros that a Pad put round the picture as its own border does, where that is counted."""
    pad = made_by(node.inputs[0], "Pad")
    if pad is None or pad.attributes.get_string("mode", "constant") != "constant" or any(v is not None for v in pad.inputs[3:]):
        return False
    kernel = node.attributes.get_ints("kernel_shape")
    widths, filling = constant(pad.inputs[1]), 0.0 if len(pad.inputs) < 3 or pad.inputs[2] is None else scalar(pad.inputs[2])
    own = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
    if widths is None or filling != 0 or node.attributes.get_int("ceil_mode", 0) != 0 or "auto_pad" in node.attributes:
        return False
    before, behind = np.split(widths.astype(np.int64), 2)
    if before[:2].any() or behind[:2].any() or (any(own) and node.attributes.get_int("count_include_pad", 0) == 0):
        return False
    both = (np.array(own) + np.concatenate([before[2:], behind[2:]])).tolist()
    if any(not 0 <= p < k for p, k in zip(both, [*kernel, *kernel], strict=True)):
        return False
    node.replace_input_with(0, pad.inputs[0])
    node.attributes["pads"] = ir.AttrInt64s("pads", both)
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    return True
