"""The machine: what it is, and how much of it this process may use. Nothing here names a person, a host or a path."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("hasten", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "torch", "keras")
ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine as measurements name it. Memory in bytes."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory: int
    system: str
    python: str

    @property
    def digest(self) -> str:
        """Two measurements may be compared in absolute terms where this agrees."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def machine() -> Machine:
    """This machine."""
    cpu, isa = _cpu()
    return Machine(cpu, isa, cores(), psutil.virtual_memory().total, f"{platform.system()} {platform.machine()}", platform.python_version())


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that a measurement depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores that this process may use: affinity and cgroup quota, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(allowed, round(quota)) if quota else allowed)


def _cgroup_quota() -> float | None:
    """Cores by the cgroup's quota (v2, then v1), None where there is none."""
    v2 = Path("/sys/fs/cgroup/cpu.max")
    if v2.exists():
        limit, period = v2.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    v1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    if v1.exists() and (limit_us := int(v1.read_text())) > 0:
        return limit_us / int(v1.with_name("cpu.cfs_period_us").read_text())
    return None


def _cpu() -> tuple[str, tuple[str, ...]]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = " ".join(fields[k] for k in ("model name",) if k in fields) or platform.machine()
    family = "/".join(fields[k] for k in ("cpu family", "model") if k in fields)
    return f"{name} (family {family})" if family else name, tuple(f for f in ISA_FLAGS if f in flags)
