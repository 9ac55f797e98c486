"""The baseline: the unchanged model is built, timed and judged before anything else."""

from __future__ import annotations

import dataclasses
import math

from hasten.errors import BadInput, Unsupported
from hasten.measure.judge import Failure, Timing
from hasten.measure.machine import machine
from hasten.measure.process import Subject, WorkerFailed
from hasten.measure.statistics import smallest_provable_drop
from hasten.report.numbers import seconds
from hasten.search.candidates import ORIGINAL, Candidate, one_thread_too
from hasten.search.goal import allowed_drop
from hasten.search.run import Judged, Run
from hasten.voice import voice

NEAR = 0.75
"""A model's own framework that reaches this share of onnxruntime's speed takes part in the finals; a slower one can't be the baseline."""


def measure_baseline(run: Run) -> Timing:
    """Build, time and judge the unchanged model first: nothing is worth comparing with a baseline that does not work."""
    built = run.build(run.baseline.recipe)
    if "failed" in built:
        raise BadInput(f"the original model can't be used: {built['failed']}")
    timed = run.time_baseline()
    if isinstance(timed, Failure):
        raise Unsupported(f"the original model does not run in onnxruntime: {timed.reason}")
    voice().say(f"baseline: {run.baseline.name}, batch {run.target.batch}: {seconds(timed.seconds)} on {machine().cpu}")
    if run.task is not None:
        try:
            run.settle_metric()
        except WorkerFailed as e:
            raise BadInput(f"the original model can't be judged: {e}") from e
        judged = run.judged(run.baseline, "validate")
        if isinstance(judged, Failure):
            raise BadInput(f"the original model can't be judged: {judged.reason}")
        metric = run.task.metric
        voice().say(f"baseline: {metric.name} {judged.value:.4f} on {judged.samples} validation samples")
        _sane(run, judged)
        samples = len(run.split("test"))
        voice().say(
            f"budget: a drop of at most {allowed_drop(run):g}; the {samples} test samples can prove a drop of about "
            f"{smallest_provable_drop(samples):.4f} or more"
        )
    else:
        voice().say("no data: only techniques that keep the results are tried, and accuracy is not judged")
    _own_framework(run)
    _one_thread(run, timed)
    return timed


def _sane(run: Run, judged: Judged) -> None:
    """Stop at chance level: a float model that guesses means that the data does not fit it. Raises BadInput."""
    assert run.task is not None
    metric, labels = run.task.metric, run.split("validate").labels
    if metric.chance is None or labels is None:
        return
    chance = metric.chance(run.predictions(run.baseline, "validate"), labels)
    spread = 2 * math.sqrt(max(chance * (1 - chance), 0.0) / judged.samples) if 0 <= chance <= 1 else 0.0
    guessing = judged.value <= chance + spread if metric.higher_is_better else judged.value >= chance
    if chance == 1 and metric.higher_is_better:
        raise BadInput(
            f"the {judged.samples} labels are all the same, so that {metric.name} is {judged.value:.4f} and says nothing: "
            "give data with more than one class, or leave the labels out (the budget is then agreement with the original)"
        )
    if guessing:
        raise BadInput(
            f"the original model reaches {metric.name} {judged.value:.4f} on {judged.samples} samples, and guessing reaches {chance:.4f}: "
            "suspect the preprocessing (--preprocess: scale, mean, colour order), the layout (NCHW or NHWC), "
            "or the labels (their order, and whether they count from 0)"
        )


def _own_framework(run: Run) -> None:
    """Time the model in the framework it came from: the faster of the two is the baseline that must be beaten."""
    if run.origin is None:
        return
    names: list[str] = [run.origin.framework]
    if run.origin.framework == "torch" and run.left > 300 and run.budget.time_limit is not None:
        names.append("torch-compiled")
    for name in names:
        subject = Subject(name, run.origin.path, run.target)
        timed, ratio = run.screen(name, subject)
        if isinstance(timed, Failure):
            voice().say(f"baseline: {name}: {timed.reason}")
            continue
        voice().say(f"baseline: {name}: {seconds(timed.seconds)} ({ratio:.2f} × onnxruntime's speed)")
        if ratio > NEAR:
            run.subjects[name] = subject


def _one_thread(run: Run, timed: Timing) -> None:
    """A small model may be faster on one thread as it is: what does not beat that gains nothing by its technique, so it is a baseline too."""
    if one_thread_too(run.target, timed.seconds):
        alone = Candidate(ORIGINAL, run.baseline.runtime, dataclasses.replace(run.target, threads=1))
        run.subjects[alone.name] = run.subject(alone)
