"""cluster_weights: few distinct values for the weights of each layer, so that a code of some bits stands for a number. Effect: lossy.

The weights w of a layer become c[k(w)], c a code book of at most 2ᵇ numbers: the c that make Σ m (w − c[k(w)])² least, m the second moment of the
input that the weight multiplies where calibration samples came (the error of the layer's output, inputs taken as uncorrelated), else 1 (Han et al.,
Deep Compression, arXiv 1510.00149, section 3). Weights that are exactly 0 stay so: 0 is then one of the 2ᵇ numbers, and what was pruned stays pruned.

`start`: `linear` sets the centres at even steps from the least to the largest weight before Lloyd's iterations, as the paper found best;
`optimal` sets them where dynamic programming over some thousand quantiles of the weights finds the least error, and iterates from there.
In one dimension clusters are intervals, so both are sums over sorted weights; nothing is random.

The file stays an ordinary ONNX file of the same size; `convert`, told `--to packed`, stores code books and codes. Whatever rescales channels
afterwards (folding, equalize) gives each channel a code book of its own, so this comes behind them.

When: last of all that changes weights, behind pruning and its recovery training, for the size of what is stored or sent.
Cost: seconds; nothing at run time. No runtime computes faster with it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.calibrate import check_finite, tensors
from hasten.errors import BadInput
from hasten.graph import Array, add_weight, finish
from hasten.model import Model, Skip
from hasten.task import BoundTask

STARTS = ("optimal", "linear")
WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)
}  # fmt: skip
"""Operators whose weights are clustered, and which of their inputs these are."""

BIASES = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,)}
"""The same for biases, where they are asked for."""

QUANTILES = 1024
"""Pieces of the sorted weights between which dynamic programming sets the borders, at most."""

ITERATIONS = 100
"""Lloyd's, at most; mostly it stands still after a few."""


@dataclasses.dataclass(frozen=True)
class ClusterWeights:
    """`bits`: a layer keeps at most 2ᵇ distinct weights. `bits_conv`: the same for convolutions, 0 for as many. `bits_bias`: the same
    for the biases of Conv and Gemm, 0 to leave them alone; they are few, and count once the rest is small. `start`: optimal or linear.
    `samples`: at most so many of the calibration split are looked at. `exclude`: node names.
    """

    bits: int = 4
    bits_conv: int = 0
    bits_bias: int = 0
    start: str = "optimal"
    samples: int = 128
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadInput(f"cluster_weights: bits is {self.bits}, expected 1 to 8")
        for name, none in (("bits_conv", "for as many as bits"), ("bits_bias", "to leave biases alone")):
            if not 0 <= getattr(self, name) <= 8:
                raise BadInput(f"cluster_weights: {name} is {getattr(self, name)}, expected 1 to 8, or 0 {none}")
        if self.start not in STARTS:
            raise BadInput(f"cluster_weights: start is {self.start!r}, expected one of {', '.join(STARTS)}")
        if self.samples < 1:
            raise BadInput(f"cluster_weights: samples is {self.samples}, expected at least 1")


def cluster_weights(model: Model, settings: ClusterWeights, task: BoundTask | None) -> Model:
    """Cluster the weights of every layer; those that can't be, or need not be, are skipped with the reason."""
    seen = task.observation if task is not None else None
    seen = seen if seen is not None else observe(model, settings, task)
    edited = model.edit()
    skipped: list[Skip] = []
    changed = 0
    for value in list(edited.graph.initializers.values()):
        readers = [use.node for use in value.uses()]
        array, why = _array(value, settings)
        if array is None:
            skipped += [Skip(readers[0].name or "", why)] if why else []
            continue
        bits = _bits(value, settings)
        if len(np.unique(array)) <= 1 << bits:
            skipped.append(
                Skip(readers[0].name or "", f"its weights {value.name!r} have no more than {1 << bits} distinct values as they are")
            )
            continue
        weight = _spread(readers, array, seen["moments"]) if array.ndim > 1 else None
        clustered = add_weight(edited.graph, f"{value.name}_clustered", cluster(array, 1 << bits, weight, settings.start))
        ir.convenience.replace_all_uses_with(value, clustered)
        changed += len(readers)
    return finish(model, edited, settings, "cluster_weights", changed, skipped)


def clustered(model: Model, settings: ClusterWeights) -> list[str]:
    """Names of the initializers that are clustered under these settings, all with few enough distinct values afterwards."""
    found = []
    for value in model.ir.graph.initializers.values():
        array, _ = _array(value, settings)
        if array is not None and len(np.unique(array)) <= 1 << _bits(value, settings):
            found.append(value.name or "")
    return found


def observe(model: Model, settings: ClusterWeights, task: BoundTask | None) -> dict[str, Any]:
    """The second moment of each input channel of a layer, by the layer's name, over the calibration split; nothing without data."""
    if task is None or task.calibrate is None:
        return {"moments": {}}
    edited = model.edit()
    readers: dict[str, list[ir.Node]] = {}
    for node in edited.graph:
        if _channel_axis(node) is not None and node.inputs[0] is not None and not node.inputs[0].is_initializer():
            readers.setdefault(node.inputs[0].name or "", []).append(node)
    sums: dict[str, Array] = {}
    for name, value, _ in tensors(edited, list(readers), settings.samples, task) if readers else ():
        check_finite("cluster_weights", name, value)
        axis = 1 if readers[name][0].op_type == "Conv" else value.ndim - 1
        moment = np.square(value, dtype=np.float64).sum(axis=tuple(a for a in range(value.ndim) if a != axis))
        sums[name] = sums[name] + moment if name in sums else moment
    means = {name: total / max(float(total.mean()), 1e-30) for name, total in sums.items()}
    return {"moments": {node.name or "": [float(f"{m:.4g}") for m in means[name]] for name in means for node in readers[name]}}


