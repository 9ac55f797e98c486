"""Robustness: the metric of two models, and the flips between them, under corruptions at five strengths each.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", arXiv 1903.12261; own code.
A corruption acts on the feeds that the model gets, behind the preprocessing, and its strength is relative to the spread that the data has
there. So it means the same whatever the preprocessing does, and works for every kind of data. Both models see the same corrupted samples:
the draw depends on the seed, the corruption and the sample, not on the strength, so that a stronger one is more of the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.data.source import Arrays
from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.process import Subject, Worker
from hasten.measure.spread import FEATURES, PICTURE, TOKENS, Spread, spreads
from hasten.measure.statistics import Interval, paired_difference, whole_set_difference
from hasten.metrics import are_class_scores, decide
from hasten.model import Port
from hasten.task import BoundTask, Metric, Samples, Split
from hasten.voice import voice

Array = NDArray[Any]
SAMPLES, FEWEST_SAMPLES, VALUES = 500, 50, 24_000_000
"""Samples that are held in memory to be corrupted: at most SAMPLES, and of large ones (pictures of 224 × 224, say: 159) as many as hold VALUES
numbers; FEWEST_SAMPLES at least."""

SECONDS, PROBE, LEAST = 60.0, 8, 20
"""Where no number of samples was asked for: about so long for both models together, as estimated from PROBE samples under each corruption, and
so many samples at least, however long they take."""


# --- the corruptions: one sample in, one sample out, values in float32


def noise(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """x + strength · σ · N(0, 1), σ by channel or feature; pictures stay within the data's range, as they would in a camera."""
    moved = x + strength * spread.std * rng.standard_normal(x.shape, np.float32)
    return np.clip(moved, spread.low, spread.high) if spread.kind == PICTURE else moved


