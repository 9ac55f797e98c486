"""peaks: what this machine reaches at best, and what a call costs at least. Measured once, in worker processes, then kept in the cache.

Each probe is a model of one kind of work, timed in a process of its own with the cores that this process may use; the fastest of five
rounds of about 40 ms counts. Roofline: Williams, Waterman and Patterson, Communications of the ACM 52 (4), 2009.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import OutOfResources
from hasten.folder import write_atomically
from hasten.measure.judge import Failure
from hasten.measure.machine import cores, machine, versions
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.runtimes import Target
from hasten.voice import voice

FORMAT = 1
"""Version of the cache file and of the probes: another one is measured anew."""

SIDE = 1024
"""Rows and columns of the matrices that are multiplied: 2 · 1024³ operations are some ms of work, and 12 MB of data are read often."""

FEW, CHAIN = 16, 200
"""Values that cost nothing to compute, and nodes in the chain that shows what a node costs."""

SMALL_BYTES, LARGE_BYTES = 1 << 20, 64 << 20
"""What is copied to measure the caches and the memory: far below and far above what a core's caches hold."""

LARGE_CACHES = 2
"""The large array is at least so many times the last level cache, up to MOST_BYTES."""

MOST_BYTES = 512 << 20

ROUNDS, ROUND_SECONDS = 5, 0.04

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Peaks:
    """This machine's best. Products count as two operations, a multiplication and an addition.

    float32, int8: operations a second of a product of matrices in onnxruntime. memory, cache: bytes a second read and written, of an array
    far above the caches and of one of 1 MiB. call: seconds of a call that computes nothing, node: seconds that each further node costs.
    openvino_*: the same in OpenVINO, None where it is not installed or has no such hint. last_level_cache: bytes, None where unknown.
    """

    float32: float
    int8: float
    memory: float
    cache: float
    call: float
    node: float
    threads: int
    openvino_call: float | None = None
    openvino_float32: float | None = None
    openvino_bfloat16: float | None = None
    openvino_int8: float | None = None
    last_level_cache: int | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """A model to time: the field of Peaks that it gives, where it runs, the model with its feeds, and the work in it.

    `work` is in operations or bytes, 0 where the time itself is what is asked for.
    """

    field: str
    runtime: str
    precision: str
    build: Callable[[], tuple[str, dict[str, Array], dict[str, Array]]]
    work: Callable[[], float]
    about: str


def _product() -> tuple[str, dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((SIDE, SIDE)).astype(np.float32) for _ in range(2))
    return f"m (float[{SIDE}, {SIDE}] x) => (float[{SIDE}, {SIDE}] y) {{ y = MatMul (x, w) }}", {"w": w}, {"x": x}


def _integer_product() -> tuple[str, dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 255, (SIDE, SIDE)).astype(np.uint8), rng.integers(-127, 127, (SIDE, SIDE)).astype(np.int8)
    return f"m (uint8[{SIDE}, {SIDE}] x) => (int32[{SIDE}, {SIDE}] y) {{ y = MatMulInteger (x, w) }}", {"w": w}, {"x": x}


