"""Keras as a runtime of the baseline: a model that came from Keras, in its own framework (torch backend), eager."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import Unsupported
from hasten.runtimes import Feeds, Outputs


class KerasSession:
    """A Keras model as a function of numpy arrays; names are those of the ONNX model that the door made of it, read beside the file."""

    batch: int | None = None

    def __init__(self, path: Path, threads: int) -> None:
        os.environ["KERAS_BACKEND"] = "torch"
        import keras
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        inputs, outputs = path.with_suffix(".names").read_text().split("\n\n")
        self._inputs, self._outputs = inputs.split("\n"), outputs.strip().split("\n")
        self._model: Any = keras.models.load_model(path, compile=False, safe_mode=True)

    def run(self, feeds: Feeds) -> Outputs:
        tensors = [self._torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs]
        with self._torch.inference_mode():
            value = self._model(tensors[0] if len(tensors) == 1 else tensors, training=False)
        leaves = self._torch.utils._pytree.tree_leaves(value)
        return {name: leaf.numpy() for name, leaf in zip(self._outputs, leaves, strict=True)}


def open_origin(path: Path, threads: int, compiled: bool) -> KerasSession:
    """Open what the Keras door kept of a model. Raises Unsupported for `compiled`: Keras' torch backend has no such mode."""
    if compiled:
        raise Unsupported("keras: the torch backend is run eagerly; there is no compiled mode")
    return KerasSession(path, threads)
