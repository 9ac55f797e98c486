"""doctor: the machine, what is installed, what is missing and the command that adds it, and a self-test of about five seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hasten.errors import HastenError
from hasten.measure import judge
from hasten.measure.judge import Failure
from hasten.measure.machine import Machine, cores, machine
from hasten.measure.peaks import cache_file, cache_folder
from hasten.measure.process import Subject, WorkerFailed
from hasten.measure.statistics import geometric_mean
from hasten.runtimes import Target, native
from hasten.voice import voice

ENABLES: tuple[tuple[str, str], ...] = (
    ("avx2", "float32 and 8-bit kernels on 256-bit registers"),
    ("avx512f", "kernels on 512-bit registers"),
    ("avx_vnni", "int8 is fast: four 8-bit products and their sum in one step (256 bits)"),
    ("avx512_vnni", "int8 is fast: four 8-bit products and their sum in one step (512 bits)"),
    ("avx512_bf16", "bf16 is fast: OpenVINO's bf16 hint multiplies 16-bit floats in one step"),
    ("avx512_fp16", "float16 is computed and not only stored"),
    ("amx_int8", "int8 matrix tiles: very fast int8"),
    ("amx_bf16", "bf16 matrix tiles: very fast bf16"),
    ("asimddp", "int8 is fast: 8-bit dot products"),
    ("i8mm", "int8 matrix products: very fast int8"),
    ("bf16", "bf16 is fast"),
    ("sve", "kernels on scalable vectors"),
)
"""Instruction sets and what each brings, in plain words."""

EXTRAS: tuple[tuple[str, str, str, str], ...] = (
    ("onnxruntime", "", "the baseline's runtime", "pip install onnxruntime"),
    ("openvino", "openvino", "a second runtime, often the fastest for int8 and bf16", "pip install 'hasten[openvino]'"),
    (
        "torch",
        "torch",
        "the PyTorch door (install the CPU build first: a bare torch may bring several GB of CUDA)",
        "pip install 'hasten[torch]'",
    ),
    ("keras", "keras", "the Keras door", "pip install 'hasten[keras]'"),
)
"""Packages, their extra (empty: always installed), what they are for, and the command that adds them."""

COMPILERS = ("c++", "g++", "clang++")
BUILD_ENGINE = "make native, or pip install --force-reinstall --no-deps . (in hasten's clone)"
RUNTIMES = ("onnxruntime", "openvino", "native")
SAMPLES = 64
"""Real digits that the self-test quantizes and compares with."""

AGREE = 0.9
"""Share of the digits on which int8 must say what float says, in every runtime."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One that hasten can use: its version, None where it is missing, and then the command that adds it."""

    name: str
    version: str | None
    about: str
    add: str


