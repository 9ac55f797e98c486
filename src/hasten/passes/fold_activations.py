"""fold_activations: successive Relu and Clip become one; Pad with zeros goes into the Conv or AveragePool after it. Effect: equivalent.

When: for exports with chains of Relu and Clip, or with a Pad before each Conv.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from hasten.graph import apply_rules, begin, constant, scalar, settle
from hasten.model import Model, Step
from hasten.rewrite import Edit, made_by, rewrite
from hasten.task import BoundTask

CLIPS = ("Relu", "Clip")
CONVOLUTIONS = ("Conv", "ConvInteger")


@dataclasses.dataclass(frozen=True)
class FoldActivations:
    """No settings."""


def fold_activations(model: Model, settings: FoldActivations, task: BoundTask | None) -> Model:
    """Apply onnxscript's rules for Relu∘Relu, Clip∘Clip, Relu∘Clip, Clip∘Relu and Conv∘Pad, and our own for AveragePool∘Pad."""
    from onnxscript.rewriter.rules.common import _fuse_pad_into_conv, _fuse_relus_clips

    edited = begin(model)
    changed = apply_rules(edited, _fuse_relus_clips.rules, _clips_twice)
    changed += apply_rules(edited, _fuse_pad_into_conv.rules, _may_pad)
    if changed:
        settle(edited)
    changed += rewrite(edited, {"AveragePool": (_padded_mean,)})
    return model.then(edited, Step("fold_activations", dataclasses.asdict(settings), changed))


def _clips_twice(node: ir.Node) -> bool:
    return node.op_type in CLIPS and made_by(node.inputs[0], *CLIPS) is not None


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
