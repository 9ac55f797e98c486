"""compare: two models on the same samples and side by side in time. A gate for CI: kept, broken, or not decided."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.benchmark import Benchmark, benchmark
from hasten.measure.calibration import Calibration, calibration
from hasten.measure.contestant import Contestant, feeds_for
from hasten.measure.explain import Explanation, explain
from hasten.measure.process import WorkerFailed
from hasten.measure.robustness import Robustness, robustness
from hasten.measure.statistics import Interval, paired_difference, value_interval, whole_set_difference
from hasten.metrics import are_class_scores, decide
from hasten.task import BoundTask, Metric, Split

Array = NDArray[Any]
KEPT, BROKEN, UNDECIDED = "kept", "broken", "not decided"


@dataclasses.dataclass(frozen=True)
class ClassChange:
    """Recall of one class before and after, and its samples."""

    label: int
    before: float
    after: float
    samples: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A metric's value on n samples with its 95 % interval."""

    metric: str
    value: float
    interval: Interval
    samples: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`difference` = after − before in the metric's unit; `flips`: samples whose predicted class changed (None where there are no classes).

    `robustness`, `calibration` and `explanation` are there where they were asked for.
    """

    metric: str
    higher_is_better: bool
    before: float
    after: float
    difference: Interval
    samples: int
    flips: int | None
    classes: tuple[ClassChange, ...]
    speed: Benchmark | None
    accuracy_gate: str | None = None
    speed_gate: str | None = None
    robustness: Robustness | None = None
    calibration: Calibration | None = None
    explanation: Explanation | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def predictions(contestant: Contestant, task: BoundTask, split: Split) -> Array:
    """Outputs of the judged output on the split. Raises BadInput with the reason where the model can't be run on it."""
    try:
        return judge.predict(contestant.subject, split, task.output, contestant.subject.target.batch)
    except WorkerFailed as e:
        raise BadInput(f"{contestant.name} can't be run on the data: {e}") from e


def evaluate(contestant: Contestant, task: BoundTask) -> Evaluation:
    """The task's metric on its test split, in the very runtime that would be timed. Raises BadInput where there are no labels."""
    split = test_split(task)
    if split.labels is None:
        raise BadInput("the data has no labels, so there is nothing to evaluate against; compare two models with `hasten compare` instead")
    outputs = predictions(contestant, task, split)
    task = dataclasses.replace(task, metric=decide(task.metric, outputs, split.labels))
    interval = value_interval(task.metric, outputs, split.labels)
    return Evaluation(task.metric.name, task.metric.value(outputs, split.labels), interval, len(split))


def compare(
    before: Contestant,
    after: Contestant,
    task: BoundTask,
    max_drop: float | None = None,
    max_slowdown: float | None = None,
    speed: bool = True,
    rounds: int = judge.PAIRS,
) -> Comparison:
    """Both on the test split, paired, and (with `speed`) in rounds of fresh processes.

    Gates: `max_drop` by the one-sided 95 % bounds of the drop; `max_slowdown`, such as 1.05, by the interval of the ratio. A gate is kept or
    broken where the interval says so, not decided where it lies across.
    """
    check_gates(max_drop, max_slowdown, speed)
    split = test_split(task)
    outputs = predictions(before, task, split), predictions(after, task, split)
    labels = split.labels if split.labels is not None else outputs[0]
    metric = decide(task.metric, outputs[0], labels)
    difference = metric_difference(metric, *outputs, labels)
    timed = None
    if speed:
        timed = benchmark((before, after), (feeds_for(before, task), feeds_for(after, task)), rounds)
    classes, flips = class_changes(*outputs, labels if split.labels is not None else None)
    return Comparison(
        metric.name,
        metric.higher_is_better,
        metric.value(outputs[0], labels),
        metric.value(outputs[1], labels),
        difference,
        len(split),
        flips,
        classes,
        timed,
        None if max_drop is None else _drop_gate(difference, metric.higher_is_better, max_drop),
        None if max_slowdown is None else _speed_gate(timed, max_slowdown),
    )


