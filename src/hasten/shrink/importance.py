"""importance: how much a channel of a group is needed, by several criteria; the larger, the more. IMPORTANCES is the whole list.

What is compared is channels of one group with each other; how much whole groups matter is measured apart (widths.py).

- magnitude: L2 norm of the channel's weights, each weight's share of it taken relative to the whole weight, so that no large layer speaks for all
  (Li et al., arXiv 1608.08710; the sum over a group as in DepGraph, arXiv 2301.12900).
- batch_norm: |γ| of the channel's batch norm (Liu et al., network slimming, arXiv 1708.06519); magnitude where there is none.
- activation: mean square of the channel where it is read, times the squared norm of the weights that read it.
- reconstruction: how much worse the layers that read it become in the best case, their other weights refitted by least squares: with H = E[x xᵀ]
  over a layer's rows and W its weight, leaving out the places I costs Σ_o w_oI ([H⁻¹]_II)⁻¹ w_oIᵀ (the block form of optimal brain surgeon, as in
  ZipLM, arXiv 2302.04089), relative to E‖y‖². The cheapest eighth goes, H is taken of what is left, and so on, because channels that can stand
  in for each other can't both go.
- taylor: the square of the first-order change of the outputs when the channel is switched off, (Σ w ∂z/∂w)² over the weights that read it
  (Molchanov et al., arXiv 1906.10771), in the Fisher metric: see learn/taylor.py. Needs torch, no labels.
- random: the baseline that each of them must beat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from hasten.calibrate import check_finite, tensors
from hasten.errors import Refused
from hasten.graph import Array, constant
from hasten.model import Model
from hasten.shrink.groups import Coupled, Group, Member
from hasten.shrink.layers import Layer, layers, positions
from hasten.shrink.moments import Moments
from hasten.task import BoundTask

Scores = dict[str, Array]
"""By group: a number for each channel."""

STEPS = 8
"""Reconstruction removes channels in so many steps."""

WIDEST = 6000
"""Numbers in a row whose second moments are kept as a whole matrix (8 bytes × their square)."""

ENOUGH = 20
"""Rows for each number in a row, where the samples give so many."""

DAMPING = 1e-3
"""Of the mean diagonal of H, added to it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A model's groups, its products by the name of their weight, and, with data, by layer E[x xᵀ] of the rows that it reads (see `_moments`)."""

    coupled: Coupled
    readers: Mapping[str, Layer]
    moments: Mapping[str, Array]
    task: BoundTask | None
    samples: int
    seed: int

    def reading(self, group: Group) -> list[tuple[Layer, Member]]:
        """The products that the group's channels go into."""
        found = [(self.readers[m.weight], m) for m in group.members if m.weight in self.readers]
        return [(layer, m) for layer, m in found if m.axis == layer.reads]


def see(coupled: Coupled, task: BoundTask | None, samples: int, seed: int = 0) -> Seen:
    """With data in the task: one pass over `samples` calibration samples."""
    readers = {layer.weight.name or "": layer for layer in layers(coupled.model.ir.graph)}
    data = task is not None and task.calibrate is not None
    found = _moments(coupled.model.ir, readers, task, samples, seed) if data and task is not None else {}
    return Seen(coupled, readers, found, task if data else None, samples, seed)


def importance(name: str, seen: Seen) -> Scores:
    """Scores of every group's channels. Raises Refused where data is needed and there is none."""
    if name in NEED_DATA and seen.task is None:
        raise Refused(f"prune-channels: importance {name} needs data, and none came; give --data, or --importance magnitude")
    return IMPORTANCES[name](seen)


def strongest(scores: Array, count: int) -> Array:
    """The channels of the highest scores, in ascending order; the first ones among equals."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def magnitude(model: Model, group: Group) -> Array:
    """Without data: the scores of one group by the norm of its weights."""
    stored = {m.weight: w.const_value for m in group.members if (w := model.ir.graph.initializers.get(m.weight)) is not None}
    members = [m for m in group.members if stored.get(m.weight) is not None]
    matrices = [m for m in members if len(stored[m.weight].shape) > 1]  # type: ignore[union-attr]
    scores = np.zeros(group.channels)
    for member in matrices or members:
        tensor = stored[member.weight]
        assert tensor is not None
        power = _power(tensor.numpy(), member)
        scores += power / total if (total := power.sum()) > 0 else 0
    return scores


def _power(array: Array, member: Member) -> Array:
    """Sum of squares of each channel's places in one weight."""
    by_position = np.square(np.moveaxis(array.astype(np.float64), member.axis, 0)).reshape(array.shape[member.axis], -1).sum(1)
    found: Array = by_position[member.positions].sum(1)
    return found


def _magnitude(seen: Seen) -> Scores:
    return {g.name: magnitude(seen.coupled.model, g) for g in seen.coupled.groups}


def _batch_norm(seen: Seen) -> Scores:
    graph = seen.coupled.model.ir.graph
    scales = {n.inputs[1].name: n.inputs[1] for n in graph if n.op_type == "BatchNormalization" and n.inputs[1] is not None}
    found = {}
    for group in seen.coupled.groups:
        mine = [
            np.abs(scale[m.positions]).sum(1)
            for m in group.members
            if (scale := constant(scales.get(m.weight))) is not None and m.axis == 0
        ]
        found[group.name] = sum(mine[1:], mine[0]) if mine else magnitude(seen.coupled.model, group)
    return found


def _random(seen: Seen) -> Scores:
    rng = np.random.default_rng(seen.seed)
    return {g.name: rng.random(g.channels) for g in seen.coupled.groups}


