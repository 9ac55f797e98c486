"""dynamic: what real data shows to be idle is left out, as far as an accuracy budget goes. What `hasten simplify` does with --dynamic.

Evidence comes from the calibration samples alone. `validate` judges, where findings are undone, and then `test`, on which nothing is chosen.
All findings are applied at once. Where that breaks the budget, the one of those with which it breaks is found by bisection, those that save most
first, undone and named, and the others are judged again.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten import simplify
from hasten.errors import BadInput, CheckFailed
from hasten.graph import Array
from hasten.measure.compare import metric_difference
from hasten.measure.judge import predict
from hasten.measure.machine import cores
from hasten.measure.process import Subject, WorkerFailed
from hasten.measure.statistics import Interval
from hasten.metrics import decide
from hasten.model import Model, Skip
from hasten.plan import Plan, PlannedStep
from hasten.runtimes import Target
from hasten.search.budget import Budget
from hasten.shrink.drop_idle import THIN, DropIdle, findings_of, observe, thin, without
from hasten.shrink.idle import Finding
from hasten.task import BoundTask, Split
from hasten.voice import voice

MOST_UNDONE = 20
"""Findings that are undone one by one; with more than that, all that save less than the last one are."""

BATCH = 32

ROUNDS = 3
"""Of fresh processes that are timed: with one, a busy machine showed a gain of 1.4 where a loss of 0.86 was true."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """The metric of the original and of the model on one split. drop: how much worse, positive is worse, with its 95 % interval."""

    split: str
    metric: str
    before: float
    after: float
    drop: Interval
    allowed: float
    samples: int

    @property
    def broken(self) -> str:
        """Why the budget is broken, empty where it is kept."""
        if self.drop.estimate <= self.allowed:
            return ""
        return f"{self.metric} on {self.split} falls from {self.before:.4f} to {self.after:.4f}, a drop of {self.allowed:g} is allowed"


@dataclasses.dataclass(frozen=True, eq=False)
class Dynamic:
    """The model without what is idle. `applied`, `undone` (with the reason): the findings; `left`: what is idle and stays; `notes`: what else to
    know. `judged`: on validate and on test; `plan`: makes the model again of the one that it was made of, without data."""

    model: Model
    applied: tuple[Finding, ...]
    undone: tuple[tuple[Finding, str], ...]
    left: tuple[Skip, ...]
    notes: tuple[str, ...]
    judged: tuple[Judged, ...]
    samples: int
    plan: Plan
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "applied": [_plain(f) for f in self.applied],
            "undone": [{**_plain(f), "why": why} for f, why in self.undone],
            "left": [dataclasses.asdict(s) for s in self.left],
            "notes": list(self.notes),
            "judged": [dataclasses.asdict(j) for j in self.judged],
            "speed": dict(self.speed),
            "digest": self.model.digest,
        }


def _plain(finding: Finding) -> dict[str, Any]:
    """The finding with its evidence, without the numbers of its remedy."""
    values = {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding) if f.name != "remedy"}
    return values | {"otherwise_at_most": finding.otherwise}


@dataclasses.dataclass(frozen=True, eq=False)
class Clock:
    """Where time counts: models are timed side by side at `target`, on `feeds`."""

    target: Target
    feeds: dict[str, Array]

    def slower(self, before: Model, models: Sequence[Model]) -> tuple[list[str], dict[str, float]]:
        """(why each model is slower in onnxruntime than `before` beyond the noise, empty where it is not; by runtime the speed of the last one)."""
        speeds, floor = simplify.speeds_beside(before, models, self.target, self.feeds, ROUNDS)
        mine = speeds.get("onnxruntime", [1.0] * (len(models) + 1))[1:]
        whys = [f"with it the model is slower in onnxruntime (× {speed:.2f})" if speed < 1 - floor else "" for speed in mine]
        return whys, {name: s[-1] for name, s in speeds.items()}


def within_budget(
    model: Model,
    original: Model,
    task: BoundTask,
    settings: DropIdle,
    budget: Budget,
    clean: Callable[[Model], Model],
    clock: Clock | None = None,
) -> Dynamic:
    """`model` without what is idle and then clean (constants make more constants), as far as it keeps the budget beside `original`.

    With a clock also not slower than `model`: where it is, each layer's findings are timed alone, for runtimes like some numbers of channels better
    than smaller ones. Raises BadInput where the original can't be run on the data.
    """
    seen = observe(model, settings, task)
    found = sorted(findings_of(seen), key=lambda f: -f.macs)
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        judge = _Judge(original, task, budget, Path(private))
        chosen, undone = _chosen(model, settings, found, judge)
        speed: dict[str, float] = {}
        if clock is not None and chosen:
            chosen, slow, speed = _fast(model, settings, chosen, clean, clock)
            undone += slow
        made = clean(without(model, settings, chosen)) if chosen else model
        judged = [judge.on(split, made) for split in ("validate", "test")] if chosen else []
    if why := next((j.broken for j in judged if j.broken), ""):
        undone += [(f, why) for f in chosen]
        chosen, made, speed = [], model, {}
    step = PlannedStep("drop_idle", settings, {**seen, "findings": [dataclasses.asdict(f) for f in chosen]})
    return Dynamic(
        made,
        tuple(chosen),
        tuple(undone),
        tuple(Skip(node, why) for node, why in seen["left"] if node),
        (thin(seen["samples"]),) if seen["samples"] < THIN else (),
        tuple(judged),
        seen["samples"],
        Plan((step,), source=model.digest),
        speed,
    )


def _fast(
    model: Model, settings: DropIdle, chosen: Sequence[Finding], clean: Callable[[Model], Model], clock: Clock
) -> tuple[list[Finding], list[tuple[Finding, str]], dict[str, float]]:
    """(the findings with which the model is not slower, those that are undone and why, by runtime the speed with the former)."""
    (why,), speed = clock.slower(model, [clean(without(model, settings, chosen))])
    if not why:
        return list(chosen), [], speed
    nodes = list(dict.fromkeys(f.node for f in chosen))
    whys, _ = clock.slower(model, [clean(without(model, settings, [f for f in chosen if f.node == node])) for node in nodes])
    slow = {node: why for node, why in zip(nodes, whys, strict=True) if why}
    rest = [f for f in chosen if f.node not in slow]
    if rest and slow:
        (why,), speed = clock.slower(model, [clean(without(model, settings, rest))])
    if not rest or why:
        return [], [(f, slow.get(f.node, why)) for f in chosen], {}
    return rest, [(f, slow[f.node]) for f in chosen if f.node in slow], speed


def _chosen(model: Model, settings: DropIdle, found: Sequence[Finding], judge: _Judge) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """(the findings that can be applied together, those that are undone and why)."""
    chosen, undone = list(found), list[tuple[Finding, str]]()

    def wrong(without_these: Sequence[Finding]) -> str:
        some = [f for f in chosen if f not in without_these]
        try:
            return judge.on("validate", without(model, settings, some)).broken if some else ""
        except (CheckFailed, WorkerFailed) as e:
            return f"it does not run: {e}"

    while why := wrong(()):
        culprit = simplify.culprit_of(chosen, wrong)
        assert culprit is not None, "the original keeps its own budget"
        rest = chosen[chosen.index(culprit) + 1 :]
        undone.append((culprit, why))
        voice().say(f"undone: {culprit.node}: {culprit.says}: {why}")
        chosen.remove(culprit)
        if len(undone) == MOST_UNDONE:
            undone += [(f, f"{MOST_UNDONE} findings that save more had to be undone") for f in rest]
            chosen = [f for f in chosen if f not in rest]
    return chosen, undone


class _Judge:
    """The drop of the metric beside the original, in onnxruntime, in a process of its own each."""

    def __init__(self, original: Model, task: BoundTask, budget: Budget, place: Path) -> None:
        self.task, self.budget, self.place = task, budget, place
        self.original = original
        self.known: dict[str, Array] = {}

    def on(self, split: str, model: Model) -> Judged:
        """Raises BadInput where the original does not run, WorkerFailed where the model does not."""
        samples = self.task.validate if split == "validate" else self.task.test
        assert samples is not None, "a task with data has all splits"
        if split not in self.known:
            try:
                self.known[split] = self._outputs(self.original, samples)
            except WorkerFailed as e:
                raise BadInput(f"the model can't be run on the data: {e}") from e
        before, after = self.known[split], self._outputs(model, samples)
        labels = samples.labels if samples.labels is not None else before
        metric = decide(self.task.metric, before, labels)
        difference = metric_difference(metric, before, after, labels)
        drop = difference.mirrored() if metric.higher_is_better else difference
        allowed = self.budget.max_drop if samples.labels is not None else 1 - self.budget.min_agreement
        return Judged(split, metric.name, metric.value(before, labels), metric.value(after, labels), drop, allowed, len(samples))

    def _outputs(self, model: Model, samples: Split) -> Array:
        path = self.place / "model.onnx"
        model.save(path)
        fixed = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), None)
        target = Target(cores(), fixed or BATCH)
        return predict(Subject("onnxruntime", path, target), samples, self.task.output, target.batch)
