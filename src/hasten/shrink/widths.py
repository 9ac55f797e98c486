"""widths: how many channels each group keeps, and which residual blocks stay, so that a cost is met with the least harm.

A *unit* is a group of channels, or a residual block that can be left out; its *options* are counts (or kept, left out), each with

- harm: the relative squared error of the judged output on calibration samples with this unit alone so far reduced (or, without data, the share of
  the group's importance that goes). Harm of different units adds up: errors of different places are nearly uncorrelated as long as they are small;
- the share that it loses of every axis that it lies on. A layer's MACs and parameters are the product over its two axes of what is left of each.
  Where time is what counts, the share is such that the model's *measured* time with this unit alone reduced comes out.

min Σ harm subject to Σ_layers share · Π_axes (1 − Σ_units lost) ≤ budget, by Lagrange multiplier: each unit in turn takes its best option given the
others, until none changes, and the multiplier is halved between too dear and cheap enough.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hasten.facts import facts
from hasten.graph import Array
from hasten.shrink.blocks import Block, residual_blocks
from hasten.shrink.groups import Coupled, Group

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Of its channels, what a group may keep, before rounding."""

EXCHANGES, FEW = 20, 120
"""At the end of a choice, at most so many exchanges between two units; 2 where there are more options than FEW."""

DENSE = ("Gemm", "MatMul")

LEFT_OUT = 0
"""The option of a block that is left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """`on`: of each axis (number in the Space) the share that the unit's channels are. `inside`: layers that go with a block. `options`: channels
    that stay, the first one all of them; of a block (1, LEFT_OUT). `kind`: units of one kind do the same work, so one is timed for all."""

    name: str
    group: Group | None
    block: Block | None
    options: tuple[int, ...]
    on: dict[int, float]
    inside: frozenset[int]
    kind: str


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """All units; the layers that cost something, each with its two axes (`axes`, (layers, 2)), its MACs (batch 1) and parameters."""

    units: tuple[Unit, ...]
    axes: Array
    macs: Array
    parameters: Array
    total_macs: float
    total_parameters: float


def space(coupled: Coupled, groups: Sequence[Group], multiple: int, blocks: bool) -> Space:
    """The units of a model. `groups`: those that may lose channels. `multiple`: counts are multiples of it; 0: of 8, 4 or 2, by the size."""
    graph = coupled.model.ir.graph
    known = facts(coupled.model)
    counted = {r.name: r for r in known.rows}
    products = [n for n in graph if (r := counted.get(n.name or "")) is not None and (r.macs or (r.macs is None and n.op_type in DENSE))]
    row = {n.name or "": i for i, n in enumerate(products)}
    parameters = np.zeros(len(products))
    axes = np.arange(2 * len(products)).reshape(-1, 2)
    number: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
    for i, node in enumerate(products):
        weights = [v for v in node.inputs if v is not None and v.is_initializer() and v.const_value is not None]
        parameters[i] = sum(v.const_value.size for v in weights if v.const_value is not None)
        matrix = next((v for v in weights if v.const_value is not None and len(v.const_value.shape) > 1), None)
        if matrix is not None and matrix.const_value is not None:
            rank = len(matrix.const_value.shape)
            first = 0 if node.op_type in ("Conv", "ConvTranspose") else rank - 2
            number[matrix.name or "", first].append(int(axes[i, 0]))
            number[matrix.name or "", first + 1].append(int(axes[i, 1]))
    units = []
    for group in groups:
        on: collections.Counter[int] = collections.Counter()
        for member in group.members:
            tensor = graph.initializers[member.weight].const_value if member.weight in graph.initializers else None
            for axis in number.get((member.weight, member.axis), ()):
                assert tensor is not None
                size = tensor.shape[member.axis]
                on[axis] += member.positions.size / int(size)  # type: ignore[assignment, arg-type]
        work = sorted((products[a // 2].op_type, counted[products[a // 2].name or ""].macs or 0, a % 2, share) for a, share in on.items())
        options = (group.channels, *_counts(group.channels, multiple))
        units.append(Unit(group.name, group, None, options, dict(on), frozenset(), f"{group.channels} of {work}"))
    for block in residual_blocks(graph)[0] if blocks else ():
        inside = frozenset(row[n.name or ""] for n in _nodes_of(graph, block) if n.name in row)
        kind = sorted((products[i].op_type, counted[products[i].name or ""].macs or 0) for i in inside)
        units.append(Unit(block.name, None, block, (1, LEFT_OUT), {}, inside, f"block of {kind}"))
    # Where the number of rows is unknown, it is one a sample.
    macs = np.array([float(counted[n.name or ""].macs or parameters[i]) for i, n in enumerate(products)])
    return Space(tuple(units), axes, macs, parameters, float(macs.sum()), float(known.parameters))


def _counts(channels: int, multiple: int) -> tuple[int, ...]:
    step = multiple or next((m for m in (8, 4, 2) if channels >= 3 * m), 1)
    rounded = {max(step, step * round(share * channels / step)) for share in SHARES}
    return tuple(sorted((c for c in rounded if 0 < c < channels), reverse=True))


def _nodes_of(graph: ir.Graph, block: Block) -> list[ir.Node]:
    """What the block's result needs and its source does not."""
    found, todo = [], [block.result.producer()]
    seen = {id(block.source)}
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        found.append(node)
        todo += [v.producer() for v in node.inputs if v is not None and id(v) not in seen]
    return found