def _taylor(seen: Seen) -> Scores:
    from hasten.learn.taylor import taylor

    assert seen.task is not None
    return taylor(seen.coupled, seen.task, seen.samples, seen.seed)


def _activation(seen: Seen) -> Scores:
    squares = {name: h if h.ndim == 2 else np.einsum("gii->gi", h) for name, h in seen.moments.items()}
    found = {}
    for group in seen.coupled.groups:
        score = np.zeros(group.channels)
        for layer, member in seen.reading(group):
            weighted = np.square(layer.matrices().astype(np.float64)).sum(1) * squares[layer.name]
            score += _by_channel(layer, weighted, member) / max(weighted.sum(), 1e-300)
        found[group.name] = score if score.any() else magnitude(seen.coupled.model, group)
    return found


def _reconstruction(seen: Seen) -> Scores:
    found = {}
    for group in seen.coupled.groups:
        parts = [(layer, member) for layer, member in seen.reading(group) if seen.moments[layer.name].shape[1] <= WIDEST]
        if not parts:
            found[group.name] = magnitude(seen.coupled.model, group)
            continue
        left = np.arange(group.channels)
        score = np.zeros(group.channels)
        step = max(1, group.channels // STEPS)
        while len(left) > 1:
            cost = np.zeros(len(left))
            for layer, member in parts:
                cost += _cost_of_leaving_out(layer, member, seen.moments[layer.name], left)
            going = np.argsort(cost, kind="stable")[: min(step, len(left) - 1)]
            score[left[going]] = np.maximum(score.max(), cost[going])  # what goes later is needed more
            left = np.delete(left, going)
        score[left] = np.inf
        found[group.name] = score
    return found


def _cost_of_leaving_out(layer: Layer, member: Member, h: Array, left: Array) -> Array:
    """For each channel still there: the relative error of the layer's output without it, its other weights refitted."""
    w = layer.matrices().astype(np.float64)
    cost = np.zeros(len(left))
    every = _places(layer, member)
    for group, (stay, damped, right) in enumerate(_systems(layer, member, h, left)):
        total = float(np.einsum("oi,ij,oj->", w[group], h[group], w[group])) or 1.0
        inverse = np.linalg.inv(damped)
        at = np.searchsorted(stay, every[left, group])  # (channels left, places)
        blocks = inverse[at[:, :, None], at[:, None, :]]
        vectors = (inverse @ right)[at]  # (channels left, places, outputs)
        cost += np.einsum("cpo,cpo->c", vectors, np.linalg.solve(blocks, vectors)) / total
    return cost


def refitted(layer: Layer, member: Member, h: Array, kept: Array) -> Array:
    """The layer's matrices (groups, outputs, numbers of the kept channels), such that its output changes least where only those are left."""
    return np.stack([np.linalg.solve(damped, right).T for _, damped, right in _systems(layer, member, h, kept)])


def _systems(layer: Layer, member: Member, h: Array, kept: Array) -> Iterator[tuple[Array, Array, Array]]:
    """For each group of the layer: (places of a row that stay, H over them with its damping, H Wᵀ of what they are to make good for): the normal
    equations of the weights that are left."""
    w, every = layer.matrices().astype(np.float64), _places(layer, member)
    for group in range(layer.groups):
        gone = np.setdiff1d(every[:, group].ravel(), every[kept, group].ravel())
        stay = np.setdiff1d(np.arange(w.shape[2]), gone)
        damp = DAMPING * float(np.trace(h[group])) / len(h[group]) or 1e-12
        yield stay, h[group][np.ix_(stay, stay)] + damp * np.eye(len(stay)), h[group][stay] @ w[group].T + damp * w[group][:, stay].T


def _places(layer: Layer, member: Member) -> Array:
    """(channels, groups of the layer, places): where the channel's numbers stand in a row of each group."""
    k = layer.channels_in_row
    places = (member.positions[:, :, None] * k + np.arange(k)).reshape(len(member.positions), -1)
    return np.broadcast_to(places[:, None], (len(places), layer.groups, places.shape[1]))


def _by_channel(layer: Layer, values: Array, member: Member) -> Array:
    """Sums of (groups, numbers in a row) over each channel's places."""
    places = _places(layer, member)
    found: Array = sum(values[g][places[:, g]].sum(1) for g in range(layer.groups))
    return found


def _moments(edited: ir.Model, readers: Mapping[str, Layer], task: BoundTask, samples: int, seed: int) -> dict[str, Array]:
    """By layer: E[x xᵀ] over the rows that it reads, (groups, k, k); where a row is longer than WIDEST its diagonal alone, (groups, k)."""
    by_input: dict[str, list[Layer]] = {}
    for layer in readers.values():
        by_input.setdefault(layer.x.name or "", []).append(layer)
    sums = {layer.name: Moments(layer.matrices().shape[2] <= WIDEST) for layer in readers.values()}
    for name, value, _ in tensors(edited, list(by_input), samples, task):
        check_finite("prune-channels", name, value)
        for layer in by_input[name]:
            rng, limit = np.random.default_rng((seed, sums[layer.name].count)), positions(layer, samples, ENOUGH)
            sums[layer.name].add(layer.rows(value, rng, limit).astype(np.float64))
    return {name: found.second / found.count for name, found in sums.items() if found.count}


IMPORTANCES: dict[str, Callable[[Seen], Scores]] = {
    "magnitude": _magnitude,
    "batch_norm": _batch_norm,
    "activation": _activation,
    "reconstruction": _reconstruction,
    "taylor": _taylor,
    "random": _random,
}

NEED_DATA = ("activation", "reconstruction", "taylor")
