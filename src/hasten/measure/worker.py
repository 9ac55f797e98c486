"""The worker process: opens one model in one runtime, then times and runs it as the parent asks, over a pipe.

One process per candidate, because two runtimes' thread pools in one process slow each other more than tenfold, and because a crash, a hang
or a full memory then costs one candidate and not the run. Samples travel through the pipe alone: nothing of the user's touches the disk.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.measure import rapl
from hasten.runtimes import Session, Target

Arrays = dict[str, NDArray[Any]]
CLOCK_READING = 1e-3
"""Seconds of work between two readings of the clock, at least: far above the clock's own cost (about 50 ns)."""


def send(stream: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """One message: length, JSON header, then each array as `.npy` (never pickled)."""
    arrays = arrays or {}
    text = json.dumps({**header, "arrays": list(arrays)}).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        body = io.BytesIO()
        np.lib.format.write_array(body, np.ascontiguousarray(array), allow_pickle=False)
        stream.write(struct.pack("<Q", body.tell()))
        stream.write(body.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], Arrays]:
    """The next message; EOFError when the other side is gone."""
    header = json.loads(_exactly(stream, struct.unpack("<Q", _exactly(stream, 8))[0]))
    arrays = {}
    for name in header.pop("arrays"):
        body = _exactly(stream, struct.unpack("<Q", _exactly(stream, 8))[0])
        arrays[name] = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    return header, arrays


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def open_session(runtime: str, path: Path, target: Target) -> Session:
    """The model at `path` in `runtime`: one of RUNTIMES, or `keras` for a model that came from there."""
    if runtime == "keras":
        from hasten.runtimes import keras as keras_runtime

        return keras_runtime.open_origin(path, target.threads, compiled=False)
    from hasten import runtimes

    return runtimes.get(runtime).compile(path, target)


def run_batched(session: Session, feeds: Arrays, batch: int) -> Arrays:
    """Run N samples `batch` at a time, the last one padded by repeating its last sample; outputs (N, ...) by name."""
    total = len(next(iter(feeds.values())))
    parts: list[Arrays] = []
    for start in range(0, total, batch):
        part = {k: v[start : start + batch] for k, v in feeds.items()}
        here = min(batch, total - start)
        if here < batch:
            part = {k: np.concatenate([v, np.repeat(v[-1:], batch - here, axis=0)]) for k, v in part.items()}
        parts.append({k: v[:here] if v.ndim and len(v) == batch else v for k, v in session.run(part).items()})
    return {k: np.concatenate([p[k] for p in parts]) if parts[0][k].ndim else parts[-1][k] for k in parts[0]}


def time_rounds(session: Session, feeds: Arrays, rounds: int, seconds: float) -> list[float]:
    """Seconds per call in each of `rounds` rounds of about `seconds`, the clock read around enough calls."""
    run = session.run
    calls, clock = 1, time.perf_counter
    while True:
        start = clock()
        for _ in range(calls):
            run(feeds)
        spent = clock() - start
        if spent >= CLOCK_READING:
            break
        calls *= 2
    per_round = max(1, round(seconds / (spent / calls)))
    results = []
    for _ in range(rounds):
        start = clock()
        for _ in range(per_round):
            run(feeds)
        results.append((clock() - start) / per_round)
    return results


def time_calls(session: Session, feeds: Arrays, seconds: float, at_most: int = 5000) -> list[float]:
    """Seconds of each single call, for about `seconds`: what percentiles are made of."""
    run, clock = session.run, time.perf_counter
    results: list[float] = []
    end = clock() + seconds
    while len(results) < at_most and (len(results) < 20 or clock() < end):
        start = clock()
        run(feeds)
        results.append(clock() - start)
    return results


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the parent closes the pipe. An error is an answer too: its text and whether it was expected."""
    session: Session | None = None
    path = ""
    while True:
        try:
            header, feeds = receive(requests)
        except EOFError:
            return
        try:
            if header["do"] == "open":
                target, path = Target(**header["target"]), header["path"]
                start = time.perf_counter()
                session = open_session(header["runtime"], Path(path), target)
                send(answers, {"load": time.perf_counter() - start, "batch": session.batch})
                continue
            assert session is not None, "the first request must open a model"
            if header["do"] == "run":
                send(answers, {}, run_batched(session, feeds, header["batch"]))
            elif header["do"] == "time":
                for _ in range(header["warm_up"]):
                    session.run(feeds)
                rounds = time_rounds(session, feeds, header["rounds"], header["seconds"])
                calls = time_calls(session, feeds, header["calls_seconds"]) if header["calls_seconds"] else []
                send(answers, {"rounds": rounds, "peak_memory": peak_memory()}, {"calls": np.array(calls)})
            elif header["do"] == "energy":
                for _ in range(header["warm_up"]):
                    session.run(feeds)
                send(answers, rapl.spend(functools.partial(session.run, feeds), header["seconds"]))
            elif header["do"] == "layers":
                profile = importlib.import_module(f"hasten.runtimes.{header['runtime']}").profile
                send(answers, {"layers": profile(Path(path), target, feeds, header["calls"], header["seconds"])})
            else:
                raise ValueError(f"unknown request {header['do']!r}")
        except HastenError as e:
            send(answers, {"error": _without(path, str(e))})
        except MemoryError:
            send(answers, {"error": "out of memory"})
        except Exception as e:  # noqa: BLE001 - whatever a runtime raises becomes the reason of a failed candidate
            send(answers, {"error": _without(path, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")})


def _without(path: str, text: str) -> str:
    """The text without the place of the file: a reason is written to records, and records name nobody's folders."""
    return text.replace(path, "the file").replace(str(Path(path).parent), "…") if path else text


def main() -> None:
    """Entry of `python -m hasten.measure.worker`: stdin and stdout are the pipe; what libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):
        serve(requests, answers)
        answers.close()
    os._exit(0)  # some runtimes' thread pools crash or hang in their destructors; everything was sent


if __name__ == "__main__":
    main()