def blur(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """A Gaussian of `strength` · √(shorter side) pixels, edges repeated; a product with a banded matrix along each of the two axes."""
    rows, columns = spread.plane
    sigma = strength * math.sqrt(min(x.shape[rows], x.shape[columns]))
    planes = np.moveaxis(x, spread.channel, 0)
    blurred = _gaussian(x.shape[rows], sigma) @ planes @ _gaussian(x.shape[columns], sigma).T
    return np.moveaxis(blurred, 0, spread.channel)


@functools.lru_cache(maxsize=16)
def _gaussian(size: int, sigma: float) -> Array:
    """(size, size): row i holds the weights with which the pixels make pixel i; what would lie outside falls to the edge's pixel."""
    reach = max(1, math.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        np.add.at(matrix, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def contrast(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """The share `strength` of every value's distance from the picture's own mean is taken away, by channel."""
    middle = x.mean(axis=spread.plane, keepdims=True)
    return middle + (1 - strength) * (x - middle)


def brightness(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """x + strength · σ, within the data's range."""
    return np.clip(x + strength * spread.std, spread.low, spread.high)


def occlusion(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """A rectangle of the share `strength` of the area, of the picture's own proportions, somewhere, shows the data's mean."""
    covered = x.copy()
    place: list[slice] = [slice(None)] * 3
    for axis in spread.plane:
        size = x.shape[axis]
        side = max(1, round(size * math.sqrt(strength)))
        start = int(rng.random() * (size - side + 1))
        place[axis] = slice(start, start + side)
    covered[tuple(place)] = np.broadcast_to(spread.mean, x.shape)[tuple(place)]
    return covered


def token_dropout(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """Each token becomes the blank one with probability `strength`. The attention mask stays, and what it hides was blank before."""
    return np.where((rng.random(x.shape) < strength) & spread.free, spread.blank, x)


def feature_dropout(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """Each value becomes its feature's mean with probability `strength`."""
    return np.where(rng.random(x.shape) < strength, spread.mean, x)


def out_of_range(x: Array, strength: float, rng: np.random.Generator, spread: Spread) -> Array:
    """Values `strength` times as far from the middle of the data's range: beyond what calibration saw, where integers saturate."""
    middle = (spread.low + spread.high) / 2
    return middle + strength * (x - middle)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A row of the table: kinds of input that it applies to, the function, five rising strengths and what they are measured in."""

    name: str
    kinds: tuple[str, ...]
    function: Callable[[Array, float, np.random.Generator, Spread], Array]
    strengths: tuple[float, float, float, float, float]
    unit: str

    def applies(self, spread: Spread, dtype: np.dtype[Any]) -> bool:
        """Whole numbers can't leave their range."""
        return spread.kind in self.kinds and (self.function is not out_of_range or dtype.kind == "f")


CORRUPTIONS = (
    Corruption("gaussian noise", (PICTURE, FEATURES), noise, (0.05, 0.1, 0.2, 0.35, 0.5), "σ"),
    Corruption("blur", (PICTURE,), blur, (0.07, 0.13, 0.2, 0.27, 0.4), "√side px"),
    Corruption("contrast", (PICTURE,), contrast, (0.25, 0.4, 0.55, 0.7, 0.85), "lost"),
    Corruption("brightness", (PICTURE,), brightness, (0.25, 0.5, 0.75, 1.0, 1.5), "σ"),
    Corruption("occlusion", (PICTURE,), occlusion, (0.05, 0.1, 0.2, 0.3, 0.4), "of the area"),
    Corruption("token dropout", (TOKENS,), token_dropout, (0.05, 0.1, 0.2, 0.3, 0.4), "of tokens"),
    Corruption("feature dropout", (FEATURES,), feature_dropout, (0.05, 0.1, 0.2, 0.3, 0.4), "of features"),
    Corruption("out of range", (PICTURE, FEATURES), out_of_range, (1.1, 1.25, 1.5, 2.0, 3.0), "× range"),
)
"""All there are; σ is that of the data, by channel or feature. At 224 pixels the blur is 1 to 6 pixels wide, at 32 it is 0.4 to 2.3: about what
ImageNet-C and CIFAR-10-C have."""


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupted:
    """Samples under a corruption at one strength, in every input that it applies to; type and shape stay."""

    clean: Samples
    corruption: Corruption
    strength: float
    spreads: Mapping[str, Spread]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, indices: NDArray[np.intp]) -> dict[str, Array]:
        feeds = dict(self.clean.take(indices))
        for number, (name, spread) in enumerate(self.spreads.items()):
            if self.corruption.applies(spread, feeds[name].dtype):
                feeds[name] = np.stack([self._one(x, int(i), number, spread) for x, i in zip(feeds[name], indices, strict=True)])
        return feeds

    def _one(self, x: Array, index: int, number: int, spread: Spread) -> Array:
        rng = np.random.default_rng([self.seed, zlib.crc32(self.corruption.name.encode()), index, number])
        if spread.kind == TOKENS:
            return self.corruption.function(x, self.strength, rng, spread).astype(x.dtype)
        values = self.corruption.function(x.astype(np.float32, copy=False), self.strength, rng, spread)
        if x.dtype.kind in "iu":
            limits = np.iinfo(x.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return values.astype(x.dtype)


# --- the measurement


@dataclasses.dataclass(frozen=True)
class Level:
    """One corruption at one strength. `difference` = after − before under it, in the metric's unit.

    `excess`: how much more of the metric it takes from the second model than from the first (positive: the second is the more fragile).
    """

    corruption: str
    strength: float
    unit: str
    before: float
    after: float
    difference: Interval
    excess: Interval
    flips: int | None


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Both models under every corruption that applies, on `samples` of the `available` ones.

    `limited`: why there are no more samples, empty where there are as many as were wanted. `worst`: the level with the largest excess. `bound`:
    what no excess exceeds, all levels at once 95 % sure (Bonferroni); None for a metric of the whole set. `mean_excess`: over all levels.
    `words`: the same as a sentence.
    """

    metric: str
    higher_is_better: bool
    samples: int
    available: int
    seed: int
    clean_before: float
    clean_after: float
    levels: tuple[Level, ...]
    worst: Level
    bound: float | None
    mean_excess: float
    words: str
    limited: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def robustness(
    before: Subject,
    after: Subject,
    task: BoundTask,
    ports: Sequence[Port],
    samples: int | None = None,
    seed: int = 0,
) -> Robustness:
    """Two models on the test split of `task` under every corruption that applies to one of their inputs (`ports`), each in its worker.

    samples: how many to take; None: as SAMPLES says, and fewer where that would take longer than SECONDS. Without labels the first model's answer
    to the clean sample is the label.
    Raises BadInput where no corruption applies, WorkerFailed where a model does not run.
    """
    available, clean = sample(task, samples, seed)
    about = spreads(ports, clean.samples.take(clean.indices))
    rows = applicable(about, ports)
    with Worker(before) as one, Worker(after) as other:

        def predict(split: Split) -> tuple[Array, Array]:
            first, second = judge.predict_side_by_side((one, other), split, task.output, before.target.batch)
            return first, second

        def corrupt(split: Split, corruption: Corruption, strength: float) -> Split:
            return dataclasses.replace(split, samples=Corrupted(split.samples, corruption, strength, about, seed))

        clean, limited = (clean, "") if samples is not None else _in_time(clean, rows, predict, corrupt, seed)
        untouched = predict(clean)
        labels = clean.labels if clean.labels is not None else untouched[0]
        metric = decide(task.metric, untouched[0], labels)
        levels, bounds = [], []
        for number, corruption in enumerate(rows):
            voice().step("corruptions", number, len(rows))
            for strength in corruption.strengths:
                answers = predict(corrupt(clean, corruption, strength))
                level, bound = _level(metric, corruption, strength, untouched, answers, labels, len(rows) * 5)
                levels.append(level)
                bounds.append(bound)
            last = levels[-1]
            voice().detail(f"  {corruption.name}: {metric.name} {last.before:.4f} and {last.after:.4f} at strength {last.strength:g}")
    voice().step("corruptions", len(rows), len(rows))
    values = metric.value(untouched[0], labels), metric.value(untouched[1], labels)
    return dataclasses.replace(_summary(metric, len(clean), available, seed, values, tuple(levels), bounds), limited=limited)


def sample(task: BoundTask, samples: int | None, seed: int) -> tuple[int, Split]:
    """(samples of the test split, some of them drawn at random and held in memory, with their labels)."""
    if task.test is None:
        raise BadInput("there is no data to judge by; give --data")
    split = task.test
    if samples is None:
        size = sum(v.size for v in next(split.batches(1)).values())
        samples = min(SAMPLES, max(FEWEST_SAMPLES, VALUES // size))
    drawn = _some(split, samples, seed)
    return len(split), Split(Arrays(drawn.samples.take(drawn.indices)), drawn.labels, np.arange(len(drawn)))


def _in_time(
    clean: Split,
    rows: Sequence[Corruption],
    predict: Callable[[Split], tuple[Array, Array]],
    corrupt: Callable[[Split, Corruption, float], Split],
    seed: int,
) -> tuple[Split, str]:
    """As many of the samples as SECONDS allow, drawn at random, and why there are fewer (empty where there are not)."""
    few = _some(clean, PROBE, seed)
    predict(few)  # a first call takes longer
    start = time.perf_counter()
    for corruption in rows:
        predict(corrupt(few, corruption, corruption.strengths[2]))
    spent = time.perf_counter() - start
    all_levels = spent * len(rows[0].strengths) * len(clean) / len(few)
    if all_levels <= SECONDS or len(clean) <= LEAST:
        return clean, ""
    count = max(LEAST, int(len(clean) * SECONDS / all_levels))
    limited = (
        f"{count} samples, because {len(clean)} would take about {all_levels:.0f} s and {SECONDS:.0f} s are allowed "
        "(--robust-samples for another number)"
    )
    voice().say(f"robustness: {limited}")
    return _some(clean, count, seed), limited


def _some(split: Split, count: int, seed: int) -> Split:
    """So many of the split's samples, drawn at random, in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:count])
    return Split(split.samples, None if split.labels is None else split.labels[chosen], split.indices[chosen])


def applicable(about: Mapping[str, Spread], ports: Sequence[Port]) -> tuple[Corruption, ...]:
    """The corruptions for these inputs. Raises BadInput where there are none."""
    types = {p.name: np.dtype(p.dtype) for p in ports}
    rows = tuple(c for c in CORRUPTIONS if any(c.applies(spread, types[name]) for name, spread in about.items()))
    if not rows:
        raise BadInput(
            f"--robust: no corruption applies to the inputs {', '.join(f'{p.name} ({p.dtype}, rank {len(p.shape)})' for p in ports)}; "
            "expected pictures (rank 4), token ids (whole numbers of rank 2) or features (floats of rank 2 or 3); leave --robust out"
        )
    return rows


def _level(
    metric: Metric,
    corruption: Corruption,
    strength: float,
    clean: tuple[Array, Array],
    corrupted: tuple[Array, Array],
    labels: Array,
    levels: int,
) -> tuple[Level, float | None]:
    """The level, and the upper bound of its excess when `levels` are judged at once."""
    difference, excess, bound = _intervals(metric, clean, corrupted, labels, levels)
    flips = int(np.sum(corrupted[0].argmax(1) != corrupted[1].argmax(1))) if are_class_scores(corrupted[0]) else None
    values = metric.value(corrupted[0], labels), metric.value(corrupted[1], labels)
    return Level(corruption.name, strength, corruption.unit, *values, difference, excess, flips), bound


def _intervals(
    metric: Metric, clean: tuple[Array, Array], corrupted: tuple[Array, Array], labels: Array, levels: int
) -> tuple[Interval, Interval, float | None]:
    """after − before under the corruption; what it takes from the second beyond the first; and that one's bound for all levels at once."""
    if metric.per_sample is None:
        whole = metric.whole_set
        assert whole is not None
        # Metrics of the four outputs, resampled together: the first column is the corrupted output, the second the clean one.
        stacked = np.stack([corrupted[0], clean[0]], 1), np.stack([corrupted[1], clean[1]], 1)
        lost = whole_set_difference(lambda o, y: whole(o[:, 0], y) - whole(o[:, 1], y), *stacked, labels)
        return whole_set_difference(whole, *corrupted, labels), lost.mirrored() if metric.higher_is_better else lost, None
    scores = [np.asarray(metric.per_sample(o, labels), float) for o in (*corrupted, *clean)]
    gained = (scores[1] - scores[0]) - (scores[3] - scores[2])
    excess = -gained if metric.higher_is_better else gained
    simultaneous = _mean(excess, 1 - 0.05 / levels)
    return paired_difference(scores[0], scores[1]), _mean(excess, 0.95), simultaneous.bound_high


def _mean(values: Array, level: float) -> Interval:
    """The interval of a mean of per-sample values. Of −1, 0 and 1 alone it is Tango's for gains and losses, right also where all are 0."""
    if np.isin(values, (-1, 0, 1)).all():
        return paired_difference(values < 0, values > 0, level)
    return paired_difference(np.zeros(len(values)), values, level)


def _summary(
    metric: Metric,
    samples: int,
    available: int,
    seed: int,
    clean: tuple[float, float],
    levels: tuple[Level, ...],
    bounds: list[float | None],
) -> Robustness:
    worst = max(levels, key=lambda v: math.inf if math.isnan(v.excess.estimate) else v.excess.estimate)
    mean = float(np.mean([v.excess.estimate for v in levels]))
    known = [b for b in bounds if b is not None]
    bound = max(known) if len(known) == len(bounds) else None
    words = _words(metric.name, worst, bound, mean, len(levels))
    return Robustness(metric.name, metric.higher_is_better, samples, available, seed, *clean, levels, worst, bound, mean, words)


def _words(metric: str, worst: Level, bound: float | None, mean: float, levels: int) -> str:
    """The worst case and the mean as a sentence."""
    excess = worst.excess
    where = f"{worst.corruption} at {worst.strength:g} {worst.unit}"
    if math.isnan(excess.estimate):
        return f"under {where} {metric} is not a number: the outputs are none"
    if excess.estimate <= 0:
        most = "no corruption costs the second model more than it costs the first"
    else:
        most = (
            f"no corruption costs the second model more than {excess.estimate:.4f} {metric} beyond what it costs the first "
            f"(the most: {where}, [{excess.low:+.4f}, {excess.high:+.4f}])"
        )
    sure = f", and 95 % sure none more than {bound:.4f}" if bound is not None else ""
    return f"{most}; {mean:+.4f} on average over {levels} corruptions{sure}"
