"""RAPL: the energy counters of x86 processors (Intel's running average power limit; AMD has them too), where Linux lets them be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path("/sys/class/powercap")
COUNTED = ("package", "dram")
"""Zones that are summed: whole processors and the memory beside them. Cores are part of a package, and psys holds everything again."""


def zones(root: Path = ROOT) -> list[Path]:
    """The counters to sum, each a folder with `energy_uj` and `max_energy_range_uj`; empty where there are none or they can't be read."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if name.startswith(COUNTED):
            found.append(zone)
    return found if any((z / "name").read_text().startswith("package") for z in found) else []


def microjoules(counters: list[Path]) -> list[int]:
    """Where the counters stand."""
    return [int((z / "energy_uj").read_text()) for z in counters]


def joules(counters: list[Path], before: list[int], after: list[int]) -> float:
    """What was spent between two readings. A counter that went back has wrapped around at its range, once."""
    spent = 0
    for zone, one, other in zip(counters, before, after, strict=True):
        spent += other - one if other >= one else other - one + int((zone / "max_energy_range_uj").read_text())
    return spent / 1e6


def spend(call: Callable[[], object], seconds: float, root: Path = ROOT) -> dict[str, Any]:
    """Call for about `seconds`: `calls`, wall `seconds`, `cpu_seconds` (user and system, all threads of this process), and `joules`
    of the processors and their memory, None where that can't be read."""
    counters = zones(root)
    calls, start, busy = 0, time.perf_counter(), time.process_time()
    before = microjoules(counters)
    while calls < 1 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    after = microjoules(counters)
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    spent = joules(counters, before, after) if counters else None
    return {"calls": calls, "seconds": wall, "cpu_seconds": cpu, "joules": spent}
