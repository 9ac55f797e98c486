"""Calibration error: how far a model's confidence is from how often it is right, before and after."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.measure.statistics import Interval, whole_set_difference
from hasten.metrics import indices_of

Array = NDArray[Any]
BINS = 15
SUMS_TO_ONE = 0.02
"""How far a row of probabilities may be from 1 in sum; quantized ones are not exact."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The expected calibration error of two models on the same samples; `difference` = after − before, paired bootstrap.

    `softmax`: whether the outputs were logits, so that softmax made probabilities of them.
    """

    before: float
    after: float
    difference: Interval
    bins: int
    samples: int
    softmax: bool

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration(before: Array, after: Array, labels: Array) -> Calibration | None:
    """Of class scores (N, C) with labels (N,) of whole numbers; None where outputs or labels are anything else.

    Outputs whose rows don't sum to 1, or hold values below 0, are taken for logits (decided on the first model, for both).
    """
    if before.ndim != 2 or before.shape[1] < 2 or before.dtype.kind != "f" or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    classes = indices_of(labels, before)
    if classes.ndim != 1 or classes.dtype.kind not in "iub":
        return None
    logits = not _probabilities(before)
    first, second = (confidences(softmax(o) if logits else o.astype(np.float64), classes) for o in (before, after))
    difference = whole_set_difference(_error, first, second, classes)
    return Calibration(_error(first, classes), _error(second, classes), difference, BINS, len(classes), logits)


def _error(pairs: Array, _: Array) -> float:
    return expected_calibration_error(pairs[:, 0], pairs[:, 1])


def expected_calibration_error(confidence: Array, right: Array, bins: int = BINS) -> float:
    """Σ over the bins of (share of the samples in it) · |mean confidence − share that is right|; confidence and right (N,) from 0 to 1.

    Bins of equal width over 0..1, as in Guo et al., arXiv 1706.04599 (after Naeini et al., AAAI 2015), so that numbers can be compared
    with published ones. It is biased upwards by few samples, for both models alike.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def confidences(probabilities: Array, classes: Array) -> Array:
    """(N, 2): the largest probability, and whether that class is right (0 or 1)."""
    return np.stack([np.clip(probabilities.max(1), 0, 1), probabilities.argmax(1) == classes], axis=1)


def softmax(logits: Array) -> Array:
    """exp(x) / Σ exp(x) along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def _probabilities(outputs: Array) -> bool:
    return bool((outputs >= 0).all() and (np.abs(outputs.astype(np.float64).sum(1) - 1) <= SUMS_TO_ONE).all())
