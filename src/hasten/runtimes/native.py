"""native: hasten's own engine (`native/`). On 8-bit codes it computes what onnxruntime's fused kernels compute, bit for bit; on floats, the same but
for the order of sums."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.errors import Unsupported
from hasten.history import Skip
from hasten.runtimes import Feeds, Outputs, Profiled, Target

if TYPE_CHECKING:
    from hasten.model import Model

ABSENT = "the native engine was not built: hasten was installed without a C++ compiler; `hasten doctor` says how to add it"


def available() -> bool:
    """Whether the engine was built with this installation."""
    return importlib.util.find_spec("hasten._native") is not None


def _level() -> str:
    """The kernels' level on this processor; empty where there is no engine."""
    if not available():
        return ""
    from hasten import _native

    return _native.isa()


class Native:
    """The engine, for models of float32 and for quantized ones (uint8 activations, int8 weights); each node that it has no kernel for is named
    before anything runs. The hint bfloat16 is there where the processor multiplies such numbers by itself."""

    name = "native"

    @property
    def hints(self) -> tuple[str, ...]:
        return ("float32", "bfloat16") if _level() == "avx512bf16" else ("float32",)

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        from hasten import lower

        if not available():
            return (Skip("", ABSENT),)
        if target.device != "cpu":
            return (Skip("", "the native engine computes on the CPU"),)
        if target.precision not in self.hints:
            return (Skip("", f"the native engine has no {target.precision} hint on this processor"),)
        return lower.unsupported(model)

    def compile(self, model: Model | Path, target: Target) -> NativeSession:
        return NativeSession(model, target)


class NativeSession:
    """A loaded plan. `batch`: the most samples that one call takes (fewer are taken too); 1 where the model fixes its batch."""

    def __init__(self, model: Model | Path, target: Target) -> None:
        from hasten.lower import lower
        from hasten.model import Model

        if not available():
            raise Unsupported(f"native: {ABSENT}")
        from hasten import _native

        self.plan = lower(Model.load(model) if isinstance(model, Path) else model, precision=target.precision)
        try:
            self._model = _native.Model.from_bytes(self.plan.to_bytes(), target.threads, target.batch)
        except (ValueError, NotImplementedError, MemoryError) as e:
            raise Unsupported(f"native: {e}") from e
        self.batch: int | None = self._model.max_batch
        # The binding's own method: a Python function around it would cost as much as a small model.
        self.run: Callable[[Feeds], Outputs] = self._model.run

    def profile(self, feeds: Feeds, calls: int) -> list[Profiled]:
        """(node, kernel, mean seconds a call) of every kernel, in order; the clock around each costs some 20 ns."""
        spent = self._model.profile(dict(feeds), calls)
        return [(name, kernel, seconds / calls) for name, (kernel, _, seconds) in zip(self.plan.names, spent, strict=True)]


def profile(path: Path, target: Target, feeds: Feeds, calls: int, seconds: float) -> list[Profiled]:
    """(node, kernel, seconds a call) of every kernel, in order of execution, over at most `calls` calls and about `seconds`.

    The median of single calls: a thread that had to wait for the processor spoils some.
    """
    session = NativeSession(path, target)
    session.profile(feeds, 3)
    end, rounds = time.perf_counter() + seconds, [session.profile(feeds, 1)]
    while len(rounds) < calls and time.perf_counter() < end:
        rounds.append(session.profile(feeds, 1))
    medians = np.median([[spent for _, _, spent in one] for one in rounds], axis=0)
    return [(name, kernel, float(spent)) for (name, kernel, _), spent in zip(rounds[0], medians, strict=True)]


RUNTIME = Native()
