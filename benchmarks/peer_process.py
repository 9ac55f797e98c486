"""One contestant in a process of its own, run as a user of that library would run it: no code of hasten's except for hasten's own choice.

`python peer_process.py KIND PATH SAMPLES THREADS time [BATCH]` prints the median seconds of a call as JSON, at batch 1 if none is given;
`… tail` single calls' p50 and p99 over three seconds; `… predict OUT` writes the first output for all samples, one at a time.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], Any]


def onnxruntime(path: str, feeds: Feeds, threads: int) -> Run:
    """A plain InferenceSession."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    run = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run
    return lambda x: run(None, x)[0]


def openvino(path: str, feeds: Feeds, threads: int, precision: str = "f32") -> Run:
    """Reshaped to the sample's shape, for latency, with an explicit precision."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape({name: list(value.shape) for name, value in feeds.items()})
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda x: request.infer(x, share_inputs=True)[0]


def openvino_bf16(path: str, feeds: Feeds, threads: int) -> Run:
    """The same in bfloat16."""
    return openvino(path, feeds, threads, "bf16")


def torch(path: str, feeds: Feeds, threads: int, compiled: bool = False) -> Run:
    """The module in torch; `path` is its name in models.torch_module."""
    import torch
    from benchmarks.models import torch_module

    torch.set_num_threads(threads)
    found = torch_module(path)
    assert found is not None
    module: Any = torch.compile(found[0]) if compiled else found[0]
    tensors = [torch.from_numpy(v) for v in feeds.values()]

    def run(x: Feeds) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(v) for v in x.values())).numpy()

    with torch.inference_mode():
        module(*tensors)
    return run


def torch_compiled(path: str, feeds: Feeds, threads: int) -> Run:
    """The same under torch.compile."""
    return torch(path, feeds, threads, compiled=True)


def hasten(path: str, feeds: Feeds, threads: int) -> Run:
    """hasten.load: the runtime, threads and settings are those that the folder says."""
    import hasten

    fast = hasten.load(path)
    if len(feeds) > 1:
        return lambda x: next(iter(fast(x).values()))
    (name,) = feeds
    return lambda x: fast(x[name])


def native(path: str, feeds: Feeds, threads: int) -> Run:
    """hasten's own engine, through its runtime."""
    from hasten import runtimes
    from hasten.runtimes import Target

    batch = len(next(iter(feeds.values())))
    return runtimes.get("native").compile(Path(path), Target(threads, batch=batch)).run


KINDS = {f.__name__: f for f in (onnxruntime, openvino, openvino_bf16, torch, torch_compiled, hasten, native)}


def measure(run: Run, feeds: Feeds) -> float:
    """Median over 15 rounds of about 60 ms of the mean seconds of a call, after 0.3 s of warming up."""
    end, calls = time.perf_counter() + 0.3, 0
    while time.perf_counter() < end or calls < 5:
        run(feeds)
        calls += 1
    per_round = max(1, round(calls / 0.3 * 0.06))
    rounds = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(per_round):
            run(feeds)
        rounds.append((time.perf_counter() - start) / per_round)
    return statistics.median(rounds)


def tail(run: Run, feeds: Feeds) -> list[float]:
    """p50 and p99 of single calls over three seconds, after half a second of warming up."""
    seconds, begun = [], time.perf_counter()
    while time.perf_counter() < begun + 3.5:
        start = time.perf_counter()
        run(feeds)
        seconds.append((start - begun, time.perf_counter() - start))
    return [float(v) for v in np.percentile([s for at, s in seconds if at > 0.5], [50, 99])]


def main() -> None:
    """See the module's docstring."""
    kind, path, samples, threads, what, *rest = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    with np.load(samples, allow_pickle=False) as arrays:
        data = {k: arrays[k] for k in arrays.files}
    count = len(next(iter(data.values()))) if what == "predict" else 1
    batch = int(rest[0]) if what == "time" and rest else 1
    rows = [{k: np.ascontiguousarray(v[i : i + batch]) for k, v in data.items()} for i in range(count)]
    run = KINDS[kind](path, rows[0], int(threads))
    if what in ("time", "tail"):
        sys.stdout.write("\n" + json.dumps((measure if what == "time" else tail)(run, rows[0])) + "\n")
    else:
        np.save(rest[0], np.concatenate([np.array(run(row)) for row in rows]))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
