"""Task: what a model is for. Samples, splits, metric; bound to a model it knows which output is judged and how."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BadInput

if TYPE_CHECKING:
    from hasten.data.source import Source
    from hasten.model import Model

Array = NDArray[Any]


class Samples(Protocol):
    """Samples in order. `take` gives a batch by input name, ready for the model: its dtype, its layout, preprocessed."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some of the samples: those at `indices`, with their labels (len(indices), ...) in the same order, or None."""

    samples: Samples
    labels: Array | None
    indices: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds for `size` samples at a time; the last batch may be smaller. Memory: one batch."""
        for start in range(0, len(self), size):
            yield self.samples.take(self.indices[start : start + size])


@dataclasses.dataclass(frozen=True)
class Metric:
    """How good outputs are. One of the two kinds is given:

    per_sample(outputs, labels) -> (N,) float array, whose mean is the value; or
    whole_set(outputs, labels) -> float, resampled by indices for its interval.
    `chance(outputs, labels) -> float` is what guessing would reach, None where that is undefined.
    """

    name: str
    higher_is_better: bool
    per_sample: Callable[[Array, Array], Array] | None = None
    whole_set: Callable[[Array, Array], float] | None = None
    chance: Callable[[Array, Array], float] | None = None

    def value(self, outputs: Array, labels: Array) -> float:
        if self.per_sample is not None:
            return float(np.mean(self.per_sample(outputs, labels)))
        assert self.whole_set is not None
        return float(self.whole_set(outputs, labels))


@dataclasses.dataclass(frozen=True, eq=False)
class BoundTask:
    """A Task bound to a model: what techniques and the judge read. Any split may be None (no data)."""

    calibrate: Split | None
    validate: Split | None
    test: Split | None
    metric: Metric
    output: str
    notes: tuple[str, ...]
    digest: str
    train: Split | None = None
    """What a technique may train on; None: training is not permitted. No sample of validate or test is in it."""
    teacher: Model | None = None
    """Whom a distillation learns from."""
    place: Path | None = None
    """A folder where a technique keeps what an interruption must not lose, and the records of its training."""
    observation: dict[str, Any] | None = None
    """What an earlier run of a technique's `observe` saw (plain JSON values); with it a plan replays without data."""


def without_data() -> BoundTask:
    """A task for a model that came without data: nothing to calibrate on, nothing to judge accuracy by."""
    return BoundTask(None, None, None, Metric("none", higher_is_better=True), "", (), "none")


CALIBRATE, VALIDATE = 512, 10_000
"""Samples that calibrate and validate, at most."""

CALIBRATE_SHARE, VALIDATE_SHARE = 0.2, 0.4
"""Shares of a small data set: the first for calibration; the second, of what is then left, for validation."""

WITHHELD = 0.15
"""Where the rest is trained on: the share that validates, and the share that tests if the data has no test split of its own."""

FEWEST = 6
"""Samples that a data set needs, so that each split has two."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a model is for, as the user says it.

    data: a path (.npz, .npy, .csv, a folder of idx files, a folder or zip of pictures, `file.py:function`), arrays, (x, y), a dict,
    an iterable of batches, a DataLoader. test, calibration: the same, where these splits are data of their own.
    metric: a name of `metrics.METRICS`, a function (outputs, labels), or `file.py:name`; `higher_is_better` is for functions. Where there are
    no labels, a function gets the original's outputs in their place.
    output: the output that is judged, the first by default. preprocess: a name, numbers or a function, for pictures.
    label: the label column of a CSV or .npz. labels: labels that lie apart; False: leave out whatever labels the data has, and judge agreement
    with the original. seed: of the splits.
    train: data to train on, which permits training; where it is `data` itself, what validates and tests is left out of it.
    """

    data: Any
    test: Any = None
    calibration: Any = None
    metric: Any = "accuracy"
    higher_is_better: bool = True
    output: str | None = None
    preprocess: Any = None
    label: str | None = None
    labels: Any = None
    seed: int = 0
    train: Any = None

    def bind(self, model: Model) -> BoundTask:
        """Read the data, fit it to the model's inputs and split it. Raises BadInput with what came and what was expected."""
        from hasten import metrics
        from hasten.data.fit import fit
        from hasten.data.read import read

        source = read(self.data, self.label, self.labels)
        output = self._output(model)
        apply = fit(source, model, self.preprocess)
        test = read(self.test, self.label, False if self.labels is False else None) if self.test is not None else None
        own_test = (test.samples, test.labels) if test is not None else source.test
        training = self._read_training(source)
        indices, test_count, split_note = _split(
            len(source.samples), None if own_test is None else len(own_test[0]), self.seed, training is source
        )
        fitted = apply(source.samples)
        calibrate = _with_own_labels(Split(fitted, source.labels, indices["calibrate"]))
        if self.calibration is not None:
            other = read(self.calibration, self.label)
            calibrate = Split(apply(other.samples), other.labels, np.arange(len(other.samples)))
        judge = Split(fitted, source.labels, indices["test"])
        if own_test is not None:
            judge = Split(apply(own_test[0]), own_test[1], np.arange(test_count))
        metric = metrics.resolve(self.metric, self.higher_is_better)
        if source.labels is None or judge.labels is None:
            if metric in metrics.METRICS and metric.name not in metrics.FIDELITY:
                metric = metrics.AGREEMENT
        else:
            for labels, count in ((source.labels, len(source.samples)), (judge.labels, len(judge.samples))):
                _check_labels(labels, count, model, output, metric)
        notes = (
            *apply.notes,
            split_note,
            *(() if judge.labels is not None else (f"no labels: fidelity to the original is judged, by {metric.name}",)),
        )
        digest = _digest(source.samples.digest(), source.labels, own_test, metric.name, output, self)
        validate = Split(fitted, source.labels, indices["validate"])
        learned = None
        if training is not None:
            rest = np.setdiff1d(np.arange(len(training.samples)), np.concatenate([indices["validate"], indices["test"]]))
            rest = rest if training is source else np.arange(len(training.samples))
            learned = _with_own_labels(Split(fitted if training is source else apply(training.samples), training.labels, rest))
            if learned.labels is not None:
                _check_labels(learned.labels, len(learned), model, output, metric)
            notes = (*notes, f"training: {len(learned)} samples" + (", those that neither validate nor test" if training is source else ""))
            digest = hashlib.sha256(f"{digest}|{training.samples.digest()}".encode()).hexdigest()
        return BoundTask(
            calibrate,
            _with_own_labels(validate),
            _with_own_labels(judge),
            metric,
            output,
            notes,
            digest,
            learned,
        )

    def _read_training(self, source: Source) -> Source | None:
        """The data to train on; `source` itself where it is the same."""
        from hasten.data.read import read

        if self.train is None:
            return None
        same = self.train is self.data or (isinstance(self.train, (str, Path)) and str(self.train) == str(self.data))
        given = source if same else read(self.train, self.label, False if self.labels is False else None)
        return source if given.samples.digest() == source.samples.digest() else given

    def _output(self, model: Model) -> str:
        names = [p.name for p in model.outputs]
        if self.output is not None and self.output not in names:
            raise BadInput(f"the model has no output {self.output!r}; it has {', '.join(names)}")
        return self.output or names[0]


