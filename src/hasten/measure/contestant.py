"""A contestant: anything that the judging verbs can measure. A model through any door in a runtime, or a folder that hasten wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten import check, doors, runtimes
from hasten.errors import BadInput, Unsupported
from hasten.folder import MANIFEST, MODEL, Folder
from hasten.measure import judge
from hasten.measure.process import Subject
from hasten.measure.worker import Arrays
from hasten.model import Model
from hasten.runtimes import Target
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """A name to print, the model, and what a worker opens."""

    name: str
    model: Model
    subject: Subject


def enter(
    source: Any,
    workdir: Path,
    *,
    runtime: str = "onnxruntime",
    target: Target,
    shapes: Mapping[str, int] | None = None,
    example_inputs: Any = None,
) -> Contestant:
    """Open a contestant. A folder of hasten's brings its own runtime and target (its digests are checked); others take those given.

    Raises BadInput or ClaimFailed for the source, Unsupported where the runtime refuses the model.
    """
    if isinstance(source, (str, Path)) and (Path(source) / MANIFEST).is_file():
        folder = Folder(Path(source))
        manifest = folder.check()
        name = f"{folder.path.name} ({manifest['chosen']})"
        subject = Subject(manifest["runtime"], folder.file(MODEL), Target(**manifest["target"]))
        return Contestant(name, Model.load(folder.file(MODEL)), subject)
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        raise BadInput(f"{source} is a folder without {MANIFEST}; expected a model file, or a folder that `hasten optimize` wrote")
    model = doors.load(source, example_inputs=example_inputs, shapes=shapes, workdir=workdir).model
    if refusals := runtimes.get(runtime).unsupported(model, target):
        raise Unsupported(f"{runtime}: {'; '.join(f'{s.node}: {s.why}' if s.node else s.why for s in refusals[:3])}")
    path = workdir / f"{model.digest[:16]}.onnx"
    model.save(path)
    fixed = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), None)
    name = f"{Path(source).name if isinstance(source, (str, Path)) else 'model'} ({runtime})"
    return Contestant(name, model, Subject(runtime, path, dataclasses.replace(target, batch=fixed or target.batch)))


def feeds_for(contestant: Contestant, task: BoundTask | None, seed: int = 0) -> Arrays:
    """One batch to time with: real samples where there is data, else random ones."""
    batch = contestant.subject.target.batch
    return judge.timing_feeds(task.test if task else None, batch, check.random_feeds(contestant.model, batch, seed=seed))
