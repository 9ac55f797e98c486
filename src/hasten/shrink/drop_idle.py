"""drop_idle: leave out what real data shows to be in vain, in every place at once. Effect: lossy.

On the calibration samples: values that are the same for every sample become constants; an If whose condition always comes out alike can be decided;
Relu, Clip and their kin go where they never act; branches go that are nothing beside what they are added to; channels go that are always 0 behind a
Relu, saturated, or without a part in what reads them, whole attention heads among them, and what they always contributed goes into a bias (the
observation of dead and redundant units: Hu et al., Network Trimming, arXiv 1607.03250). What is found, and how: idle.py.

When: trained models have dead channels, and data has inputs that never vary. `hasten simplify` with --dynamic does it within an accuracy budget and
undoes what does not hold on samples that were not looked at; this verb alone trusts the evidence.
Cost: two or more runs of the calibration samples, twice the activations of one sample in memory; nothing at run time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten import check
from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, take_place, unique_name
from hasten.model import Model, Skip
from hasten.rewrite import Edit, dims, plain, same_dims
from hasten.shrink.groups import Coupled, Group
from hasten.shrink.idle import Finding, Held, Limits, Passed, Removed, idle_channels, idle_values
from hasten.shrink.keep import keep, left
from hasten.shrink.layers import Layer, layers
from hasten.shrink.prune_channels import coupled_of
from hasten.shrink.repair import bias_of, hold
from hasten.task import BoundTask

THIN = 100
"""Samples below which what never changed is thin evidence: 3 % of all samples, or more, can be otherwise (the rule of three, see idle.py)."""

BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "And", "Or", "Xor",
    "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
)  # fmt: skip
"""Operators that read one row for all samples as well as one for each."""


@dataclasses.dataclass(frozen=True)
class DropIdle:
    """`samples`: at most so many of the calibration split are looked at. `tolerance`: values count as the same within this share of the largest of
    their tensor. `negligible`: a branch, or all idle channels of a layer together, may be this share of the result in norm. `size_limit`: bytes of
    a constant that takes a value's place, at most."""

    samples: int = 512
    tolerance: float = 1e-4
    negligible: float = 1e-3
    size_limit: int = 65536

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadInput(f"drop-idle: samples is {self.samples}, expected at least 1, and some hundreds to show anything")
        for name in ("tolerance", "negligible"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"drop-idle: {name} is {getattr(self, name):g}, expected a share of at least 0 and below 1, such as 0.001")
        if self.size_limit < 0:
            raise BadInput(f"drop-idle: size_limit is {self.size_limit}, expected a number of bytes of at least 0")

    @property
    def limits(self) -> Limits:
        return Limits(self.tolerance, self.negligible, self.size_limit, self.samples)


def drop_idle(model: Model, settings: DropIdle, task: BoundTask | None) -> Model:
    """The model without what is idle. Raises Refused where there is neither data nor an observation."""
    if task is None or (task.observation is None and task.calibrate is None):
        raise Refused("drop-idle needs data to see what never changes, and none came; give --data")
    seen = task.observation or observe(model, settings, task)
    return without(model, settings, findings_of(seen), [Skip(node, why) for node, why in seen["left"]])


def observe(model: Model, settings: DropIdle, task: BoundTask) -> dict[str, Any]:
    """`findings`: each with its evidence and its remedy; `left`: what is idle and stays, with the reason; `samples`: how many were seen."""
    assert task.calibrate is not None
    values, one = idle_values(model, settings.limits, task)
    channels, other = idle_channels(coupled_of(without(model, settings, values)), settings.limits, task)
    samples = min(settings.samples, len(task.calibrate))
    left = [(s.node, s.why) for s in (*one, *other)]
    if samples < THIN:
        left.insert(0, ("", thin(samples)))
    return {"findings": [dataclasses.asdict(f) for f in (*values, *channels)], "left": left, "samples": samples}


