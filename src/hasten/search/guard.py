"""Guards: the recall of a class must not fall. Judged on the very predictions that accuracy is judged on, beside the budget.

Recall of class c is the share of the samples labelled c that are predicted as c. Both models see the same n_c samples. A guard holds where

1. the recall is not lower than the original's by more than `drop` (0 by default), as estimated on these samples; and
2. with --strict, on test, that estimate is backed by data: the one-sided 95 % bound of the paired difference (Tango, Statistics in Medicine 17,
   1998, on the n_c pairs) leaves at most `max(drop, max_drop)` plausible. Zero can't be the margin of a bound: no finite sample proves a
   difference of exactly nothing.

Several guards must all hold, each at its own 95 %: an intersection-union test needs no correction (Berger, Technometrics 24, 1982).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten import metrics
from hasten.errors import BadInput
from hasten.measure.statistics import paired_difference
from hasten.task import Array, BoundTask, Split

ALL, NONE = "all", "none"
LISTED = 20
"""Classes that a message lists, at most."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """The recall of `label` must not fall; None: of every class that the test data has."""

    label: int | None


@dataclasses.dataclass(frozen=True)
class Guarded:
    """One class on one split: recall before and after, on `samples` of its own. `worst`: the largest drop that the data leaves plausible
    (one-sided 95 % bound; NaN becomes None where there are fewer than two samples)."""

    label: int
    before: float
    after: float
    samples: int
    worst: float | None

    @property
    def drop(self) -> float:
        return self.before - self.after


def parse_guard(text: str) -> Guard | None:
    """`recall:1`, `recall:all`; `none` is no guard. Raises BadInput."""
    if text.strip().lower() == NONE:
        return None
    found = re.fullmatch(r"\s*recall:(all|\d+)\s*", text.lower(), re.ASCII)
    if not found:
        raise BadInput(f"the guard {text!r} is not understood; expected recall:CLASS such as recall:1, recall:all, or none")
    return Guard(None if found[1] == ALL else int(found[1]))


def check_guards(guards: Sequence[Guard], task: BoundTask | None) -> None:
    """Raises BadInput where a guard can't be judged: no data, no labels, a metric without classes, a class that test does not have."""
    if not guards:
        return
    if task is None or task.test is None or task.test.labels is None:
        raise BadInput("a guard on recall needs labels, and none came: give --data with labels, or --guard none")
    if task.metric in metrics.METRICS and task.metric.name not in metrics.CLASSES:
        raise BadInput(f"a guard on recall needs classes, and {task.metric.name} has none; use --metric accuracy, or --guard none")
    classes = _classes_in(task.test)
    missing = [g.label for g in guards if g.label is not None and g.label not in classes]
    if missing:
        more = ", …" if len(classes) > LISTED else ""
        raise BadInput(
            f"--guard recall:{missing[0]}: the test data has no class {missing[0]}; it has {', '.join(map(str, classes[:LISTED]))}{more}"
        )


def _classes_in(split: Split) -> list[int]:
    labels = np.asarray(split.labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
        labels = labels.argmax(1)
    if labels.ndim != 1 or not np.array_equal(labels, np.rint(labels)):
        raise BadInput(
            f"a guard on recall needs one class number a sample, the labels are {labels.dtype} of shape {labels.shape}; leave --guard out, "
            "or say --guard none"
        )
    return sorted({int(label) for label in np.unique(labels)})


def guarded(guards: Sequence[Guard], before: Array, after: Array, labels: Array) -> tuple[Guarded, ...]:
    """The guarded classes, as far as these labels have them, in ascending order."""
    if not guards:
        return ()
    true = np.asarray(metrics.indices_of(labels, before)).reshape(-1)
    one, other = (np.asarray(metrics.classes_of(outputs)).reshape(-1) for outputs in (before, after))
    wanted = None if any(g.label is None for g in guards) else {g.label for g in guards}
    return tuple(_one(int(label), one, other, true) for label in np.unique(true) if wanted is None or int(label) in wanted)


def _one(label: int, before: Array, after: Array, true: Array) -> Guarded:
    own = true == label
    hits = (before[own] == label).astype(np.float64), (after[own] == label).astype(np.float64)
    count = int(own.sum())
    bound = paired_difference(*hits).bound_low if count >= 2 else None
    return Guarded(label, float(hits[0].mean()), float(hits[1].mean()), count, None if bound is None else -bound)


def broken_guard(found: Sequence[Guarded], drop: float, margin: float | None, split: str) -> str:
    """Why a candidate breaks a guard, empty where all hold. `margin`: what the bound must keep (strict), None: the estimate alone counts."""
    for g in sorted(found, key=lambda g: -g.drop):
        what = f"recall of class {g.label} on {split}: {g.before:.4f} → {g.after:.4f} on {g.samples} samples"
        if g.drop > drop + 1e-12:
            return f"breaks the guard: {what}, a drop of {drop:g} is allowed"
    for g in found:
        if margin is not None and (g.worst is None or g.worst > margin):
            what = f"recall of class {g.label} on {split}: {g.before:.4f} → {g.after:.4f} on {g.samples} samples"
            worst = "nothing is proven" if g.worst is None else f"a drop of up to {g.worst:.4f} is plausible"
            return f"--strict: the guard is not proven: {what}, {worst}, {margin:g} is allowed{_more(g, margin)}"
    return ""


def _more(g: Guarded, margin: float) -> str:
    """About how many more samples of the class would decide: the bound's distance falls with the root of their number."""
    if g.worst is None or margin <= g.drop:
        return ""
    needed = math.ceil(g.samples * ((g.worst - g.drop) / (margin - g.drop)) ** 2) - g.samples
    return f"; about {needed} more samples of the class would decide"


def to_guards(values: Sequence[Any]) -> tuple[Guard, ...]:
    """Guards from texts or Guards. Raises BadInput."""
    parsed = [v if isinstance(v, Guard) else parse_guard(str(v)) for v in values]
    return tuple(dict.fromkeys(g for g in parsed if g is not None))
