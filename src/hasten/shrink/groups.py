"""groups: which channels of which weights hang together, so that channel i goes everywhere or nowhere; and their removal.

Every position of an axis that may lose positions is an *atom*. A weight's axes begin with atoms of their own; a rule for each operator (table
RULES) says how its outputs' axes follow from its inputs', which atoms are one and the same channel (an Add joins, a Concat lays end to end, a
Flatten repeats, a convolution's inputs meet the second axis of its kernel), and which can't go: what meets the model's inputs or outputs, or an
operator that has no rule. Union-find over the atoms then gives the channels; channels that lie on the same axes of the same weights are a group
(the idea of a dependency graph: Fang et al., DepGraph, arXiv 2301.12900, there over modules, here over positions, so Concat, Split, heads and
option-A shortcuts need no case of their own).

Removing a channel gives the outputs that the model had with zeros in the weights that the channel goes into, unless the group says why not
(`inexact`): a mean over the channels, as in LayerNormalization, then runs over fewer.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from hasten.errors import BadInput
from hasten.graph import Array
from hasten.model import Model, Skip
from hasten.shrink.rules import RULES
from hasten.shrink.trace import Mend, Trace, roots
from hasten.shrink.untie import straighten, untie


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """Where a group's channels lie on one axis of one weight. `positions` (channels, k): channel i takes the k positions in row i.

    `reads`: the channel goes into this weight, which is summed over that axis; with zeros there it has no effect.
    """

    weight: str
    axis: int
    positions: Array
    reads: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels that lie on the same axes of the same weights. `name`: the first of these axes, `weight[axis]`; `node`: which node reads it.

    `inexact`: why removal is not the same as zeroing what the channel goes into, empty where it is. `classes`: the channels' numbers.
    """

    name: str
    node: str
    members: tuple[Member, ...]
    inexact: str
    classes: Array

    @property
    def channels(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        return self.describe(0)

    def describe(self, channel: int) -> str:
        """`channel 7 of conv1.weight[0]: conv1.weight[0] 7 = bn.scale[0] 7 → conv2.weight[1] 7`: where it is made → what it goes into."""

        def where(member: Member) -> str:
            row = member.positions[channel].tolist()
            # A block of neighbours as its ends.
            text = f"{row[0]}…{row[-1]}" if len(row) > 2 and row == list(range(row[0], row[-1] + 1)) else ", ".join(map(str, row))
            return f"{member.weight}[{member.axis}] {text}"

        made = " = ".join(where(m) for m in self.members if not m.reads)
        read = ", ".join(where(m) for m in self.members if m.reads)
        return f"channel {channel} of {self.name}: {made}" + (f" → {read}" if read else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Coupled:
    """A model's groups. `model` is the model that `keep` works on: its Constant nodes are initializers.

    `groups`: what channels can be removed from; `frozen`: what they can't be, with the node and the reason. The rest is for `keep`.
    """

    model: Model
    groups: tuple[Group, ...]
    frozen: tuple[Skip, ...]
    labels: Array
    sites: dict[tuple[str, int], Array]
    mends: tuple[Mend, ...]

    def group(self, name: str) -> Group:
        """Raises BadInput where there is no group of that name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise BadInput(f"the model has no group of channels {name!r}; it has {', '.join(g.name for g in self.groups) or 'none'}")


def couple(model: Model) -> Coupled:
    """The groups of a model. Time: linear in the positions of all weights' axes; nothing is run."""
    edited = model.edit()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(edited)
    untie(edited.graph)
    straighten(edited.graph)
    lifted = Model(edited, model.history)
    choices: dict[int, int] = {}
    while True:
        trace = Trace(edited.graph, RULES, choices)
        for index, node in enumerate(edited.graph):
            trace.visit(index, node)
        for value in edited.graph.outputs:
            for axis in trace.of(value) or []:
                trace.freeze(axis, f"it reaches the model's output {value.name!r}")
        if not trace.choose_again():
            return _grouped(trace, lifted)


def _grouped(trace: Trace, lifted: Model) -> Coupled:
    labels = roots(trace.count, trace.edges)
    sites = list(trace.sites)
    kept = [labels[atoms] for atoms in trace.sites.values()]
    classes = np.concatenate([*kept, np.zeros(0, np.int64)])
    site = np.repeat(np.arange(len(kept)), [len(k) for k in kept])
    position = np.concatenate([*(np.arange(len(k)) for k in kept), np.zeros(0, np.int64)])
    # A channel's fingerprint: the sum of random numbers of the axes that it lies on, as often as it does, and of the parts that it is in.
    random = np.random.default_rng(0)
    keys = random.integers(1, 1 << 62, len(kept), dtype=np.uint64)
    prints = np.zeros(trace.count, np.uint64)
    np.add.at(prints, classes, keys[site])
    for part in trace.parts:
        np.add.at(prints, np.unique(labels[part]), random.integers(1, 1 << 62, dtype=np.uint64))
    reasons = _first_of(labels, trace.count, trace.frozen)
    inexact = _first_of(labels, trace.count, trace.inexact)
    groups: list[Group] = []
    named: collections.Counter[str] = collections.Counter()
    skips: dict[Skip, None] = {}
    # Classes in the order of their first position, those of one fingerprint (and of one fate) side by side.
    appeared, first = np.unique(classes, return_index=True)
    appeared = appeared[np.argsort(first, kind="stable")]
    by_print: dict[tuple[int, int], list[int]] = {}
    for c in appeared.tolist():
        by_print.setdefault((int(prints[c]), int(reasons[c])), []).append(c)
    of_class = np.full(trace.count, -1)
    channel_of = np.zeros(trace.count, np.int64)
    members_of = list(by_print.values())
    for number, members in enumerate(members_of):
        of_class[members] = number
        channel_of[members] = np.arange(len(members))
    order = np.lexsort((position, channel_of[classes], site, of_class[classes]))
    ends = np.flatnonzero(np.diff(of_class[classes[order]])) + 1
    for (_, reason), members, rows in zip(by_print, members_of, np.split(order, ends), strict=False):
        places = np.split(rows, np.flatnonzero(np.diff(site[rows])) + 1)
        axes = [sites[site[p[0]]] for p in places]
        found = tuple(
            Member(axis[0], axis[1], position[p].reshape(len(members), -1), id(trace.sites[axis]) in trace.sums)
            for axis, p in zip(axes, places, strict=True)
        )
        name, node = f"{found[0].weight}[{found[0].axis}]", trace.readers.get(found[0].weight, "")
        if reason >= 0:
            if trace.frozen[reason][1]:
                skips[Skip(node, f"{name} stays as wide as it is: {trace.frozen[reason][1]}")] = None
        elif len(members) == 1:
            skips[Skip(node, f"{name}: its channels are coupled to each other (a channel shuffle or groups mix them), none goes alone")] = (
                None
            )
        else:
            of = inexact[members[0]]
            named[name] += 1
            why = trace.inexact[of][1] if of >= 0 else ""
            groups.append(Group(name if named[name] == 1 else f"{name}#{named[name]}", node, found, why, np.array(members)))
    return Coupled(lifted, tuple(groups), tuple(skips), labels, trace.sites, tuple(trace.mends))


def _first_of(labels: Array, count: int, marks: list[tuple[Array, str]]) -> Array:
    """By class: the number of the first mark on one of its atoms (one with a reason before one without), −1 for none."""
    found = np.full(count, -1)
    for wanted in (True, False):
        for number, (atoms, why) in enumerate(marks):
            if bool(why) == wanted:
                mine = labels[atoms]
                found[mine[found[mine] < 0]] = number
    return found
