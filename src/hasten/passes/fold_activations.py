"""fold_activations: successive Relu and Clip become one; Pad with zeros goes into the Conv after it. Effect: equivalent.

When: for exports with chains of Relu and Clip, or with a Pad before each Conv.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

from hasten.graph import asking, finish
from hasten.model import Model
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class FoldActivations:
    """No settings."""


def fold_activations(model: Model, settings: FoldActivations, task: BoundTask | None) -> Model:
    """Apply onnxscript's rules for Relu∘Relu, Clip∘Clip, Relu∘Clip, Clip∘Relu and Conv∘Pad until nothing changes."""
    from onnxscript.rewriter.rules.common import _fuse_pad_into_conv, _fuse_relus_clips

    edited = model.edit()
    changed = 0
    for rules in (_fuse_relus_clips.rules, _fuse_pad_into_conv.rules):
        changed += asking(rules).apply_to_model(edited)
    return finish(model, edited, settings, "fold_activations", changed, [])