@dataclasses.dataclass(frozen=True)
class Engine:
    """The native engine: the level of its kernels on this processor and the version of its interface, or why it is missing and what adds it."""

    isa: str | None
    abi: int | None
    missing: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One part of the self-test: whether it passed, None where it can't fail, and what was seen."""

    name: str
    passed: bool | None
    seen: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `hasten doctor` found. Memory in bytes; `free_memory` is what is available now."""

    machine: Machine
    cores_here: int
    free_memory: int
    enables: dict[str, str]
    packages: tuple[Package, ...]
    compiler: str | None
    engine: Engine
    cache: str
    peaks_measured: bool
    tests: tuple[Finding, ...]
    noise: float | None

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(f"{t.name}: {t.seen}" for t in self.tests if t.passed is False)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"failed": list(self.failed)}


def diagnose() -> Diagnosis:
    """Look at everything and run the self-test."""
    here = machine()
    tests, noise = self_test()
    compiler = next((c for c in COMPILERS if shutil.which(c)), None)
    return Diagnosis(
        here,
        os.cpu_count() or 1,
        psutil.virtual_memory().available,
        {name: brings for name, brings in ENABLES if name in here.isa},
        tuple(Package(name, _version(name), about, add) for name, _, about, add in EXTRAS),
        compiler,
        native_engine(compiler),
        _cache_state(),
        cache_file().is_file(),
        tests,
        noise,
    )


def native_engine(compiler: str | None) -> Engine:
    """The engine as it is compiled into this installation; `compiler`: one that is here, if any."""
    try:
        from hasten import _native
    except ModuleNotFoundError:
        first = "" if compiler else ", for want of a C++ compiler: apt-get install g++, then"
        return Engine(None, None, f"not built{first or ':'} {BUILD_ENGINE}")
    except ImportError as e:
        return Engine(None, None, f"built, but it can't be loaded ({e}): {BUILD_ENGINE}")
    return Engine(_native.isa(), _native.abi(), "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name) if importlib.util.find_spec(name) is not None else None
    except metadata.PackageNotFoundError:
        return None


def _cache_state() -> str:
    """The cache folder and whether it can be written, without making it."""
    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return (
        f"{folder} ({'can be written' if os.access(existing, os.W_OK) else 'can not be written: set XDG_CACHE_HOME to a folder that can'})"
    )


def self_test() -> tuple[tuple[Finding, ...], float | None]:
    """Quantize a CNN on real digits, run it in each runtime that is installed, compare, and time one thing twice.

    The tests, and the noise: by how much two processes of the same thing differ, as a share. What fails is an answer, not an error.
    """
    tests: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        place = Path(private)
        try:
            model, task = _digits()
            _quantized(model, task, place)
        except HastenError as e:
            return (Finding("quantize", False, str(e)),), None
        tests.append(Finding("quantize", True, "a CNN on handwritten digits, to int8, calibrated on real samples"))
        expected: Any = None
        for number, runtime in enumerate(r for r in RUNTIMES if (native.available() if r == "native" else importlib.util.find_spec(r))):
            voice().step("self-test", number, len(RUNTIMES) + 1)
            try:
                found = {kind: _predict(runtime, place / f"{kind}.onnx", task) for kind in ("float", "int8")}
            except (WorkerFailed, HastenError) as e:
                tests.append(Finding(runtime, False, str(e)))
                continue
            expected = found["float"] if expected is None else expected
            tests.append(_compared(runtime, expected, found))
        noise = _noise(place / "float.onnx", task, tests)
        voice().step("self-test", len(RUNTIMES) + 1, len(RUNTIMES) + 1)
    return tuple(tests), noise


def _digits() -> tuple[Any, Any]:
    """The CNN that travels with the package, and some of its digits, bound to it."""
    from hasten.doors.onnx import load_onnx
    from hasten.task import Task

    models = resources.files("hasten.models")
    with resources.as_file(models / "digits_cnn.onnx") as file:
        model = load_onnx(file)
    with resources.as_file(models / "digits.npz") as file, np.load(file) as arrays:
        x, y = arrays["x_train"][: 4 * SAMPLES], arrays["y_train"][: 4 * SAMPLES]
        test = arrays["x_test"][:SAMPLES], arrays["y_test"][:SAMPLES]
    return model, Task((x, y), test=test).bind(model)


def _quantized(model: Any, task: Any, place: Path) -> None:
    from hasten import plan
    from hasten.search.candidates import RECIPES

    model.save(place / "float.onnx")
    recipe = next(r for r in RECIPES if r.name == "int8 static")
    steps = tuple(plan.PlannedStep(n, plan.make_settings(n, _quick(n, s))) for n, s in recipe.steps)
    made, _ = plan.run(plan.Plan(steps, source=model.digest), model, task)
    made.save(place / "int8.onnx")


def _quick(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Ranges by min and max: one look at the samples."""
    return {**settings, "method": "minmax"} if name == "quantize_static" else settings


def _predict(runtime: str, path: Path, task: Any) -> Any:
    return judge.predict(Subject(runtime, path, Target(cores())), task.test, task.output, 1)


def _compared(runtime: str, expected: Any, found: dict[str, Any]) -> Finding:
    """Float within the rounding of another order of sums, int8 of the same opinion."""
    from hasten.check import FLOAT32

    error = float(np.abs(found["float"] - expected).max() / np.abs(expected).max())
    agreement = float(np.mean(found["int8"].argmax(1) == expected.argmax(1)))
    passed = bool(np.isfinite(found["int8"]).all()) and error <= FLOAT32.relative and agreement >= AGREE
    return Finding(
        runtime, passed, f"float differs by {error:.1e} of its scale ({FLOAT32.relative:g} allowed), int8 agrees on {agreement:.0%}"
    )


def _noise(path: Path, task: Any, tests: list[Finding]) -> float | None:
    """One A/A pair: the same model timed in two fresh processes."""
    feeds = judge.timing_feeds(task.test, 1, {})
    pair = [judge.time_once(Subject("onnxruntime", path, Target(cores())), feeds) for _ in range(2)]
    failed = [t.reason for t in pair if isinstance(t, Failure)]
    if failed:
        tests.append(Finding("timing", False, failed[0]))
        return None
    one, other = (t.seconds for t in pair if not isinstance(t, Failure))
    noise = max(one, other) / min(one, other) - 1
    middle = geometric_mean((one, other))
    tests.append(Finding("timing", None, f"two processes of the same model differ by {noise:.1%} ({middle * 1e6:.0f} µs a call)"))
    return noise
