"""Calibration: the values of named tensors of the float model, batch by batch over the calibration split."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.errors import Refused
from hasten.graph import Array, remove_unused
from hasten.model import Model
from hasten.task import BoundTask
from hasten.voice import voice

BATCH = 4
"""Samples that are run at a time: memory is that of one such batch, whatever the number of samples."""


def tensors(edited: ir.Model, names: Sequence[str], samples: int, task: BoundTask, batch: int = BATCH) -> Iterator[tuple[str, Array, int]]:
    """(name, value, samples so far) of every named tensor, over at most `samples` of the split (rounded up to a batch).

    What the named tensors don't depend on is not computed. In onnxruntime with its full optimisation. A batch smaller than the one that the model
    is fixed to is left out. Raises Refused where there is no other.
    """
    assert task.calibrate is not None
    exposed = edited.clone()
    inputs = {v.name for v in exposed.graph.inputs}
    by_name = {o.name: o for n in exposed.graph for o in n.outputs}
    wanted = [n for n in names if n not in inputs]
    exposed.graph.outputs[:] = [by_name[n] for n in dict.fromkeys(wanted)]
    remove_unused(exposed)
    session = _session(Model(exposed)) if wanted else None
    fixed = next((v.shape[0] for v in edited.graph.inputs if v.shape is not None and len(v.shape) and isinstance(v.shape[0], int)), None)
    count, total = 0, min(samples, len(task.calibrate))
    for feeds in task.calibrate.batches(fixed or batch):
        voice().step("calibration", count, total)
        here = len(next(iter(feeds.values())))
        if count >= samples or (fixed and here < fixed):
            break
        count += here
        yield from ((n, feeds[n], count) for n in names if n in inputs)
        for name, value in zip(wanted, session.run(wanted, feeds) if session else (), strict=True):
            yield name, value, count
    if not count:
        raise Refused(f"the calibration data has fewer samples than one batch of the model: {total} of {fixed}; give more data")
    voice().step("calibration", total, total)


def _session(model: Model) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if model.fits_in_memory:
        return ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        path = Path(private) / "model.onnx"
        model.save(path)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_finite(verb: str, name: str, value: Array) -> None:
    """Raises Refused where a tensor that was seen on calibration samples has infinities or NaN."""
    if not np.isfinite(value).all():
        raise Refused(f"{verb}: tensor {name!r} has values that are not finite on the calibration data; look at the data and the model")


def digest(task: BoundTask | None, samples: int) -> str | None:
    """Identifies the calibration samples that a technique looks at, at most so many; None where there are none."""
    if task is None or task.calibrate is None:
        return None
    h = hashlib.sha256(str(samples).encode())
    count = 0
    for feeds in task.calibrate.batches(BATCH):
        for name in sorted(feeds):
            h.update(np.ascontiguousarray(feeds[name]).tobytes())
        count += len(next(iter(feeds.values())))
        if count >= samples:
            break
    return h.hexdigest()[:16]


def check_same(verb: str, wanted: str, task: BoundTask | None, samples: int) -> None:
    """Raises Refused where a plan was made with calibration samples, and none or others came."""
    found = digest(task, samples)
    if found != wanted:
        raise Refused(
            f"{verb}: the plan was made with calibration samples (digest {wanted}), and "
            f"{'none came' if found is None else f'others came ({found})'}; give the same --data, or make the plan again"
        )
