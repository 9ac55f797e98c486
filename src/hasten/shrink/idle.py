"""idle: what real data shows to be in vain: values that never change, activations that never act, branches and channels without effect.

A static analysis can't know that a Relu's input is never negative, or that a channel is 0 on every picture there is: the data says so. What was the
same in all of n independent samples is otherwise in at most 3 / n of all such samples, at 95 % (the rule of three: Hanley and Lippman-Hand,
JAMA 249, 1983): it is no proof, so each finding carries its evidence, and what is done about it is lossy.

Findings on values come first, those on channels are made on the graph without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.facts import facts
from hasten.graph import Array, constant, scalar
from hasten.model import Model, Skip
from hasten.patches import each
from hasten.rewrite import dims, plain
from hasten.shrink.groups import Coupled, Group
from hasten.shrink.layers import Layer, layers
from hasten.shrink.prune_weights import as_text, from_text
from hasten.shrink.ranges import Range, ranges
from hasten.task import BoundTask

ONE_SIDED = ("Relu", "LeakyRelu", "PRelu", "Elu", "Celu", "Abs")
"""Operators that give what they take, where that is not negative."""

SATURATING = ("Sigmoid", "Tanh", "HardSigmoid", "Clip", "Softsign", "Erf")
MOVING = ("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout")
"""Operators behind which a channel that never changes is still one."""

PARTIAL = {"Div": 1, "Mod": 1, "Reciprocal": 0, "Sqrt": 0, "Log": 0, "Pow": 0, "Gather": 1}
"""Operators that are not defined for every number, with the input that it is about."""

VALUE, NEVER_ACTS, BRANCH, CONDITION = "constant value", "never acts", "branch without effect", "one-sided condition"
DEAD, SATURATED, CHANNEL, NEGLIGIBLE, HEAD = "dead channel", "saturated channel", "constant channel", "negligible channel", "idle head"


@dataclasses.dataclass(frozen=True)
class Held:
    """A constant in place of the value of this name: `numbers` (see `as_text`) of shape (1, …), or of no axis, and of that dtype."""

    value: str
    numbers: Mapping[str, str]
    shape: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(value: str, array: Array) -> Held:
        return Held(value, as_text(array), array.shape, array.dtype.name)

    @property
    def array(self) -> Array:
        return from_text(dict(self.numbers), np.empty(self.shape, self.dtype))


@dataclasses.dataclass(frozen=True)
class Passed:
    """The node goes; its input of this number is read in place of its output."""

    index: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a channel lies on an axis of a weight, and, where it goes into it, what is always read there (of a grouped convolution by each group)."""

    weight: str
    axis: int
    positions: tuple[int, ...]
    constants: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Removed:
    """A channel of a group goes: what lies at these places, by which it is found again. What it contributed where it is read goes into a bias."""

    group: str
    channel: int
    places: tuple[Place, ...]


REMEDIES: dict[str, type[Any]] = {
    **dict.fromkeys((VALUE, CONDITION), Held),
    **dict.fromkeys((NEVER_ACTS, BRANCH), Passed),
    **dict.fromkeys((DEAD, SATURATED, CHANNEL, NEGLIGIBLE, HEAD), Removed),
}
"""Kind of a finding → what is done about it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something idle. `node`: where; `says`: what, in plain words. Evidence: the samples seen, the range of the values, and `error`, the largest
    that the remedy would have made on them, relative to the size of the values there. `macs`: multiply-accumulates that go with it, about."""

    kind: str
    node: str
    says: str
    samples: int
    low: float
    high: float
    error: float
    macs: int
    remedy: Held | Passed | Removed

    def __hash__(self) -> int:
        return hash((self.kind, self.node, self.says))

    @property
    def otherwise(self) -> float:
        """The share of all such samples that can be otherwise, at most, at 95 %: the rule of three."""
        return min(1.0, 3 / self.samples)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Finding:
        """The inverse of `dataclasses.asdict`, by way of JSON."""
        remedy = dict(values["remedy"])
        if "places" in remedy:
            remedy["places"] = tuple(Place(p["weight"], p["axis"], tuple(p["positions"]), tuple(p["constants"])) for p in remedy["places"])
        if "shape" in remedy:
            remedy["shape"] = tuple(remedy["shape"])
        return Finding(**{**values, "remedy": REMEDIES[values["kind"]](**remedy)})


