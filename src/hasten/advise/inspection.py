"""inspect: facts of a model, its time on this machine layer by layer, the roofline, and what to try first."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten import check, packed
from hasten.advise.roofline import MERGED, Roofline, roofline
from hasten.advise.rules import Line, advise
from hasten.advise.traits import Traits, traits
from hasten.errors import BadInput, Unsupported
from hasten.facts import Facts, facts
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.layers import LayerTime, layer_times
from hasten.measure.machine import cores
from hasten.measure.peaks import Peaks, peaks
from hasten.measure.process import Subject
from hasten.model import Model
from hasten.packed import Sizes
from hasten.runtimes import Target

CALLS = 50
"""Calls that the time of each layer is the mean of."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that `hasten inspect` knows. Without timing only `facts` and `sizes` are there; `missing` says in sentences what is not, and why."""

    facts: Facts
    timing: Timing | None = None
    layers: tuple[LayerTime, ...] = ()
    peaks: Peaks | None = None
    roofline: Roofline | None = None
    traits: Traits | None = None
    advice: tuple[Line, ...] = ()
    missing: tuple[str, ...] = ()
    sizes: Sizes | None = None

    def to_json(self) -> dict[str, Any]:
        return self.facts.to_json() | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "facts"}


def inspect(
    model: Model,
    sizes: Mapping[str, int] | None = None,
    batch: int = 1,
    threads: int | None = None,
    timing: bool = True,
    name: str = "MODEL",
) -> Inspection:
    """Look at a model; with `timing` also run it in onnxruntime, in worker processes. `name`: what the advised commands call it.

    Raises BadInput for a size of an axis that the model does not have.
    """
    found = _looked(model, sizes, batch, threads, timing, name)
    stored, why = _stored(model)
    return dataclasses.replace(found, sizes=stored, missing=(*found.missing, *why))


PACKED_WEIGHTS, PACKED_NODES = 2 << 20, 2000
"""Bytes of weights, and nodes, up to which `inspect` packs a model to say how small it gets: a second or two."""


def _stored(model: Model) -> tuple[Sizes | None, tuple[str, ...]]:
    """The model's size as a file, packed, and through the compressors; none for a large one, and the sentence that says so."""
    if model.weight_bytes <= PACKED_WEIGHTS and len(model.ir.graph) <= PACKED_NODES:
        try:
            return packed.sizes(model), ()
        except Unsupported as e:
            return None, (f"no packed size: {e}",)
    return None, (
        f"no packed size: above {PACKED_WEIGHTS >> 20} MiB of weights or {PACKED_NODES} nodes only hasten convert --to packed tells it",
    )


def _looked(model: Model, sizes: Mapping[str, int] | None, batch: int, threads: int | None, timing: bool, name: str) -> Inspection:
    """All but the sizes."""
    if not timing:
        found = facts(model, sizes, batch)
        return Inspection(found, missing=("--no-timing: no latency, no time per layer, no roofline and no advice; nothing was run",))
    sizes, assumed = complete(model, sizes or {})
    found = known_facts(model, sizes, batch)
    if found.unknown == len(found.rows) and found.rows:
        return Inspection(found, missing=("no shape is known, so nothing was run; give --shape AXIS=SIZE",))
    known = peaks()
    if isinstance(known, Failure):
        return Inspection(found, missing=(f"the machine's peaks could not be measured: {known.reason}",))
    timed, layers, missing = _timed(model, sizes, Target(threads or cores(), batch))
    matched = match(model, layers)
    roof = roofline(found, known, timed.seconds if timed else None, matched, len(layers))
    seen = traits(model, found, roof, known, threads=threads, batch=batch)
    return Inspection(found, timed, layers, known, roof, seen, advise(seen, name), (*assumed, *missing))


ASSUMED = 8
"""The size of a dynamic axis that nobody named one for: what `check.random_feeds` takes."""


