"""Explanation: do two models look at the same places? Occlusion attributions of both, no gradient needed, and how they agree.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv 1311.2901: a region is hidden, and what the predicted
class's score then loses is the region's attribution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.process import Subject, Worker
from hasten.measure.robustness import sample
from hasten.measure.spread import PICTURE, TOKENS, Spread, spreads
from hasten.measure.statistics import Interval, paired_difference
from hasten.metrics import are_class_scores
from hasten.model import Port
from hasten.task import BoundTask, Samples, Split

Array = NDArray[Any]
SAMPLES = 32
GRID = 7
"""Patches along each side of a picture."""

MOST = 64
"""Regions of an input of tokens or features, at most: longer ones are hidden in runs of neighbours."""

TOP = 0.1
"""The share of a sample's regions whose overlap is counted, at least one region."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How the attributions of two models agree, over `samples` samples, each with up to `regions` regions; 1 is the same.

    `correlation`: Spearman's of the regions' attributions. `overlap`: the share of the most important tenth of the regions that both name;
    `chance` is what two models that have nothing in common would share. `lowest`: the lowest correlation of a sample.
    """

    samples: int
    regions: int
    correlation: Interval
    overlap: Interval
    chance: float
    lowest: float
    words: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """Each sample as it is, then with each of its regions hidden: sample s with region k hidden is number s · (regions + 1) + k + 1.

    `places`: by input the region of each of its values, counted over all inputs; −1 is never hidden. Broadcasts against a sample.
    """

    clean: Samples
    spreads: Mapping[str, Spread]
    places: Mapping[str, Array]
    regions: int

    def __len__(self) -> int:
        return len(self.clean) * (self.regions + 1)

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]:
        sample, region = np.divmod(indices, self.regions + 1)
        feeds = dict(self.clean.take(sample))
        for name, place in self.places.items():
            spread, x = self.spreads[name], feeds[name]
            blank = np.asarray(spread.blank if spread.kind == TOKENS else spread.mean)
            hidden = place[None] == (region - 1).reshape(-1, *[1] * place.ndim)
            # Region 0 hides nothing: its number, −1, is that of what is never hidden.
            hidden &= (region > 0).reshape(-1, *[1] * place.ndim)
            feeds[name] = np.where(hidden, (np.rint(blank) if x.dtype.kind in "iu" else blank).astype(x.dtype), x)
        return feeds


def explain(before: Subject, after: Subject, task: BoundTask, ports: Sequence[Port], samples: int = SAMPLES, seed: int = 0) -> Explanation:
    """Two models' attributions on samples of the test split, each in its worker, of the score of the class that the first predicts.

    A region that holds what it is hidden with anyway (padding) is left out. Raises BadInput where outputs are no class scores or nothing
    can be hidden, WorkerFailed where a model does not run.
    """
    _, clean = sample(task, samples, seed)
    feeds = clean.samples.take(clean.indices)
    about = spreads(ports, feeds)
    places, regions = _places(about, feeds)
    if regions < 2:
        raise BadInput(
            "--explain: there is nothing to hide in the inputs "
            f"{', '.join(f'{p.name} ({p.dtype}, rank {len(p.shape)})' for p in ports)}; expected pictures, token ids or at least 2 features"
        )
    masked = Masked(clean.samples, about, places, regions)
    with Worker(before) as one, Worker(after) as other:
        probe = dataclasses.replace(clean, indices=clean.indices[:1])
        check_classes(judge.predict_side_by_side((one,), probe, task.output, before.target.batch)[0])
        split = Split(masked, None, np.arange(len(masked)))
        outputs = judge.predict_side_by_side((one, other), split, task.output, before.target.batch)
    seen = _changes(masked, len(clean))
    correlations, overlaps, chances = [], [], []
    scores = [o.reshape(len(clean), regions + 1, -1).astype(np.float64) for o in outputs]
    for number, changed in enumerate(seen):
        if changed.sum() < 2:
            continue
        label = scores[0][number, 0].argmax()
        first, second = ((s[number, 0, label] - s[number, 1:, label])[changed] for s in scores)
        top = max(1, round(TOP * len(first)))
        correlations.append(spearman(first, second))
        overlaps.append(top_overlap(first, second, top))
        chances.append(top / len(first))
    if len(correlations) < 2:
        raise BadInput(f"--explain: only {len(correlations)} samples have regions to hide; at least 2 are needed, give more data")
    correlation, overlap, chance = _mean(correlations), _mean(overlaps), float(np.mean(chances))
    words = (
        f"attributions agree with rank correlation {correlation.estimate:.3f} [{correlation.low:.3f}, {correlation.high:.3f}], and "
        f"{overlap.estimate:.0%} of the most important regions are the same [{overlap.low:.0%}, {overlap.high:.0%}] "
        f"(chance: {chance:.0%}; 1 and 100 % where nothing changed), {len(correlations)} samples"
    )
    return Explanation(len(correlations), regions, correlation, overlap, chance, min(correlations), words)


def check_classes(outputs: Array) -> None:
    """Raises BadInput where outputs are no class scores."""
    if not are_class_scores(outputs):
        raise BadInput(
            f"--explain wants class scores, (N, C) floats with C of 2 or more; the judged output is {outputs.dtype} "
            f"[{', '.join(['N', *map(str, outputs.shape[1:])])}]; name another with --output, or leave --explain out"
        )


def _places(about: Mapping[str, Spread], feeds: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """By input the number of each value's region, counted over all inputs, and how many regions there are."""
    places, total = {}, 0
    for name, spread in about.items():
        place = _regions(spread, feeds[name].shape[1:])
        places[name] = np.where(place >= 0, place + total, -1)
        total += int(place.max()) + 1
    return places, total