@dataclasses.dataclass(frozen=True)
class Limits:
    """When something counts as idle; see DropIdle."""

    tolerance: float
    negligible: float
    size_limit: int
    samples: int


# --- values


def idle_values(model: Model, limits: Limits, task: BoundTask) -> tuple[list[Finding], list[Skip]]:
    """Branches without effect, values that never change, conditions that always come out alike, activations that never act; what is no use there."""
    graph = model.ir.graph
    computed = {id(v): v for v in _computed(graph)}
    seen = ranges(model.ir, {v.name or "": None for v in computed.values()}, limits.samples, task)
    search = _Values(graph, {r.name: r.macs or 0 for r in facts(model).rows}, seen, limits)
    for node in graph:
        search.branch(node)
    constants = {
        id(v): found for v in computed.values() if v.producer() is not None and (found := _constant(seen[v.name or ""], limits.tolerance))
    }
    for value in computed.values():
        if id(value) in constants:
            search.constant(value, *constants[id(value)], constants)
    for node in graph:
        search.never_acts(node)
    return search.findings, search.skipped


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """The numbers that depend on the inputs' values, the inputs among them; what depends on their shapes alone is left to resolve_shapes."""
    found = {id(v) for v in graph.inputs}
    yield from graph.inputs
    for node in graph:
        reads = node.op_type not in ("Shape", "Size") and any(id(v) in found for v in node.inputs)
        if reads or any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            for value in node.outputs:
                if value.name and isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING:
                    found.add(id(value))
                    yield value


def _constant(seen: Range, tolerance: float) -> tuple[Array, float] | None:
    """(the number that each element always is, the largest error relative to the largest of them), None where they change by more."""
    if not seen.samples or not (seen.whole or seen.low.size == 1):
        return None
    if seen.low.dtype.kind != "f":
        return (seen.low, 0.0) if np.array_equal(seen.low, seen.high) else None
    low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    scale = float(max(np.abs(low).max(initial=0), np.abs(high).max(initial=0)))
    error = float((high - low).max(initial=0)) / 2 / scale if scale else 0.0
    return (((low + high) / 2).astype(seen.low.dtype), error) if error <= tolerance else None


