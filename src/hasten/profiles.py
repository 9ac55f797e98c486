"""Profiles: what a model is used for, as settings of the budget. PROFILES is the whole list; what the user gives himself counts more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hasten.errors import BadInput
from hasten.measure.machine import cores


@dataclasses.dataclass(frozen=True)
class Profile:
    """A use by name: the fields of Budget that it sets, and what must be said when it is used."""

    name: str
    about: str
    settings: Mapping[str, Any]
    note: str = ""


PROFILES = (
    Profile(
        "realtime",
        "one sample at a time, and the slow calls count",
        {"objective": "latency", "percentile": 99.0, "batch": 1},
        "--max-latency sets the deadline; it is judged at the percentile, and so is which candidate is faster",
    ),
    Profile(
        "server",
        "many requests, gathered into batches",
        {"objective": "throughput", "batch": 16, "percentile": 95.0},
        "batches of 8 to 32 are usual: give --batch what your server gathers",
    ),
    Profile(
        "mobile",
        "a small file, and not slower, on a core or two",
        {"objective": "size", "batch": 1, "threads": 2},
        "times are this machine's; measure again on the device",
    ),
    Profile(
        "microcontroller",
        "C code of whole numbers, the least flash",
        {"objective": "flash", "batch": 1, "threads": 1, "recipes": ("int8 static",), "runtimes": ("onnxruntime",)},
        "--max-flash and --max-ram are the limits; time was measured on this machine and not on the target, which it says nothing about",
    ),
    Profile(
        "batch",
        "a big pile of samples, overnight",
        {"objective": "throughput", "batch": 64},
        "",
    ),
    Profile(
        "medical",
        "no class may suffer, and the data must prove it",
        {"strict": True, "guards": ("recall:all",), "guard_drop": 0.0},
        "a candidate is returned only if the test data proves the budget and no class' recall falls",
    ),
)  # fmt: skip


def profile(name: str) -> Profile:
    """The profile of that name. Raises BadInput listing them."""
    for known in PROFILES:
        if known.name == name:
            return known
    raise BadInput(f"there is no profile {name!r}; use one of {', '.join(p.name for p in PROFILES)}")


def apply(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The budget's fields: what was given, and of the rest what the profile sets. Raises BadInput for a name that is none."""
    if name is None:
        return dict(given)
    return {**settings(name), **given, "purpose": name}


def settings(name: str) -> dict[str, Any]:
    """What the profile sets; never more threads than this process may use."""
    values = dict(profile(name).settings)
    if "threads" in values:
        values["threads"] = min(values["threads"], cores())
    return values


def spelled(name: str, given: Mapping[str, Any]) -> list[str]:
    """The lines to print when a profile is used: each value, and which of them the user gave instead."""
    used = profile(name)
    parts = [
        f"{field} {_value(given[field])} (given; the profile says {_value(value)})" if field in given else f"{field} {_value(value)}"
        for field, value in settings(name).items()
    ]
    return [f"for {name} ({used.about}): {', '.join(parts)}", *([used.note] if used.note else [])]


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " and ".join(str(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else "yes" if value is True else "no" if value is False else str(value)
