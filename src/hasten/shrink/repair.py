"""repair: after channels or blocks are gone, the layers that are left are refitted by least squares, one after the other, so that each gives what it
gave in the original. Calibration samples, no labels, no training, no torch.

For a layer with weight W that now reads X′ (what the smaller model, repaired so far, makes of the samples), and gave Y in the original (the outputs
that are left): min over W, b of ‖X′Wᵀ + b − Y‖² + λ‖W − W₀‖², W₀ what it has now (He et al., arXiv 1707.06168, reconstruct one layer; here every
later layer makes good for the earlier ones too). Where its output is added to a shortcut, Y is what would make the sum right: Y + (s − s′), divided
by the scale of a batch norm in between. λ, of the mean diagonal of X′ᵀX′, is the best of LAMBDAS on held out samples; where none is better than
leaving the layer as it is, it is left.

Cost: a run of the calibration samples for each layer, as far as that layer, and one solution of a system of the size of its row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from hasten.calibrate import tensors
from hasten.graph import Array, add_weight, constant, sole_consumer
from hasten.model import Skip
from hasten.shrink.importance import WIDEST
from hasten.shrink.layers import Layer, layers, positions
from hasten.task import BoundTask
from hasten.voice import voice

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 5
"""Every so-manieth batch tells which λ is best."""

ENOUGH = 60
"""Rows for each number in a row, where the samples give so many."""

EQUAL = 1e-6
"""Relative error below which a layer is as it was."""


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What a layer is to give: its value in the original; where a shortcut is added to it, that value, and the scale between (None: 1)."""

    layer: Layer
    shortcut: ir.Value | None
    scale: Array | None


def repair(
    original: ir.Model, edited: ir.Model, left: Mapping[tuple[str, int], Array], task: BoundTask, samples: int, seed: int
) -> list[Skip]:
    """Refit the layers of `edited` in place. `left`: for (weight, axis) which positions are left of the original's, where not all are.

    Returns which layers were not refitted, and why.
    """
    before = {t.layer.name: t for t in _targets(original.graph)}
    now = [t for t in _targets(edited.graph) if t.layer.name in before]
    limits = {t.layer.name: positions(t.layer, samples, ENOUGH) for t in now}
    wanted = _wanted(original, [before[t.layer.name] for t in now], limits, task, samples, seed)
    skipped = []
    for number, target in enumerate(now):
        voice().step("repairing layers", number, len(now))
        layer = target.layer
        if layer.matrices().shape[2] + 1 > WIDEST:
            skipped.append(Skip(layer.name, f"not refitted: its rows have more than {WIDEST} numbers"))
            continue
        kept = left.get((layer.weight.name or "", layer.makes))
        sums = _Sums(layer)
        names = [layer.x.name or "", *([target.shortcut.name or ""] if target.shortcut is not None else [])]
        for index, (x, *shortcut) in enumerate(_together(edited, names, samples, task)):
            y, s = next(wanted[layer.name])
            y = y if kept is None else y[:, kept]
            if s is not None and shortcut:
                mine = _flat(layer.results(shortcut[0], _rng(seed, index), limits[layer.name]))
                y = y + _back((s if kept is None else s[:, kept]) - mine, target.scale)
            sums.add(
                layer.rows(x, _rng(seed, index), limits[layer.name]), _grouped(y, layer.groups), held_out=index % HELD_OUT == HELD_OUT - 1
            )
        if (why := sums.solve(edited.graph)) is not None:
            skipped.append(Skip(layer.name, why))
    voice().step("repairing layers", len(now), len(now))
    return skipped