def _quantized_product() -> tuple[str, dict[str, Array], dict[str, Array]]:
    """Q, DQ, MatMul, Q, DQ: what OpenVINO computes in int8."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 127, (SIDE, SIDE)).astype(np.int8),
        "s": np.float32(0.02),
        "big": np.float32(2.0),
        "z": np.int8(0),
        "middle": np.uint8(128),
    }
    text = f"""m (float[{SIDE}, {SIDE}] x) => (float[{SIDE}, {SIDE}] y) {{
        xq = QuantizeLinear (x, s, middle)
        xd = DequantizeLinear (xq, s, middle)
        wd = DequantizeLinear (w, s, z)
        sums = MatMul (xd, wd)
        yq = QuantizeLinear (sums, big, middle)
        y = DequantizeLinear (yq, big, middle)
    }}"""
    return text, {k: np.asarray(v) for k, v in weights.items()}, {"x": rng.standard_normal((SIDE, SIDE)).astype(np.float32)}


def _copy(size: int) -> tuple[str, dict[str, Array], dict[str, Array]]:
    return f"m (float[{size // 4}] x) => (float[{size // 4}] y) {{ y = Relu (x) }}", {}, {"x": np.ones(size // 4, np.float32)}


def _chain(nodes: int) -> tuple[str, dict[str, Array], dict[str, Array]]:
    """Relu and Sigmoid by turns, which no runtime merges."""
    body = "\n".join(f"x{i + 1} = {('Relu', 'Sigmoid')[i % 2]} (x{i})" for i in range(nodes))
    return f"m (float[{FEW}] x0) => (float[{FEW}] x{nodes}) {{ {body} }}", {}, {"x0": np.ones(FEW, np.float32)}


def _large() -> int:
    return min(MOST_BYTES, max(LARGE_BYTES, LARGE_CACHES * (last_level_cache() or 0)))


OPERATIONS = 2.0 * SIDE**3
PROBES = (
    Probe("float32", "onnxruntime", "float32", _product, lambda: OPERATIONS, "a float32 product of 1024 × 1024 matrices"),
    Probe(
        "int8", "onnxruntime", "float32", _integer_product, lambda: OPERATIONS, "an int8 product of 1024 × 1024 matrices (MatMulInteger)"
    ),
    Probe("memory", "onnxruntime", "float32", lambda: _copy(_large()), lambda: 2.0 * _large(), "Relu of an array far above the caches"),
    Probe("cache", "onnxruntime", "float32", lambda: _copy(SMALL_BYTES), lambda: 2.0 * SMALL_BYTES, "Relu of 1 MiB"),
    Probe("call", "onnxruntime", "float32", lambda: _chain(1), lambda: 0.0, "a model of one Relu of 16 values"),
    Probe("node", "onnxruntime", "float32", lambda: _chain(CHAIN), lambda: 0.0, "a chain of 200 nodes of 16 values, less one call"),
    Probe("openvino_call", "openvino", "float32", lambda: _chain(1), lambda: 0.0, "the same Relu in OpenVINO"),
    Probe("openvino_float32", "openvino", "float32", _product, lambda: OPERATIONS, "the float32 product in OpenVINO"),
    Probe("openvino_bfloat16", "openvino", "bfloat16", _product, lambda: OPERATIONS, "the same with its bf16 hint"),
    Probe("openvino_int8", "openvino", "float32", _quantized_product, lambda: OPERATIONS, "the product between QDQ nodes in OpenVINO"),
)

Measurer = Callable[[Probe, int], "float | Failure"]


def peaks(measurer: Measurer | None = None, anew: bool = False) -> Peaks | Failure:
    """The peaks, from the cache or, if it has none of this machine and these versions or `anew` is asked for, measured (about 10 s).

    `measurer(probe, threads)` gives the seconds of a probe. A Failure where one of onnxruntime's probes could not be measured.
    """
    if not anew and (known := _read(cache_file())) is not None:
        return known
    voice().say("measuring this machine's peaks" + ("" if anew else ", once"))
    measured = _measure(measurer or seconds_of)
    if isinstance(measured, Peaks):
        keep(measured)
    return measured


def cache_folder() -> Path:
    """`hasten` in XDG_CACHE_HOME, by default ~/.cache. Nothing of the user's is kept there."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "hasten"


def cache_file() -> Path:
    """The file of this machine with these versions of the libraries, the cores that may be used included."""
    parts = {"format": FORMAT, "machine": machine().digest, "cores": cores(), "versions": versions()}
    return cache_folder() / f"peaks-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}.json"


def keep(measured: Peaks) -> None:
    """Write the peaks to the cache; where that can't be done it is said, and they are measured again the next time."""
    file = cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(dataclasses.asdict(measured), sort_keys=True).encode())
    except (OSError, OutOfResources) as e:
        voice().say(f"the peaks could not be kept ({e}); they will be measured again")


def last_level_cache() -> int | None:
    """Bytes of the largest cache that the first core reaches, None where the system does not say."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = index.read_text().strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        if number.isdecimal():
            sizes.append(int(number) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit, 1))
    return max(sizes, default=None)


def seconds_of(probe: Probe, threads: int) -> float | Failure:
    """Seconds of a call of the probe's model: the fastest round of one worker process."""
    import onnx

    text, weights, feeds = probe.build()
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    with tempfile.TemporaryDirectory(prefix="hasten-") as place:
        path = Path(place) / "probe.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            with Worker(Subject(probe.runtime, path, Target(threads, 1, probe.precision))) as worker:
                return min(worker.time(feeds, ROUNDS, ROUND_SECONDS, warm_up=2)[0])
        except WorkerFailed as e:
            return Failure(f"{probe.about}: {e}")


def _measure(measurer: Measurer) -> Peaks | Failure:
    threads = cores()
    found: dict[str, float | None] = {}
    for number, probe in enumerate(PROBES):
        voice().step("peaks", number, len(PROBES))
        optional = probe.runtime != "onnxruntime"
        if optional and importlib.util.find_spec(probe.runtime) is None:
            continue
        seconds = measurer(probe, threads)
        if isinstance(seconds, Failure):
            if not optional:
                return seconds
            continue
        found[probe.field] = probe.work() / seconds if probe.work() else seconds
    voice().step("peaks", len(PROBES), len(PROBES))
    call, chain = found["call"], found.pop("node")
    assert call is not None
    assert chain is not None
    # Noise may make a chain as quick as a call: a node never costs less than a nanosecond.
    node = max(1e-9, (chain - call) / (CHAIN - 1))
    return Peaks(threads=threads, node=node, last_level_cache=last_level_cache(), **found)  # type: ignore[arg-type]


def _read(file: Path) -> Peaks | None:
    """The peaks that the file holds, None where it is missing, cut off, or holds anything else."""
    try:
        values = json.loads(file.read_text())
        found = Peaks(**values)
    except (OSError, ValueError, TypeError):
        return None
    return found if all(_sane(f, getattr(found, f.name)) for f in dataclasses.fields(Peaks)) else None


def _sane(field: dataclasses.Field[Any], value: Any) -> bool:
    if value is None:
        return field.default is None
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
