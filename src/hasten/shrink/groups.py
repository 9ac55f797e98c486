"""groups: which channels of which weights hang together, so that channel i goes everywhere or nowhere; and their removal.

Every position of an axis that may lose positions is an *atom*. A weight's axes begin with atoms of their own; a rule for each operator (table
RULES) says how its outputs' axes follow from its inputs', which atoms are one and the same channel (an Add joins, a Concat lays end to end, a
Flatten repeats, a convolution's inputs meet the second axis of its kernel), and which can't go: what meets the model's inputs or outputs, or an
operator that has no rule. Union-find over the atoms then gives the channels; channels that lie on the same axes of the same weights are a group
(the idea of a dependency graph: Fang et al., DepGraph, arXiv 2301.12900, there over modules, here over positions, so Concat, Split, heads and
option-A shortcuts need no case of their own).

Removing a channel gives the outputs that the model had with that channel's outgoing weights set to zero, unless the group says why not
(`inexact`): a mean over the channels, as in LayerNormalization, then runs over fewer.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from hasten.errors import BadInput
from hasten.graph import Array, add_weight, constant, sole_consumer, take_place, unique_name
from hasten.model import Model, Skip
from hasten.shrink.sizes import Axis, Sizes

Axes = list[Axis]


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
class Mend:
    """A number in the graph that counts channels: an attribute of a node (`where` a name), or entries of an input (`where` its index).

    Each becomes the number of its atoms that stay.
    """

    node: int
    where: str | int
    entries: dict[int, Array]


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
    _untie(edited.graph)
    _straighten(edited.graph)
    lifted = Model(edited, model.history)
    choices: dict[int, int] = {}
    while True:
        trace = Trace(edited.graph, choices)
        for index, node in enumerate(edited.graph):
            trace.visit(index, node)
        for value in edited.graph.outputs:
            for axis in trace.of(value) or []:
                trace.freeze(axis, f"it reaches the model's output {value.name!r}")
        if not trace.choose_again():
            return trace.result(lifted)


def _untie(graph: ir.Graph) -> None:
    """A vector, or a filled tensor, that several nodes read becomes one for each: zeros and ones that a clean-up found to be equal tie no channels.
    Matrices that are shared are meant to be.
    """
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 1 and tensor.size > 1 and tensor.dtype.is_floating_point():
            for number, (node, index) in enumerate(list(value.uses())):
                if number:
                    node.replace_input_with(index, add_weight(graph, value.name or "weight", tensor.numpy()))
    for made in list(graph):
        if made.op_type == "ConstantOfShape" and made.domain == "" and constant(made.inputs[0]) is not None:
            for number, (node, index) in enumerate(list(made.outputs[0].uses())):
                if number and node.graph is graph:
                    twin = ir.node("ConstantOfShape", made.inputs, dict(made.attributes), name=unique_name(graph, f"{made.name}_twin"))
                    old, new = made.outputs[0], twin.outputs[0]
                    new.name, new.type, new.shape = unique_name(graph, f"{old.name}_twin"), old.type, old.shape
                    graph.insert_after(made, twin)
                    node.replace_input_with(index, new)


def _straighten(graph: ir.Graph) -> None:
    """(…, h, s, w) → Reshape (-1, s, w) → Transpose of the last two → Reshape (…, h, w, s) is one Transpose: so torch exports attention's keys.
    Straightened, the heads are not merged with a batch of unknown size.
    """
    for last in list(graph):
        if last.op_type != "Reshape":
            continue
        middle = last.inputs[0].producer() if last.inputs[0] is not None else None
        first = (
            middle.inputs[0].producer() if middle is not None and middle.op_type == "Transpose" and middle.inputs[0] is not None else None
        )
        if middle is None or first is None or first.op_type != "Reshape" or sole_consumer(middle.outputs[0]) is None:
            continue
        source, flat, target = first.inputs[0], constant(first.inputs[1]), constant(last.inputs[1])
        if source is None or source.shape is None or flat is None or target is None or sole_consumer(first.outputs[0]) is None:
            continue
        sizes, rank = list(source.shape), len(source.shape)
        swapped = [*sizes[:-2], sizes[-1], sizes[-2]]
        if tuple(middle.attributes.get_ints("perm", ()) or ()) != (0, 2, 1) or len(target) != rank or rank < 3:
            continue
        known = [isinstance(size, int) and size == t for size, t in zip(swapped, target.tolist(), strict=True)]
        if (
            flat.tolist() == [-1, *sizes[-2:]]
            and sum(known) >= rank - 1
            and all(k or t == -1 for k, t in zip(known, target.tolist(), strict=True))
        ):
            made = ir.node(
                "Transpose", [source], {"perm": [*range(rank - 2), rank - 1, rank - 2]}, name=unique_name(graph, f"{middle.name}_heads")
            )
            new, old = made.outputs[0], last.outputs[0]
            new.name, new.type, new.shape = unique_name(graph, f"{old.name}_heads"), old.type, old.shape
            graph.insert_before(last, made)
            take_place(old, new)
            graph.remove([last, middle, first], safe=True)


def keep(coupled: Coupled, kept: Mapping[str, Sequence[int] | Array]) -> ir.Model:
    """An edit of the model in which, of each group named in `kept`, only those channels are left, in the order that they had.

    Raises BadInput for a channel that a group has not, or where none is left. Types and shapes between the nodes are to be inferred again.
    """
    stays = np.ones(len(coupled.labels), bool)
    for name, indices in kept.items():
        group = coupled.group(name)
        chosen = np.unique(np.asarray(indices, np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= group.channels:
            came = "none" if not len(chosen) else f"{chosen[0]} to {chosen[-1]}"
            raise BadInput(f"group {name}: channels {came} are to be kept, it has 0 to {group.channels - 1}, and one must be left")
        stays[group.classes] = False
        stays[group.classes[chosen]] = True
    edited = coupled.model.edit()
    graph = edited.graph
    for (weight, axis), atoms in coupled.sites.items():
        mask = stays[coupled.labels[atoms]]
        if not mask.all() and weight in graph.initializers:  # a filled tensor is mended by its shape
            _shorten(graph.initializers[weight], axis, mask)
    nodes = list(graph)
    for mend in coupled.mends:
        counts = {k: int(stays[coupled.labels[atoms]].sum()) for k, atoms in mend.entries.items()}
        if any(counts[k] != len(atoms) for k, atoms in mend.entries.items()):
            _mend(graph, nodes[mend.node], mend.where, counts)
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return edited


def _shorten(value: ir.Value, axis: int, mask: Array) -> None:
    assert value.const_value is not None
    tensor = value.const_value
    array = np.ascontiguousarray(np.compress(mask, tensor.numpy(), axis))
    array.flags.writeable = False
    value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _mend(graph: ir.Graph, node: ir.Node, where: str | int, counts: dict[int, int]) -> None:
    if isinstance(where, str):
        node.attributes[where] = ir.AttrInt64(where, counts[0])
        return
    value = node.inputs[where] if where < len(node.inputs) else None
    if value is None:  # a Split without sizes
        node.resize_inputs(where + 1)
        node.replace_input_with(where, add_weight(graph, f"{node.name}_sizes", np.array([counts[k] for k in sorted(counts)], np.int64)))
        node.attributes.pop("num_outputs", None)
        return
    node.replace_input_with(where, _with_entries(graph, node, value, counts))


def _with_entries(graph: ir.Graph, node: ir.Node, value: ir.Value, counts: dict[int, int]) -> ir.Value:
    """The whole numbers of `value`, some entries replaced (0 and −1 of a shape, which mean «as it comes», stay). Computed ones are overruled."""
    array = constant(value)
    if array is not None:
        flat = array.copy().reshape(-1)
        for k, count in counts.items():
            if flat[k] > 0 or node.op_type not in ("Reshape", "Expand"):
                flat[k] = count
        return add_weight(graph, f"{node.name}_{value.name}", flat.reshape(array.shape))
    concat = value.producer()
    lengths = [] if concat is None or concat.op_type != "Concat" else [_length(piece) for piece in concat.inputs]
    if concat is None or not lengths or None in lengths:
        length = _length(value)
        assert length is not None
        which, what = np.zeros(length, bool), np.zeros(length, np.int64)
        which[list(counts)], what[list(counts)] = True, list(counts.values())
        inputs = [add_weight(graph, f"{node.name}_which", which), add_weight(graph, f"{node.name}_what", what), value]
        made = ir.node("Where", inputs, name=unique_name(graph, f"{node.name}_shape"))
    else:
        pieces, start = [], 0
        for piece, length in zip(concat.inputs, lengths, strict=True):
            assert piece is not None and length is not None
            mine = {k - start: count for k, count in counts.items() if start <= k < start + length}
            if mine and length == 1 and constant(piece) is None:
                piece = add_weight(graph, f"{node.name}_{piece.name}", np.array([mine[0]], np.int64))
            elif mine:
                piece = _with_entries(graph, node, piece, mine)
            pieces.append(piece)
            start += length
        made = ir.node("Concat", pieces, {"axis": 0}, name=unique_name(graph, f"{node.name}_shape"))
    made.outputs[0].name, made.outputs[0].type = unique_name(graph, f"{node.name}_shape_value"), value.type
    made.outputs[0].shape = value.shape
    graph.insert_before(node, made)
    return made.outputs[0]


def _length(value: ir.Value | None) -> int | None:
    """The number of entries of a vector, where it is known."""
    if value is None:
        return None
    array = constant(value)
    if array is not None:
        return int(array.size)
    return value.shape[0] if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int) else None


class Trace:
    """Walks the graph once, in order. What it collects: atoms of every axis, which are the same, which are frozen, what is to be mended."""

    def __init__(self, graph: ir.Graph, choices: dict[int, int]) -> None:
        """`choices`: by node, which of the axes that one was parted into loses positions: the outermost that can."""
        self.graph = graph
        self.choices = choices
        self.parted: dict[int, tuple[Array, int]] = {}
        self.index = -1
        self.sizes = Sizes(self.of)
        self._axes: dict[int, Axes] = {}
        self._count = 0
        self._edges: list[tuple[Array, Array]] = []
        self._frozen: list[tuple[Array, str]] = []
        self._inexact: list[tuple[Array, str]] = []
        self._sites: dict[tuple[str, int], Array] = {}
        self._parts: list[Array] = []
        self._summed: dict[int, Axis] = {}
        self._readers: dict[str, str] = {}
        self._mends: list[Mend] = []

    # --- what the rules call

    def of(self, value: ir.Value | None) -> Axes | None:
        """The axes of a value; None where its rank is unknown. A weight's axes are atoms of their own from its first reader on."""
        if value is None:
            return None
        if id(value) not in self._axes:
            known = self._weight(value) if value.is_initializer() and not value.is_graph_input() else _inferred(value)
            if known is None:
                return None
            self._axes[id(value)] = known
        return self._axes[id(value)]

    def put(self, value: ir.Value, axes: Axes) -> None:
        self._axes[id(value)] = axes

    def fresh(self, count: int) -> Array:
        self._count += count
        return np.arange(self._count - count, self._count)

    def site(self, weight: str, axis: int, size: int) -> Array:
        """Atoms of an axis of a weight."""
        self._sites[weight, axis] = self.fresh(size)
        return self._sites[weight, axis]

    def freeze(self, axis: Axis, why: str) -> None:
        """No position of this axis goes. An empty reason: that is how the operator is, nobody needs to be told."""
        if isinstance(axis, np.ndarray):
            self._frozen.append((axis, why))

    def equal(self, a: Array, b: Array) -> None:
        """Atoms that are one channel, pair by pair."""
        self._edges.append((np.ravel(a), np.ravel(b)))

    def join(self, a: Axis, b: Axis, why: str) -> Axis:
        """Two axes that must keep the same positions: one axis. Beside an axis of fixed size nothing goes, for the reason given."""
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and len(a) == len(b):
            if a is not b:
                self.equal(a, b)
            return a
        self.freeze(a, why)
        self.freeze(b, why)
        if isinstance(a, np.ndarray):
            return a
        return b if isinstance(b, (np.ndarray, int)) else a

    def together(self, rows: Array) -> None:
        """Each row (rows, n) is one channel."""
        self.equal(rows[:, 1:], np.repeat(rows[:, :1], rows.shape[1] - 1, axis=1))

    def part(self, axis: Array) -> Axis:
        """Some positions of an axis as an axis of their own: one of them must stay, so they make groups of their own."""
        if len(axis) == 1:
            self.freeze(axis, "it is the only channel of a part")
            return 1
        self._parts.append(axis)
        return axis

    def mean_over(self, axis: Axis, why: str) -> None:
        if isinstance(axis, np.ndarray):
            self._inexact.append((axis, why))

    def summed(self, axis: Axis) -> None:
        """An axis of a weight that a product sums over."""
        self._summed[id(axis)] = axis

    def mend(self, where: str | int, entries: dict[int, Array]) -> None:
        self._mends.append(Mend(self.index, where, entries))

    def broadcast(self, all_axes: Sequence[Axes], why: str) -> Axes:
        """Axes of the result of an elementwise operator: aligned at the right, axes of size 1 stretched."""
        rank = max(len(axes) for axes in all_axes)
        out: Axes = []
        for back in range(rank, 0, -1):
            axis: Axis = 1
            for axes in all_axes:
                other = axes[-back] if back <= len(axes) else 1
                if not isinstance(other, np.ndarray) and other == 1:
                    continue
                axis = other if not isinstance(axis, np.ndarray) and axis == 1 else self.join(axis, other, why)
            out.append(axis)
        return out

    # --- the walk

    def visit(self, index: int, node: ir.Node) -> None:
        self.index = index
        for value in node.inputs:
            if value is not None and value.name:
                self._readers.setdefault(value.name or "", node.name or "")
        self.sizes.visit(node)
        rule = RULES.get(node.op_type) if node.domain == "" else None
        if rule is None:
            domain = f"{node.domain}." if node.domain else ""
            self._refuse(node, f"{node.name}: {domain}{node.op_type} has no rule for channels")
            return
        if any(value is not None and self.of(value) is None for value in node.inputs):
            self._refuse(node, f"{node.name} ({node.op_type}): a shape there is unknown")
            return
        why = rule(self, node)
        if why:
            self._refuse(node, f"{node.name} ({node.op_type}): {why}")

    def _refuse(self, node: ir.Node, why: str) -> None:
        captured = [v for a in node.attributes.values() for v in _captured(a)]
        for value in (*node.inputs, *captured):
            for axis in self.of(value) or []:
                self.freeze(axis, why)

    def _weight(self, value: ir.Value) -> Axes:
        """A weight's axes: atoms for each that has more than one position. Whole numbers are shapes and indices, unless they are dequantized."""
        tensor = value.const_value
        assert tensor is not None
        uses = tuple(value.uses())
        is_weight = tensor.dtype.is_floating_point() or (bool(uses) and all(u.node.op_type == "DequantizeLinear" for u in uses))
        axes: Axes = []
        for number, size in enumerate(tensor.shape):
            assert isinstance(size, int)
            axis: Axis = size
            if is_weight and size > 1:
                axis = self.site(value.name or "", number, size)
            axes.append(axis)
        return axes

    # --- what came of it

    def choose_again(self) -> bool:
        """Where an axis was parted and nothing of the part chosen can go (of queries, keys and values: heads · width), choose the next one."""
        if not self.parted:
            return False
        labels = _roots(self._count, self._edges)
        frozen = np.zeros(self._count, bool)
        for atoms, _ in self._frozen:
            frozen[labels[atoms]] = True
        again = False
        for node, (atoms, others) in self.parted.items():
            mine = labels[atoms]
            if (frozen[mine].all() or (mine == mine[0]).all()) and self.choices.get(node, 0) + 1 < others:
                self.choices[node] = self.choices.get(node, 0) + 1
                again = True
        return again

    def result(self, lifted: Model) -> Coupled:
        labels = _roots(self._count, self._edges)
        sites = list(self._sites)
        kept = [labels[atoms] for atoms in self._sites.values()]
        classes = np.concatenate([*kept, np.zeros(0, np.int64)])
        site = np.repeat(np.arange(len(kept)), [len(k) for k in kept])
        position = np.concatenate([*(np.arange(len(k)) for k in kept), np.zeros(0, np.int64)])
        # A channel's fingerprint: the sum of random numbers of the axes that it lies on, as often as it does, and of the parts that it is in.
        random = np.random.default_rng(0)
        keys = random.integers(1, 1 << 62, len(kept), dtype=np.uint64)
        prints = np.zeros(self._count, np.uint64)
        np.add.at(prints, classes, keys[site])
        for part in self._parts:
            np.add.at(prints, np.unique(labels[part]), random.integers(1, 1 << 62, dtype=np.uint64))
        reasons = _first_of(labels, self._count, self._frozen)
        inexact = _first_of(labels, self._count, self._inexact)
        groups: list[Group] = []
        named: collections.Counter[str] = collections.Counter()
        skips: dict[Skip, None] = {}
        # Classes in the order of their first position, those of one fingerprint (and of one fate) side by side.
        appeared, first = np.unique(classes, return_index=True)
        appeared = appeared[np.argsort(first, kind="stable")]
        by_print: dict[tuple[int, int], list[int]] = {}
        for c in appeared.tolist():
            by_print.setdefault((int(prints[c]), int(reasons[c])), []).append(c)
        of_class = np.full(self._count, -1)
        channel_of = np.zeros(self._count, np.int64)
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
                Member(*axis, position[p].reshape(len(members), -1), id(self._sites[axis]) in self._summed)
                for axis, p in zip(axes, places, strict=True)
            )
            name, node = f"{found[0].weight}[{found[0].axis}]", self._readers.get(found[0].weight, "")
            if reason >= 0:
                if self._frozen[reason][1]:
                    skips[Skip(node, f"{name} stays as wide as it is: {self._frozen[reason][1]}")] = None
            elif len(members) == 1:
                skips[
                    Skip(node, f"{name}: its channels are coupled to each other (a channel shuffle or groups mix them), none goes alone")
                ] = None
            else:
                of = inexact[members[0]]
                named[name] += 1
                why = self._inexact[of][1] if of >= 0 else ""
                groups.append(Group(name if named[name] == 1 else f"{name}#{named[name]}", node, found, why, np.array(members)))
        return Coupled(lifted, tuple(groups), tuple(skips), labels, self._sites, tuple(self._mends))