def _regions(spread: Spread, shape: tuple[int, ...]) -> Array:
    """Patches of a grid, or runs along the axis of tokens or features."""
    if spread.kind == PICTURE:
        rows, columns = (np.arange(shape[a]) * min(GRID, shape[a]) // shape[a] for a in spread.plane)
        grid = rows[:, None] * min(GRID, shape[spread.plane[1]]) + columns[None]
        return np.expand_dims(grid, spread.channel)
    size = shape[spread.channel]
    if spread.kind != TOKENS:
        return np.arange(size) * min(MOST, size) // size
    # Tokens that are the same in every sample are never hidden; the others are numbered without gaps.
    count = int(spread.free.sum())
    return np.where(spread.free, (np.cumsum(spread.free) - 1) * min(MOST, count) // max(count, 1), -1)


def _changes(masked: Masked, samples: int) -> Array:
    """(samples, regions): whether hiding a region changes the sample at all."""
    changed = np.zeros((samples, masked.regions), bool)
    for number in range(samples):
        feeds = masked.take(np.arange(masked.regions + 1) + number * (masked.regions + 1))
        for values in feeds.values():
            changed[number] |= (values[1:] != values[:1]).reshape(masked.regions, -1).any(1)
    return changed


def spearman(one: Array, other: Array) -> float:
    """Spearman's rank correlation of two arrays (N,), ties at their mean rank. The same values give 1; a constant beside others gives 0."""
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    if size == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float((a * b).sum()) / size


def ranks(values: Array) -> Array:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def top_overlap(one: Array, other: Array, k: int) -> float:
    """The share of the k largest that both name; among equal values the first count."""
    first, second = (set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (one, other))
    return len(first & second) / k


def _mean(values: Sequence[float]) -> Interval:
    """The mean with its interval, which ends at 1."""
    found = paired_difference(np.zeros(len(values)), np.asarray(values))
    return dataclasses.replace(found, high=min(found.high, 1.0), bound_high=min(found.bound_high or 1.0, 1.0))
