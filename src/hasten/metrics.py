"""Metrics by name, and the user's own. METRICS is the whole list.

A metric is one of two kinds: `per_sample(outputs, labels) -> (N,)`, whose mean is the value, or `whole_set(outputs, labels) -> float`.
Outputs are (N, C) class scores, (N,) or (N, 1) scores of class 1, or (N, ...) values; labels (N,) whole numbers, or values of the same shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hasten import pyfile
from hasten.errors import BadInput
from hasten.task import Array, Metric


def classes_of(outputs: Array) -> Array:
    """The predicted class of each sample: the largest score; for one score, whether it is above its middle (0 for logits, 0.5 otherwise)."""
    if outputs.ndim > 1 and outputs.shape[-1] > 1:
        return np.asarray(outputs.reshape(len(outputs), -1, outputs.shape[-1]).argmax(-1).reshape(outputs.shape[:-1]))
    scores = outputs.reshape(len(outputs))
    middle = 0.5 if scores.size and scores.min() >= 0 and scores.max() <= 1 else 0.0
    return (scores > middle).astype(np.int64)


def indices_of(labels: Array, outputs: Array) -> Array:
    """Labels as class numbers; one-hot labels (N, C) are undone."""
    if labels.ndim == 2 and outputs.ndim == 2 and labels.shape == outputs.shape and outputs.shape[1] > 1:
        return np.asarray(labels.argmax(1))
    return labels.reshape(labels.shape[:-1]) if labels.ndim > 1 and labels.shape[-1] == 1 else labels


def accuracy(outputs: Array, labels: Array) -> Array:
    right = (classes_of(outputs) == indices_of(labels, outputs)).astype(np.float64)
    return right.reshape(len(right), -1).mean(1)


def top_5(outputs: Array, labels: Array) -> Array:
    k = min(5, outputs.shape[-1])
    best = np.argpartition(outputs, -k, axis=-1)[..., -k:]
    return (best == indices_of(labels, outputs)[..., None]).any(-1).astype(np.float64)


def f1(outputs: Array, labels: Array) -> float:
    """Macro F1: the mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    predicted, true = classes_of(outputs).reshape(-1), indices_of(labels, outputs).reshape(-1).astype(np.int64)
    count = int(max(predicted.max(), true.max())) + 1
    hits = np.bincount(true[predicted == true], minlength=count)
    total = np.bincount(true, minlength=count) + np.bincount(predicted, minlength=count)
    present = total > 0
    return float(np.mean(2 * hits[present] / total[present]))


def auc(outputs: Array, labels: Array) -> float:
    """Area under the ROC curve by ranks, ties at half; with several classes the mean of one against the rest. NaN where a class is missing."""
    true = indices_of(labels, outputs).reshape(-1)
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return _auc(outputs.reshape(-1), true == 1)
    if outputs.shape[-1] == 2:
        return _auc(outputs[:, 1] - outputs[:, 0], true == 1)
    return float(np.mean([_auc(outputs[:, c], true == c) for c in np.unique(true)]))


def _auc(scores: Array, positive: Array) -> float:
    ones = int(positive.sum())
    if ones in (0, len(positive)):
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = middle_ranks[inverse]
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))


def mse(outputs: Array, labels: Array) -> Array:
    a, b = _pair(outputs, labels)
    return ((a - b) ** 2).mean(1)


def mae(outputs: Array, labels: Array) -> Array:
    a, b = _pair(outputs, labels)
    return np.abs(a - b).mean(1)


def rmse(outputs: Array, labels: Array) -> float:
    return float(np.sqrt(mse(outputs, labels).mean()))


def cosine(outputs: Array, labels: Array) -> Array:
    a, b = _pair(outputs, labels)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


def nll(outputs: Array, labels: Array) -> Array:
    """Mean negative log-likelihood in nats; outputs (N, C) or (N, T, C) logits, labels (N,) or (N, T) class or token numbers."""
    logits = outputs.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(logits - top).sum(-1))
    chosen = np.take_along_axis(logits, labels.astype(np.int64)[..., None], -1)[..., 0]
    return (log_sum - chosen).reshape(len(labels), -1).mean(1)


def _pair(outputs: Array, labels: Array) -> tuple[Array, Array]:
    """Both as (N, values). Raises ValueError where their sizes differ: numpy would repeat the one of size 1."""
    a, b = _flat(outputs), _flat(labels)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape[1]} values a sample beside {b.shape[1]}")
    return a, b


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1).astype(np.float64)


