"""Cost: what a runtime adds to an installation, how long the preparation took, and the price of a million predictions, computed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from importlib import metadata

from hasten.errors import BadInput
from hasten.measure.record import Record

RUNTIME_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "native": "hasten",
    "reference": "onnxruntime",
    "torch": "torch",
    "torch-compiled": "torch",
    "keras": "keras",
}
"""The package that each runtime needs; `null` needs none."""

FORMULA = "seconds a call / batch × price an hour / 3600 × 1,000,000, one machine that does nothing else"
MILLION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Package:
    """An installed package: size in bytes of its files, licence as its metadata says it."""

    name: str
    version: str
    bytes: int
    licence: str


def check_price(price_per_hour: float) -> None:
    """Raises BadInput."""
    if not (math.isfinite(price_per_hour) and price_per_hour > 0):
        raise BadInput(f"--price-per-hour is {price_per_hour}, expected a number above 0, such as 0.34")


def price_per_million(seconds: float, batch: int, price_per_hour: float) -> float:
    """Price of a million predictions, in the currency of the price: FORMULA. Computed, not measured. Raises BadInput."""
    check_price(price_per_hour)
    return seconds / batch * price_per_hour / 3600 * MILLION


def preparation(records: Iterable[Record]) -> dict[str, float]:
    """Seconds that making each recipe's model took, by recipe, checks against the oracle included, as recorded."""
    return {r.subject: r.values["seconds"] for r in records if r.kind == "built" and "seconds" in r.values}


def packages(runtime: str) -> tuple[Package, ...]:
    """What the runtime adds to an installation that has Python and numpy: its package and all that this one requires, as installed here."""
    found: dict[str, Package] = {}
    waiting = [RUNTIME_PACKAGES[runtime]] if runtime in RUNTIME_PACKAGES else []
    while waiting:
        name = _canonical(waiting.pop(0))
        if name in found or name == "numpy":
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system or Python: not part of this installation
        found[name] = Package(name, distribution.version, _size(distribution), _licence(distribution))
        waiting += [r for r in distribution.requires or () if not re.search(r"\bextra\s*==", r)]
    return tuple(found.values())


def _canonical(requirement: str) -> str:
    """The name in `name[extra]>=1; marker`, as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;(]", requirement.strip(), maxsplit=1)[0]).lower()


def _size(distribution: metadata.Distribution) -> int:
    files = (distribution.locate_file(f) for f in distribution.files or ())
    return sum(f.stat().st_size for f in files if f.is_file())  # type: ignore[attr-defined]


def _licence(distribution: metadata.Distribution) -> str:
    """The licence's expression, else the classifiers, else the first line of the licence field, else `not stated`."""
    fields = distribution.metadata
    if "License-Expression" in fields:
        return str(fields["License-Expression"])
    classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier") or () if c.startswith("License :: ")]
    text = str(fields["License"]).strip().splitlines() if "License" in fields else []
    return ", ".join(c for c in classifiers if c != "OSI Approved") or (text[0] if text else "not stated")
