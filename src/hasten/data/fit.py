"""fit: make raw samples what the model's inputs want (names, preprocessing, layout, shape, type), and say what was done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.data import preprocess as preprocessing
from hasten.data.images import Images
from hasten.data.source import Arrays, Columns, Fitted, Source
from hasten.errors import BadInput
from hasten.model import Model, Port
from hasten.task import FEWEST

Array = NDArray[Any]
Convert = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """How columns become feeds; applied alike to every split."""

    convert: Callable[[dict[str, Array]], dict[str, Array]]
    notes: tuple[str, ...]
    image_size: tuple[int, int] | None

    def __call__(self, columns: Columns) -> Fitted:
        if isinstance(columns, Images) and self.image_size is not None:
            columns = dataclasses.replace(columns, size=self.image_size)
        return Fitted(columns, self.convert)


def fit(source: Source, model: Model, preprocess: Any = None) -> Fit:
    """Raises BadInput where columns and inputs do not match in name, shape or type, with what came and what was expected."""
    if len(source.samples) == 0:
        raise BadInput(f"the data is empty; expected at least {FEWEST} samples")
    size = _image_size(source, model)
    samples = dataclasses.replace(source.samples, size=size) if isinstance(source.samples, Images) and size else source.samples
    columns = samples.take(np.array([0]))
    matched = _match(columns, model)
    notes: list[str] = list(source.notes)
    if isinstance(source.samples, Images) and size and source.samples.take(np.array([0]))["x"].shape[1:3] != size:
        notes.append(f"pictures: short side resized, centre cut out to {size[0]} × {size[1]}")
    converters: dict[str, Convert] = {}
    for port in model.inputs:
        names = matched[port.name]
        example = _stack(columns, names)
        prepare, said = _prepare(source, example, preprocess)
        converters[port.name] = _to_port(port, prepare(example), prepare, said, notes)
    if isinstance(source.samples, Arrays):
        _check_finite(source.samples)

    def convert(batch: dict[str, Array]) -> dict[str, Array]:
        return {port.name: converters[port.name](_stack(batch, matched[port.name])) for port in model.inputs}

    return Fit(convert, tuple(notes), size)


def _image_size(source: Source, model: Model) -> tuple[int, int] | None:
    """Height and width that the model's one picture input wants, None where it wants none."""
    if not isinstance(source.samples, Images) or len(model.inputs) != 1:
        return None
    shape = model.inputs[0].shape
    if len(shape) == 4 and isinstance(shape[2], int) and isinstance(shape[3], int) and shape[1] in (1, 3):
        return shape[2], shape[3]
    if len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[2], int) and shape[3] in (1, 3):
        return shape[1], shape[2]
    return None


def _match(columns: dict[str, Array], model: Model) -> dict[str, tuple[str, ...]]:
    """Which columns feed which input: by name; the only column the only input; many columns of numbers one input of features."""
    ports = model.inputs
    if all(p.name in columns for p in ports):
        return {p.name: (p.name,) for p in ports}
    if len(ports) == 1 and len(columns) == 1:
        return {ports[0].name: tuple(columns)}
    if len(ports) == 1 and all(v.ndim == 1 for v in columns.values()):
        return {ports[0].name: tuple(columns)}
    if len(ports) == len(columns) and len({v.shape for v in columns.values()}) == len(columns):
        return {p.name: (name,) for p, name in zip(ports, columns, strict=True)}
    raise BadInput(
        f"the data has columns {', '.join(columns)}, the model has inputs {', '.join(p.name for p in ports)}; "
        "name the columns (arrays of an .npz, keys of a dict) as the inputs"
    )


def _stack(columns: dict[str, Array], names: tuple[str, ...]) -> Array:
    return columns[names[0]] if len(names) == 1 else np.stack([columns[n] for n in names], axis=1)


def _prepare(source: Source, example: Array, preprocess: Any) -> tuple[Convert, str]:
    """Preprocessing of one input's values, and what to say of it."""
    if preprocess is None:
        if not source.images:
            return (lambda x: x), ""
        return preprocessing.PREPROCESSING["unit"], "pictures: 0..255 scaled to 0..1 (--preprocess NAME for another)"
    name, function = preprocessing.resolve(preprocess)
    if isinstance(function, preprocessing.Preprocess):
        chain = function
        return (lambda x: chain(_channels_last(x))), f"pictures: preprocessing {name}"
    return (lambda x: np.asarray(function(x))), f"preprocessing: {name}"


def _channels_last(x: Array) -> Array:
    """(N, C, H, W) bytes as (N, H, W, C); anything else as it is."""
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        return np.moveaxis(x, 1, -1)
    return x


def _to_port(port: Port, example: Array, prepare: Convert, said: str, notes: list[str]) -> Convert:
    """Layout, shape and type for an input. Raises BadInput where there is no sensible way."""
    wanted = port.shape[1:]
    dtype = np.dtype(port.dtype)
    layout, how = _layout(example.shape[1:], wanted)
    if layout is None:
        raise BadInput(
            f"input {port.name!r} wants samples of shape {_show(wanted)}, the data has {_show(example.shape[1:])}; "
            "reshape the data, or give the model that fits it"
        )
    if dtype.kind in "iu" and example.dtype.kind == "f":
        raise BadInput(f"input {port.name!r} wants {port.dtype} (whole numbers, such as token ids), the data has {example.dtype}")
    for note in (said, how):
        if note and note not in notes:
            notes.append(note)

    def convert(x: Array) -> Array:
        values = np.ascontiguousarray(layout(prepare(x))).astype(dtype, copy=False)
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise BadInput(f"the data for input {port.name!r} holds NaN or infinite values; clean it first")
        return values

    return convert


def _layout(have: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> tuple[Convert | None, str]:
    """How a sample's axes become the input's: as they are, channels moved, or reshaped; and what to say."""
    if _fits(have, wanted):
        return (lambda x: x), ""
    if len(have) == 3 and len(wanted) == 3:
        if _fits((have[2], have[0], have[1]), wanted):
            return (lambda x: np.moveaxis(x, -1, 1)), "layout: NHWC data to the model's NCHW"
        if _fits((have[1], have[2], have[0]), wanted):
            return (lambda x: np.moveaxis(x, 1, -1)), "layout: NCHW data to the model's NHWC"
    if all(isinstance(d, int) for d in wanted) and int(np.prod(wanted, dtype=np.int64)) == int(np.prod(have)):  # type: ignore[arg-type]
        single = [d for d in have if d != 1] == [d for d in wanted if d != 1]
        if single or len(wanted) == 1 or len(have) == 1:
            return (lambda x: x.reshape(len(x), *wanted)), f"shape: {_show(have)} to the model's {_show(wanted)}"
    if len(wanted) == len(have) + 1 and wanted[0] == 1 and _fits(have, wanted[1:]):
        return (lambda x: x[:, None]), f"shape: {_show(have)} to the model's {_show(wanted)}"
    return None, ""


def _fits(have: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(have) == len(wanted) and all(not isinstance(w, int) or w == h for h, w in zip(have, wanted, strict=True))


def _show(shape: tuple[Any, ...]) -> str:
    return "×".join(str(d) if d is not None else "?" for d in shape) or "a number"


def _check_finite(samples: Arrays) -> None:
    for name, column in samples.columns.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            bad = int(np.sum(~np.isfinite(column.reshape(len(column), -1)).all(axis=1)))
            raise BadInput(f"column {name!r} holds NaN or infinite values in {bad} of {len(column)} samples; clean the data first")