class _Sums:
    """What least squares needs of the rows of one layer, those held out apart."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.bias, self.shifts = bias_of(layer)
        w = layer.matrices().astype(np.float64)
        if self.shifts:
            array = None if self.bias is None else constant(self.bias)
            column = np.zeros(w.shape[:2]) if array is None else array.astype(np.float64).reshape(w.shape[:2])
            w = np.concatenate([w, column[:, :, None]], axis=2)
        self.w0 = w
        groups, outputs, k = w.shape
        self.h, self.c, self.y2 = np.zeros((2, groups, k, k)), np.zeros((2, groups, outputs, k)), np.zeros(2)

    def add(self, x: Array, y: Array, held_out: bool) -> None:
        """x (groups, rows, numbers), y (groups, rows, outputs)."""
        part, x, y = int(held_out), x.astype(np.float64), y.astype(np.float64)
        if self.shifts:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        self.h[part] += x.transpose(0, 2, 1) @ x
        self.c[part] += y.transpose(0, 2, 1) @ x
        self.y2[part] += float(np.square(y).sum())

    def error(self, w: Array, part: int) -> float:
        """‖X Wᵀ − Y‖² from the sums."""
        return max(0.0, self.y2[part] + float(np.sum((w @ self.h[part] - 2 * self.c[part]) * w)))

    def solve(self, graph: ir.Graph) -> str | None:
        """Put the best weights into the graph; the reason where the layer is left as it is."""
        part = 1 if self.y2[1] else 0
        best, least = None, self.error(self.w0, part)
        if least <= EQUAL * self.y2[part]:
            return None
        wrong = self.c[0] - self.w0 @ self.h[0]
        diagonal = np.einsum("gii->g", self.h[0]) / self.h.shape[-1]
        for damping in LAMBDAS:
            damped = self.h[0] + (damping * diagonal[:, None, None] + 1e-12) * np.eye(self.h.shape[-1])
            w = self.w0 + np.linalg.solve(damped, wrong.transpose(0, 2, 1)).transpose(0, 2, 1)
            if np.isfinite(w).all() and (found := self.error(w, part)) < least:
                best, least = w, found
        if best is None:
            return "not refitted: no least-squares solution was better on held out samples"
        matrices, vector = (best[:, :, :-1], best[:, :, -1].reshape(-1)) if self.shifts else (best, None)
        hold(self.layer.weight, self.layer.weight_of(matrices))
        if vector is not None and self.bias is not None:
            hold(self.bias, vector.astype(self.layer.array.dtype))
        elif vector is not None:
            self.layer.node.resize_inputs(3)
            self.layer.node.replace_input_with(2, add_weight(graph, f"{self.layer.name}_bias", vector.astype(self.layer.array.dtype)))
        return None


def bias_of(layer: Layer) -> tuple[ir.Value | None, bool]:
    """(the vector that is added to the layer's output, its own or of the Add behind it; whether there is one or a place for one)."""
    if layer.bias is None and layer.node.op_type in ("Conv", "Gemm"):
        return None, True
    value = layer.bias
    if value is None and (reader := sole_consumer(layer.y)) is not None and reader.op_type == "Add":
        value = next((v for v in reader.inputs if v is not layer.y), None)
    array = constant(value)
    if value is None or array is None or not value.is_initializer() or array.shape != (layer.array.shape[layer.makes],):
        return None, False
    if len(tuple(value.uses())) != 1 or layer.node.attributes.get_float("beta", 1.0) != 1.0:
        return None, False
    return value, True


def hold(value: ir.Value, array: Array) -> None:
    """Let an initializer hold other numbers."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    assert value.const_value is not None
    value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)


def _targets(graph: ir.Graph) -> Iterator[Target]:
    for layer in layers(graph):
        value, scale = layer.y, None
        reader = sole_consumer(value)
        if reader is not None and reader.op_type == "BatchNormalization":
            gamma, variance = constant(reader.inputs[1]), constant(reader.inputs[4])
            if gamma is not None and variance is not None:
                scale = gamma / np.sqrt(variance + reader.attributes.get_float("epsilon", 1e-5))
                value, reader = reader.outputs[0], sole_consumer(reader.outputs[0])
        elif reader is not None and reader.op_type == "Add" and any(constant(v) is not None for v in reader.inputs):
            value, reader = reader.outputs[0], sole_consumer(reader.outputs[0])
        shortcut = None
        if reader is not None and reader.op_type == "Add":
            other = next((v for v in reader.inputs if v is not value), None)
            if other is not None and constant(other) is None and _same_rank(other, layer.y):
                shortcut = other
        yield Target(layer, shortcut, scale)


def _same_rank(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is None or b.shape is None or len(a.shape) == len(b.shape)


def _wanted(
    original: ir.Model, targets: list[Target], limits: Mapping[str, int], task: BoundTask, samples: int, seed: int
) -> dict[str, Iterator[tuple[Array, Array | None]]]:
    """By layer, batch by batch: the rows (rows, outputs) that it gave in the original, and those of the shortcut."""
    names = list(dict.fromkeys(v.name or "" for t in targets for v in (t.layer.y, t.shortcut) if v is not None))
    found: dict[str, list[tuple[Array, Array | None]]] = {t.layer.name: [] for t in targets}
    for index, values in enumerate(_together(original, names, samples, task)):
        by_name = dict(zip(names, values, strict=True))
        for t in targets:
            y, s = ((None if v is None else by_name[v.name or ""]) for v in (t.layer.y, t.shortcut))
            assert y is not None
            rows = _flat(t.layer.results(y, _rng(seed, index), limits[t.layer.name]))
            found[t.layer.name].append(
                (rows, None if s is None or s.shape != y.shape else _flat(t.layer.results(s, _rng(seed, index), limits[t.layer.name])))
            )
    return {name: iter(batches) for name, batches in found.items()}


def _together(edited: ir.Model, names: list[str], samples: int, task: BoundTask) -> Iterator[list[Array]]:
    """The values of these names, batch by batch."""
    unique = list(dict.fromkeys(names))
    gathered: dict[str, Array] = {}
    for name, value, _ in tensors(edited, unique, samples, task, batch=8):
        gathered[name] = value
        if len(gathered) == len(unique):
            yield [gathered[n] for n in names]
            gathered = {}


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, index))


def _flat(results: Array) -> Array:
    """(groups, rows, outputs of a group) → (rows, outputs)."""
    return results.transpose(1, 0, 2).reshape(results.shape[1], -1)


def _grouped(y: Array, groups: int) -> Array:
    return y.reshape(len(y), groups, -1).transpose(1, 0, 2)


def _back(difference: Array, scale: Array | None) -> Array:
    """A difference behind a batch norm as one before it; where its scale is 0, nothing can be done."""
    if scale is None:
        return difference
    return np.where(np.abs(scale) > 1e-6, difference / np.where(np.abs(scale) > 1e-6, scale, 1), 0)
