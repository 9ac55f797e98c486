"""Preprocessing by name: what a model's training did to pictures. PREPROCESSING is the whole list; numbers can be given instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import pyfile
from hasten.errors import BadInput

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """(pixel · scale − mean) / std on channels in `color` order; pixels are 0..255. mean and std: one number, or one a channel."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "RGB"

    def __post_init__(self) -> None:
        if self.color not in ("RGB", "BGR"):
            raise BadInput(f"preprocess: color is {self.color!r}, expected RGB or BGR")
        if any(s == 0 for s in self.std):
            raise BadInput("preprocess: a std of 0 can't be divided by")

    def __call__(self, pixels: Array) -> Array:
        """(N, H, W, C) or (N, H, W) bytes to float32 of the same shape."""
        x = pixels.astype(np.float32)
        if x.ndim == 4 and x.shape[-1] == 3 and self.color == "BGR":
            x = x[..., ::-1]
        if len(self.mean) not in (1, x.shape[-1]) or len(self.std) not in (1, x.shape[-1]):
            raise BadInput(f"preprocess: {len(self.mean)} means and {len(self.std)} stds for pictures of {x.shape[-1]} channels")
        return np.asarray((x * np.float32(self.scale) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32))


PREPROCESSING = {
    "unit": Preprocess(),
    "raw": Preprocess(scale=1.0),
    "imagenet-torch": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "imagenet-caffe": Preprocess(scale=1.0, mean=(104.0, 117.0, 123.0), color="BGR"),
    "imagenet-tf": Preprocess(scale=1 / 127.5, mean=(1.0,)),
    "mnist": Preprocess(mean=(0.1307,), std=(0.3081,)),
    "cifar10": Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}


def resolve(preprocess: Any) -> tuple[str, Callable[[Array], Array]]:
    """(what to print, the function) from a name, numbers such as `mean=104,117,123;color=BGR;scale=1`, a dict, or a function.

    Raises BadInput naming what there is.
    """
    if isinstance(preprocess, Preprocess):
        return "as given", preprocess
    if isinstance(preprocess, Mapping):
        return "as given", _from_fields(preprocess)
    if callable(preprocess):
        return "the given function", preprocess
    text = str(preprocess)
    if text in PREPROCESSING:
        return text, PREPROCESSING[text]
    if pyfile.is_reference(text):
        return "the given function", pyfile.load_object(text)
    if "=" in text:
        return "as given", _from_fields(dict(part.split("=", 1) for part in text.split(";") if "=" in part))
    raise BadInput(
        f"there is no preprocessing {text!r}; use one of {', '.join(PREPROCESSING)}, or numbers: 'mean=0.5;std=0.5;scale=0.00392;color=RGB'"
    )


def _from_fields(fields: Mapping[str, Any]) -> Preprocess:
    known = {f.name for f in dataclasses.fields(Preprocess)}
    if unknown := sorted(set(fields) - known):
        raise BadInput(f"preprocess has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    try:
        for name, value in fields.items():
            if name == "color":
                values[name] = str(value).upper()
            elif name == "scale":
                values[name] = float(value)
            else:
                values[name] = tuple(float(v) for v in (value.split(",") if isinstance(value, str) else np.atleast_1d(value)))
    except ValueError as e:
        raise BadInput(f"preprocess: {e}; expected numbers, such as 'mean=0.5,0.5,0.5;std=0.25'") from e
    return Preprocess(**values)
