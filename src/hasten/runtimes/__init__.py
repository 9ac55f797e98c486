"""Runtimes: what executes a model. One file each behind one small Protocol; the table below is the whole list."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hasten.history import Skip
    from hasten.model import Model

Feeds = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.generic]]
Profiled = tuple[str, str, float]
"""An executed node's name, its operator or kind, and its seconds a call."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a model will run: device, threads, batch, precision hint (what the runtime may compute in), memory limit in bytes."""

    threads: int
    batch: int = 1
    precision: str = "float32"
    device: str = "cpu"
    memory_limit: int | None = None


class Session(Protocol):
    """A compiled model. `run` takes numpy arrays by input name and gives numpy arrays by output name.

    `batch` is the only batch it takes, None where it takes what the model takes.
    """

    batch: int | None

    def run(self, feeds: Feeds) -> Outputs: ...


class Runtime(Protocol):
    """A backend. `unsupported` says no before anything runs: an empty tuple means that `compile` may be called.

    `hints` are the precisions it can be asked to compute in, float32 first; any other is a lossy candidate of its own.
    """

    name: str
    hints: tuple[str, ...]

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]: ...

    def compile(self, model: Model | Path, target: Target) -> Session: ...


RUNTIMES = {
    "onnxruntime": ("onnxruntime", "RUNTIME"),
    "onnxruntime-plain": ("onnxruntime", "PLAIN"),
    "openvino": ("openvino", "RUNTIME"),
    "native": ("native", "RUNTIME"),
    "torch": ("torch", "RUNTIME"),
    "torch-compiled": ("torch", "COMPILED"),
    "reference": ("reference", "RUNTIME"),
    "null": ("null", "RUNTIME"),
}
"""Runtimes that take any Model, by name: the file and its object. Keras (`keras.py`) is a runtime of the baseline only."""

DEFAULT = ("onnxruntime", "openvino", "native")
"""Those that a search tries unless told otherwise; where the native engine was not built, it does without."""


def get(name: str) -> Runtime:
    """The runtime of that name; its library is imported when it compiles."""
    if name not in RUNTIMES:
        from hasten.errors import BadInput

        raise BadInput(f"there is no runtime {name!r}; use one of {', '.join(RUNTIMES)}")
    place, found = RUNTIMES[name]
    runtime: Runtime = getattr(importlib.import_module(f"hasten.runtimes.{place}"), found)
    return runtime
