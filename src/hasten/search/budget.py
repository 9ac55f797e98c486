"""Budget: what the user allows, asks for and forbids. Checked when made."""

from __future__ import annotations

import dataclasses
import math
import re

from hasten.errors import BadInput
from hasten.measure.machine import cores
from hasten.runtimes import DEFAULT, RUNTIMES
from hasten.search.guard import Guard, to_guards

OBJECTIVES = ("latency", "throughput", "size", "flash")
THROUGHPUT_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Budget:
    """Times in seconds, sizes in bytes; None: no constraint.

    `max_drop` is absolute, in the metric's own unit; without labels the budget is `min_agreement` with the original instead.
    `guards` (`recall:1`, `recall:all`) forbid that the recall of a class falls by more than `guard_drop`; see `search/guard.py`.
    `max_flash`, `max_ram`: of the model as C code for a microcontroller (`hasten.lower.c_export`), constants, and activations with the outputs; with
    them, or the objective `flash`, every candidate must have such code, and no time of this machine's counts for the objective `flash`.
    `recipes`: names of those to try, all by default.
    `training`: whether candidates may be trained, where the task has data for it. `purpose`: the profile that some of the values came from.
    Raises BadInput for a value that makes no sense.
    """

    max_drop: float = 0.01
    min_agreement: float = 0.98
    objective: str = "latency"
    max_latency: float | None = None
    percentile: float = 50.0
    max_size: int | None = None
    max_memory: int | None = None
    max_flash: int | None = None
    max_ram: int | None = None
    time_limit: float | None = None
    batch: int | None = None
    threads: int | None = None
    strict: bool = False
    runtimes: tuple[str, ...] = DEFAULT
    seed: int = 0
    guards: tuple[Guard, ...] = ()
    guard_drop: float = 0.0
    recipes: tuple[str, ...] = ()
    training: bool = True
    purpose: str | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise BadInput(f"objective {self.objective!r} is unknown; use one of {', '.join(OBJECTIVES)}")
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise BadInput(f"max_drop is {self.max_drop}, expected a number of at least 0, such as 0.01 for one point of accuracy")
        if not 0 <= self.min_agreement <= 1:
            raise BadInput(f"min_agreement is {self.min_agreement}, expected a share from 0 to 1")
        if not 0 < self.percentile < 100:
            raise BadInput(f"percentile is {self.percentile}, expected a number between 0 and 100, such as 99")
        for name in ("max_latency", "max_size", "max_memory", "max_flash", "max_ram", "time_limit", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInput(f"{name} is {value}, expected more than 0")
        object.__setattr__(self, "guards", to_guards(self.guards))
        if not (math.isfinite(self.guard_drop) and 0 <= self.guard_drop < 1):
            raise BadInput(f"guard_drop is {self.guard_drop}, expected a share of at least 0 and below 1, such as 0.01")
        self._check_recipes()
        if not self.runtimes:
            raise BadInput(f"no runtime to try; use some of {', '.join(RUNTIMES)}")
        for runtime in self.runtimes:
            if runtime not in RUNTIMES:
                raise BadInput(f"there is no runtime {runtime!r}; use some of {', '.join(RUNTIMES)}")

    def _check_recipes(self) -> None:
        from hasten.search.candidates import PRUNED, RECIPES, TRAINED

        names = [r.name for r in (*RECIPES, *PRUNED, *TRAINED)]
        for recipe in self.recipes:
            if recipe not in names:
                raise BadInput(f"there is no recipe {recipe!r}; use some of {', '.join(names)}")

    @property
    def as_c(self) -> bool:
        """Whether a candidate must have C code for a microcontroller."""
        return self.objective == "flash" or self.max_flash is not None or self.max_ram is not None

    @property
    def by_bytes(self) -> bool:
        """Whether bytes are minimised and not time."""
        return self.objective in ("size", "flash")

    @property
    def at_the_tail(self) -> bool:
        """Whether candidates are ranked by the time of their slow calls: latency at another percentile than the median."""
        return self.objective == "latency" and self.percentile != 50.0

    @property
    def guard_margin(self) -> float | None:
        """What the one-sided bound of a guarded recall must keep on test with `strict`; None where the estimate alone counts."""
        return max(self.guard_drop, self.max_drop) if self.strict else None

    @property
    def use_threads(self) -> int:
        """Threads to run with: those asked for, else the cores that this process may use."""
        return self.threads or cores()

    @property
    def use_batch(self) -> int:
        """The batch asked for; else 1, or 32 where throughput counts."""
        return self.batch or (THROUGHPUT_BATCH if self.objective == "throughput" else 1)


UNITS: dict[str, dict[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
    "size": {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
}


def parse_quantity(text: str, kind: str) -> float:
    """`10us`, `2.5 ms`, `10m` (kind `time`) in seconds; `4MB`, `512KiB` (kind `size`) in bytes. Raises BadInput."""
    units = UNITS[kind]
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-zµA-Z]+)\s*", text)
    unit = found[2] if kind == "time" and found else (found[2].lower() if found else "")
    if not found or unit not in units:
        raise BadInput(f"{text!r} is not a {kind}; expected a number and a unit, one of {', '.join(units)}")
    return float(found[1]) * units[unit]