def thin(samples: int) -> str:
    """What so few samples prove."""
    return (
        f"the evidence is thin: {samples} samples were seen, and what never changed in so few can be otherwise in up to "
        f"{min(1.0, 3 / samples):.0%} of all samples (95 %); give more data: {THIN} samples for calibration at least"
    )


def findings_of(seen: dict[str, Any]) -> list[Finding]:
    """Raises Refused where the plan's observation can't be read."""
    try:
        return [Finding.from_json(f) for f in seen["findings"]]
    except (KeyError, TypeError) as e:
        raise Refused(f"drop-idle: the plan's findings can't be read ({type(e).__name__}: {e}); make the plan again") from e


def without(model: Model, settings: DropIdle, findings: Sequence[Finding], skipped: Iterable[Skip] = ()) -> Model:
    """The model without these; what no longer stands where it was found is skipped."""
    skips = list(skipped)
    edited = model.edit()
    changed = _values(edited, [f for f in findings if not isinstance(f.remedy, Removed)], skips)
    done = finish(model, edited, settings, "drop_idle", changed, skips)
    if channels := [f for f in findings if isinstance(f.remedy, Removed)]:
        coupled = coupled_of(Model(done.ir, model.history))
        made, removed = _channels(coupled, channels, skips)
        done = finish(coupled.model, made, settings, "drop_idle", changed + removed, skips)
    if findings and done.fits_in_memory:
        check.oracle(done)
    return done


# --- values


def _values(edited: ir.Model, findings: Sequence[Finding], skips: list[Skip]) -> int:
    edit, graph = Edit(edited), edited.graph
    nodes = {n.name: n for n in graph}
    values = {o.name: o for n in graph for o in n.outputs}
    changed = 0
    for finding in findings:
        node, remedy = nodes.get(finding.node), finding.remedy
        value = values.get(remedy.value) if isinstance(remedy, Held) else node.outputs[0] if node is not None else None
        if node is None or value is None or node.graph is not graph:
            skips.append(Skip(finding.node, f"{finding.kind}: nothing stands there any more"))
            continue
        if isinstance(remedy, Held):
            _hold_value(edit, value, remedy.array)
        elif isinstance(remedy, Passed):
            source = node.inputs[remedy.index]
            assert source is not None
            edit.bypass(node, source)
        changed += 1
    return changed


def _hold_value(edit: Edit, value: ir.Value, array: Array) -> None:
    """Let every reader of the value read the constant: as it is where that is broadcast, else once for each sample."""
    maker = value.producer()
    assert maker is not None
    weight = edit.weight(maker, f"{value.name}_constant", array)
    stretched: ir.Value | None = None
    for node, index in list(value.uses()):
        if array.ndim == 0 or (dims(value) or (0,))[0] == 1 or _broadcasts(node, index):
            node.replace_input_with(index, weight)
            continue
        stretched = stretched or _stretched(edit, value, weight)
        node.replace_input_with(index, stretched)


def _broadcasts(node: ir.Node, index: int) -> bool:
    """Whether another input alone gives the result its shape."""
    others = [v for i, v in enumerate(node.inputs) if i != index]
    return plain(node) and node.op_type in BROADCASTING and any(same_dims(dims(v), dims(node.outputs[0])) for v in others)


def _stretched(edit: Edit, value: ir.Value, weight: ir.Value) -> ir.Value:
    """The constant, once for each sample of the batch: an Expand in front of everything."""
    graph = edit.model.graph
    first = next(iter(graph))
    batch = edit.before(first, "Shape", [graph.inputs[0]], {"start": 0, "end": 1})
    batch.type = ir.TensorType(ir.DataType.INT64)
    ones = edit.weight(first, f"{value.name}_ones", np.ones(len(dims(weight) or ()) - 1, np.int64))
    shape = edit.before(first, "Concat", [batch, ones], {"axis": 0})
    made = edit.before(first, "Expand", [weight, shape])
    made.shape = value.shape
    return made


# --- channels


