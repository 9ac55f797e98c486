"""simplify: every pass that keeps the results, again and again until none changes anything; each checked, and each with what it brings.

A pass is checked against the oracle on random inputs of every dynamic size, and on real ones where they are given. Where the results differ, its
rewrites are bisected: the guilty one is undone and named, and the run goes on with the others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import importlib.util
import operator
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import onnx_ir as ir

from hasten import check, plan, runtimes
from hasten.errors import BadInput, CheckFailed, OutOfResources, Unsupported
from hasten.facts import at_sizes, facts_of
from hasten.graph import Array, begin, rewrites
from hasten.memory import Flow
from hasten.model import Model, all_graphs, all_nodes
from hasten.plan import Effect
from hasten.runtimes import Target
from hasten.shapes import infer_missing
from hasten.voice import voice

ROUNDS = 6
"""The list of passes is run through at most so often; two or three times are the rule."""

MOST_UNDONE = 20
"""Rewrites of one pass that are undone one by one; with more than that the pass is left out as a whole."""

RESULT_KEEPING = (Effect.EQUIVALENT, Effect.ROUNDING)
TOLERANCES = {Effect.EQUIVALENT: check.BITS, Effect.ROUNDING: check.FLOAT32}

BY_CHOICE = ("merge_siblings", "fuse_attention")
"""Passes that pay in some places alone, or in onnxruntime alone: run where they are asked for."""

ENABLES = {
    "push_transposes": "quantize-static, prune-channels: layers stand next to each other",
    "fold_affine": "quantize-static: the bias is part of the layer",
    "fold_batchnorm": "quantize-static, fold-affine: one scale a channel",
    "fold_activations": "quantize-static: one clip behind a layer",
    "fuse_operators": "quantize-static, factorize: a norm or Gelu is one node",
    "fold_constants": "all that wants constant weights and known shapes",
    "resolve_shapes": "push-transposes, prune-channels: shapes are known",
    "order_nodes": "runtimes that keep the file's order",
}
"""What later on the road a pass makes possible."""

CHECKED_RUNTIMES = ("onnxruntime-plain", "onnxruntime", "openvino")
FLOOR = 0.03
"""A ratio within this of 1 is no gain, however quiet the machine."""

Site = TypeVar("Site", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Size:
    """A graph in numbers. bytes: of weights; moved: bytes that the nodes read and write a call; peak: bytes of activations that live at once."""

    nodes: int
    macs: int
    bytes: int
    moved: int
    peak: int

    @staticmethod
    def of(model: Model) -> Size:
        sized = at_sizes(model)
        known, flow = facts_of(sized), Flow(sized)
        most, _ = flow.peak(range(len(flow.nodes)))
        return Size(sum(1 for _ in all_nodes(model.ir.graph)), known.macs, known.weight_bytes, known.activation_bytes, most)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one pass did in all rounds. after: the graph behind it. undone: rewrites that changed a result, with how. speed: by runtime, how many
    times faster than before this pass."""

    technique: str
    changed: int
    after: Size
    undone: tuple[tuple[str, str], ...] = ()
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    says: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Simplified:
    """The model; the verdicts of the passes that changed something or had to be undone; before; seconds of the passes and, apart, of the checks.

    speed: by runtime, of the whole beside the original. floor: the noise of that, the original beside itself. peaks: bytes of activations that lived
    at once while torch ran the original and the whole in the order of their files; None where it was not measured.
    """

    model: Model
    verdicts: tuple[Verdict, ...]
    before: Size
    after: Size
    seconds: float
    check_seconds: float
    checked: bool
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    floor: float = 0.0
    peaks: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("model", "verdicts", "before", "after")
        } | {
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "passes": [dataclasses.asdict(v) for v in self.verdicts],
            "digest": self.model.digest,
        }