def _roots(count: int, edges: Iterable[tuple[Array, Array]]) -> Array:
    """Union-find in rounds: each root takes the least root that it is tied to, then every atom its root."""
    labels = np.arange(count)
    pairs = list(edges)
    a, b = (np.concatenate([*(p[i] for p in pairs), np.zeros(0, np.int64)]) for i in (0, 1))
    while True:
        one, other = labels[a], labels[b]
        differ = one != other
        if not differ.any():
            return labels
        a, b = a[differ], b[differ]
        np.minimum.at(labels, np.maximum(one, other)[differ], np.minimum(one, other)[differ])
        while True:
            shorter = labels[labels]
            if np.array_equal(shorter, labels):
                break
            labels = shorter


def _first_of(labels: Array, count: int, marks: list[tuple[Array, str]]) -> Array:
    """By class: the number of the first mark on one of its atoms (one with a reason before one without), −1 for none."""
    found = np.full(count, -1)
    for wanted in (True, False):
        for number, (atoms, why) in enumerate(marks):
            if bool(why) == wanted:
                mine = labels[atoms]
                found[mine[found[mine] < 0]] = number
    return found


def _inferred(value: ir.Value) -> Axes | None:
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


def _captured(attribute: Any) -> list[ir.Value]:
    """Values that a subgraph in an attribute reads, its own among them (they hold no atoms)."""
    graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []
    if attribute.type == ir.AttributeType.GRAPH:
        graphs = [attribute.as_graph()]
    return [v for g in graphs for node in ir.traversal.RecursiveGraphIterator(g) for v in node.inputs if v is not None]