def most_common(outputs: Array, labels: Array) -> float:
    """What guessing the most frequent class would reach."""
    counts = np.unique(indices_of(labels, outputs), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def five_guesses(outputs: Array, labels: Array) -> float:
    counts = np.sort(np.unique(indices_of(labels, outputs), return_counts=True)[1])
    return float(counts[-5:].sum() / counts.sum())


def chance_f1(outputs: Array, labels: Array) -> float:
    """Macro F1 of always saying the most frequent class."""
    values, counts = np.unique(indices_of(labels, outputs), return_counts=True)
    share = counts.max() / counts.sum()
    return float(2 * share / (1 + share) / len(values))


def mean_guess(outputs: Array, labels: Array) -> float:
    """The mean squared error of always saying the mean."""
    flat = _flat(labels)
    return float(((flat - flat.mean(0)) ** 2).mean())


METRICS = (
    Metric("accuracy", True, per_sample=accuracy, chance=most_common),
    Metric("top-5", True, per_sample=top_5, chance=five_guesses),
    Metric("f1", True, whole_set=f1, chance=chance_f1),
    Metric("auc", True, whole_set=auc, chance=lambda outputs, labels: 0.5),
    Metric("mse", False, per_sample=mse, chance=mean_guess),
    Metric("rmse", False, whole_set=rmse, chance=lambda outputs, labels: mean_guess(outputs, labels) ** 0.5),
    Metric("mae", False, per_sample=mae),
    Metric("cosine", True, per_sample=cosine),
    Metric("nll", False, per_sample=nll),
)

CLASSES = ("accuracy", "top-5", "f1", "auc", "nll")
"""Metrics whose labels are class numbers: their range is checked against the model's output."""


def agreement(outputs: Array, labels: Array) -> Array:
    """Fidelity: outputs of a model beside those of the original. The same class where they are class scores, else the cosine."""
    if are_class_scores(labels):
        return (outputs.argmax(1) == labels.argmax(1)).astype(np.float64)
    return cosine(outputs, labels)


def are_class_scores(outputs: Array) -> bool:
    """Whether outputs (N, C) may be scores of classes. Rows of length 1 with both signs are normalised embeddings: no class is meant there."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or outputs.dtype.kind != "f":
        return False
    lengths = np.linalg.norm(outputs.astype(np.float64), axis=1)
    return not (outputs.min() < 0 and np.all(np.abs(lengths - 1) < 1e-3))


FIDELITY = ("cosine", "mse", "rmse", "mae")
"""Metrics that can compare outputs with the original's outputs, where there are no labels and one of them was asked for."""

AGREEMENT = Metric("agreement", True, per_sample=agreement)
"""The metric where there are no labels: the original is the teacher."""


def resolve(metric: Any, higher_is_better: bool = True) -> Metric:
    """A Metric from a name, a Metric, a function, or `file.py:name`. Raises BadInput for what is none of these.

    A function takes (outputs, labels) and gives an array (N,) (per sample) or a number (whole set). An object may instead have functions
    `per_sample` or `whole_set` as attributes, and `higher_is_better`.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if pyfile.is_reference(metric):
            return resolve(pyfile.load_object(metric), higher_is_better)
        for known in METRICS:
            if known.name == metric.lower().replace("_", "-").replace("top5", "top-5"):
                return known
        raise BadInput(f"there is no metric {metric!r}; use one of {', '.join(m.name for m in METRICS)}, or file.py:name")
    per_sample, whole_set = getattr(metric, "per_sample", None), getattr(metric, "whole_set", None)
    better = bool(getattr(metric, "higher_is_better", higher_is_better))
    name = str(getattr(metric, "__name__", type(metric).__name__))
    if per_sample or whole_set:
        return Metric(name, better, per_sample, None if per_sample else whole_set)
    if callable(metric):
        return Metric(name, better, whole_set=_Undecided(metric))
    raise BadInput(f"a metric must be a name, a function (outputs, labels), or file.py:name; got {type(metric).__name__}")


@dataclasses.dataclass(frozen=True)
class _Undecided:
    """A user's function of which it is not known yet whether it gives a number for each sample or one for all."""

    function: Callable[[Array, Array], Any]

    def __call__(self, outputs: Array, labels: Array) -> float:
        return float(self.function(outputs, labels))


def decide(metric: Metric, outputs: Array, labels: Array) -> Metric:
    """The kind of a user's function, seen from what it gives on real outputs.

    Raises BadInput where that is neither kind, or where a metric can't be had of these outputs and labels.
    """
    if not isinstance(metric.whole_set, _Undecided):
        shapes = f"outputs of shape {outputs.shape} with labels of shape {labels.shape}"
        try:
            reached = metric.value(outputs, labels)
        except (ValueError, IndexError, TypeError) as e:
            raise BadInput(f"{metric.name} can't compare {shapes} ({e}); give labels that fit the output, or another --metric") from e
        if math.isnan(reached) and np.isfinite(outputs).all():
            raise BadInput(
                f"{metric.name} is not defined on these {len(labels)} samples; auc, for one, wants samples of more than one class"
            )
        return metric
    function = metric.whole_set.function
    value = np.asarray(pyfile.call(f"metric {metric.name}", function, outputs, labels))
    if value.shape == (len(labels),) and len(labels) != 1:
        return dataclasses.replace(metric, per_sample=function, whole_set=None)
    if value.ndim == 0:
        return dataclasses.replace(metric, whole_set=lambda o, y: float(function(o, y)))
    raise BadInput(f"metric {metric.name} gave shape {value.shape} for {len(labels)} samples; expected one number, or one for each sample")
