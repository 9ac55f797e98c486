"""null computes nothing: zeros of the right shape and type. For tests of the search, the judge and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasten.model import Model, Port, Skip
from hasten.runtimes import Feeds, Outputs, Target


class Null:
    """Supports every model and is right about none."""

    name = "null"
    hints = ("float32",)

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        return ()

    def compile(self, model: Model | Path, target: Target) -> NullSession:
        if isinstance(model, Path):
            model = Model.load(model)
        return NullSession(model.inputs, model.outputs)


class NullSession:
    """Zeros; an axis that carries the name of an input's axis gets that axis' size, any other unknown axis 1."""

    batch: int | None = None

    def __init__(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def run(self, feeds: Feeds) -> Outputs:
        sizes = {
            axis: size
            for port in self._inputs
            for axis, size in zip(port.shape, feeds[port.name].shape, strict=True)
            if isinstance(axis, str)
        }
        return {
            port.name: np.zeros([d if isinstance(d, int) else sizes.get(d or "", 1) for d in port.shape], port.dtype)
            for port in self._outputs
        }


RUNTIME = Null()
