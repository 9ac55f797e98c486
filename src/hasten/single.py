"""single: one technique from Python (`hasten.apply`), as its verb does it on the command line."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten import doors, plan
from hasten.errors import BadInput
from hasten.model import Model
from hasten.search.candidates import CLEAN, GRAPH, Recipe, Steps
from hasten.task import BoundTask, Task


def apply(
    technique: str,
    model: Any,
    task: Task | None = None,
    *,
    teacher: Any = None,
    place: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    shapes: Mapping[str, int] | None = None,
    **settings: Any,
) -> Model:
    """The model that the technique makes of `model`: `hasten.apply("distill", "lenet.onnx", task, student="narrow:0.5").save("half.onnx")`.

    technique: a name of the table, such as `train`, `qat`, `quantize_static`. model, example_inputs, shapes: as `optimize` takes them; teacher:
    likewise. task: data, for what observes (`Task.data`) or learns (`Task.train`). place: a folder where a training keeps its checkpoint and its
    records; with one, the same call goes on where it was interrupted. settings: the technique's own. What stands before it on the road (the graph
    cleaned, batch norm folded) is done first, as on the command line.

    Raises BadInput, Refused, Unsupported, Diverged, OutOfResources.
    """
    row = plan.row(technique)
    chosen = plan.make_settings(row.name, settings)
    if teacher is not None and not row.teaches:
        raise BadInput(f"{row.verb} has no teacher, and one came; leave it out")
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        opened = doors.load(model, example_inputs=example_inputs, shapes=shapes, workdir=_inside(private, "model")).model
        bound = task.bind(opened) if task is not None else None
        if bound is not None:
            taught = (
                doors.load(teacher, example_inputs=example_inputs, workdir=_inside(private, "teacher")).model
                if teacher is not None
                else None
            )
            bound = dataclasses.replace(bound, teacher=taught, place=Path(place) if place is not None else None)
        return row.apply(prepared(row, opened, bound), chosen, bound)


def before(row: plan.Row) -> Steps:
    """What stands before a technique on the road and is done first."""
    return GRAPH if row.phase >= plan.Phase.QUANTIZE else CLEAN if row.learns or row.phase is plan.Phase.SHRINK else ()


def prepared(row: plan.Row, model: Model, task: BoundTask | None) -> Model:
    """The model after what stands before the technique."""
    return plan.run(Recipe("prepare", before(row)).plan(model), model, task)[0]


def _inside(folder: str, name: str) -> Path:
    place = Path(folder) / name
    place.mkdir()
    return place
