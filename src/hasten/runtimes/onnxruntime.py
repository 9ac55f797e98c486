"""onnxruntime on the CPU: the baseline's runtime, and the widest in operators."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import Unsupported
from hasten.history import Skip
from hasten.runtimes import Feeds, Outputs, Profiled, Target

if TYPE_CHECKING:
    from hasten.model import Model

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
"""Nodes whose time is that of the nodes inside them, which are counted themselves."""

PROFILE_WARM_UP, MOST_EVENTS = 5, 400_000
"""Calls that are left out; events that onnxruntime's profiler is asked to hold (it stops silently at a million)."""


class OnnxRuntime:
    """onnxruntime with its default graph optimisation, or as `onnxruntime-plain` with none; `compile` raises Unsupported with its own reason."""

    hints = ("float32",)

    def __init__(self, name: str, optimize: bool) -> None:
        self.name, self._optimize = name, optimize

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        if target.precision != "float32":
            return (Skip("", f"onnxruntime's CPU kernels have no {target.precision} hint: convert the model instead"),)
        return ()

    def compile(self, model: Model | Path, target: Target) -> OnnxRuntimeSession:
        if isinstance(model, Path):
            return OnnxRuntimeSession(str(model), target, optimize=self._optimize)
        if not model.fits_in_memory:
            raise Unsupported("onnxruntime: weights above 1.5 GB can't be passed in memory; save the model and compile its path")
        return OnnxRuntimeSession(model.to_bytes(), target, optimize=self._optimize)


class OnnxRuntimeSession:
    """One InferenceSession with `target.threads` threads within an operator."""

    batch: int | None = None
    """Any batch that the model itself takes."""

    def __init__(self, source: bytes | str, target: Target, profile: Path | None = None, *, optimize: bool = True) -> None:
        """`profile`: where the profile's file goes, begun with that name; None: nothing is profiled. `optimize`: whether onnxruntime may."""
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self._session: Any = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise Unsupported(f"onnxruntime can't load the model: {one_line(e)}") from e
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> Outputs:
        return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))

    def end_profile(self) -> list[dict[str, Any]]:
        """The events so far, times in whole microseconds."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text(errors="replace"))
        return events


def profile(path: Path, target: Target, feeds: Feeds, calls: int, seconds: float) -> list[Profiled]:
    """(node, operator, seconds a call) of every kernel, in order of execution, over at most `calls` calls and about `seconds`.

    The profile's file stands in a temporary folder that is gone afterwards. onnxruntime counts whole microseconds and a thread that had to
    wait for the processor spoils single calls: the value is the interquartile mean over the calls. Tracing itself is in it: about 3 µs a node.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-profile-") as place:
        session = OnnxRuntimeSession(str(path), target, Path(place) / "profile")
        end, done = time.perf_counter() + seconds, 0
        while done < PROFILE_WARM_UP + 3 or (done < PROFILE_WARM_UP + calls and time.perf_counter() < end):
            session.run(feeds)
            done += 1
        return kernel_times(session.end_profile())


def kernel_times(events: list[dict[str, Any]]) -> list[Profiled]:
    """The events of a profile, by node: the first calls are left out, a node inside a loop counts as often as it ran in a call."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")[PROFILE_WARM_UP:]
    kernels = sorted((e for e in events if e["name"].endswith("_kernel_time") and "op_name" in e["args"]), key=lambda e: e["ts"])
    starts = np.array([start for start, _ in runs])
    spent: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in kernels:
        call = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if call < 0 or event["ts"] > runs[call][1] or event["args"]["op_name"] in CONTROL_FLOW:
            continue
        spent[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]][call] += event["dur"]
    return [(node, op, middle_mean([by_call.get(i, 0.0) for i in range(len(runs))]) * 1e-6) for (node, op), by_call in spent.items()]


def middle_mean(values: list[float]) -> float:
    """The mean of the middle half: as robust as the median, and finer than the unit that was counted in."""
    ordered = np.sort(values)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


RUNTIME = OnnxRuntime("onnxruntime", optimize=True)
PLAIN = OnnxRuntime("onnxruntime-plain", optimize=False)
"""Its own graph optimisation off: it shows what a graph is worth by itself."""