class _Values:
    """The findings so far, and the nodes that go with them: what stands there is no finding of its own."""

    def __init__(self, graph: ir.Graph, macs: Mapping[str, int], seen: Mapping[str, Range], limits: Limits) -> None:
        self.graph, self.macs, self.seen, self.limits = graph, macs, seen, limits
        self.findings: list[Finding] = []
        self.skipped: list[Skip] = []
        self.gone: set[ir.Node] = set()

    def branch(self, node: ir.Node) -> None:
        """An Add of two computed values, one of which is nothing beside the sum: x + f(x) is x."""
        total = self.seen.get(node.outputs[0].name or "") if plain(node) and node.op_type in ("Add", "Sub") else None
        parts = [self.seen.get(v.name or "") if v is not None else None for v in node.inputs]
        if total is None or not total.whole or node in self.gone or len(parts) != 2:
            return
        shares = {i: _share(part, total) for i, part in enumerate(parts) if part is not None and (node.op_type == "Add" or i == 1)}
        for index, share in sorted(shares.items(), key=lambda found: found[1]):
            other, part = parts[1 - index], parts[index]
            if other is None or part is None or not other.whole or other.low.shape != total.low.shape or share > self.limits.negligible:
                continue
            says = f"input {node.inputs[index].name} is at most {share:.2g} of the sum in norm"  # type: ignore[union-attr]
            self._add(BRANCH, node, says, part, share, [(node, index)], Passed(1 - index))
            return

    def constant(self, value: ir.Value, array: Array, error: float, constants: Mapping[int, Any]) -> None:
        """A value that is always the same, where what is made of it is not."""
        node, seen = value.producer(), self.seen[value.name or ""]
        assert node is not None
        uses = list(value.uses())
        condition = bool(uses) and array.size == 1 and all(u.node.op_type == "If" for u in uses)
        if node in self.gone or value.is_graph_output() or not (seen.whole or condition):
            return
        if all(id(o) in constants and not o.is_graph_output() for u in uses for o in u.node.outputs):
            return
        if array.nbytes > self.limits.size_limit:
            why = f"{value.name} is always the same, and would take {array.nbytes} bytes in the file, {self.limits.size_limit} are allowed"
            self.skipped.append(Skip(node.name or "", why))
            return
        stays = array.reshape(()) if condition else array[None]
        what = f"is always {array.reshape(-1)[0]:.6g}" if array.size == 1 or (array == array.flat[0]).all() else "is always the same"
        self._add(
            CONDITION if condition else VALUE,
            node,
            f"{value.name} {what}, {array.size} {'number' if array.size == 1 else 'numbers'}",
            seen,
            error,
            [(u.node, u.idx) for u in uses],
            Held.of(value.name or "", stays),
        )

    def never_acts(self, node: ir.Node) -> None:
        """An activation whose input is always where it gives what it takes."""
        seen = self.seen.get(node.inputs[0].name or "") if plain(node) and node.inputs and node.inputs[0] is not None else None
        bounds = _bounds(node)
        if seen is None or bounds is None or not seen.samples or node in self.gone:
            return
        low, high = float(seen.low.min()), float(seen.high.max())
        if not (bounds[0] <= low and high <= bounds[1] and np.isfinite([low, high]).all()):
            return
        says = f"{node.op_type} never acts: its input is from {low:.4g} to {high:.4g}"
        if guarded := _guarded(node.outputs[0]):
            self.skipped.append(Skip(node.name or "", f"{says}; it stays, for it guards the {guarded} behind it"))
        else:
            self._add(NEVER_ACTS, node, says, seen, 0.0, [], Passed())

    def _add(
        self, kind: str, node: ir.Node, says: str, seen: Range, error: float, dropped: list[tuple[ir.Node, int]], remedy: Held | Passed
    ) -> None:
        gone = only_for(dropped)
        self.gone |= gone | ({node} if kind == BRANCH else set())
        saved = sum(self.macs.get(n.name or "", 0) for n in gone)
        low, high = float(seen.low.min()), float(seen.high.max())
        self.findings.append(Finding(kind, node.name or "", says, seen.samples, low, high, error, saved, remedy))


def _share(part: Range, total: Range) -> float:
    """The largest share over the samples that the part has of the sum, in norm."""
    if len(part.rms) != len(total.rms) or not part.rms:
        return np.inf
    one, other = np.asarray(part.rms), np.asarray(total.rms)
    shares = np.divide(one, other, out=np.where(one > 0, np.inf, 0.0), where=other > 0)
    return float(shares.max()) if np.isfinite(one).all() and np.isfinite(other).all() else np.inf


