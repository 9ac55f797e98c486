"""One run of the search: its context, its memory of what is finished, and the measurements as records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import check, metrics, plan
from hasten.doors import Origin
from hasten.errors import HastenError
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.machine import machine, versions
from hasten.measure.process import Subject, WorkerFailed
from hasten.measure.record import Record, Records
from hasten.measure.statistics import Interval, paired_difference, whole_set_difference
from hasten.model import Model
from hasten.plan import Effect, Plan
from hasten.runtimes import Target
from hasten.search.budget import Budget
from hasten.search.candidates import ORIGINAL, Candidate, Recipe
from hasten.search.guard import Guarded, guarded
from hasten.task import BoundTask, Split

Array = NDArray[Any]

CHANGING = {row.name for row in plan.TECHNIQUES if row.effect in (Effect.LOSSY, Effect.TRAINED)}
"""Techniques of which a recipe must have changed something, to be another than the better graph."""

RESTLESS, HOPELESS = 1.25, 0.25
"""A moment is restless where the baseline takes this much longer than it did before, or the 95th percentile of single calls lies this far
above the median; a candidate that is slower than this share of the baseline's speed is not timed again even then."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """Accuracy of a candidate on a split beside the baseline's, on the same samples. `difference` = candidate − baseline.

    `guards`: recall of the guarded classes, on the same predictions.
    """

    value: float
    baseline: float
    difference: Interval
    samples: int
    discordant: float
    guards: tuple[Guarded, ...] = ()


@dataclasses.dataclass(eq=False)
class Run:
    """What one search knows. Everything that takes time goes through `remember`, so that a resumed run does not do it twice."""

    model: Model
    task: BoundTask | None
    budget: Budget
    target: Target
    work: Path
    records: Records
    origin: Origin | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    _predictions: dict[tuple[str, str], Array] = dataclasses.field(default_factory=dict)
    _labels: dict[str, Array] = dataclasses.field(default_factory=dict)
    _beside: Timing | Failure | None = None
    """The baseline's last screening time, until a second candidate was set against it."""
    _quickest: float = float("inf")
    """The baseline's smallest screening time so far."""

    def __post_init__(self) -> None:
        self.baseline = Candidate(ORIGINAL, "onnxruntime", self.target)
        self.subjects: dict[str, Subject] = {}
        random = check.random_feeds(self.model, self.target.batch, seed=self.budget.seed)
        self.feeds = judge.timing_feeds(self.task.validate if self.task else None, self.target.batch, random)

    @property
    def left(self) -> float:
        """Seconds that the time limit leaves."""
        return float("inf") if self.budget.time_limit is None else self.budget.time_limit - (time.monotonic() - self.started)

    @property
    def identity(self) -> str:
        """What a run must agree in with the run that it resumes: model, data, budget (its time limit aside), machine, versions."""
        parts = {
            "model": self.model.digest,
            "task": self.task.digest if self.task else None,
            "budget": dataclasses.asdict(dataclasses.replace(self.budget, time_limit=None)),
            "machine": machine().digest,
            "versions": versions(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def remember(self, kind: str, subject: str, method: str, compute: Callable[[], dict[str, Any]], key: str = "") -> dict[str, Any]:
        """The values of this measurement: from the records if it was finished before, else computed and recorded."""
        key = key or f"{kind}:{subject}"
        record = self.records.get(key) or self.records.add(Record(key, kind, subject, method, compute()))
        return record.values

    def settle_metric(self) -> None:
        """Find out of a user's function whether it gives one number for each sample or one for all."""
        if self.task is not None:
            outputs, labels = self.predictions(self.baseline, "validate"), self.labels("validate")
            self.task = dataclasses.replace(self.task, metric=metrics.decide(self.task.metric, outputs, labels))

    # --- models

    @property
    def trainings(self) -> Path:
        """Where trainings keep their checkpoints and records."""
        return self.work / "trainings"

    def path(self, recipe: Recipe) -> Path:
        return self.work / f"{recipe.name.replace(',', '').replace(' ', '-')}.onnx"

    def build(self, recipe: Recipe) -> dict[str, Any]:
        """Make the recipe's model, once. Values: `digest`, `bytes`, `seconds`, `changed`; or `failed`, the reason."""

        def compute() -> dict[str, Any]:
            start = time.perf_counter()
            try:
                task = self.task and dataclasses.replace(
                    self.task, place=self.trainings, teacher=self.task.teacher or self._teacher(recipe)
                )
                made, done = plan.run(recipe.plan(self.model), self.model, task)
                if recipe.steps and recipe.effect in (Effect.EQUIVALENT, Effect.ROUNDING):
                    check.same(self.model, made, within=check.FLOAT32)
            except HastenError as e:
                return {"failed": str(e)}
            made.save(self.path(recipe))
            self.path(recipe).with_suffix(".plan.json").write_text(done.to_json())
            spent = time.perf_counter() - start
            changed = sum(s.changed for s in made.history[len(self.model.history) :] if s.name in CHANGING)
            size = self.path(recipe).stat().st_size
            return {"digest": made.digest, "structure": made.structure, "bytes": size, "seconds": spent, "changed": changed}

        return self.remember("built", recipe.name, "the recipe's techniques, checked against the oracle where they only round", compute)

    def footprint(self, recipe: Recipe) -> dict[str, Any]:
        """Bytes of the recipe's model as C code: `flash`, `arena`, `outputs`, `ram`; or `failed`, the reason why there is none."""

        def compute() -> dict[str, Any]:
            from hasten.lower.c_export import footprint

            try:
                found = footprint(Model.load(self.path(recipe)))
            except HastenError as e:
                return {"failed": str(e)}
            return {"flash": found.flash, "arena": found.arena, "outputs": found.outputs, "ram": found.ram}

        return self.remember("as C", recipe.name, "constants and activations of the exported C code, computed", compute)

    def _teacher(self, recipe: Recipe) -> Model | None:
        """The original, whose part the student's own maker has where a recipe has one."""
        return None if any(settings.get("student") for _, settings in recipe.steps) else self.model

    def plan_of(self, candidate: Candidate) -> Plan:
        """The plan, with all that its data showed, for a candidate that was built."""
        done = Plan.from_json(self.path(candidate.recipe).with_suffix(".plan.json").read_text())
        return dataclasses.replace(done, runtime=candidate.runtime, target=dataclasses.asdict(candidate.target))

    def subject(self, candidate: Candidate) -> Subject:
        return Subject(candidate.runtime, self.path(candidate.recipe), candidate.target)

    # --- speed

    def screen(self, name: str, subject: Subject, kind: str = "screened") -> tuple[Timing | Failure, float]:
        """A first timing, in one process beside one of the baseline: (timing, how many times faster than that baseline).

        The machine's own speed drifts by tens of percent in minutes, so a timing says something only beside another one of the same
        moment. Two candidates share a baseline: the one after it and the next. What comes out slower at a restless moment is timed once
        more, and the better of the two counts: a first timing only decides who is looked at further.
        """
        method = "one fresh process beside one of the baseline: median of 5 rounds of about 40 ms; percentiles of single calls"

        def compute() -> dict[str, Any]:
            timed, ratio, restless = self._beside_baseline(subject)
            if restless and HOPELESS < ratio < 1:
                timed, ratio = max((timed, ratio), self._beside_baseline(subject)[:2], key=lambda pair: pair[1])
            return {"timing": dataclasses.asdict(timed), "ratio": ratio}

        values = self.remember(kind, name, method, compute)
        return _timing(values["timing"]), values["ratio"]

    def _beside_baseline(self, subject: Subject) -> tuple[Timing | Failure, float, bool]:
        """(timing, ratio to the baseline's, whether the machine was restless meanwhile)."""
        shared, self._beside = self._beside, None
        before = shared or judge.time_once(self.subject(self.baseline), self.feeds, self.budget.percentile)
        timed = judge.time_once(subject, self.feeds, self.budget.percentile)
        if not isinstance(before, Timing) or not isinstance(timed, Timing):
            return timed, 0.0, False
        self._beside = None if shared else before
        self._quickest = min(self._quickest, before.seconds)
        ranks = max(t.percentiles["95"] / t.percentiles["50"] for t in (before, timed))
        return timed, before.seconds / timed.seconds, max(before.seconds / self._quickest, ranks) > RESTLESS

    def time_baseline(self) -> Timing | Failure:
        """The baseline alone, in one fresh process; at a restless moment in a second one too, and the faster counts: what is tried depends on it."""

        def once() -> Timing | Failure:
            return judge.time_once(self.subject(self.baseline), self.feeds, self.budget.percentile)

        def compute() -> dict[str, Any]:
            timed = once()
            if (
                isinstance(timed, Timing)
                and timed.percentiles["95"] / timed.percentiles["50"] > RESTLESS
                and isinstance(again := once(), Timing)
            ):
                timed = min(timed, again, key=lambda t: t.seconds)
            return dataclasses.asdict(timed)

        return _timing(self.remember("screened", self.baseline.name, "one fresh process, the faster of two at a restless moment", compute))

    def duel(self, subjects: dict[str, Subject], turn: int) -> dict[str, Timing | Failure]:
        """One round of fresh processes, every subject once."""
        method = "a round of fresh processes, one after the other, the order rotated; each as when screened"

        def compute() -> dict[str, Any]:
            timed = judge.duel_round(subjects, self.feeds, turn, self.budget.percentile)
            return {name: dataclasses.asdict(t) for name, t in timed.items()}

        key = f"duel:{turn}:{'|'.join(subjects)}"
        values = self.remember("duel", str(turn), method, compute, key)
        return {name: _timing(v) for name, v in values.items()}

    # --- accuracy

    def judged(self, candidate: Candidate, split_name: str) -> Judged | Failure:
        """The candidate's metric on `validate` or `test`, paired with the baseline's, in the very kind of session that is timed."""
        assert self.task is not None
        metric = self.task.metric
        method = f"{metric.name}, paired with the original in onnxruntime on the same samples; 95 % interval of the difference"

        def compute() -> dict[str, Any]:
            try:
                before = self.predictions(self.baseline, split_name)
                after = before if candidate is self.baseline else self.predictions(candidate, split_name)
            except WorkerFailed as e:
                return {"failed": str(e)}
            labels = self.labels(split_name)
            found = guarded(self.budget.guards, before, after, labels)
            return _compare(self.task, before, after, labels, self.budget.seed) | {"guards": [dataclasses.asdict(g) for g in found]}

        values = self.remember("judged", candidate.name, method, compute, f"judged:{split_name}:{candidate.name}")
        if "failed" in values:
            return Failure(values["failed"])
        guards = tuple(Guarded(**g) for g in values["guards"])
        return Judged(**{**values, "difference": Interval(**values["difference"]), "guards": guards})

    def judged_as_c(self, candidate: Candidate) -> Judged:
        """The metric of the candidate's C code on test: the outputs that its fixed point gives, bit for bit, computed in numpy."""
        from hasten.lower import evaluate, lower

        assert self.task is not None
        method = f"{self.task.metric.name} of the exported C code's outputs, computed in numpy, paired with the original as judged"

        def compute() -> dict[str, Any]:
            assert self.task is not None
            plan = lower(Model.load(self.path(candidate.recipe)), "fixed")
            parts = []
            for feeds in self.split("test").batches(evaluate.SAMPLES):
                numbers = evaluate.whole_numbers(plan, evaluate.input_codes(plan, feeds))
                parts.append(evaluate.values(plan, numbers)[self.task.output])
            before = self.predictions(self.baseline, "test")
            return _compare(self.task, before, np.concatenate(parts), self.labels("test"), self.budget.seed)

        values = self.remember("judged as C", candidate.recipe.name, method, compute)
        return Judged(**{**values, "difference": Interval(**values["difference"])})

    def predictions(self, candidate: Candidate, split_name: str) -> Array:
        """Outputs of the judged output on a split; kept in memory alone."""
        key = (candidate.name, split_name)
        if key not in self._predictions:
            assert self.task is not None
            split = self.split(split_name)
            self._predictions[key] = judge.predict(self.subject(candidate), split, self.task.output, self.target.batch)
        return self._predictions[key]

    def forget(self, candidate: Candidate) -> None:
        """Free a candidate's predictions."""
        for key in [k for k in self._predictions if k[0] == candidate.name and candidate is not self.baseline]:
            del self._predictions[key]

    def labels(self, split_name: str) -> Array:
        """The labels; where there are none, what the original says (fidelity to it is then the metric)."""
        given = self.split(split_name).labels
        return given if given is not None else self.predictions(self.baseline, split_name)

    def split(self, name: str) -> Split:
        assert self.task is not None
        split = {"validate": self.task.validate, "test": self.task.test}[name]
        assert split is not None, "a task with data has these splits"
        return split


def _timing(values: dict[str, Any]) -> Timing | Failure:
    return Failure(values["reason"]) if "reason" in values else Timing(**values)


def _compare(task: BoundTask | None, before: Array, after: Array, labels: Array, seed: int) -> dict[str, Any]:
    """Both values and the interval of their difference, as plain values."""
    assert task is not None
    metric = task.metric
    if not np.all(np.isfinite(after)):
        return {"failed": f"{np.mean(~np.isfinite(after)):.1%} of the outputs are not finite"}
    discordant = float("nan")
    if metric.per_sample is not None:
        scores = np.asarray(metric.per_sample(before, labels), float), np.asarray(metric.per_sample(after, labels), float)
        difference = paired_difference(*scores)
        values = float(scores[0].mean()), float(scores[1].mean())
        discordant = float(np.mean(scores[0] != scores[1]))
    else:
        assert metric.whole_set is not None
        difference = whole_set_difference(metric.whole_set, before, after, labels, seed=seed)
        values = metric.value(before, labels), metric.value(after, labels)
    return {
        "value": values[1],
        "baseline": values[0],
        "difference": dataclasses.asdict(difference),
        "samples": len(labels),
        "discordant": None if np.isnan(discordant) else discordant,
    }