def check_gates(max_drop: float | None, max_slowdown: float | None, speed: bool = True) -> None:
    """Raises BadInput for limits that make no sense, or that nothing will be measured for. To be called before anything is measured."""
    if max_drop is not None and not 0 <= max_drop < math.inf:
        raise BadInput(f"--max-drop is {max_drop}, expected a number of at least 0, such as 0.01 for one point of accuracy")
    if max_slowdown is not None and not 0 < max_slowdown < math.inf:
        raise BadInput(f"--max-slowdown is {max_slowdown}, expected a number above 0, such as 1.05 for 5 % slower")
    if max_slowdown is not None and not speed:
        raise BadInput("a limit on the slow-down came with speed left out; leave out one of the two")


def under_corruption(
    before: Contestant,
    after: Contestant,
    task: BoundTask,
    samples: int | None = None,
    seed: int = 0,
) -> tuple[Robustness, Calibration | None]:
    """Robustness, and the calibration error on the whole test split where there are labels and class scores."""
    split = test_split(task)
    try:
        found = robustness(before.subject, after.subject, task, before.model.inputs, samples, seed)
    except WorkerFailed as e:
        raise BadInput(f"{before.name} and {after.name} can't both be run on corrupted data: {e}") from e
    if split.labels is None:
        return found, None
    return found, calibration(predictions(before, task, split), predictions(after, task, split), split.labels)


def attributions(before: Contestant, after: Contestant, task: BoundTask, samples: int, seed: int = 0) -> Explanation:
    """Whether the attributions of the first survive in the second."""
    try:
        return explain(before.subject, after.subject, task, before.model.inputs, samples, seed)
    except WorkerFailed as e:
        raise BadInput(f"{before.name} and {after.name} can't both be run on masked data: {e}") from e


def test_split(task: BoundTask) -> Split:
    """The split that judges."""
    if task.test is None:
        raise BadInput("there is no data to judge by; give --data")
    return task.test


def metric_difference(metric: Metric, before: Array, after: Array, labels: Array, seed: int = 0) -> Interval:
    """The paired 95 % interval of after − before, by the metric's kind."""
    if metric.per_sample is not None:
        return paired_difference(np.asarray(metric.per_sample(before, labels), float), np.asarray(metric.per_sample(after, labels), float))
    assert metric.whole_set is not None
    return whole_set_difference(metric.whole_set, before, after, labels, seed=seed)


def class_changes(before: Array, after: Array, labels: Array | None) -> tuple[tuple[ClassChange, ...], int | None]:
    """Recall per class and the number of flips, where outputs are class scores (N, C)."""
    if not are_class_scores(before):
        return (), None
    one, other = before.argmax(1), after.argmax(1)
    flips = int(np.sum(one != other))
    if labels is None or labels.ndim != 1:
        return (), flips
    changes = []
    for label in np.unique(labels):
        of_class = labels == label
        changes.append(
            ClassChange(int(label), float(np.mean(one[of_class] == label)), float(np.mean(other[of_class] == label)), int(of_class.sum()))
        )
    return tuple(changes), flips


def _drop_gate(difference: Interval, higher_is_better: bool, max_drop: float) -> str:
    if math.isnan(difference.estimate):
        return BROKEN  # outputs that are no numbers
    drop = difference.mirrored() if higher_is_better else difference
    least, most = drop.bound_low, drop.bound_high
    assert least is not None
    assert most is not None
    return KEPT if most <= max_drop else BROKEN if least > max_drop else UNDECIDED


def _speed_gate(timed: Benchmark | None, max_slowdown: float) -> str:
    assert timed is not None, "check_gates refuses a limit without a measurement"
    ratio = timed.standings[1].ratio
    if ratio is None:
        return UNDECIDED
    return KEPT if 1 / ratio.low <= max_slowdown else BROKEN if 1 / ratio.high > max_slowdown else UNDECIDED
