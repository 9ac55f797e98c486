"""What removal is held to: the outputs that the model had with zeros in all that the removed channels go into."""

import numpy as np
import onnx_ir as ir

from hasten import check
from hasten.graph import finish
from hasten.model import Model
from hasten.passes.cleanup import Cleanup
from hasten.shrink.groups import Coupled
from hasten.shrink.keep import keep


def half(coupled: Coupled, seed: int = 0, inexact: bool = False) -> dict[str, np.ndarray]:
    """A random half of the channels of every group whose removal is exact (or, `inexact`, of every group)."""
    rng = np.random.default_rng(seed)
    return {g.name: np.sort(rng.permutation(g.channels)[: max(1, g.channels // 2)]) for g in coupled.groups if inexact or not g.inexact}


def zeroed(coupled: Coupled, kept: dict[str, np.ndarray]) -> Model:
    """The model with zeros where the channels that are not kept go into a weight."""
    edited = coupled.model.edit()
    for name, chosen in kept.items():
        group = coupled.group(name)
        gone = np.setdiff1d(np.arange(group.channels), chosen)
        for member in group.members:
            value = edited.graph.initializers[member.weight]
            if member.reads:
                array = np.moveaxis(value.const_value.numpy().copy(), member.axis, 0)
                array[member.positions[gone].ravel()] = 0
                value.const_value = ir.Tensor(np.ascontiguousarray(np.moveaxis(array, 0, member.axis)), name=value.name)
    return Model(edited)


def removed(coupled: Coupled, kept: dict[str, np.ndarray]) -> Model:
    return finish(coupled.model, keep(coupled, kept), Cleanup(), "removed", len(kept), [])


def check_removal(coupled: Coupled, seed: int = 0, feeds=None) -> Model:
    """Removes half of the channels; raises CheckFailed where the result is not legal or not the zeroed model. Returns it."""
    kept = half(coupled, seed)
    after = removed(coupled, kept)
    check.legal(after)
    check.same(zeroed(coupled, kept), after, check.FLOAT32, feeds)
    return after