def complete(model: Model, sizes: Mapping[str, int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """A size for every named axis behind the first ones, and the sentence that says which were assumed. Raises BadInput for an unknown name."""
    axes = {d for p in model.inputs for d in p.shape if isinstance(d, str)}
    if unknown := sorted(set(sizes) - axes):
        raise BadInput(f"the model has no dynamic axis {unknown[0]!r}; it has {', '.join(sorted(axes)) or 'none'}")
    first = {p.shape[0] for p in model.inputs if p.shape}
    open_ = sorted({d for p in model.inputs for d in p.shape[1:] if isinstance(d, str) and d not in first and d not in sizes})
    note = f"no size was given for {', '.join(open_)}: {ASSUMED} was taken; give --shape AXIS=SIZE" if open_ else ""
    return {**sizes, **dict.fromkeys(open_, ASSUMED)}, (note,) if note else ()


def known_facts(model: Model, sizes: Mapping[str, int] | None = None, batch: int = 1) -> Facts:
    """The facts; where shapes are computed by nodes, which leaves them unknown, those of the model with its axes fixed and these computed."""
    found = facts(model, sizes, batch)
    if not found.unknown:
        return found
    from hasten import doors
    from hasten.passes.fold_constants import FoldConstants, fold_constants

    first = {p.shape[0]: batch for p in model.inputs if p.shape and isinstance(p.shape[0], str)}
    named = {str(d) for p in model.inputs for d in p.shape if isinstance(d, str)}
    fixed = {name: size for name, size in ({**first, **(sizes or {})}).items() if name in named}
    folded = facts(fold_constants(doors.load(model, shapes=fixed).model, FoldConstants(), None)) if named <= fixed.keys() else found
    return folded if folded.unknown < found.unknown else found


def _timed(model: Model, sizes: Mapping[str, int] | None, target: Target) -> tuple[Timing | None, tuple[LayerTime, ...], tuple[str, ...]]:
    """The latency and the layers' times in onnxruntime, on random inputs, and what could not be had."""
    fixed = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), None)
    target = dataclasses.replace(target, batch=fixed or target.batch)
    try:
        feeds = check.random_feeds(model, target.batch, sizes)
    except BadInput as e:
        return None, (), (f"nothing was timed: {e}",)
    with tempfile.TemporaryDirectory(prefix="hasten-") as place:
        path = Path(place) / "model.onnx"
        model.save(path)
        subject = Subject("onnxruntime", path, target)
        timed = judge.time_once(subject, feeds)
        if isinstance(timed, Failure):
            return None, (), (f"nothing was timed: {timed.reason}",)
        layers = layer_times(subject, feeds, CALLS)
    if isinstance(layers, Failure):
        return timed, (), (f"no time per layer: {layers.reason}",)
    return timed, layers, ()


def match(model: Model, layers: Sequence[LayerTime]) -> dict[str, float]:
    """Seconds by the graph's node names.

    onnxruntime names what it ran after a node or a value that it made it of, with endings such as `_nchwc`; a value that a merged node gives
    (a Relu's) stands for the layer before it.
    """
    aliases = {o.name or "": _source(node) for node in model.ir.graph for o in node.outputs}
    aliases |= {node.name or "": node.name or "" for node in model.ir.graph}
    seconds: dict[str, float] = {}
    for layer in layers:
        if (name := _node_of(layer.name, aliases)) is not None:
            seconds[name] = seconds.get(name, 0.0) + layer.seconds
    return seconds


def _source(node: ir.Node) -> str:
    """The node itself, or the layer before it that a runtime merges it into."""
    while node.op_type in MERGED and node.inputs and node.inputs[0] is not None and (before := node.inputs[0].producer()) is not None:
        node = before
    return node.name or ""


def _node_of(executed: str, aliases: Mapping[str, str]) -> str | None:
    """The node that a name in the profile stands for: the same name, or the same without what a merge put before or behind it."""
    text = executed.removeprefix("fused ")
    while text and text not in aliases:
        shorter = ENDING.sub("", text, count=1)
        if shorter == text:
            return None
        text = shorter
    return aliases.get(text)


ENDING = re.compile(r"(/+[A-Za-z0-9]*Fusion/*|[_ ][A-Za-z0-9]+)$")
"""What a merge writes behind a name."""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
