"""fold_activations: successive Relu and Clip become one; Pad with zeros goes into the Conv after it. Effect: equivalent.

When: for exports with chains of Relu and Clip, or with a Pad before each Conv.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from hasten.graph import apply_rules, begin, settle
from hasten.model import Model, Step
from hasten.rewrite import made_by
from hasten.task import BoundTask

CLIPS = ("Relu", "Clip")
CONVOLUTIONS = ("Conv", "ConvInteger")


@dataclasses.dataclass(frozen=True)
class FoldActivations:
    """No settings."""


def fold_activations(model: Model, settings: FoldActivations, task: BoundTask | None) -> Model:
    """Apply onnxscript's rules for Relu∘Relu, Clip∘Clip, Relu∘Clip, Clip∘Relu and Conv∘Pad until nothing changes."""
    from onnxscript.rewriter.rules.common import _fuse_pad_into_conv, _fuse_relus_clips

    edited = begin(model)
    changed = apply_rules(edited, _fuse_relus_clips.rules, _clips_twice)
    changed += apply_rules(edited, _fuse_pad_into_conv.rules, _may_pad)
    if changed:
        settle(edited)
    return model.then(edited, Step("fold_activations", dataclasses.asdict(settings), changed))


def _clips_twice(node: ir.Node) -> bool:
    return node.op_type in CLIPS and made_by(node.inputs[0], *CLIPS) is not None


def _may_pad(node: ir.Node) -> bool:
    """A convolution behind a Pad; or one whose padding is computed, which the rules write out first."""
    return node.op_type in CONVOLUTIONS and ("auto_pad" in node.attributes or made_by(node.inputs[0], "Pad") is not None)
