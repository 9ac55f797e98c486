"""before_after: a metric of two models on the same samples, each in onnxruntime in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hasten.measure.judge import predict
from hasten.measure.machine import cores
from hasten.measure.process import Subject
from hasten.model import Model
from hasten.runtimes import Target
from hasten.task import BoundTask


def before_after(before: Model, after: Model, task: BoundTask, batch: int = 32) -> tuple[float, float, int]:
    """(the metric's value of `before`, that of `after`, samples) on the test split. Without labels the outputs of `before` stand for them.

    Raises WorkerFailed where a model does not run.
    """
    split = task.test
    assert split is not None, "a task with data has a test split"
    outputs = []
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        for number, model in enumerate((before, after)):
            path = Path(private) / f"{number}.onnx"
            model.save(path)
            fixed = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), None)
            target = Target(cores(), fixed or batch)
            outputs.append(predict(Subject("onnxruntime", path, target), split, task.output, target.batch))
    labels = split.labels if split.labels is not None else outputs[0]
    return task.metric.value(outputs[0], labels), task.metric.value(outputs[1], labels), len(split)
