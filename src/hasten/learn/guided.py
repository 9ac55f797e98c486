"""guided: the losses of a training that follows labels, a teacher, or both. What `binarize`, `sparsify` and `qat` have in common."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from hasten.learn import job
from hasten.learn.batches import Batch
from hasten.learn.distill import soft
from hasten.learn.executor import Executor
from hasten.learn.objective import Objective, logits, task_loss
from hasten.learn.teacher import Asking, Teacher
from hasten.model import Model
from hasten.task import BoundTask


class Weights(Asking, Protocol):
    """Settings that also say what counts how much."""

    @property
    def soft(self) -> float: ...
    @property
    def hard(self) -> float: ...
    @property
    def temperature(self) -> float: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """soft · T² KL(teacher ‖ student) + hard · the task's own loss; one of the two where the other has nothing to compare with."""

    soft: float
    hard: float
    temperature: float
    at: int
    task: Objective | None

    def __call__(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        total = outputs[self.at].new_zeros(())
        if batch.taught:
            total = total + (self.soft or 1.0) * soft(outputs[self.at].float(), batch.taught[0].float(), self.temperature)
        if self.task is not None:
            total = total + self.hard * self.task(outputs, batch)
        return total


def guide(technique: str, model: Model, task: BoundTask, executor: Executor, at: int, settings: Weights) -> tuple[Losses, Teacher | None]:
    """The losses on the executor's output number `at`, and the teacher: the task's, the model itself where there is none, None where its
    scores have no weight and there are labels."""
    split = job.training_data(technique, task)
    labels = task_loss(model, task, split, at) if settings.hard and split.labels is not None else None
    teach = None
    if settings.soft or labels is None:
        teacher = task.teacher or model
        output = task.output if task.output in {p.name for p in teacher.outputs} else teacher.outputs[0].name
        teach = Teacher(teacher, executor.inputs, (logits(teacher, output)[0],))
        teach.check_scores(technique, executor, at, split)
        teach.get_ready(split, executor.inputs, settings)
    return Losses(settings.soft, settings.hard, settings.temperature, at, labels), teach