def _split(count: int, test_count: int | None, seed: int, trained: bool = False) -> tuple[dict[str, NDArray[np.intp]], int, str]:
    """Seeded disjoint indices of calibrate, validate and (without a split of its own) test, and the sentence that says so.

    `trained`: what neither validates nor tests is trained on, so that should be most of it.
    """
    if count < FEWEST or (test_count is not None and test_count < 2):
        raise BadInput(
            f"the data has {count} samples{'' if test_count is None else f' and {test_count} for test'}; at least {FEWEST} are needed "
            "(2 to calibrate, 2 to validate, 2 to test), and some hundreds to prove anything"
        )
    order = np.random.default_rng(seed).permutation(count)
    calibrate = max(2, min(CALIBRATE, round(count * CALIBRATE_SHARE)))
    left = count - calibrate
    validate = min(VALIDATE, left) if test_count is not None else max(2, min(VALIDATE, round(left * VALIDATE_SHARE)))
    if trained:
        validate = max(2, min(VALIDATE, round(count * WITHHELD)))
        tests = 0 if test_count is not None else max(2, round(count * WITHHELD))
        left = calibrate + validate + tests
        order = order[: max(left, FEWEST)]
    parts = {
        "calibrate": np.sort(order[:calibrate]),
        "validate": np.sort(order[calibrate : calibrate + validate]),
        "test": np.sort(order[calibrate + validate :]) if test_count is None else np.arange(0),
    }
    judged = len(parts["test"]) if test_count is None else test_count
    own = "" if test_count is None else " (the data's own test split)"
    rest = count - calibrate - validate if test_count is not None and not trained else 0
    unused = f", {rest} not used" if rest else ""
    return parts, judged, f"split (seed {seed}): {calibrate} calibrate, {validate} validate, {judged} test{own}{unused}"


def _check_labels(labels: Array, count: int, model: Model, output: str, metric: Metric) -> None:
    """Raises BadInput where labels do not fit samples or classes."""
    from hasten import metrics

    if len(labels) != count:
        raise BadInput(f"there are {count} samples and {len(labels)} labels; expected one label for each sample")
    if labels.dtype.kind not in "fiub":
        raise BadInput(f"the labels are of type {labels.dtype}; expected numbers, such as class numbers from 0")
    if metric in metrics.METRICS and labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise BadInput("the labels hold NaN or infinite values; clean the data first")
    if metric.name not in metrics.CLASSES:
        return
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise BadInput(f"{metric.name} wants class numbers as labels, the labels are {labels.dtype} with fractions; use --metric mse")
    shape = next(p.shape for p in model.outputs if p.name == output)
    classes = shape[-1] if len(shape) >= 2 and isinstance(shape[-1], int) else None
    if classes == 1:
        classes = 2
    if classes is not None and labels.ndim == 1 and (labels.min() < 0 or labels.max() >= classes):
        hint = "; they seem to count from 1: subtract 1" if labels.min() == 1 and labels.max() == classes else ""
        raise BadInput(
            f"labels run from {labels.min()} to {labels.max()}, output {output!r} has {classes} classes (0 to {classes - 1}){hint}"
        )


def _with_own_labels(split: Split) -> Split:
    """The split with its labels alone, in its own order."""
    return split if split.labels is None else dataclasses.replace(split, labels=np.asarray(split.labels)[split.indices])


def _digest(samples: str, labels: Array | None, test: Any, metric: str, output: str, task: Task) -> str:
    """Identifies what is judged on: content, labels, splits, metric, preprocessing. No name, no path."""
    preprocess = "a function" if callable(task.preprocess) else str(task.preprocess)
    h = hashlib.sha256(f"{samples}|{metric}|{output}|{task.seed}|{preprocess}".encode())
    for part in (labels, None if test is None else test[1]):
        if part is not None:
            h.update(np.ascontiguousarray(part).tobytes())
    if test is not None:
        h.update(test[0].digest().encode())
    return h.hexdigest()
