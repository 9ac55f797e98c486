"""The judge: times candidates side by side, each in fresh processes, and predicts in the same kind of session that is timed."""

from __future__ import annotations

import dataclasses
import statistics as stats
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BadInput
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.measure.worker import Arrays
from hasten.task import Split
from hasten.voice import voice

PAIRS = 6
"""Fresh processes of each finalist: two processes of the same thing differ by 1-5 % for their whole life, so the interval is over processes."""

ROUNDS, ROUND_SECONDS = 5, 0.04
CALLS_SECONDS = 0.08
CHUNK_BYTES = 64 << 20
"""Samples travel to a worker in chunks of about this size."""


PERCENTILES = (50.0, 95.0, 99.0)


@dataclasses.dataclass(frozen=True)
class Timing:
    """One process' measurement, all in seconds and bytes.

    `seconds` is the median over short rounds of the mean time of a call (one batch); `percentiles` are of single calls, by their rank.
    """

    seconds: float
    percentiles: dict[str, float]
    load_seconds: float
    peak_memory: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """A candidate that could not be measured, and why."""

    reason: str


def time_once(subject: Subject, feeds: Arrays, percentile: float = 50.0) -> Timing | Failure:
    """Time a subject in one fresh process; `percentile` is reported beside the usual ones."""
    try:
        with Worker(subject) as worker:
            rounds, calls, peak = worker.time(feeds, ROUNDS, ROUND_SECONDS, CALLS_SECONDS)
            ranks = {f"{q:g}": float(np.percentile(calls, q)) for q in sorted({*PERCENTILES, percentile})}
            return Timing(stats.median(rounds), ranks, worker.load_seconds, peak)
    except WorkerFailed as e:
        return Failure(str(e))


def duel_round(subjects: Mapping[str, Subject], feeds: Arrays, turn: int, percentile: float = 50.0) -> dict[str, Timing | Failure]:
    """Every subject once, each in a fresh process, one after the other; `turn` rotates the order and every second turn reverses it."""
    names = list(subjects)
    shift = (turn // 2) % len(names)
    order = names[shift:] + names[:shift]
    if turn % 2:
        order.reverse()
    return {name: time_once(subjects[name], feeds, percentile) for name in order}


def predict(subject: Subject, split: Split, output: str, batch: int) -> NDArray[Any]:
    """The output named `output` for every sample of the split, (N, ...). Raises WorkerFailed with the reason."""
    with Worker(subject) as worker:
        return predict_side_by_side([worker], split, output, batch)[0]


def predict_side_by_side(workers: Sequence[Worker], split: Split, output: str, batch: int) -> list[NDArray[Any]]:
    """The same of several open workers: each chunk of samples is made once, and runs in one worker after the other."""
    parts: list[list[NDArray[Any]]] = [[] for _ in workers]
    predicted = 0
    for feeds in split.batches(_chunk(split, batch)):
        voice().step("predicting", predicted, len(split))
        for mine, worker in zip(parts, workers, strict=True):
            mine.append(_answer(worker, feeds, output, batch))
        predicted += len(next(iter(feeds.values())))
    voice().step("predicting", predicted, predicted)
    return [np.concatenate(mine) for mine in parts]


def _answer(worker: Worker, feeds: Arrays, output: str, batch: int) -> NDArray[Any]:
    """One output, whose first axis is the samples. Raises BadInput and WorkerFailed with the reason."""
    outputs = worker.run(feeds, batch)
    if output not in outputs:
        raise BadInput(f"the model has no output {output!r}; it has {', '.join(outputs)}")
    count = len(next(iter(feeds.values())))
    value = outputs[output]
    if value.ndim == 0 or len(value) != count:
        raise WorkerFailed(f"output {output!r} has shape {value.shape} for {count} samples: its first axis is not the batch")
    return value


def timing_feeds(split: Split | None, batch: int, otherwise: Arrays) -> Arrays:
    """One batch to time with: real samples (repeated where there are too few), else `otherwise`."""
    if split is None:
        return otherwise
    feeds = next(iter(split.batches(batch)))
    count = len(next(iter(feeds.values())))
    return {k: np.ascontiguousarray(np.concatenate([v] * -(-batch // count))[:batch]) for k, v in feeds.items()}


def _chunk(split: Split, batch: int) -> int:
    """Samples in a message: a multiple of the batch, about CHUNK_BYTES."""
    first: Iterator[Arrays] = split.batches(1)
    size = sum(v.nbytes for v in next(first).values())
    return batch * max(1, min(256, CHUNK_BYTES // max(1, size)) // batch)
