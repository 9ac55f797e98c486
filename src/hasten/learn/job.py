"""job: a training from the task to the trained graph, in one process or several. What `train`, `distill` and the others have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hasten.errors import BadInput, Refused
from hasten.learn.loop import Trained, Trainee, fit, identity_of
from hasten.learn.parallel import team
from hasten.model import Model, Skip
from hasten.task import BoundTask, Split

Prepare = Callable[[Model, Any, BoundTask], Trainee]


def run(technique: str, prepare: Prepare, model: Model, settings: Any, task: BoundTask | None) -> tuple[Trainee, Trained]:
    """Make the trainee and train it. Raises Refused where there is no training data, BadInput where the model has a fixed batch."""
    split = training_data(technique, task)
    assert task is not None
    check_batch(model)
    with team(technique, model, settings, task, split) as members:
        trainee = prepare(model, settings, task)
        return trainee, fit(trainee, split, settings, task, identity_of(model, task, technique), members)


def as_it_ran(settings: Any, trained: Trained) -> Any:
    """The settings for the history: where time cut the training, the cut in place of the seconds, which replays."""
    return dataclasses.replace(settings, seconds=0.0, cuts=trained.cuts) if trained.cuts else settings


def training_data(technique: str, task: BoundTask | None) -> Split:
    """The split to train on. Raises Refused where there is none."""
    if task is None or task.train is None:
        raise Refused(f"{technique} needs data to train on, and none came; give --train-data")
    return task.train


def spread(split: Split, samples: int) -> Split:
    """At most so many samples of the split, at even steps: every process of a training sees the same."""
    chosen = np.linspace(0, len(split) - 1, min(samples, len(split))).astype(np.intp)
    return Split(split.samples, None, split.indices[chosen])


def check_batch(model: Model) -> None:
    """Raises BadInput where an input has a fixed first axis: such a graph computes no other batch."""
    for port in model.inputs:
        if port.shape and isinstance(port.shape[0], int):
            raise BadInput(
                f"input {port.name!r} has a fixed batch of {port.shape[0]}, and training needs batches of any size; "
                "export the model with a dynamic batch axis"
            )


def without_norm(model: Model) -> list[Skip]:
    """What is lost where a model's batch norm was folded at export, in one sentence; nothing where there is none to miss."""
    kinds = {n.op_type for n in model.ir.graph}
    if "Conv" in kinds and not kinds & {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"}:
        why = "the file has no batch norm (folded at export, say): it trains less steadily; a low --rate helps, an export with it kept helps more"
        return [Skip("", why)]
    return []