# --- the rules: put the axes of the outputs; return why the node can't be followed, else nothing

Rule = Callable[[Trace, ir.Node], str | None]

FIXED = "it meets values whose size is fixed: the model's input, or something computed from it"


def _axes(t: Trace, node: ir.Node, index: int) -> Axes:
    found = t.of(node.inputs[index])
    assert found is not None
    return found


def _given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _numbers(node: ir.Node, index: int) -> list[int] | None:
    """The whole numbers of a constant input, None where it is computed or missing."""
    array = constant(_given(node, index))
    return None if array is None else [int(v) for v in array.reshape(-1)]


def _why(node: ir.Node, why: str) -> str:
    return f"{node.name} ({node.op_type}): {why}"


def _contract(t: Trace, node: ir.Node, x: Axis, w: Axis) -> None:
    """x's axis is summed against w's. Where x is fixed, w is too: that is how it is."""
    for axis, value in ((x, node.inputs[0]), (w, node.inputs[1])):
        if _is_weight(value):
            t.summed(axis)
    t.join(x, w, _why(node, "what it is multiplied with is computed, or of fixed size") if isinstance(x, np.ndarray) else "")


def elementwise(t: Trace, node: ir.Node) -> str | None:
    """Same positions in, same positions out."""
    inputs = [axes for value in node.inputs if (axes := t.of(value)) is not None]
    out = t.broadcast(inputs, _why(node, FIXED))
    for value in node.outputs:
        t.put(value, out)
    return None