def cluster(array: Array, count: int, importance: Array | None = None, start: str = "optimal") -> Array:
    """The array with each number replaced by the nearest of at most `count` centres, in its own type; exact zeros stay zeros.

    `importance`: of each number, in a shape that broadcasts to the array's.
    """
    flat = array.ravel()
    kept = flat != 0
    values = flat[kept].astype(np.float64)
    mass = np.ones_like(values)
    if importance is not None and len(values):
        mass = np.broadcast_to(importance, array.shape).ravel()[kept].astype(np.float64)
        mass += 1e-6 * max(float(mass.mean()), 1e-30)  # an input that was never active still takes part
    centres = _centres(values, mass, count if kept.all() else count - 1, start)
    out = np.zeros_like(flat)
    if len(centres):
        out[kept] = centres.astype(flat.dtype)[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return out.reshape(array.shape)


def _array(value: ir.Value, settings: ClusterWeights) -> tuple[Array | None, str]:
    """The weights to cluster; or none, and why, where that is worth a word."""
    tensor, readers = value.const_value, [use.node for use in value.uses()]
    if tensor is None or not readers or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None, ""
    rank = len(tensor.shape)
    if rank < (1 if settings.bits_bias else 2):
        return None, ""
    places = BIASES if rank == 1 else WEIGHTS
    others = [use.node for use in value.uses() if use.node.domain != "" or use.idx not in places.get(use.node.op_type, ())]
    if others and rank == 1:
        return None, ""
    if others:
        return None, f"{value.name!r} is not the weights of a layer alone: {others[0].op_type} reads it as something else"
    if any(node.name in settings.exclude for node in readers):
        return None, "excluded by the settings"
    if value.is_graph_output() or any(node.graph is not value.graph for node in readers):
        return None, f"{value.name!r} is read by a subgraph, or an output of the graph"
    return tensor.numpy(), ""


def _bits(value: ir.Value, settings: ClusterWeights) -> int:
    """Of a code for the weights."""
    assert value.const_value is not None
    if len(value.const_value.shape) == 1:
        return settings.bits_bias
    return settings.bits_conv or settings.bits if next(iter(value.uses())).node.op_type.startswith("Conv") else settings.bits


def _channel_axis(node: ir.Node) -> int | None:
    """The axis of a layer's weights along which each number multiplies another input channel; None where there is no one such axis."""
    if node.domain != "" or len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    rank = len(node.inputs[1].const_value.shape)
    if node.op_type == "Conv" and rank > 2 and node.attributes.get_int("group", 1) == 1:
        return 1
    if node.op_type == "MatMul" and rank == 2:
        return 0
    if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0):
        return 1 if node.attributes.get_int("transB", 0) else 0
    return None


def _spread(readers: list[ir.Node], array: Array, moments: dict[str, list[float]]) -> Array | None:
    """The sum of its readers' moments, in a shape that broadcasts to the weights'; None unless each has some."""
    total: Array | None = None
    for node in readers:
        axis, found = _channel_axis(node), moments.get(node.name or "")
        if axis is None or found is None or len(found) != array.shape[axis]:
            return None
        shaped = np.asarray(found).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        total = shaped if total is None else total + shaped
    return total


def _centres(values: Array, mass: Array, count: int, start: str) -> Array:
    """At most `count` centres in ascending order, a local optimum of the weighted squared error."""
    order = np.argsort(values, kind="stable")
    values, mass = values[order], mass[order]
    if not len(values):
        return np.zeros(0)
    sums = np.concatenate([[0.0], np.cumsum(mass)]), np.concatenate([[0.0], np.cumsum(mass * values)])
    if start == "linear":
        centres = np.linspace(values[0], values[-1], count)
    else:
        centres = _means(sums, _borders(values, mass, count), np.full(count, np.nan))
    for _ in range(ITERATIONS):
        borders = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        moved = _means(sums, np.concatenate([[0], borders, [len(values)]]), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.unique(centres)


def _means(sums: tuple[Array, Array], borders: Array, empty: Array) -> Array:
    """The weighted mean of the sorted values between each two borders; where there are none, the centre that was there."""
    mass, moment = np.diff(sums[0][borders]), np.diff(sums[1][borders])
    means = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), empty)
    return np.sort(means[~np.isnan(means)])


def _borders(values: Array, mass: Array, count: int) -> Array:
    """Borders (count + 1) of the intervals of least weighted squared error, set between the quantiles of the sorted values.

    Dynamic programming: e[k][j] = min over i of e[k−1][i] + cost(i, j), the least error of the first j pieces in k intervals.
    """
    pieces = min(len(values), QUANTILES)
    at = np.unique(np.linspace(0, len(values), pieces + 1).astype(np.int64))
    m = np.concatenate([[0.0], np.cumsum(mass)])[at]
    s = np.concatenate([[0.0], np.cumsum(mass * values)])[at]
    q = np.concatenate([[0.0], np.cumsum(mass * values**2)])[at]
    total = np.maximum(m[None] - m[:, None], 1e-300)
    cost = np.maximum(q[None] - q[:, None] - (s[None] - s[:, None]) ** 2 / total, 0)
    cost[np.tril_indices(len(at), -1)] = math.inf
    error, back = cost[0].copy(), []
    for _ in range(count - 1):
        through = error[:, None] + cost
        best = through.argmin(axis=0)
        back.append(best)
        error = through[best, np.arange(len(at))]
    place, found = len(at) - 1, [len(values)]
    for best in reversed(back):
        place = int(best[place])
        found.append(int(at[place]))
    return np.array([0, *found[::-1]])
