"""torch as a runtime of the baseline: a model that came as an nn.Module, in its own framework, eager or compiled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.runtimes import Feeds, Outputs


class TorchSession:
    """An ExportedProgram as a function of numpy arrays. Names are those of the ONNX model that the door made of it, read beside the file."""

    batch: int | None = None

    def __init__(self, path: Path, threads: int, compiled: bool) -> None:
        torch.set_num_threads(threads)
        inputs, outputs = path.with_suffix(".names").read_text().split("\n\n")
        self._inputs, self._outputs = inputs.split("\n"), outputs.strip().split("\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module()
        _, kwargs = program.example_inputs or ((), {})
        self._named = list(kwargs)
        self._module: Any = torch.compile(module) if compiled else module

    def run(self, feeds: Feeds) -> Outputs:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs]
        split = len(tensors) - len(self._named)
        with torch.inference_mode():
            value = self._module(*tensors[:split], **dict(zip(self._named, tensors[split:], strict=True)))
        leaves = torch.utils._pytree.tree_leaves(value)
        return {name: leaf.numpy() for name, leaf in zip(self._outputs, leaves, strict=True)}


def open_origin(path: Path, threads: int, compiled: bool) -> TorchSession:
    """Open what the torch door kept of a model."""
    return TorchSession(path, threads, compiled)