def passes(only: Sequence[str] = (), leave: Sequence[str] = (), also: Sequence[str] = ()) -> tuple[plan.Row, ...]:
    """The passes that keep the results, in their order; `only` those, all but `leave`, with those BY_CHOICE that are named in `also`.

    Raises BadInput for a name that is no such pass.
    """
    known = [r for r in plan.TECHNIQUES if r.folder == "passes" and r.effect in RESULT_KEEPING]
    names = [r.name for r in known]
    asked = [[n.replace("-", "_") for n in given] for given in (only, leave, also)]
    if wrong := [n for given in asked for n in given if n not in names]:
        raise BadInput(f"simplify: there is no pass {wrong[0]!r} that keeps the results; there are {', '.join(r.verb for r in known)}")
    chosen = asked[0] or [n for n in names if n not in BY_CHOICE or n in asked[2]]
    return tuple(r for r in known if r.name in chosen and r.name not in asked[1])


def simplify(
    model: Model, rows: Sequence[plan.Row], feeds: Sequence[Mapping[str, Array]] | None = None, checked: bool = True
) -> Simplified:
    """Run the passes until none changes anything. feeds: real inputs that each pass is checked on too. `checked` False: nothing is checked."""
    with contextlib.nullcontext() if checked else _uncollected():
        return _simplify(model, rows, feeds, checked)


def _simplify(model: Model, rows: Sequence[plan.Row], feeds: Sequence[Mapping[str, Array]] | None, checked: bool) -> Simplified:
    """A pass that ran on the present graph and changed nothing does not run again before another one changes it."""
    before = Size.of(model)
    after: dict[str, Size] = {}
    changed: collections.Counter[str] = collections.Counter()
    undone: dict[str, dict[str, str]] = {row.name: {} for row in rows}
    start = time.perf_counter()
    bench = _Bench(model, checked)
    spent = [time.perf_counter() - start, 0.0]
    settled: dict[str, Model] = {}
    for number in range(ROUNDS):
        for index, row in enumerate(rows):
            if settled.get(row.name) is bench.model:
                continue
            voice().step(f"simplify, round {number + 1}: {row.verb}", index, len(rows))
            given, undone_before = bench.model, len(undone[row.name])
            _pass(row, bench, feeds, undone[row.name], spent)
            if bench.model is given:
                settled[row.name] = given
            else:
                changed[row.name] += bench.model.history[-1].changed
            if row.name not in after and (bench.model is not given or len(undone[row.name]) > undone_before):
                after[row.name] = Size.of(bench.model)
        if all(settled.get(row.name) is bench.model for row in rows):
            break
    voice().step("simplify", len(rows), len(rows))
    verdicts = tuple(Verdict(name, changed[name], size, tuple(undone[name].items())) for name, size in after.items())
    return Simplified(bench.model, verdicts, before, Size.of(bench.model), spent[0], spent[1], checked)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within this block Python does not look for garbage in cycles. A graph is one large cycle and no garbage; to look through it again and again
    takes longer than the passes."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Own(Model):
    """A model whose graph nobody else holds, so a pass may work on it without a clone."""

    def edit(self) -> ir.Model:
        return self.ir


class _Bench:
    """What the passes work on: the model so far, and a clone to try the next pass on, which serves until a pass changes it.

    Unchecked it serves then, too: nobody wants the graph before. Checked, a pass's word that it changed nothing is not taken: what it left is
    compared with what it was given, for a change that is not told would be handed on to the next pass, unseen by the oracle.
    """

    def __init__(self, model: Model, checked: bool):
        self.model, self.checked = model, checked
        self._draft: ir.Model | None = None
        self._parts: list[object] = []
        infer_missing(self._lay_out())

    def _lay_out(self) -> ir.Model:
        """A new draft, without what nothing reads: that is what each pass begins with."""
        self._draft = begin(self.model)
        self._parts = parts(self._draft) if self.checked else []
        return self._draft

    def attempt(self, row: plan.Row, without: Sequence[str]) -> tuple[Model, list[str]]:
        """What the pass makes of the model, itself if nothing, and the nodes that it rewrote at, those of `without` left alone."""
        draft = self._draft if self._draft is not None else self._lay_out()
        with rewrites(without) as found:
            made = row.apply(_Own(draft, self.model.history), plan.make_settings(row.name, {}), None)
        unchanged = not made.history[-1].changed
        if unchanged and self.checked and not _same_objects(self._parts, parts(made.ir)):
            unchanged = False
            made = Model(made.ir, (*made.history[:-1], dataclasses.replace(made.history[-1], changed=1)))
        self._draft = draft if unchanged else None if self.checked else made.ir
        return self.model if unchanged else made, found.done