def _channels(coupled: Coupled, findings: Sequence[Finding], skips: list[Skip]) -> tuple[ir.Model, int]:
    """(an edit of the model without these channels, how many went)."""
    gone: dict[str, list[int]] = {}
    groups = {g.name: g for g in coupled.groups}
    taken: list[Removed] = []
    for finding in findings:
        remedy = finding.remedy
        assert isinstance(remedy, Removed)
        found = _channel(coupled.groups, remedy)
        mine = gone.setdefault(found[0].name, []) if found is not None else []
        if found is None or len(mine) + 1 == found[0].channels:
            why = "its last channel stays" if found is not None else "it is coupled to other channels than when it was found"
            skips.append(Skip(finding.node, f"{finding.says}, but {why}"))
            continue
        mine.append(found[1])
        taken.append(remedy)
    kept = {name: np.setdiff1d(np.arange(groups[name].channels), mine) for name, mine in gone.items() if mine}
    made = keep(coupled, kept)
    stays = left(coupled, kept)
    narrow = {layer.name: layer for layer in layers(made.graph)}
    for layer in layers(coupled.model.ir.graph):
        shift = _shift(layer, taken)
        if shift.any():
            atoms = coupled.sites.get((layer.weight.name or "", layer.makes))
            _add_to_output(made.graph, narrow[layer.name], shift if atoms is None else shift[stays[coupled.labels[atoms]]])
    return made, len(taken)


def _channel(groups: Sequence[Group], remedy: Removed) -> tuple[Group, int] | None:
    """The group and the number of the channel, None where it is not there, or hangs together with others than were looked at."""
    wanted = {(p.weight, p.axis): p.positions for p in remedy.places}
    for group in groups:
        if {(m.weight, m.axis) for m in group.members} == set(wanted):
            same = [
                (m.positions == wanted[m.weight, m.axis]).all(1)
                for m in group.members
                if m.positions.shape[1] == len(wanted[m.weight, m.axis])
            ]
            if len(same) == len(group.members) and (channel := np.flatnonzero(np.all(same, axis=0))).size:
                return group, int(channel[0])
    return None


def _shift(layer: Layer, taken: Iterable[Removed]) -> Array:
    """(outputs,): what the channels that go always gave."""
    w = layer.matrices().astype(np.float64)
    sums = w.reshape(*w.shape[:2], -1, layer.channels_in_row).sum(3)  # (groups, outputs, inputs of a group)
    total = np.zeros(w.shape[:2])
    for remedy in taken:
        for read in remedy.places:
            if read.weight == layer.weight.name and any(read.constants) and read.axis == layer.reads:
                constants = np.asarray(read.constants).reshape(layer.groups, 1, -1)
                total += (sums[:, :, list(read.positions)] * constants).sum(2)
    return total.ravel()


def _add_to_output(graph: ir.Graph, layer: Layer, shift: Array) -> None:
    """Add (outputs,) to what a layer gives: in its bias, or by an Add behind it."""
    bias, has_place = bias_of(layer)
    known = constant(bias)
    if bias is not None and known is not None:
        hold(bias, (known.astype(np.float64) + shift).astype(known.dtype))
        return
    weight = add_weight(graph, f"{layer.name}_bias", shift.astype(layer.array.dtype))
    if has_place:
        layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, weight)
        return
    shape = [-1 if axis == 1 else 1 for axis in range(layer.array.ndim)]
    if layer.node.op_type == "Conv":
        hold(weight, np.reshape(shift, shape).astype(layer.array.dtype))
    made = ir.node("Add", [layer.y, weight], name=unique_name(graph, f"{layer.name}_add"))
    new = made.outputs[0]
    new.name, new.type, new.shape = unique_name(graph, f"{layer.name}_added"), layer.y.type, layer.y.shape
    graph.insert_after(layer.node, made)
    take_place(layer.y, new)
    layer.y.name = layer.y.name or unique_name(graph, f"{layer.name}_alone")
    made.replace_input_with(0, layer.y)
