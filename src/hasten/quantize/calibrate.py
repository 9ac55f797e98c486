"""Calibration: the values of named tensors of the float model, batch by batch over the calibration split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hasten.graph import Array
from hasten.model import Model
from hasten.task import BoundTask
from hasten.voice import voice

BATCH = 4
"""Samples that are run at a time: memory is that of one such batch, whatever the number of samples."""


def tensors(edited: ir.Model, names: Sequence[str], samples: int, task: BoundTask, batch: int = BATCH) -> Iterator[tuple[str, Array, int]]:
    """(name, value, samples so far) of every named tensor, over at most `samples` of the split (rounded up to a batch).

    What the named tensors don't depend on is not computed. In onnxruntime with its full optimisation. A batch smaller than the one that the model
    is fixed to is left out.
    """
    import onnxruntime as ort

    assert task.calibrate is not None
    exposed = edited.clone()
    inputs = {v.name for v in exposed.graph.inputs}
    by_name = {o.name: o for n in exposed.graph for o in n.outputs}
    wanted = [n for n in names if n not in inputs]
    exposed.graph.outputs[:] = [by_name[n] for n in dict.fromkeys(wanted)]
    RemoveUnusedNodesPass()(exposed)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(Model(exposed).to_bytes(), options, providers=["CPUExecutionProvider"]) if wanted else None
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
    voice().step("calibration", total, total)