def _guarded(value: ir.Value) -> str:
    """The operator behind a value that is not defined everywhere, empty where there is none: what keeps its input in bounds must not go."""
    for node, index in value.uses():
        if node.op_type in PARTIAL and index == PARTIAL[node.op_type]:
            return node.op_type
        if node.op_type in (*MOVING, "Expand") and (found := _guarded(node.outputs[0])):
            return found
    return ""


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Within what an activation gives what it takes, None for other operators."""
    if node.op_type in ONE_SIDED:
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    given = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2)]
    known = [bound if value is None else scalar(value) for value, bound in zip(given, (-np.inf, np.inf), strict=True)]
    return None if known[0] is None or known[1] is None else (known[0], known[1])


def only_for(dropped: Iterable[tuple[ir.Node, int]]) -> set[ir.Node]:
    """The nodes whose results go nowhere once these inputs of nodes are read no more."""
    edges, gone = set(dropped), set[ir.Node]()
    todo = [n.inputs[i] for n, i in edges]
    while todo:
        value = todo.pop()
        node = value.producer() if value is not None else None
        if node is None or node in gone or any(o.is_graph_output() for o in node.outputs):
            continue
        if all(u.node in gone or (u.node, u.idx) in edges for o in node.outputs for u in o.uses()):
            gone.add(node)
            todo += node.inputs
    return gone


# --- channels


def idle_channels(coupled: Coupled, limits: Limits, task: BoundTask) -> tuple[list[Finding], list[Skip]]:
    """Channels whose part in all the layers that read them is always the same, or next to nothing; with the layers whose other idle inputs stay.

    Replacing the channel's values x_k by constants c_k changes a layer's output by at most ‖Σ_k |w_k| max|x_k − c_k|‖, summed over the places of the
    kernel; that, relative to the least size of the output in any sample, is the error. Those of a group add up to `negligible` at most.
    """
    graph = coupled.model.ir.graph
    reading = {layer.weight.name or "": layer for layer in layers(graph)}
    wanted: dict[str, int | None] = {}
    for layer in reading.values():
        wanted[layer.x.name or ""] = wanted[layer.y.name or ""] = _channel_axis(layer)
    seen = ranges(coupled.model.ir, wanted, limits.samples, task)
    parts = {name: _Part(layer, seen[layer.x.name or ""], seen[layer.y.name or ""]) for name, layer in reading.items()}
    prices = _prices(coupled)
    findings: list[Finding] = []
    for group in coupled.groups:
        findings += _idle_in(group, parts, prices, limits)
    removed = {
        (r.weight, p) for f in findings if isinstance(f.remedy, Removed) for r in f.remedy.places for p in r.positions if r.constants
    }
    skipped = []
    for name, part in parts.items():
        stays = [p for p in np.flatnonzero(part.same(limits.tolerance)).tolist() if (name, p) not in removed]
        if stays:
            listed = ", ".join(map(str, stays[:8])) + (", …" if len(stays) > 8 else "")
            verbs = ("is", "stays") if len(stays) == 1 else ("are", "stay")
            why = f"{len(stays)} of its {part.inputs} inputs {verbs[0]} idle ({listed}) and {verbs[1]}: {_why(part.layer, coupled)}"
            skipped.append(Skip(part.layer.name, why))
    return findings, skipped


class _Part:
    """What the inputs of a layer do to its output. `low`, `high`, `constants`, `deviations`: (groups, inputs of a group), as seen, what takes their
    place, and how far they are from that at most; `bounds`: (outputs, inputs of a group), how far the output can then be off."""

    def __init__(self, layer: Layer, x: Range, y: Range) -> None:
        self.layer, self.samples = layer, x.samples
        w = np.abs(layer.matrices().astype(np.float64))
        sizes = w.reshape(*w.shape[:2], -1, layer.channels_in_row).sum(3)  # (groups, outputs, inputs of a group)
        groups, _, self.inputs = sizes.shape
        seen = (np.broadcast_to(v, (groups * self.inputs,)).astype(np.float64) for v in x.along(_channel_axis(layer)))
        self.low, self.high = (v.reshape(groups, self.inputs) for v in seen)
        with np.errstate(invalid="ignore"):  # of infinite values nothing is constant
            # Beyond the border a convolution reads zeros, so there only a channel that is 0 is constant.
            self.constants = np.zeros_like(self.low) if _pads(layer.node) else (self.low + self.high) / 2
            self.deviations = np.maximum(self.high - self.constants, self.constants - self.low)
            self.bounds = (sizes * self.deviations[:, None]).reshape(-1, self.inputs)
        self.scale = float(np.abs([self.low, self.high]).max(initial=0))
        self.size = min(y.rms, default=0.0) * np.sqrt(len(self.bounds))

    def errors(self, positions: Array) -> Array:
        """(channels,) for positions (channels, k)."""
        sizes = np.linalg.norm(self.bounds[:, positions].sum(2), axis=0)
        return np.divide(sizes, self.size, out=np.where(sizes > 0, np.inf, 0.0), where=self.size > 0)

    def same(self, tolerance: float) -> Array:
        """(inputs of a group,): where nothing ever changes."""
        return np.asarray((self.deviations <= tolerance * self.scale).all(0))


def _idle_in(group: Group, parts: Mapping[str, _Part], prices: Mapping[tuple[str, int], float], limits: Limits) -> Iterator[Finding]:
    """The channels of a group that can go; one stays."""
    reads = [m for m in group.members if m.reads]
    if group.inexact or not reads or any(m.weight not in parts or m.axis != parts[m.weight].layer.reads for m in reads):
        return
    errors = np.max([parts[m.weight].errors(m.positions) for m in reads], axis=0)
    order = np.argsort(errors, kind="stable")[: group.channels - 1]
    for channel in np.sort(order[np.cumsum(errors[order]) <= limits.negligible]).tolist():
        at = {m: m.positions[channel].tolist() for m in group.members}
        seen = [(parts[m.weight], at[m]) for m in reads]
        constants = {m: tuple(part.constants[:, p].ravel().tolist()) for m, (part, p) in zip(reads, seen, strict=True)}
        same = all(part.same(limits.tolerance)[p].all() for part, p in seen)
        kind, what = _kind(seen[0][0].layer, [v for values in constants.values() for v in values], same, len(seen[0][1]))
        yield Finding(
            kind,
            group.node,
            f"channel {channel} of {group.name} {what}",
            seen[0][0].samples,
            min(float(part.low[:, p].min()) for part, p in seen),
            max(float(part.high[:, p].max()) for part, p in seen),
            float(errors[channel]),
            int(sum(prices.get((m.weight, m.axis), 0.0) * len(at[m]) for m in group.members)),
            Removed(group.name, channel, tuple(Place(m.weight, m.axis, tuple(at[m]), constants.get(m, ())) for m in group.members)),
        )


def _kind(layer: Layer, constants: Sequence[float], same: bool, positions: int) -> tuple[str, str]:
    """(kind, in words) of a channel, by what stands before the layer that reads it."""
    node = _source(layer).producer()
    behind = node.op_type if node is not None else "the input"
    zero = not any(constants)
    if behind == "MatMul" and node is not None and all(constant(v) is None for v in node.inputs):
        return HEAD, f"({positions} numbers of an attention head) {'is always 0' if same and zero else 'does next to nothing'}"
    if not same:
        return NEGLIGIBLE, "does next to nothing"
    value = "0" if zero else f"{constants[0]:.4g}" if len(set(constants)) == 1 else "the same"
    if behind in SATURATING and not (behind == "Clip" and zero):
        return SATURATED, f"is always {value} behind {behind}"
    return (DEAD if zero else CHANNEL), f"is always {value} behind {behind}"


def _source(layer: Layer) -> ir.Value:
    """The value whose numbers a layer reads, before they were moved."""
    value = layer.x
    while (node := value.producer()) is not None and node.op_type in MOVING and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _channel_axis(layer: Layer) -> int:
    """Of what it reads and gives, from the end."""
    return 1 - layer.array.ndim if layer.node.op_type == "Conv" else -1


def _pads(node: ir.Node) -> bool:
    """Whether a convolution reads zeros beyond the border."""
    if node.op_type != "Conv":
        return False
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(each(node, "pads", 2 * (len(dims(node.inputs[1]) or ()) - 2), 0))


def _prices(coupled: Coupled) -> dict[tuple[str, int], float]:
    """MACs that a position on an axis of a weight costs."""
    macs = {r.name: r.macs or 0 for r in facts(coupled.model).rows}
    found: dict[tuple[str, int], float] = {}
    for node in coupled.model.ir.graph:
        for value in node.inputs:
            tensor = value.const_value if value is not None and value.is_initializer() else None
            for axis, size in enumerate(tensor.shape if tensor is not None and len(tensor.shape) > 1 else ()):
                assert value is not None
                found[value.name or "", axis] = macs.get(node.name or "", 0) / int(size)  # type: ignore[arg-type]
    return found


def _why(layer: Layer, coupled: Coupled) -> str:
    """Why idle inputs of a layer are not removed."""
    if _source(layer).is_graph_input():
        return "they are the model's own input"
    name = f"{layer.weight.name}[{layer.reads}]"
    known = next((s.why for s in coupled.frozen if s.why.startswith(name)), None)
    return known.split(": ", 1)[1] if known is not None and ": " in known else "elsewhere the same channels are not idle, or can't go"
