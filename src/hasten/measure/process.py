"""The parent's side of a worker: one candidate, one process, a time limit and a memory limit. A failure is an answer, never a crash."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import psutil

from hasten.measure.worker import Arrays, receive, send
from hasten.runtimes import Target

OPEN_LIMIT = 600.0
"""Seconds that a runtime may take to compile a model."""

CALL_LIMIT = 600.0
"""Seconds that one request may take."""


class WorkerFailed(Exception):
    """A candidate that crashed, hung, ran out of memory or refused; the text is the reason in one line."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a worker opens: a model file in a runtime on a target."""

    runtime: str
    path: Path
    target: Target


class Worker:
    """A context manager around one process. Its methods raise WorkerFailed with the reason; after that it is dead."""

    def __init__(self, subject: Subject, call_limit: float = CALL_LIMIT) -> None:
        self.subject = subject
        self._call_limit = call_limit
        self._killed_because = ""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hasten.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(subject.target.threads)},
            start_new_session=True,
        )
        self._watch_until = time.monotonic() + OPEN_LIMIT
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        try:
            header, _ = self._ask(
                {
                    "do": "open",
                    "runtime": subject.runtime,
                    "path": str(subject.path.resolve()),
                    "target": dataclasses.asdict(subject.target),
                },
                limit=OPEN_LIMIT,
            )
        except BaseException:
            self.close()
            raise
        self.load_seconds: float = header["load"]
        self.batch: int | None = header["batch"]

    def run(self, feeds: Arrays, batch: int) -> Arrays:
        """Outputs (N, ...) by name for feeds of N samples, `batch` at a time (or the one batch that the session takes)."""
        return self._ask({"do": "run", "batch": self.batch or batch}, feeds)[1]

    def time(
        self, feeds: Arrays, rounds: int = 5, seconds: float = 0.05, calls_seconds: float = 0.0, warm_up: int = 5
    ) -> tuple[list[float], list[float], int]:
        """(seconds per call in each round, seconds of single calls, peak memory in bytes)."""
        header, arrays = self._ask(
            {"do": "time", "rounds": rounds, "seconds": seconds, "calls_seconds": calls_seconds, "warm_up": warm_up}, feeds
        )
        return header["rounds"], arrays["calls"].tolist(), header["peak_memory"]

    def energy(self, feeds: Arrays, seconds: float, warm_up: int = 5) -> dict[str, Any]:
        """Calls for about `seconds`, and what they took: `calls`, `seconds`, `cpu_seconds`, `joules` (None where it can't be read)."""
        return self._ask({"do": "energy", "seconds": seconds, "warm_up": warm_up}, feeds)[0]

    def layers(self, feeds: Arrays, calls: int, seconds: float) -> list[tuple[str, str, float]]:
        """(node, operator, seconds a call) of every node that the runtime executes; for a runtime with a profiler (see layers.py)."""
        header, _ = self._ask({"do": "layers", "runtime": self.subject.runtime, "calls": calls, "seconds": seconds}, feeds)
        return [(node, op, spent) for node, op, spent in header["layers"]]

    def close(self) -> None:
        """End the process, at once."""
        self._done.set()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._messages.close()
        self._watcher.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, header: dict[str, Any], arrays: Arrays | None = None, limit: float | None = None) -> tuple[dict[str, Any], Arrays]:
        limit = self._call_limit if limit is None else limit
        self._watch_until = time.monotonic() + limit
        try:
            send(cast(Any, self._process.stdin), header, arrays)
            answer, values = receive(cast(Any, self._process.stdout))
        except (EOFError, BrokenPipeError) as e:
            raise WorkerFailed(self._reason()) from e
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer, values

    def _watch(self) -> None:
        """Kill the worker when it exceeds its time or its memory; only this thread sets the reason."""
        try:
            process = psutil.Process(self._process.pid)
            limit = self.subject.target.memory_limit or int(psutil.virtual_memory().available * 0.9)
            while not self._done.wait(0.05):
                used = process.memory_info().rss
                if used > limit:
                    self._killed_because = f"out of memory: {used / 2**20:.0f} MiB used, {limit / 2**20:.0f} MiB allowed"
                elif time.monotonic() > self._watch_until:
                    self._killed_because = "timed out"
                if self._killed_because:
                    self._process.kill()
                    return
        except psutil.NoSuchProcess:
            return

    def _reason(self) -> str:
        code = self._process.wait()
        if self._killed_because:
            return self._killed_because
        self._messages.seek(0)
        last = self._messages.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"crashed: the worker was {how}" + (f" ({last[-1][:200]})" if last else "")
