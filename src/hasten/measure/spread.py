"""Spread: what kind of input a model has and how the data's values lie in it. What corruptions and masks are measured in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.model import Port

Array = NDArray[Any]
PICTURE, TOKENS, FEATURES = "picture", "tokens", "features"
COLOURS = (1, 3, 4)
"""Numbers of channels by which the layout of a picture is known: (N, C, H, W) or (N, H, W, C)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """One input's values as seen on some samples, by channel (pictures) or feature.

    `mean`, `std`, `low` and `high` are float32 arrays that broadcast against one sample. `channel`: the axis of a sample that holds
    channels or features. For tokens: `blank` is the id that stands for nothing (what the attention mask hides, else 0), and `free` marks
    the positions whose token differs from sample to sample (a start token stays what it is).
    """

    kind: str
    channel: int
    mean: Array
    std: Array
    low: Array
    high: Array
    blank: int = 0
    free: Array = dataclasses.field(default_factory=lambda: np.ones(1, bool))

    @property
    def plane(self) -> tuple[int, int]:
        """A picture's axes of height and width within one sample."""
        return (1, 2) if self.channel == 0 else (0, 1)


def spreads(ports: Sequence[Port], feeds: Mapping[str, Array]) -> dict[str, Spread]:
    """The spread of every input that is a picture, tokens or features; masks, segment numbers and positions are none of these.

    feeds: some samples, (N, ...) by input name, as the model gets them.
    """
    found = {}
    for port in ports:
        values = feeds[port.name]
        kind = _kind(values)
        if kind == TOKENS:
            found[port.name] = _tokens(values, _hidden(feeds, port.name))
        elif kind is not None:
            found[port.name] = _numbers(values, kind, _channel_axis(values) if kind == PICTURE else values.ndim - 2)
    return found


def _kind(values: Array) -> str | None:
    """By rank and type. Whole numbers that are only 0 and 1, or the same in every sample, are masks, segments or positions, not tokens."""
    if values.ndim == 4 and values.dtype.kind in "fiu":
        return PICTURE
    if values.dtype.kind == "f" and values.ndim in (2, 3):
        return FEATURES
    if values.dtype.kind in "iu" and values.ndim == 2 and values.max() > 1 and (values != values[:1]).any():
        return TOKENS
    return None


def _channel_axis(values: Array) -> int:
    """0 for samples (C, H, W), 2 for (H, W, C): by the usual numbers of channels, else by the smaller of the two axes."""
    first, last = values.shape[1], values.shape[3]
    if first in COLOURS or last in COLOURS:
        return 0 if first in COLOURS else 2
    return 0 if first <= last else 2


def _numbers(values: Array, kind: str, channel: int) -> Spread:
    axes = tuple(a for a in range(values.ndim) if a != channel + 1)
    as_float = values.astype(np.float32, copy=False)
    statistics = (f(as_float, axis=axes, keepdims=True)[0].astype(np.float32) for f in (np.mean, np.std, np.min, np.max))
    return Spread(kind, channel, *statistics)


def _tokens(values: Array, hidden: Array | None) -> Spread:
    blank = 0
    if hidden is not None and hidden.any():
        ids, counts = np.unique(values[hidden], return_counts=True)
        blank = int(ids[counts.argmax()])
    nothing = np.zeros(1, np.float32)
    return Spread(TOKENS, 0, nothing, nothing, nothing, nothing, blank, (values != values[:1]).any(axis=0))


def _hidden(feeds: Mapping[str, Array], name: str) -> Array | None:
    """Which tokens an attention mask hides: an input called `…mask…` of the tokens' shape."""
    for other, values in feeds.items():
        if other != name and "mask" in other.lower() and values.shape == feeds[name].shape:
            return np.asarray(values == 0)
    return None
