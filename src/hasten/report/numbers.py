"""Numbers for people: the one place where a measurement becomes a text, on the terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.packed import Sizes

RESTLESS_FLOOR = 0.10
"""From this noise floor on, the machine is called restless and its ratios are not to be relied on; a quiet one has 1 to 5 %."""


def seconds(value: float | None) -> str:
    """A time, `12.3 µs`."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float | None) -> str:
    """Bytes, `4.07 MB` (powers of ten)."""
    if value is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def sizes(value: Sizes) -> str:
    """The three sizes of a model apart, `2.1 MB raw, 98 KB packed, 61 KB entropy-coded`."""
    return f"{size(value.raw)} raw, {size(value.packed)} packed, {size(value.entropy_coded)} entropy-coded"


def count(value: float | None) -> str:
    """A number of MACs or parameters, `3.5 M`."""
    if value is None:
        return "?"
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f}"


def times(value: float | None) -> str:
    """A ratio, `2.35 ×`."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f} ×"


def interval(value: Mapping[str, float | None] | None, digits: int = 2, sign: str = "") -> str:
    """The 95 % interval of a record, `[2.20, 2.53]`; `sign` is "+" where a difference is shown."""
    if value is None or value["low"] is None or value["high"] is None:
        return ""
    return f"[{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]".replace("-", "−")


def metric(value: float | None) -> str:
    """The value of a metric, `0.9822`."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def change(value: float | None) -> str:
    """A difference of a metric, `−0.0011`."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+.4f}".replace("-", "−")
    return "0.0000" if text[1:] == "0.0000" else text


def share(value: float | None, digits: int = 0) -> str:
    """A share, `97 %`."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def restless(floor: float | None) -> list[str]:
    """The warning, where the noise floor is so high that the machine had something else to do; nothing where it was quiet."""
    if floor is None or not floor >= RESTLESS_FLOOR:
        return []
    return [
        f"the machine was restless (the original against itself, measured the same way, differs by {share(floor)}): "
        "measure again on a quiet machine before relying on these times"
    ]


def time_unit(largest: float) -> tuple[str, float]:
    """The unit for an axis of times up to `largest` seconds, and its seconds."""
    return next(((unit, factor) for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if largest >= factor), ("ns", 1e-9))


def size_unit(largest: float) -> tuple[str, float]:
    """The unit for an axis of sizes up to `largest` bytes, and its bytes."""
    return next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)) if largest >= factor), ("B", 1.0))