Choice = dict[str, int]
"""By unit: its option."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prices:
    """What the layers cost, as shares of the whole (the rest is not touched), and by unit and option the share lost of the axes that it lies on; of
    a block the share of its layers."""

    space: Space
    shares: Array
    lost: dict[str, dict[int, float]]

    def cost(self, choice: Choice) -> float:
        """Of 1, with that choice."""
        left = np.ones(self.space.axes.size)
        there = np.ones(len(self.shares))
        for unit in self.space.units:
            gone = self.lost[unit.name][choice[unit.name]]
            if gone:
                for axis, share in unit.on.items():
                    left[axis] -= share * gone
                if unit.block is not None:
                    there[list(unit.inside)] *= 1 - gone
        return float(1 - self.shares.sum() + self.shares @ (there * np.maximum(left, 0)[self.space.axes].prod(1)))


def by_count(space: Space, amounts: Array, total: float) -> Prices:
    """Prices in MACs or parameters."""
    return Prices(space, amounts / max(total, 1.0), {u.name: {o: 1 - o / u.options[0] for o in u.options} for u in space.units})


def by_time(space: Space, measured: dict[str, dict[int, float]]) -> Prices:
    """Prices in time, from measurements: unit → option → the model's time with that unit alone reduced, of the whole model's."""
    plain = by_count(space, space.macs, space.total_macs)
    widest = {u.name: u.options[0] for u in space.units}
    lost: dict[str, dict[int, float]] = {}
    for unit in space.units:
        lost[unit.name] = {unit.options[0]: 0.0}
        for option, ratio in measured[unit.name].items():
            low, high = -0.5, 1.0  # what is lost, so that the measured ratio comes out; below 0 where fewer channels are slower
            for _ in range(40):
                middle = (low + high) / 2
                tried = dataclasses.replace(plain, lost=plain.lost | {unit.name: plain.lost[unit.name] | {option: middle}})
                low, high = (middle, high) if tried.cost(widest | {unit.name: option}) > ratio else (low, middle)
            lost[unit.name][option] = low
    return dataclasses.replace(plain, lost=lost)


def worthwhile(options: Sequence[int], ratios: dict[int, float], noise: float) -> tuple[int, ...]:
    """Of the measured options those that are faster than every larger one by more than the noise: what kernels like."""
    found, best = [options[0]], 1.0
    for option in options[1:]:
        if option in ratios and ratios[option] < best * (1 - noise):
            found.append(option)
            best = ratios[option]
    return tuple(found)


def choose(
    space: Space, options: dict[str, tuple[int, ...]], harm: dict[str, dict[int, float]], prices: Prices, budget: float
) -> Choice | None:
    """The choice of least harm whose cost is at most `budget`; None where even the cheapest costs more."""
    units = space.units
    widest = {u.name: options[u.name][0] for u in units}
    cheapest = narrowest(space, options, prices)
    if prices.cost(widest) <= budget:
        return widest
    if prices.cost(cheapest) > budget:
        return None

    def settle(multiplier: float, start: Choice) -> Choice:
        now = dict(start)
        for _ in range(8):
            changed = False
            for unit in units:

                def total(option: int, unit: Unit = unit) -> float:
                    tried = now | {unit.name: option}
                    return _harm(units, tried, harm) + multiplier * prices.cost(tried)

                best = min(options[unit.name], key=total)
                changed |= best != now[unit.name]
                now[unit.name] = best
            if not changed:
                break
        return now

    low, high, found = 0.0, 1.0, cheapest
    while prices.cost(now := settle(high, widest)) > budget and high < 1e9:
        low, high = high, high * 4
    if prices.cost(now) <= budget:
        found = now
    for _ in range(24):
        middle = math.sqrt(low * high) if low else high / 2
        now = settle(middle, widest)
        if prices.cost(now) <= budget:
            high = middle
            if _harm(units, now, harm) <= _harm(units, found, harm):
                found = now
        else:
            low = middle
    return _exchanged(space, options, harm, prices, budget, found)


def _exchanged(
    space: Space, options: dict[str, tuple[int, ...]], harm: dict[str, dict[int, float]], prices: Prices, budget: float, now: Choice
) -> Choice:
    """What a multiplier can't reach: two units change their options at once, as long as that does less harm within the budget."""
    moves = [(u.name, o) for u in space.units for o in options[u.name]]
    least = _harm(space.units, now, harm)
    for _ in range(EXCHANGES if len(moves) <= FEW else 2):
        better = None
        for i, one in enumerate(moves):
            for other in moves[i:]:
                tried = now | dict((one, other))
                if (found := _harm(space.units, tried, harm)) < least - 1e-12 and prices.cost(tried) <= budget:
                    better, least = tried, found
        if better is None:
            break
        now = better
    return now


def _harm(units: Sequence[Unit], choice: Choice, harm: dict[str, dict[int, float]]) -> float:
    """Channels inside a block that is left out do no harm of their own."""
    gone = {i for u in units if u.block is not None and choice[u.name] == LEFT_OUT for i in u.inside}
    return sum(harm[u.name][choice[u.name]] for u in units if u.block is not None or not gone or not {a // 2 for a in u.on} <= gone)


def narrowest(space: Space, options: dict[str, tuple[int, ...]], prices: Prices) -> Choice:
    """The cheapest choice."""
    return {u.name: max(options[u.name], key=lambda o, u=u: prices.lost[u.name][o]) for u in space.units}  # type: ignore[misc]


def uniform(space: Space, options: dict[str, tuple[int, ...]], prices: Prices, budget: float) -> Choice | None:
    """The widest choice, the same share of every group (no block left out), whose cost is at most `budget`."""
    for share in np.linspace(1.0, 0.02, 99):
        choice = {
            u.name: options[u.name][0] if u.block is not None else min(options[u.name], key=lambda o: abs(o - share * u.options[0]))
            for u in space.units
        }
        if prices.cost(choice) <= budget:
            return choice
    return None