def conv(t: Trace, node: ir.Node) -> str | None:
    """W (out, in/g, kernel…). Depthwise: a channel in and its channels out are one. Other groups: the same channel of every group."""
    x, w, group = _axes(t, node, 0), _axes(t, node, 1), node.attributes.get_int("group", 1)
    for kernel in w[2:]:
        t.freeze(kernel, "")
    for spatial in x[2:]:
        t.freeze(spatial, _why(node, "it slides along that axis"))
    source, made, inner = x[1], w[0], w[1]
    if group == 1:
        _contract(t, node, source, inner)
    elif not isinstance(made, np.ndarray) or len(made) % group:
        t.freeze(source, _why(node, "its grouped weights are computed"))
    elif not isinstance(inner, np.ndarray) and inner == 1:
        if isinstance(source, np.ndarray):
            t.equal(np.repeat(source, len(made) // group), made)
            t.mend("group", {0: source})
        else:
            t.freeze(made, _why(node, "a channel of its own for each channel of fixed number"))
    else:
        t.summed(inner)
        t.together(made.reshape(group, -1).T)
        if isinstance(source, np.ndarray):
            by_group = source.reshape(group, -1)
            t.together(by_group.T)
            t.join(by_group[0], inner, "")
        else:
            t.freeze(inner, "")
    return _layer_output(t, node, made, x)


def conv_transpose(t: Trace, node: ir.Node) -> str | None:
    """W (in, out/g, kernel…)."""
    x, w, group = _axes(t, node, 0), _axes(t, node, 1), node.attributes.get_int("group", 1)
    for kernel in w[2:]:
        t.freeze(kernel, "")
    for spatial in x[2:]:
        t.freeze(spatial, _why(node, "it slides along that axis"))
    if group == 1:
        _contract(t, node, x[1], w[0])
        return _layer_output(t, node, w[1], x)
    if w[1] != 1 or not isinstance(x[1], np.ndarray):  # type: ignore[comparison-overlap]
        return "grouped, but not one channel a group"
    t.join(x[1], w[0], _why(node, FIXED))
    t.mend("group", {0: x[1]})
    return _layer_output(t, node, x[1], x)


def _is_weight(value: ir.Value | None) -> bool:
    """Whether it comes from weights alone, by a chain of nodes that read nothing else."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "ConstantOfShape":
            return True
        if any(v is not None and not v.is_initializer() for v in node.inputs[1:]) or not node.inputs:
            return False
        value = node.inputs[0]
    return value is not None and value.is_initializer()


def _layer_output(t: Trace, node: ir.Node, made: Axis, x: Axes) -> None:
    bias = t.of(_given(node, 2))
    if bias is not None:
        made = t.join(made, bias[0], _why(node, FIXED))
    t.put(node.outputs[0], [x[0], made, *_sizes(node.outputs[0], 2, len(x))])


def _sizes(value: ir.Value, start: int, end: int) -> Axes:
    """Inferred sizes of axes from `start` to `end`, unknown ones as None."""
    known = _inferred(value)
    return known[start:end] if known is not None and len(known) >= end else [None] * (end - start)


def gemm(t: Trace, node: ir.Node) -> str | None:
    a, b = _axes(t, node, 0), _axes(t, node, 1)
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    _contract(t, node, a[1], b[0])
    out: Axes = [a[0], b[1]]
    added = t.of(_given(node, 2))
    t.put(node.outputs[0], out if added is None else t.broadcast([out, added], _why(node, FIXED)))
    return None


def matmul(t: Trace, node: ir.Node) -> str | None:
    a, b = _axes(t, node, 0), _axes(t, node, 1)
    if len(a) < 2 or len(b) < 2:
        return "a vector"
    _contract(t, node, a[-1], b[-2])
    batch = t.broadcast([a[:-2], b[:-2]], _why(node, FIXED)) if len(a) > 2 or len(b) > 2 else []
    t.put(node.outputs[0], [*batch, a[-2], b[-1]])
    return None


def einsum(t: Trace, node: ir.Node) -> str | None:
    """Axes of one letter are one axis; a letter that is summed over needs no more."""
    left, arrow, right = (node.attributes.get_string("equation") or "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(term)) != len(term) for term in terms):
        return "an equation with dots, a diagonal, or no arrow"
    letters: dict[str, Axis] = {}
    for number, term in enumerate(terms):
        for letter, axis in zip(term, _axes(t, node, number), strict=True):
            letters[letter] = t.join(letters[letter], axis, _why(node, FIXED)) if letter in letters else axis
            if letter not in right and _is_weight(node.inputs[number]):
                t.summed(axis)
    for letter, axis in letters.items():
        if letter not in right and left.count(letter) == 1:
            t.mean_over(axis, _why(node, "a sum over the channels"))
    t.put(node.outputs[0], [letters[letter] for letter in right])
    return None


def norm_per_channel(t: Trace, node: ir.Node) -> str | None:
    """BatchNormalization, InstanceNormalization: vectors along axis 1."""
    x = _axes(t, node, 0)
    channel = x[1]
    for number in range(1, len(node.inputs)):
        channel = t.join(channel, _axes(t, node, number)[0], _why(node, FIXED))
    if node.op_type == "InstanceNormalization":
        for axis in x[2:]:
            t.mean_over(axis, _why(node, "a mean over the channels"))
    t.put(node.outputs[0], [x[0], channel, *x[2:]])
    return None


def layer_norm(t: Trace, node: ir.Node) -> str | None:
    """Normalises over the axes from `axis` on, together."""
    x = _axes(t, node, 0)
    start = node.attributes.get_int("axis", -1) % len(x)
    for axis in x[start:]:
        t.mean_over(axis, _why(node, "its mean and variance then run over fewer channels"))
    extra = [axes for value in node.inputs[1:] if (axes := t.of(value)) is not None]
    t.put(node.outputs[0], t.broadcast([x, *extra], _why(node, FIXED)))
    return None


def group_norm(t: Trace, node: ir.Node) -> str | None:
    """Whole groups go."""
    x, groups = _axes(t, node, 0), node.attributes.get_int("num_groups", 1)
    channel = x[1]
    for number in (1, 2):
        channel = t.join(channel, _axes(t, node, number)[0], _why(node, FIXED))
    if isinstance(channel, np.ndarray):
        rows = channel.reshape(groups, -1)
        t.together(rows)
        t.mend("num_groups", {0: rows[:, 0]})
    for axis in x[2:]:
        t.mean_over(axis, _why(node, "a mean over the channels"))
    t.put(node.outputs[0], [x[0], channel, *x[2:]])
    return None


def pool(t: Trace, node: ir.Node) -> str | None:
    x = _axes(t, node, 0)
    for axis in x[2:]:
        t.freeze(axis, _why(node, "it slides along that axis"))
    for value in node.outputs:
        t.put(value, [x[0], x[1], *([1] * (len(x) - 2) if node.op_type.startswith("Global") else _sizes(value, 2, len(x)))])
    return None


def resize(t: Trace, node: ir.Node) -> str | None:
    x, known = _axes(t, node, 0), _sizes(node.outputs[0], 0, len(_axes(t, node, 0)))
    named = [a % len(x) for a in node.attributes.get_ints("axes", tuple(range(len(x)))) or ()]
    scales, sizes = constant(_given(node, 2)), t.sizes.of(_given(node, 3))
    for index in (1, 2):
        for axis in t.of(_given(node, index)) or []:
            t.freeze(axis, "")  # a number for each axis, no channels
    out: Axes = list(known)
    for number, axis in enumerate(x):
        if number not in named:
            out[number] = axis
            continue
        entry = named.index(number)
        if not isinstance(axis, np.ndarray):
            continue
        if scales is not None and scales.size and scales.reshape(-1)[entry] == 1:
            out[number] = axis
        elif sizes is not None and _size(sizes[entry]) == len(axis):
            t.mend(3, {entry: axis})
            out[number] = axis
        else:
            t.freeze(axis, _why(node, "it resizes that axis, or the size there is computed"))
    t.put(node.outputs[0], out)
    return None


def softmax(t: Trace, node: ir.Node) -> str | None:
    """Normalised over the axis: nothing of it goes."""
    x = _axes(t, node, 0)
    t.freeze(x[node.attributes.get_int("axis", -1) % len(x)], _why(node, "it normalises over these channels"))
    t.put(node.outputs[0], x)
    return None


def along(t: Trace, node: ir.Node) -> str | None:
    """Operators that tell the positions of one axis from each other (ArgMax, TopK, CumSum, …)."""
    x = _axes(t, node, 0)
    given = _numbers(node, 1) if node.op_type == "CumSum" else None
    axis = given[0] if given else node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
    t.freeze(x[axis % len(x)], _why(node, "it goes along these channels"))
    for value in node.outputs:
        known = _inferred(value)
        kept = [a for i, a in enumerate(x) if i != axis % len(x)]
        if known is not None and len(known) == len(x):
            kept.insert(axis % len(x), known[axis % len(x)])
        t.put(value, kept)
    return None


def reduce(t: Trace, node: ir.Node) -> str | None:
    x = _axes(t, node, 0)
    named = _numbers(node, 1)
    if _given(node, 1) is not None and named is None:
        return "its axes are computed"
    named = named or list(node.attributes.get_ints("axes", ()) or ())
    if not named and node.attributes.get_int("noop_with_empty_axes", 0):
        t.put(node.outputs[0], x)
        return None
    gone = {a % len(x) for a in named} or set(range(len(x)))
    for number in gone:
        t.mean_over(x[number], _why(node, "it runs over fewer channels"))
    keepdims = node.attributes.get_int("keepdims", 1)
    t.put(node.outputs[0], [1 if i in gone else a for i, a in enumerate(x) if i not in gone or keepdims])
    return None


def transpose(t: Trace, node: ir.Node) -> str | None:
    x = _axes(t, node, 0)
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(x))))) or ()
    t.put(node.outputs[0], [x[i] for i in order])
    return None


def squeeze(t: Trace, node: ir.Node) -> str | None:
    x, named = _axes(t, node, 0), _numbers(node, 1)
    if named is None and _given(node, 1) is not None:
        return "its axes are computed"
    gone = {a % len(x) for a in named} if named is not None else {i for i, a in enumerate(x) if not isinstance(a, np.ndarray) and a == 1}
    for i in gone:
        t.freeze(x[i], _why(node, "the only position of that axis"))
    t.put(node.outputs[0], [a for i, a in enumerate(x) if i not in gone])
    return None


def unsqueeze(t: Trace, node: ir.Node) -> str | None:
    x, named = list(_axes(t, node, 0)), _numbers(node, 1)
    if named is None:
        return "its axes are computed"
    for axis in sorted(a % (len(x) + len(named)) for a in named):
        x.insert(axis, 1)
    t.put(node.outputs[0], x)
    return None


def concat(t: Trace, node: ir.Node) -> str | None:
    """End to end along one axis; along the others the same."""
    inputs = [_axes(t, node, i) for i in range(len(node.inputs))]
    at = (node.attributes.get_int("axis", 0) or 0) % len(inputs[0])
    parts = [axes[at] for axes in inputs]
    whole = _laid(t, parts, _why(node, "a part of unknown size stands beside it"))
    others = [[1 if i == at else a for i, a in enumerate(axes)] for axes in inputs]
    out = t.broadcast(others, _why(node, FIXED))
    out[at] = whole
    t.put(node.outputs[0], out)
    return None


def _laid(t: Trace, parts: Sequence[Axis], why: str) -> Axis:
    """Axes end to end. Fixed parts between those of atoms get atoms that stay."""
    if not any(isinstance(p, np.ndarray) for p in parts):
        return sum(p for p in parts if isinstance(p, int)) if all(isinstance(p, int) for p in parts) else None
    if not all(isinstance(p, (np.ndarray, int)) for p in parts):
        for part in parts:
            t.freeze(part, why)
        return None
    laid = []
    for part in parts:
        if isinstance(part, int):
            part = t.fresh(part)
            t.freeze(part, "")
        assert isinstance(part, np.ndarray)
        laid.append(part)
    return np.concatenate(laid)


def split(t: Trace, node: ir.Node) -> str | None:
    x, given = _axes(t, node, 0), _given(node, 1)
    at = node.attributes.get_int("axis", 0) % len(x)
    axis, sizes, count = x[at], _numbers(node, 1), len(node.outputs)
    if given is not None and sizes is None:
        return "its sizes are computed"
    if not isinstance(axis, np.ndarray):
        for number, value in enumerate(node.outputs):
            size = sizes[number] if sizes is not None else _sizes(value, at, at + 1)[0]
            t.put(value, [*x[:at], size, *x[at + 1 :]])
        return None
    if sizes is None:
        each = -(-len(axis) // count)
        sizes = [min(each, len(axis) - i * each) for i in range(count)]
    starts = np.cumsum([0, *sizes])
    parts = [axis[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    t.mend(1, dict(enumerate(parts)))
    for value, part in zip(node.outputs, parts, strict=True):
        t.put(value, [*x[:at], t.part(part), *x[at + 1 :]])
    return None


def slice_(t: Trace, node: ir.Node) -> str | None:
    """Channels between two bounds: the bounds are counted anew."""
    x, (starts, ends, named, steps) = list(_axes(t, node, 0)), (t.sizes.numbers(_given(node, i)) for i in (1, 2, 3, 4))
    if named is None and _given(node, 3) is not None:
        return "its axes are computed"
    bounds = t.sizes.of(_given(node, 1)) or t.sizes.of(_given(node, 2)) or []
    named = named if named is not None else list(range(len(bounds)))
    known = _sizes(node.outputs[0], 0, len(x))
    for number, at in enumerate(a % len(x) for a in named):
        axis = x[at]
        if not isinstance(axis, np.ndarray):
            x[at] = known[at]
            continue
        step = steps[number] if steps is not None else (None if _given(node, 4) is not None else 1)
        if starts is None or ends is None or step != 1:
            t.freeze(axis, _why(node, "its bounds are computed, or it takes steps"))
            x[at] = known[at]
            continue
        start, end, _ = slice(starts[number], ends[number]).indices(len(axis))
        if start or end < len(axis):
            t.mend(1, {number: axis[:start]})
            t.mend(2, {number: axis[: max(start, end)]})
            x[at] = t.part(axis[start:end])
    t.put(node.outputs[0], x)
    return None


def pad(t: Trace, node: ir.Node) -> str | None:
    """Channels of a constant before and behind: they can go like others, with the number of them."""
    x, pads, named = list(_axes(t, node, 0)), _numbers(node, 1), _numbers(node, 3)
    if named is None and _given(node, 3) is not None:
        return "its axes are computed"
    known = _sizes(node.outputs[0], 0, len(x))
    axes = [a % len(x) for a in named] if named is not None else list(range(len(x)))
    for number, at in enumerate(axes):
        axis = x[at]
        if not isinstance(axis, np.ndarray):
            x[at] = known[at]
            continue
        before, behind = (pads[number], pads[len(axes) + number]) if pads is not None else (-1, -1)
        if before == behind == 0:
            continue
        if min(before, behind) < 0 or node.attributes.get_string("mode", "constant") != "constant":
            t.freeze(axis, _why(node, "it pads these channels by a computed number, or with copies of them"))
            x[at] = known[at]
            continue
        one, other = t.fresh(before), t.fresh(behind)
        t.mend(1, {number: one, len(axes) + number: other})
        x[at] = np.concatenate([one, axis, other])
    t.put(node.outputs[0], x)
    return None


def expand(t: Trace, node: ir.Node) -> str | None:
    """To the larger of both sizes, aligned at the right."""
    x, wanted, known = _axes(t, node, 0), t.sizes.of(_given(node, 1)), _inferred(node.outputs[0])
    if wanted is None:
        return "its shape is computed"
    rank = max(len(x), len(wanted))
    out: Axes = []
    for at in range(rank):
        axis = x[at - rank + len(x)] if at >= rank - len(x) else 1
        entry = at - rank + len(wanted)
        size = wanted[entry] if entry >= 0 else 1
        if not isinstance(axis, np.ndarray) and axis == 1:
            out.append(size if size is not None or known is None else known[at])
            continue
        if isinstance(axis, np.ndarray) and not (isinstance(size, int) and size == 1):
            t.mend(1, {entry: axis})
        out.append(axis)
    t.put(node.outputs[0], out)
    return None


def tile(t: Trace, node: ir.Node) -> str | None:
    x, times = _axes(t, node, 0), _numbers(node, 1)
    if times is None:
        return "its repeats are computed"
    known = _sizes(node.outputs[0], 0, len(x))
    t.put(node.outputs[0], [np.tile(a, n) if isinstance(a, np.ndarray) else k for a, n, k in zip(x, times, known, strict=True)])
    return None


def gather(t: Trace, node: ir.Node) -> str | None:
    """Rows of a table: which ones, the indices say, so none goes; the rows' other axes stay what they are."""
    x, indices = _axes(t, node, 0), _axes(t, node, 1)
    at = node.attributes.get_int("axis", 0) % len(x)
    source = node.inputs[0]
    assert source is not None
    t.freeze(x[at], "" if source.is_initializer() else _why(node, "indices choose among these channels"))
    t.put(node.outputs[0], [*x[:at], *indices, *x[at + 1 :]])
    return None


def constant_of_shape(t: Trace, node: ir.Node) -> str | None:
    """As a weight, where the shape is constant; where it is that of another value, its axes are too."""
    wanted = t.sizes.of(_given(node, 0))
    if wanted is None:
        return "its shape is computed"
    value = node.attributes.get_tensor("value", None)
    if constant(node.inputs[0]) is None or (value is not None and not value.dtype.is_floating_point()):
        t.put(node.outputs[0], list(wanted))
        return None
    axes: Axes = []
    for number, size in enumerate(wanted):
        axis: Axis = size
        if isinstance(size, int) and size > 1:
            axis = t.site(node.outputs[0].name or "", number, size)
            t.mend(0, {number: axis})
        axes.append(axis)
    t.put(node.outputs[0], axes)
    return None


def flatten(t: Trace, node: ir.Node) -> str | None:
    x = _axes(t, node, 0)
    at = node.attributes.get_int("axis", 1)
    at = at + len(x) if at < 0 else at
    t.put(node.outputs[0], [axis for part in (x[:at], x[at:]) for axis in (_regroup(t, node, part, [None]) if part else [1])])
    return None


def reshape(t: Trace, node: ir.Node) -> str | None:
    """Equal products of sizes are matched from both ends; between them axes are merged and parted."""
    x, wanted, known = _axes(t, node, 0), t.sizes.of(_given(node, 1)), _inferred(node.outputs[0])
    if wanted is None:
        return "its target is computed"
    sizes: list[Any] = []
    for entry, size in enumerate(wanted):
        if isinstance(size, int) and size == 0 and not node.attributes.get_int("allowzero", 0) and entry < len(x):
            size = x[entry]
        if size is None or (isinstance(size, int) and size < 0):
            size = known[entry] if known is not None and isinstance(known[entry], int) else None
        sizes.append(_size(size))
    out = _matched(t, node, x, sizes)
    t.mend(1, {entry: axis for entry, axis in enumerate(out) if isinstance(axis, np.ndarray)})
    t.put(node.outputs[0], out)
    return None


def _size(axis: Axis) -> int | str | None:
    return len(axis) if isinstance(axis, np.ndarray) else axis


def _matched(t: Trace, node: ir.Node, x: Axes, sizes: list[Any]) -> Axes:
    """The axes of the output of sizes `sizes` (int, name, None)."""
    front = _segments([_size(a) for a in x], sizes)
    used_in, used_out = sum(len(i) for i, _ in front), sum(len(o) for _, o in front)
    back = _segments([_size(a) for a in x[used_in:]][::-1], sizes[used_out:][::-1])
    back_in, back_out = sum(len(i) for i, _ in back), sum(len(o) for _, o in back)
    out: Axes = []
    start_in = start_out = 0
    middle = ([None] * (len(x) - used_in - back_in), [None] * (len(sizes) - used_out - back_out))
    for ins, outs in (*front, middle, *reversed(back)):
        part, wanted = x[start_in : start_in + len(ins)], sizes[start_out : start_out + len(outs)]
        out += _regroup(t, node, part, wanted)
        start_in, start_out = start_in + len(ins), start_out + len(outs)
    return out


def _segments(ins: list[Any], outs: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Runs of sizes with the same product, from the left, as far as they are known. Equal names are equal sizes."""
    found: list[tuple[list[Any], list[Any]]] = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        a, b = [ins[i]], [outs[j]]
        i, j = i + 1, j + 1
        if a != b or a == [None]:
            while all(isinstance(s, int) for s in a + b) and math.prod(a) != math.prod(b):
                if math.prod(a) < math.prod(b):
                    if i == len(ins):
                        return found
                    a.append(ins[i])
                    i += 1
                else:
                    if j == len(outs):
                        return found
                    b.append(outs[j])
                    j += 1
            if not all(isinstance(s, int) for s in a + b):
                return found
        found.append((a, b))
    return found


def _regroup(t: Trace, node: ir.Node, x: Axes, sizes: list[Any]) -> Axes:
    """Axes merged and parted, (a, b) → (c, d) of the same product. The atoms go on along one axis of more than one position, the outermost that
    can lose some; those that then lie at one position of it become one channel: of C = heads · width, whole heads go."""
    arrays = [i for i, a in enumerate(x) if isinstance(a, np.ndarray)]
    if not arrays:
        if len(x) == 1 and len(sizes) == 1:
            return [x[0] if isinstance(x[0], int) else sizes[0] if sizes[0] is not None else x[0]]
        whole = [_size(a) for a in x]
        if len(sizes) == 1 and sizes[0] is None and all(isinstance(s, int) for s in whole):
            return [math.prod(whole)]  # type: ignore[arg-type]
        return list(sizes)
    if len(x) == 1 and len(sizes) == 1:
        return [x[0]]
    inner = [_size(a) for a in x]
    if sizes.count(None) == 1 and len(sizes) == 1 and all(isinstance(s, int) for s in inner):
        sizes = [math.prod(inner)]  # type: ignore[arg-type]
    if not all(isinstance(s, int) for s in [*inner, *sizes]) or math.prod(inner) != math.prod(sizes):  # type: ignore[arg-type]
        for i in arrays:
            t.freeze(x[i], _why(node, "it is merged with, or parted into, axes of unknown size"))
        return list(sizes)
    for i in arrays[1:]:
        t.freeze(x[i], _why(node, "it is merged with another axis of channels"))
    at = arrays[0]
    shape = [1] * len(x)
    shape[at] = -1
    atoms = x[at]
    assert isinstance(atoms, np.ndarray)
    spread = np.broadcast_to(atoms.reshape(shape), inner).reshape(sizes)  # type: ignore[arg-type]
    targets = [i for i, s in enumerate(sizes) if s > 1] or [0]
    target = targets[t.choices.get(t.index, 0)]
    if len(targets) > 1:
        t.parted[t.index] = (atoms, len(targets))
    rows = np.moveaxis(spread, target, 0).reshape(sizes[target], -1)
    if rows.shape[1] > 1:
        t.together(rows)
    return [rows[:, 0] if i == target else s for i, s in enumerate(sizes)]


def depth_to_space(t: Trace, node: ir.Node) -> str | None:
    x, block = _axes(t, node, 0), node.attributes.get_int("blocksize", 1) or 1
    channel = x[1]
    if isinstance(channel, np.ndarray):
        crd = node.attributes.get_string("mode", "DCR") == "CRD"
        rows = channel.reshape(-1, block * block) if crd else channel.reshape(block * block, -1).T
        t.together(rows)
        channel = rows[:, 0]
    t.put(node.outputs[0], [x[0], channel if isinstance(channel, np.ndarray) else _sizes(node.outputs[0], 1, 2)[0], None, None])
    return None


def space_to_depth(t: Trace, node: ir.Node) -> str | None:
    """Output channel = place in the block · C + c."""
    x, block = _axes(t, node, 0), node.attributes.get_int("blocksize", 1) or 1
    out = np.tile(x[1], block * block) if isinstance(x[1], np.ndarray) else _sizes(node.outputs[0], 1, 2)[0]
    t.put(node.outputs[0], [x[0], out, None, None])
    return None


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(t: Trace, node: ir.Node) -> str | None:
    """X (T, N, in), W (D, gates · H, in), R (D, gates · H, H), B (D, 2 · gates · H), states (D, N, H): unit h in every gate."""
    if node.attributes.get_int("layout", 0):
        return "batch first"
    x, w, r, gates = _axes(t, node, 0), _axes(t, node, 1), _axes(t, node, 2), GATES[node.op_type]
    _contract(t, node, x[2], w[2])
    unit: Axis = r[2]
    if not isinstance(unit, np.ndarray):
        return "its weights are computed"
    why = _why(node, FIXED)
    for index, axis, times in ((1, 1, gates), (2, 1, gates), (3, 1, 2 * gates), (5, 2, 1), (6, 2, 1), (7, 1, 3)):
        axes = t.of(_given(node, index))
        if axes is not None:
            t.join(axes[axis], np.tile(unit, times), why)
    t.summed(unit)
    t.mend("hidden_size", {0: unit})
    directions = _size(w[0])
    for number, value in enumerate(node.outputs):
        t.put(value, [x[0], directions, x[1], unit] if number == 0 else [directions, x[1], unit])
    for index in (1, 2, 3, 5, 6, 7):
        for axis in (t.of(_given(node, index)) or [1])[:1]:
            t.freeze(axis, "")
    return None


def quantize(t: Trace, node: ir.Node) -> str | None:
    """One scale for all, or one for each position of an axis."""
    if node.attributes.get_int("block_size", 0):
        return "its scales are of blocks"
    x = list(_axes(t, node, 0))
    for index in (1, 2):
        vector = t.of(_given(node, index))
        if vector and not (not isinstance(vector[0], np.ndarray) and vector[0] == 1):
            at = node.attributes.get_int("axis", 1) % len(x)
            x[at] = t.join(x[at], vector[0], _why(node, FIXED))
    t.put(node.outputs[0], x)
    return None


def shape_of(t: Trace, node: ir.Node) -> str | None:
    """Whole numbers that follow what is removed; who reads them as sizes is mended."""
    t.put(
        node.outputs[0], [len(_axes(t, node, 0))] if node.op_type == "Shape" and not node.attributes else _inferred(node.outputs[0]) or []
    )
    return None


ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div "
    "Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean "
    "Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh "
    "ThresholdedRelu Where Xor"
).split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
    "BatchNormalization": norm_per_channel,
    "InstanceNormalization": norm_per_channel,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "AveragePool": pool,
    "MaxPool": pool,
    "LpPool": pool,
    "GlobalAveragePool": pool,
    "GlobalMaxPool": pool,
    "GlobalLpPool": pool,
    "Resize": resize,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Hardmax": softmax,
    "ArgMax": along,
    "ArgMin": along,
    "TopK": along,
    "CumSum": along,
    "ReduceL1": reduce,
    "ReduceL2": reduce,
    "ReduceLogSum": reduce,
    "ReduceLogSumExp": reduce,
    "ReduceMax": reduce,
    "ReduceMean": reduce,
    "ReduceMin": reduce,
    "ReduceProd": reduce,
    "ReduceSum": reduce,
    "ReduceSumSquare": reduce,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "Gather": gather,
    "ConstantOfShape": constant_of_shape,
    "Flatten": flatten,
    "Reshape": reshape,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "Shape": shape_of,
    "Size": shape_of,
}
"""Operator → rule. What is not here freezes the channels that reach it."""
