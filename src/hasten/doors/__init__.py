"""The doors: how a trained model comes in. Each is one short adapter; its library is imported when it is used."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hasten import pyfile
from hasten.errors import BadInput
from hasten.model import Model


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model in its own framework, as a file that a worker opens to time it there: torch a `.pt2`, keras a `.keras`."""

    framework: Literal["torch", "keras"]
    path: Path


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What came through a door: the model, its origin where it has a framework, and what to tell the user."""

    model: Model
    origin: Origin | None = None
    notes: tuple[str, ...] = ()


def load(
    source: Any,
    *,
    example_inputs: Any = None,
    shapes: Mapping[str, int] | None = None,
    workdir: Path | None = None,
    check: bool = True,
) -> Loaded:
    """Open a model through the door that fits it.

    source: a path (`.onnx`, also `.xz`, `.gz` or `.packed`; `.keras`, `.h5`; `.pt2`; `file.py:function`), a ModelProto, Model, nn.Module,
    ExportedProgram or keras.Model. example_inputs: what an nn.Module is exported with (see `parse_example_input` for text).
    shapes: sizes for dynamic axes by name. workdir: a private folder for the origin's file, a temporary one by default.
    check: False where an ONNX model is only looked at: then nothing is run (a lifted one beside the file's), and no shape is inferred.

    Raises BadInput for what can't be read, Unsupported (naming node and operator) for what can't be carried.
    """
    place = workdir if workdir is not None else _temporary()
    if isinstance(source, (str, Path)):
        return _load_path(str(source), example_inputs, shapes, place, check)
    if isinstance(source, Model):
        if not shapes:
            return Loaded(source)
        return Loaded(_from_proto(_proto_of(source), shapes))
    if type(source).__module__.startswith("onnx."):
        return Loaded(_from_proto(source, shapes))
    if _is_a(source, "keras", "Model"):
        from hasten.doors.keras import load_keras

        return load_keras(source, shapes, place)
    if _is_a(source, "torch.nn", "Module") or _is_a(source, "torch.export", "ExportedProgram"):
        from hasten.doors.torch import load_torch

        return load_torch(source, example_inputs, shapes, place)
    raise BadInput(
        f"a model of type {type(source).__name__} is not understood; give a path, ModelProto, nn.Module, ExportedProgram or keras.Model"
    )


def _temporary() -> Path:
    """A folder that lives as long as this process: the origin's file in it is opened later."""
    place = Path(tempfile.mkdtemp(prefix="hasten-door-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _load_path(text: str, example_inputs: Any, shapes: Mapping[str, int] | None, place: Path, check: bool) -> Loaded:
    if pyfile.is_reference(text):
        made = pyfile.load_object(text)
        return load(
            pyfile.call(text, made) if callable(made) and not _is_a(made, "torch.nn", "Module") else made,
            example_inputs=example_inputs,
            shapes=shapes,
            workdir=place,
            check=check,
        )
    path = Path(text)
    if path.suffix in (".keras", ".h5"):
        from hasten.doors.keras import load_keras

        return load_keras(path, shapes, place)
    if path.suffix == ".pt2":
        from hasten.doors.torch import load_torch

        return load_torch(path, example_inputs, shapes, place)
    if path.suffix in (".pt", ".pth", ".th", ".ckpt"):
        raise BadInput(f"{text}: a checkpoint has weights and no graph; give `file.py:function` that builds the module and loads them")
    from hasten.doors.onnx import load_onnx

    return Loaded(load_onnx(path, shapes, check))


def _from_proto(proto: Any, shapes: Mapping[str, int] | None) -> Model:
    from hasten.doors.onnx import from_proto

    return from_proto(proto, None, shapes)


def _proto_of(model: Model) -> Any:
    import onnx

    return onnx.load_from_string(model.to_bytes())


def _is_a(value: Any, module: str, name: str) -> bool:
    """isinstance without an import: a library that is not loaded has no instances."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def parse_example_input(text: str) -> tuple[Any, ...]:
    """`1x3x224x224`, `1x128:int64`, several separated by commas: arrays of N(0, 1), of zeros and ones for whole numbers. Raises BadInput."""
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = []
    for part in text.split(","):
        sizes, _, kind = part.strip().partition(":")
        try:
            shape, dtype = [int(s) for s in sizes.split("x")], np.dtype(kind or "float32")
        except (ValueError, TypeError) as e:
            raise BadInput(f"example input {part.strip()!r} is not understood; expected sizes such as 1x3x224x224 or 1x128:int64") from e
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        arrays.append(values.astype(dtype))
    return tuple(arrays)
