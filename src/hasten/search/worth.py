"""worth: what zeros bring, told before anything is trained: the pruned shape is timed beside the dense one, and both are packed.

A runtime that multiplies by zeros takes as long with them as without; whether one here skips them is measured, not believed. So pruning by magnitude,
which takes milliseconds, shows what a training of hours would end with: the time in each runtime, and the size, raw, packed and entropy-coded (with
the trained weights it differs a little). Without a gain in time the zeros are good for the size alone. Everything is of the float model: a code of 0
is multiplied just as well.

Cost: two to four rounds of two fresh processes in each runtime, and a second for each few MB of weights that are packed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten import packed, runtimes
from hasten.errors import Unsupported
from hasten.measure.beside import duel
from hasten.measure.judge import Failure
from hasten.measure.process import Subject
from hasten.measure.statistics import Interval
from hasten.measure.worker import Arrays
from hasten.model import Model
from hasten.packed import Sizes
from hasten.report.numbers import size
from hasten.runtimes import Target
from hasten.shrink.prune_weights import PruneWeights, prune_weights
from hasten.voice import voice

GAIN = 1.05
"""A runtime gains where the pruned shape is so many times faster, and faster beyond the noise (the one-sided 95 % bound)."""

ROUNDS = 4
"""Rounds of fresh processes; after two no more where neither shows a gain."""

SAME = 0.05
"""Sizes that differ by a smaller share are told as one: a step more in the file's history."""

LARGEST = 64 << 20
"""Bytes of weights; to pack more takes too long for a sentence."""


@dataclasses.dataclass(frozen=True)
class Worth:
    """Of a share of zeros in a pattern. `speed`: by runtime, how many times faster the pruned shape is. `untimed`: by runtime, why it could not be
    timed. `dense`, `pruned`: sizes; `unpacked`: why there are none."""

    share: float
    pattern: str
    speed: dict[str, Interval] = dataclasses.field(default_factory=dict)
    untimed: dict[str, str] = dataclasses.field(default_factory=dict)
    dense: Sizes | None = None
    pruned: Sizes | None = None
    unpacked: str = ""

    @property
    def gains(self) -> tuple[str, ...]:
        """The runtimes that are faster."""
        return tuple(name for name, found in self.speed.items() if found.estimate >= GAIN and (found.bound_low or found.low) > 1)

    @property
    def zeros(self) -> str:
        return f"{100 * self.share:g} % {self.pattern} zeros"

    @property
    def storage(self) -> str:
        """What becomes of the file, in words."""
        if self.dense is None or self.pruned is None:
            return f"not packed: {self.unpacked}"
        return ", ".join(_of(name, getattr(self.dense, name), getattr(self.pruned, name)) for name in ("raw", "packed", "entropy_coded"))

    @property
    def time(self) -> str:
        """What becomes of the time, in words, the interval where it looks like a gain; empty where it was not looked at."""
        each = [
            f"{name} × {i.estimate:.2f}" + (f" [{i.low:.2f}, {i.high:.2f}]" if i.estimate >= GAIN else "") for name, i in self.speed.items()
        ]
        each += [f"{name} not timed: {why}" for name, why in self.untimed.items()]
        said = f"faster in {' and '.join(self.gains)}" if self.gains else "no runtime here gains"
        return f"{said} ({', '.join(each)})" if each else ""

    @property
    def sentence(self) -> str:
        return f"{self.zeros}: {'; '.join(part for part in (self.time, self.storage) if part)}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Worth:
        speed = {name: Interval(**found) for name, found in values["speed"].items()}
        dense, pruned = ((None if values[name] is None else Sizes(**values[name])) for name in ("dense", "pruned"))
        return Worth(**{**values, "speed": speed, "dense": dense, "pruned": pruned})


def worth(model: Model, pruned: Model, share: float, pattern: str, names: Sequence[str], target: Target, feeds: Arrays) -> Worth:
    """Time both models in those of the runtimes that take them (in none: sizes alone), and pack both."""
    speed: dict[str, Interval] = {}
    untimed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        paths = {"dense": Path(private) / "dense.onnx", "pruned": Path(private) / "pruned.onnx"}
        model.save(paths["dense"])
        pruned.save(paths["pruned"])
        for number, name in enumerate(names):
            voice().step("what zeros bring", number, len(names))
            if runtimes.get(name).unsupported(pruned, target):
                continue
            found = duel({key: Subject(name, path, target) for key, path in paths.items()}, feeds, ROUNDS, GAIN)
            if isinstance(found, Failure):
                untimed[name] = found.reason
            else:
                speed[name] = found
    voice().step("what zeros bring", len(names), len(names))
    if model.weight_bytes > LARGEST:
        return Worth(share, pattern, speed, untimed, unpacked="too large to be packed in passing")
    try:
        return Worth(share, pattern, speed, untimed, packed.sizes(model), packed.sizes(pruned))
    except Unsupported as e:
        return Worth(share, pattern, speed, untimed, unpacked=str(e))


def by_magnitude(model: Model, share: float, pattern: str) -> Model:
    """The shape that a training would end with. Raises Refused where nothing can be pruned."""
    return prune_weights(model, PruneWeights(share, pattern), None)


def _of(name: str, before: int, after: int) -> str:
    name = name.replace("_", "-")
    if abs(after / before - 1) < SAME:
        return f"{name} {size(after)} as before"
    return f"{name} {size(after)} of {size(before)} ({before / after:.1f} × smaller)"
