"""optimize: the main job. From a model, a task and a budget to the fastest model that keeps the budget, and the proof."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten import doors, profiles
from hasten.advise.held import advice_details, predict
from hasten.errors import BadInput, Unsupported
from hasten.folder import FINISHED, RECORDS, Folder
from hasten.measure.judge import Timing
from hasten.measure.record import Record, Records
from hasten.model import Model
from hasten.runtimes import DEFAULT, Target, native
from hasten.search.accuracy import judge_accuracy
from hasten.search.baseline import measure_baseline
from hasten.search.budget import Budget
from hasten.search.choose import choose
from hasten.search.details import details
from hasten.search.extras import Extras, check_extras, extras, missing
from hasten.search.finals import finals
from hasten.search.guard import check_guards
from hasten.search.result import Result, write_result
from hasten.search.run import Run
from hasten.search.screen import screen
from hasten.search.shrinking import shrink_candidates
from hasten.search.training import train_candidates, training_details
from hasten.task import BoundTask, Task
from hasten.voice import Told, speaking, voice


def optimize(
    model: Any,
    task: Task | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    shapes: Mapping[str, int] | None = None,
    keep_dynamic: bool = False,
    resume: bool = False,
    force: bool = False,
    say: Callable[[str], None] | None = None,
    wanted: Extras = Extras(),  # noqa: B008 - frozen
    purpose: str | None = None,
    **budget: Any,
) -> Result:
    """Make `model` faster within a budget, measured on this machine.

    model: a path (.onnx, .keras, .pt2, `file.py:function`), ModelProto, nn.Module or ExportedProgram (with `example_inputs`), keras.Model.
    task: data and metric; None: only techniques that keep the results, and accuracy is not judged.
    out: the folder to write (best so far always in it; the same call resumes after an interruption); None: a temporary one, see `Result.save`.
    shapes: sizes for dynamic axes by name; those not named take the data's (all samples having one shape), unless
    `keep_dynamic`. wanted: what to measure of the chosen one beside speed and accuracy, such as `Extras(robust=True)`.
    budget: the fields of `hasten.Budget`, such as `max_drop=0.005`. say: gets a sentence now and then, such as `print`.
    purpose: a profile of `hasten.profiles` (`realtime`, `server`, …) that sets those fields which `budget` does not.
    Where nothing is better, the result holds the original and `result.reason` (the command line then ends with exit code 3).

    Raises BadInput, Unsupported, OutOfResources; never because a candidate crashed, hung or ran out of memory.
    """
    allowed = Budget(**profiles.apply(purpose, budget))
    listener = Told(say) if say is not None else voice()
    with speaking(listener), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        for line in profiles.spelled(purpose, budget) if purpose is not None else ():
            voice().say(line)
        if allowed.runtimes == DEFAULT and not native.available():
            allowed = dataclasses.replace(allowed, runtimes=tuple(name for name in DEFAULT if name != "native"))
            voice().say("native is not among the runtimes that are tried: the engine was not built (`hasten doctor` says how to add it)")
        loaded = doors.load(model, example_inputs=example_inputs, shapes=shapes, workdir=Path(private))
        for note in loaded.notes:
            voice().say(note)
        bound = task.bind(loaded.model) if task is not None else None
        for note in bound.notes if bound else ():
            voice().say(note)
        check_guards(allowed.guards, bound)
        model_shapes = dict(shapes or {})
        if bound is not None and not keep_dynamic and (sizes := _sizes_in(loaded.model, bound)):
            loaded = dataclasses.replace(loaded, model=doors.load(loaded.model, shapes=sizes, workdir=Path(private)).model)
            model_shapes |= sizes
            voice().say(
                f"dynamic axes fixed to what the data has: {', '.join(f'{k} = {v}' for k, v in sizes.items())} (--keep-dynamic keeps them)"
            )
        target = _target(loaded.model, allowed)
        folder = Folder(Path(out)) if out is not None else Folder(Path(tempfile.mkdtemp(prefix="hasten-result-")))
        if folder.state == FINISHED and not (resume or force):
            raise BadInput(f"{folder.path} holds a finished run; --resume shows it again, --force starts afresh")
        fresh, made = force or folder.state is None, out is None or not folder.path.exists()
        if fresh:
            folder.prepare(force)
        try:
            records = Records(folder.file(RECORDS))
            run = Run(loaded.model, bound, allowed, target, folder.work, records, loaded.origin)
            _identify(run, folder)
            if folder.state == FINISHED:
                done = Result.load(folder.path)
                for line in missing(done.manifest, wanted):
                    voice().say(line)
                return done
            folder.work.mkdir(exist_ok=True)
            baseline = measure_baseline(run)
            check_extras(run, wanted)
            predict(run, baseline)
        except (BadInput, Unsupported):
            if fresh:  # the original or the data can't be used: leave nothing behind
                folder.clear()
                if made:
                    folder.path.rmdir()
            raise
        return _search(run, folder, model_shapes, baseline, wanted)


def _sizes_in(model: Model, task: BoundTask) -> dict[str, int]:
    """The sizes that the data has along the inputs' named dynamic axes, the batch aside: the axis names of the first axes."""
    split = task.validate
    assert split is not None
    feeds = next(iter(split.batches(1)))
    first = {p.shape[0] for p in model.inputs if p.shape}
    named = (
        (axis, size) for p in model.inputs for axis, size in zip(p.shape[1:], feeds[p.name].shape[1:], strict=True) if isinstance(axis, str)
    )
    return {axis: size for axis, size in named if axis not in first}


def _target(model: Model, budget: Budget) -> Target:
    """Where it will run. A model with a fixed batch keeps it; raises BadInput if another one was asked for."""
    axes = [port.shape[0] for port in model.inputs if port.shape]
    fixed = next((axis for axis in axes if isinstance(axis, int)), None)
    if budget.batch is not None and fixed is not None and budget.batch != fixed:
        raise BadInput(f"batch {budget.batch} was asked for, and the model's inputs have a fixed first axis of {fixed}; leave --batch out")
    return Target(budget.use_threads, fixed or budget.use_batch, memory_limit=budget.max_memory)


def _identify(run: Run, folder: Folder) -> None:
    """Refuse to resume what was begun otherwise. Raises BadInput."""
    before = run.records.get("run")
    if before is None:
        run.records.add(Record("run", "run", "", "digest of model, data, budget, machine and versions", {"identity": run.identity}))
    elif before.values["identity"] != run.identity:
        raise BadInput(
            f"{folder.path} was begun with another model, data, budget, machine or version of a library; "
            "give the same to resume, --force to start afresh, or another -o"
        )
    elif len(run.records) > 1:
        voice().say(f"resumed: {len(run.records)} measurements are kept")


def _search(run: Run, folder: Folder, shapes: dict[str, int], baseline: Timing, wanted: Extras) -> Result:
    """The stages in order; every one leaves its records, so a resumed run walks through them quickly."""
    tried = screen(run, baseline)
    judge_accuracy(run, tried, folder, shapes)
    shrink_candidates(run, tried, baseline)
    train_candidates(run, tried, baseline)
    finals(run, tried)
    chosen, reason = choose(run, tried)
    found = details(run, tried[0], chosen) | extras(run, tried[0], chosen, wanted) | {"advice": advice_details(run, tried, chosen)}
    found |= training_details(run)
    return write_result(run, folder, tried, chosen, reason, shapes, found)
