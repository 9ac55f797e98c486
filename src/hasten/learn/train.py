"""train: the plain training of a graph on its task's own loss. Effect: trained.

Minimises E[ℓ(f(x; w), y)] over the model's weights w by stochastic gradients: cross entropy for classes, binary cross entropy for one score,
mean squared error for values. Batch norm that is in the file is trained, its running statistics are updated, and `fold_batchnorm` folds it
afterwards. The graph itself does not change. (Robbins and Monro, 1951; the loop's papers stand in learn/loop.py.)

When: to fit a model to new data, to recover accuracy after pruning, or as the plain training beside which distillation is judged.
Cost: about three times the arithmetic of a prediction for each sample and epoch; memory for every layer's values of one piece of a batch,
and for two more copies of the weights.
"""

from __future__ import annotations

import dataclasses

from hasten.errors import BadInput
from hasten.graph import finish
from hasten.learn import job
from hasten.learn.executor import build
from hasten.learn.loop import Loop, Trainee
from hasten.learn.objective import logits, task_loss
from hasten.learn.zeros import zeros
from hasten.model import Model
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class Train(Loop):
    __doc__ = (Loop.__doc__ or "") + "\n    `smoothing`: this share of a label is spread over all classes (arXiv 1512.00567).\n"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise BadInput(f"train: smoothing is {self.smoothing}, expected a share from 0 to below 1")


def train(model: Model, settings: Train, task: BoundTask | None) -> Model:
    """The model with trained weights. Raises Refused without training data, and what `loop.fit` raises."""
    trainee, trained = job.run("train", prepare, model, settings, task)
    settings = job.as_it_ran(settings, trained)
    notes = [*job.without_norm(model), *trainee.zeros.notes()]
    return finish(model, trainee.executor.into(model), settings, "train", len(trainee.executor.weights), notes)


def prepare(model: Model, settings: Train, task: BoundTask) -> Trainee:
    """The graph as a module, and its task's loss."""
    value, final = logits(model, task.output)
    executor = build(model, taps=(value,) if final else ())
    judged = executor.outputs.index(task.output)
    split = job.training_data("train", task)
    loss = task_loss(model, task, split, len(executor.outputs) - 1 if final else judged, settings.smoothing)
    return Trainee(executor, loss, judged, zeros=zeros("train", model, executor.weights, settings))
