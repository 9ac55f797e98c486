"""objective: what a training makes small. The loss of the task itself, chosen by what the labels and the judged output are.

Classes with C ≥ 2 scores: cross entropy of the logits. One score: binary cross entropy. Values: mean squared error. A model that ends in a
Softmax, LogSoftmax or Sigmoid is trained on what stands before it, which is the same function and does not lose digits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from torch import Tensor
from torch.nn import functional

from hasten.errors import BadInput
from hasten.learn.batches import Batch
from hasten.metrics import CLASSES
from hasten.model import Model
from hasten.task import BoundTask, Split

Objective = Callable[[tuple[Tensor, ...], Batch], Tensor]
"""(outputs of the module, batch) → loss, a mean over the batch."""

FINAL = ("Softmax", "LogSoftmax", "Sigmoid")


def logits(model: Model, output: str) -> tuple[str, str]:
    """(name of the value to train on, the operator that follows it in the model, empty if none)."""
    value = next(v for v in model.ir.graph.outputs if v.name == output)
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type not in FINAL or node.inputs[0] is None or not _last_axis(node):
        return output, ""
    return node.inputs[0].name or "", node.op_type


def _last_axis(node: ir.Node) -> bool:
    """Whether it works along the last axis (Sigmoid: on each value)."""
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    axis = node.attributes.get_int("axis", -1)
    return node.op_type == "Sigmoid" or axis == -1 or (rank is not None and axis == rank - 1)


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """The task's own loss of the module's output number `at`, against labels. kind: cross entropy, binary or mse."""

    kind: str
    at: int
    smoothing: float = 0.0

    def __call__(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        x = outputs[self.at].float()
        assert batch.labels is not None
        loss = self._of(x, batch.labels)
        return loss if batch.others is None else batch.share * loss + (1 - batch.share) * self._of(x, batch.others)

    def _of(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.kind == "cross entropy":
            if labels.ndim == x.ndim and labels.shape[-1] == x.shape[-1]:  # one-hot, or probabilities
                return functional.cross_entropy(x.flatten(0, -2), labels.flatten(0, -2).to(x.dtype), label_smoothing=self.smoothing)
            return functional.cross_entropy(x.flatten(0, -2), labels.flatten().long(), label_smoothing=self.smoothing)
        if self.kind == "binary":
            return functional.binary_cross_entropy_with_logits(x.reshape(-1), labels.reshape(-1).to(x.dtype))
        return functional.mse_loss(x.reshape(len(x), -1), labels.reshape(len(x), -1).to(x.dtype))


def task_loss(model: Model, task: BoundTask, split: Split, at: int, smoothing: float = 0.0) -> TaskLoss:
    """The loss for the judged output, the module's output number `at`. Raises BadInput where there are no labels, or where they can't fit."""
    labels = split.labels
    if labels is None:
        raise BadInput("the training data has no labels; give some (--labels, --label), or `hasten distill` with the original as teacher")
    shape = next(p.shape for p in model.outputs if p.name == task.output)
    per_sample = math.prod(labels.shape[1:])
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    wanted = math.prod(sizes) if len(sizes) == len(shape) - 1 else None
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)))
    _, final = logits(model, task.output)
    if task.metric.name in CLASSES or (whole and labels.ndim < len(shape)):
        if (shape and shape[-1] == 1) or len(shape) == 1 or final == "Sigmoid":
            _fits(per_sample, wanted, labels, shape)
            _in_range(labels, 2)
            return TaskLoss("binary", at)
        one_hot = labels.ndim == len(shape) and labels.shape[-1] == shape[-1]
        if isinstance(shape[-1], int):
            _fits(per_sample, wanted if wanted is None or one_hot else wanted // shape[-1], labels, shape)
            if not one_hot:
                _in_range(labels, shape[-1])
        return TaskLoss("cross entropy", at, smoothing)
    _fits(per_sample, wanted, labels, shape)
    return TaskLoss("mse", at)


def _fits(per_sample: int, wanted: int | None, labels: np.ndarray, shape: tuple[int | str | None, ...]) -> None:
    """Raises BadInput where there are more or fewer numbers a sample than the output wants (None: unknown)."""
    if wanted is not None and per_sample != wanted:
        raise BadInput(
            f"the training labels have shape {list(labels.shape)}, {per_sample} numbers a sample; the output of shape {list(shape)} wants "
            f"{wanted}; mend the labels, or judge another output (--output)"
        )


def _in_range(labels: np.ndarray, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise BadInput(
            f"the training labels run from {labels.min()} to {labels.max()}, the model has {classes} classes (0 to {classes - 1}); "
            "mend the labels, or give the model that fits them"
        )