def parts(model: ir.Model) -> list[object]:
    """All that a graph computes with, in order: nodes, what they read and write, attributes, weights. Not names, types and shapes, which say no
    more. Held, for an object that is gone could leave its place in memory to another."""
    found: list[object] = []
    for graph in all_graphs(model):
        found += (graph, *graph.inputs, *graph.outputs)
        for value in graph.initializers.values():
            found += (value, value.const_value)
        for node in graph:
            found += (node, node.domain, node.op_type, *node.inputs, *node.outputs, *node.attributes.data.values())
    return found


def _same_objects(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _pass(row: plan.Row, bench: _Bench, feeds: Sequence[Mapping[str, Array]] | None, undone: dict[str, str], spent: list[float]) -> None:
    """Run one pass; the bench's model stays itself if that changed nothing. `undone`: nodes that it must leave alone, with what was wrong there;
    what is found to be wrong is added, under the pass's own name where it is wrong whatever it leaves alone."""
    model = bench.model

    def attempt(without: Sequence[str]) -> tuple[Model, list[str]]:
        start = time.perf_counter()
        try:
            return bench.attempt(row, without)
        finally:
            spent[0] += time.perf_counter() - start

    if row.verb in undone:
        return
    made, done = attempt(tuple(undone))
    while bench.checked and made is not model and (wrong := _wrong(row, model, made, feeds, spent)):
        culprit = culprit_of(done, lambda without: _wrong(row, model, attempt((*undone, *without))[0], feeds, spent))
        if culprit is None or len(undone) == MOST_UNDONE:
            voice().say(f"{row.verb} is undone as a whole: {wrong}")
            undone[row.verb] = wrong
            return
        undone[culprit] = wrong
        voice().say(f"{row.verb}: what it did at {culprit} is undone: {wrong}")
        made, done = attempt(tuple(undone))
    bench.model = made


def _wrong(row: plan.Row, before: Model, after: Model, feeds: Sequence[Mapping[str, Array]] | None, spent: list[float]) -> str:
    """What differs beyond what the effect allows, empty if nothing does."""
    start = time.perf_counter()
    try:
        check.legal(after)
        check.same(before, after, within=TOLERANCES[row.effect])
        if feeds:
            check.same(before, after, within=TOLERANCES[row.effect], feeds=feeds)
    except CheckFailed as e:
        return str(e)
    finally:
        spent[1] += time.perf_counter() - start
    return ""


def culprit_of(done: Sequence[Site], wrong: Callable[[Sequence[Site]], Any]) -> Site | None:
    """The site (the node of a pass) at which the first wrong rewrite happened, by bisection; None if it is wrong without any of them, too.

    `wrong`: what is wrong if those sites are left alone. Wrong with the first `high` rewrites, right with the first `low`.
    """
    sites = list(dict.fromkeys(done))
    if not sites or wrong(sites):
        return None
    low, high = 0, len(sites)
    while high - low > 1:
        middle = (low + high) // 2
        if wrong(sites[middle:]):
            high = middle
        else:
            low = middle
    return sites[low]


def never_slower(
    model: Model,
    rows: Sequence[plan.Row],
    feeds: Sequence[Mapping[str, Array]] | None,
    checked: bool,
    target: Target,
    timed_on: dict[str, Array],
) -> Simplified:
    """`simplify`, measured on `timed_on`; while the whole is slower in onnxruntime than the original beyond the noise, the pass that costs most is
    left out."""
    while True:
        found = measured(simplify(model, rows, feeds, checked), model, target, timed_on)
        if not found.verdicts or found.speed.get("onnxruntime", 1.0) >= 1 - found.floor:
            return found
        worst = min(found.verdicts, key=lambda v: v.speed["onnxruntime"])
        voice().say(f"{worst.technique} is left out: with it the model is slower in onnxruntime (× {worst.speed['onnxruntime']:.2f})")
        rows = [r for r in rows if r.name != worst.technique]


def measured(found: Simplified, original: Model, target: Target, feeds: dict[str, Array]) -> Simplified:
    """The same with the speed of each pass and of the whole, in onnxruntime with its own optimisation off and on and in OpenVINO, side by side.

    The passes are timed as in the first round, one after the other; a last column is the whole.
    """
    steps = [original]
    for verdict in found.verdicts:
        row = plan.row(verdict.technique)
        refused = [node for node, _ in verdict.undone]
        with rewrites(refused):
            steps.append(row.apply(steps[-1], plan.make_settings(row.name, {}), None) if row.verb not in refused else steps[-1])
    speeds, floor = speeds_beside(original, [*steps[1:], found.model], target, feeds)
    verdicts = []
    for i, verdict in enumerate(found.verdicts, 1):
        gains = {name: s[i] / (s[i - 1] if i > 1 else 1.0) for name, s in speeds.items()}
        verdicts.append(dataclasses.replace(verdict, speed=gains, says=_says(verdict.technique, gains, floor)))
    whole = {name: s[-1] for name, s in speeds.items()}
    return dataclasses.replace(found, verdicts=tuple(verdicts), speed=whole, floor=floor, peaks=_peaks(original, found.model, feeds))


def _peaks(before: Model, after: Model, feeds: Mapping[str, Array]) -> tuple[int, int] | None:
    """Measured in torch, None without it, or where it can't run one of them."""
    if importlib.util.find_spec("torch") is None:
        return None
    from hasten.learn.live_memory import measured_peak

    try:
        return measured_peak(before, feeds), measured_peak(after, feeds)
    except Unsupported:
        return None


def speeds_beside(
    original: Model, models: Sequence[Model], target: Target, feeds: dict[str, Array], rounds: int = 1
) -> tuple[dict[str, list[float]], float]:
    """(by runtime: how many times faster than the original it is itself, then each of the models; the noise floor), in `rounds` of processes."""
    from hasten.measure.beside import ratios_beside

    speeds: dict[str, list[float]] = {}
    for name in CHECKED_RUNTIMES:
        if any(runtimes.get(name).unsupported(m, target) for m in (original, *models)):
            continue
        with contextlib.suppress(OutOfResources):
            speeds[name] = [1 / r for r in ratios_beside(original, [original, *models], name, target, feeds, rounds)]
    return speeds, max([FLOOR, *(abs(s[0] - 1) for s in speeds.values())])


def _says(technique: str, gains: Mapping[str, float], floor: float) -> str:
    """The verdict in words."""
    faster = [f"× {g:.2f} in {name}" for name, g in gains.items() if name != "onnxruntime-plain" and g > 1 + floor]
    slower = [f"× {g:.2f} in {name}" for name, g in gains.items() if g < 1 - floor]
    words = []
    if faster:
        words.append(f"faster: {', '.join(faster)}")
    elif gains.get("onnxruntime-plain", 1.0) > 1 + floor:
        words.append("already done by onnxruntime: no gain")
    elif gains:
        words.append("no gain in time")
    if slower:
        words.append(f"slower: {', '.join(slower)}")
    if technique in ENABLES:
        words.append(f"for {ENABLES[technique]}")
    return "; ".join(words)
