"""prune_channels: remove channels (units, heads, places of a hidden state) and residual blocks, in every place at once. Effect: lossy.

What hangs together is found by groups.py, and goes out of the graph for good: a smaller ordinary model, no masks. Which ones:

1. by `importance`, an order of the channels within each group (importance.py);
2. how much harm each group does at each width, measured: the error of the outputs on calibration samples (widths.py);
3. how much each width saves: MACs, parameters, or time, measured in the runtime, each in a process of its own. Widths that are not faster than a
   larger one are left out: a runtime's kernels like some counts better than others (seen: 11 of 16 channels slower than 16, 8 of 16 × 1.75);
4. the widths of least harm that meet the goal; with `speedup`, the whole is timed, and the goal corrected until the measured time is met.

Then the layers that are left are refitted to the calibration samples by least squares (repair.py); training is another step (`distill`).

When: a model is wider than its task needs, and the time of a call counts. With training data, `distill` afterwards brings most of the accuracy back.
Cost: passes over `samples` samples for each group and width; with `speedup` a second for each kind of layer and width; nothing at run time.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten import check, runtimes
from hasten.calibrate import check_finite, check_same, digest, tensors
from hasten.errors import BadInput, Refused
from hasten.graph import Array, finish
from hasten.measure import judge
from hasten.measure.beside import ratios_beside
from hasten.measure.machine import cores
from hasten.model import Model, Skip
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.runtimes import Target
from hasten.shrink.blocks import remove, residual_blocks
from hasten.shrink.groups import Coupled, Group, couple
from hasten.shrink.importance import IMPORTANCES, WIDEST, Scores, Seen, importance, refitted, see, strongest
from hasten.shrink.keep import keep, left
from hasten.shrink.layers import layers
from hasten.shrink.repair import repair
from hasten.shrink.widths import LEFT_OUT, Choice, Prices, Space, by_count, by_time, choose, narrowest, space, uniform, worthwhile
from hasten.task import BoundTask
from hasten.voice import voice

AUTO = ("magnitude", "reconstruction")
"""What `auto` tries; for each group and width the one that does less harm counts."""

HOPELESS = 1e9
"""Harm of what gives numbers that are not finite."""

LOOKED = 64
"""Samples on which harm is measured."""

TIMED = 4
"""Widths of a kind of group that are timed, at most, all of it aside."""

NOISE = 0.02
"""A width must save at least this share of the time of the next larger one."""

TRIES, NEAR = 5, 1.04
"""With `speedup`: the whole is timed so many times at most, until the measured ratio is at least what was asked for and at most so much above."""

GOALS, SCOPES = ("keep_macs", "keep_params", "speedup"), ("global", "layer")

REMEMBERED = 12
"""Observations, harms and times that are kept for the next speed-up of the same model."""


@dataclasses.dataclass(frozen=True)
class PruneChannels:
    """One goal: `keep_macs` or `keep_params`, the share that stays, or `speedup`, measured in `runtime` with so many `threads` (0: all) and `batch`;
    without any, half of the MACs stay.
    `importance`: magnitude, batch_norm, activation, reconstruction, taylor, random; auto takes, for each group and width, the one of magnitude
    and reconstruction that does less harm (without data: magnitude). `scope`: global lets each group have a width of its own, layer gives all the
    same share. `multiple`: widths are multiples of it; 0: of 8, 4 or 2, by the size. `blocks`: residual blocks may be left out whole. `only`,
    `leave`: layers or groups that alone may, or may not, lose channels. `repair`: refit the rest to `samples` calibration samples."""

    keep_macs: float = 0.0
    keep_params: float = 0.0
    speedup: float = 0.0
    importance: str = "auto"
    scope: str = "global"
    multiple: int = 0
    blocks: bool = True
    only: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    repair: bool = True
    samples: int = 512
    runtime: str = "onnxruntime"
    threads: int = 0
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        goals = {name: getattr(self, name) for name in GOALS}
        given = [name for name, value in goals.items() if value]
        if len(given) > 1:
            came = " and ".join(f"{n.replace('_', '-')} {goals[n]:g}" for n in given)
            raise BadInput(f"prune-channels wants one goal, and {came} came; give --speedup 2, --keep-macs 0.5 or --keep-params 0.5")
        for name in ("keep_macs", "keep_params"):
            if not 0 <= goals[name] < 1:
                raise BadInput(f"prune-channels: {name} is {goals[name]:g}, expected a share above 0 and below 1")
        if self.speedup and not 1 < self.speedup < math.inf:
            raise BadInput(f"prune-channels: speedup is {self.speedup:g}, expected a number above 1, such as 2 for half of the time")
        for name, value, known in (("importance", self.importance, ("auto", *IMPORTANCES)), ("scope", self.scope, SCOPES)):
            if value not in known:
                raise BadInput(f"prune-channels: {name} {value!r} is unknown; use one of {', '.join(known)}")
        for name, least in (("multiple", 0), ("samples", 1), ("threads", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"prune-channels: {name} is {getattr(self, name)}, expected at least {least}")
        runtimes.get(self.runtime)

    @property
    def share(self) -> float:
        """Of the MACs, or parameters, that may stay."""
        return self.keep_macs or self.keep_params or 0.5


def prune_channels(model: Model, settings: PruneChannels, task: BoundTask | None) -> Model:
    """The smaller model. Raises Refused where the goal can't be met, or where a repaired one is made again without its data."""
    seen = (task.observation if task is not None else None) or observe(model, settings, task)
    if seen["data"] is not None:
        check_same("prune-channels", seen["data"], task, settings.samples)
    coupled = coupled_of(model)
    made, dropped = _made(coupled, seen["kept"], seen["left_out"])
    skipped = [*coupled.frozen, *(Skip("", note) for note in seen["notes"])]
    if seen["data"] is not None:
        assert task is not None
        stays = left(coupled, seen["kept"])
        masks = {site: stays[coupled.labels[atoms]] for site, atoms in coupled.sites.items()}
        skipped += repair(
            coupled.model.ir, made, {s: np.flatnonzero(m) for s, m in masks.items() if not m.all()}, task, settings.samples, settings.seed
        )
    skipped += [
        Skip(g.node, f"{g.name}: narrowed, but not as if zeroed: {g.inexact}")
        for g in coupled.groups
        if g.name in seen["kept"] and g.inexact
    ]
    done = finish(coupled.model, made, settings, "prune_channels", len(seen["kept"]) + dropped, skipped)
    if done.fits_in_memory:
        check.oracle(done)
    return done


def observe(model: Model, settings: PruneChannels, task: BoundTask | None) -> dict[str, Any]:
    """`kept`: by group the channels that stay; `left_out`: blocks; `notes`: what it costs now, and what was measured; `data`: a digest of the
    calibration samples that the rest is refitted to, None where it is not."""
    data = task is not None and task.calibrate is not None
    asked = dataclasses.replace(settings, repair=False)
    seen = _once(("widths", model.digest, asked, task.digest if task is not None and data else ""), lambda: _observed(model, asked, task))
    return {**seen, "data": digest(task, settings.samples) if settings.repair else None}


_MEMORY: collections.OrderedDict[tuple[Any, ...], Any] = collections.OrderedDict()


def _once(key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
    """What was computed for this key, if it was among the last: a search asks for several speed-ups of one model, repaired and trained."""
    if key not in _MEMORY:
        _MEMORY[key] = compute()
        while len(_MEMORY) > REMEMBERED:
            _MEMORY.popitem(last=False)
    return _MEMORY[key]


def _observed(model: Model, settings: PruneChannels, task: BoundTask | None) -> dict[str, Any]:
    data = task is not None and task.calibrate is not None
    coupled = coupled_of(model)
    allowed = _allowed(coupled, settings)
    space_ = space(coupled, allowed, settings.multiple, settings.blocks and settings.scope == "global" and not settings.only)
    if not space_.units:
        why = "; ".join(f"{s.node}: {s.why}" for s in coupled.frozen[:3]) or "it has no layer between two others"
        raise Refused(f"prune-channels: no channels of this model can be removed ({why})")
    criteria = (settings.importance,) if settings.importance != "auto" else AUTO if data else AUTO[:1]
    options = {u.name: u.options for u in space_.units}

    def look() -> tuple[dict[str, dict[int, float]], Orders]:
        seen = see(coupled, task, settings.samples, settings.seed)
        return _harm(seen, space_, {name: importance(name, seen) for name in criteria})

    fixed = dataclasses.replace(settings, keep_macs=0.0, keep_params=0.0, speedup=0.0, threads=0, batch=1, runtime="onnxruntime")
    key = (model.digest, fixed, task.digest if task is not None and data else "")
    harm, orders = _once(("harm", *key), look)
    notes = [f"importance: {' or '.join(criteria)}"]
    if settings.speedup:
        choice, more = _for_time(coupled, space_, options, harm, orders, settings, task, key)
        notes += more
    else:
        by_parameters = (space_.parameters, space_.total_parameters)
        amounts, total = by_parameters if settings.keep_params else (space_.macs, space_.total_macs)
        prices, goal = by_count(space_, amounts, total), settings.share
        found = _best(space_, options, harm, prices, goal, settings.scope)
        if found is None:
            least = _least(space_, options, prices)
            what = "parameters" if settings.keep_params else "MACs"
            raise Refused(
                f"prune-channels: {goal:.3g} of the {what} were asked for, and no width leaves less than {least:.3g}; ask for more"
            )
        choice = found
    for name, price in (
        ("MACs", by_count(space_, space_.macs, space_.total_macs)),
        ("parameters", by_count(space_, space_.parameters, space_.total_parameters)),
    ):
        notes.append(f"{name}: about {price.cost(choice):.3f} of the original's")
    kept, out = _sets(space_, choice, orders)
    return {"kept": kept, "left_out": out, "notes": notes}


def coupled_of(model: Model) -> Coupled:
    """The groups of the model with its constants folded.

    Exports compute shapes and transposed weights while running; folded, a channel can be followed through them.
    """
    return couple(fold_constants(model, FoldConstants(), None))


def _allowed(coupled: Coupled, settings: PruneChannels) -> list[Group]:
    """The groups that may lose channels. Raises BadInput for a name that no group and no layer has, with the reason for one that can't."""
    by_name: dict[str, set[str]] = {}
    for group in coupled.groups:
        for name in {group.name, group.node, *(m.weight for m in group.members)}:
            by_name.setdefault(name, set()).add(group.name)
    for name in (*settings.only, *settings.leave):
        if name not in by_name:
            frozen = next((s.why for s in coupled.frozen if s.node == name or s.why.startswith(name)), None)
            if frozen is not None and name in settings.leave:
                continue
            known = ", ".join(dict.fromkeys(g.node or g.name for g in coupled.groups))
            raise BadInput(
                f"prune-channels: {name!r} can't lose channels: {frozen or 'the model has no such layer or group'}; those that can: {known}"
            )
    only = set().union(*(by_name[n] for n in settings.only)) if settings.only else {g.name for g in coupled.groups}
    gone = set().union(*(by_name.get(n, set()) for n in settings.leave)) if settings.leave else set()
    return [g for g in coupled.groups if g.name in only - gone]


def _made(coupled: Coupled, kept: Mapping[str, Sequence[int]], left_out: Sequence[str]) -> tuple[Any, int]:
    """(an edit of the model without these channels and blocks, blocks that are gone)."""
    made = keep(coupled, kept)
    by_name = {v.name: v for v in (*made.graph.inputs, *(o for n in made.graph for o in n.outputs))}
    chosen = [
        dataclasses.replace(b, source=by_name[b.source.name], result=by_name[b.result.name])
        for b in residual_blocks(coupled.model.ir.graph)[0]
        if b.name in left_out
    ]
    remove(made.graph, chosen)
    return made, len(chosen)


Orders = dict[str, dict[int, Array]]
"""By unit and option: the channels that stay."""


def _sets(space_: Space, choice: Choice, orders: Orders) -> tuple[dict[str, list[int]], list[str]]:
    """(by group the channels that stay, blocks that are left out)."""
    kept = {u.name: orders[u.name][choice[u.name]].tolist() for u in space_.units if u.group and choice[u.name] < u.options[0]}
    return kept, [u.name for u in space_.units if u.block and choice[u.name] == LEFT_OUT]


def _with_choice(coupled: Coupled, space_: Space, choice: Choice, orders: Orders) -> Model:
    return finish(coupled.model, _made(coupled, *_sets(space_, choice, orders))[0], PruneChannels(), "trial", 0, [])


def _harm(seen: Seen, space_: Space, scores: dict[str, Scores]) -> tuple[dict[str, dict[int, float]], Orders]:
    """By unit and option: the relative error of the outputs with that unit alone reduced, the layers that read it refitted; and the channels that
    stay, by the criterion with which the error is least. Without data: the share of the importance that goes, by the first criterion."""
    coupled, task = seen.coupled, seen.task
    first = next(iter(scores.values()))
    orders = {u.name: {o: strongest(first[u.name], o) for o in u.options} for u in space_.units if u.group}
    if task is None:
        return {u.name: {o: _share_gone(first.get(u.name), o, u.options) for o in u.options} for u in space_.units}, orders
    output = task.output if task.output in {p.name for p in coupled.model.outputs} else coupled.model.outputs[0].name
    whole = _outputs(coupled.model, output, task)
    check_finite("prune-channels", output, whole)
    scale = float(np.square(whole - whole.mean(0)).sum()) or float(np.square(whole).sum()) or 1.0
    widest = {u.name: u.options[0] for u in space_.units}
    harm: dict[str, dict[int, float]] = {}
    for number, unit in enumerate(space_.units):
        voice().step("harm of each width", number, len(space_.units))
        harm[unit.name] = {unit.options[0]: 0.0}
        for option in unit.options[1:]:
            errors: list[float] = []
            for criterion in scores if unit.group else (next(iter(scores)),):
                if unit.group:
                    orders[unit.name][option] = strongest(scores[criterion][unit.name], option)
                tried = _with_choice(coupled, space_, widest | {unit.name: option}, orders)
                if unit.group:
                    _refit(tried, seen, unit.group, orders[unit.name][option])
                error = float(np.square(_outputs(tried, output, task).astype(np.float64) - whole).sum()) / scale
                errors.append(error if math.isfinite(error) else HOPELESS)
            if unit.group:
                best = list(scores)[int(np.argmin(errors))]
                orders[unit.name][option] = strongest(scores[best][unit.name], option)
            harm[unit.name][option] = max(min(errors), *harm[unit.name].values())
    voice().step("harm of each width", len(space_.units), len(space_.units))
    return harm, orders


def _refit(tried: Model, seen: Seen, group: Group, kept: Array) -> None:
    """Refit the layers that read the group, in place (the model is a trial of ours), to the inputs of the original."""
    now = {layer.weight.name: layer for layer in layers(tried.ir.graph)}
    stays = left(seen.coupled, {group.name: kept})
    for layer, member in seen.reading(group):
        mine, h = now.get(layer.weight.name), seen.moments[layer.name]
        if mine is None or h.shape[1] > WIDEST or mine.groups != layer.groups:
            continue
        made = refitted(layer, member, h, kept).reshape(-1, mine.matrices().shape[2])
        atoms = seen.coupled.sites.get((member.weight, layer.makes))  # a layer of one output has none
        rows = made if atoms is None else made[stays[seen.coupled.labels[atoms]]]
        array = mine.weight_of(rows.reshape(mine.matrices().shape))
        array.flags.writeable = False
        assert mine.weight.const_value is not None
        mine.weight.const_value = ir.Tensor(array, dtype=mine.weight.const_value.dtype, name=mine.weight.name)


def _share_gone(scores: Array | None, option: int, options: Sequence[int]) -> float:
    """A block is as much as a half of a group."""
    if scores is None:
        return 0.0 if option else 0.5
    finite = np.where(np.isfinite(scores), scores, np.max(scores[np.isfinite(scores)], initial=0.0))
    return float(1 - np.sort(finite)[::-1][:option].sum() / max(finite.sum(), 1e-300))


def _outputs(model: Model, output: str, task: BoundTask) -> Array:
    return np.concatenate([value for _, value, _ in tensors(model.ir, [output], LOOKED, task, batch=16)])


def _best(
    space_: Space, options: dict[str, tuple[int, ...]], harm: dict[str, dict[int, float]], prices: Prices, goal: float, scope: str
) -> Choice | None:
    return uniform(space_, options, prices, goal) if scope == "layer" else choose(space_, options, harm, prices, goal)


def _least(space_: Space, options: dict[str, tuple[int, ...]], prices: Prices) -> float:
    return prices.cost(narrowest(space_, options, prices))


def _for_time(
    coupled: Coupled,
    space_: Space,
    options: dict[str, tuple[int, ...]],
    harm: dict[str, dict[int, float]],
    orders: Orders,
    settings: PruneChannels,
    task: BoundTask | None,
    key: tuple[Any, ...],
) -> tuple[Choice, list[str]]:
    """The choice that was measured to be as much faster as asked for, and notes. Raises Refused where none is."""
    target = Target(settings.threads or cores(), _batch(coupled.model, settings))
    feeds = judge.timing_feeds(
        task.calibrate if task else None, target.batch, check.random_feeds(coupled.model, target.batch, seed=settings.seed)
    )
    measured = _once(("times", *key, settings.runtime, target), lambda: _measured(coupled, space_, orders, settings, target, feeds))
    allowed = {u.name: worthwhile(options[u.name], measured[u.name], NOISE) for u in space_.units}
    prices = by_time(space_, measured)
    wish, floor = 1 / settings.speedup, _least(space_, allowed, prices)
    tried: dict[tuple[int, ...], tuple[Choice, float]] = {}
    goal, fast, slow = max(wish, floor), floor, 1.0  # a cost that was fast enough (the least there is, at first), and one that was not
    for _ in range(3 * TRIES):
        choice = _best(space_, allowed, harm, prices, goal, settings.scope)
        if choice is None or len(tried) == TRIES:
            break
        known = tuple(choice.values())
        if known not in tried:
            made = _with_choice(coupled, space_, choice, orders)
            ratio = ratios_beside(coupled.model, [made], settings.runtime, target, feeds)[0]
            voice().say(f"prune-channels: widths measured at {1 / ratio:.2f} × the speed ({settings.speedup:g} × wanted)")
            tried[known] = (choice, ratio)
        ratio = tried[known][1]
        if wish / NEAR <= ratio <= wish or (goal <= floor and ratio > wish):
            break
        fast, slow = (goal, slow) if ratio <= wish else (fast, goal)
        goal = min(max(goal * wish / ratio, fast + 0.1 * (slow - fast)), slow - 0.1 * (slow - fast))
    best = max((t for t in tried.values() if t[1] <= wish), key=lambda t: t[1], default=None)
    if best is None:
        reached = max((1 / r for _, r in tried.values()), default=1.0)
        raise Refused(
            f"prune-channels: × {settings.speedup:g} was asked for, and the narrowest widths that were tried reached × {reached:.2f} in "
            f"{settings.runtime}; ask for less, or for MACs"
        )
    notes = [
        f"measured in {settings.runtime}, {target.threads} threads, batch {target.batch}: {1 / best[1]:.2f} × the original's speed, before folding"
    ]
    for unit in space_.units:
        slower = sorted(set(measured[unit.name]) - set(allowed[unit.name]), reverse=True)
        if slower and unit.group:
            notes.append(f"{unit.name}: {', '.join(map(str, slower))} of {unit.options[0]} channels are not faster than more")
    return best[0], notes


def _batch(model: Model, settings: PruneChannels) -> int:
    return next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), settings.batch)


def _measured(
    coupled: Coupled, space_: Space, orders: Orders, settings: PruneChannels, target: Target, feeds: dict[str, Array]
) -> dict[str, dict[int, float]]:
    """By unit and option: the model's time with that unit alone reduced, of the whole's. One unit of each kind is timed."""
    widest = {u.name: u.options[0] for u in space_.units}
    by_kind = {u.kind: u for u in reversed(space_.units)}
    asked = []
    for unit in by_kind.values():
        rest = unit.options[1:]
        chosen = rest if len(rest) <= TIMED else [rest[round(i * (len(rest) - 1) / (TIMED - 1))] for i in range(TIMED)]
        asked += [(unit, option) for option in dict.fromkeys(chosen)]
    voice().say(f"prune-channels: {len(asked)} widths of {len(by_kind)} kinds of layers are timed in {settings.runtime}")
    models = [_with_choice(coupled, space_, widest | {unit.name: option}, orders) for unit, option in asked]
    found: dict[str, dict[int, float]] = {}
    for (unit, option), ratio in zip(asked, ratios_beside(coupled.model, models, settings.runtime, target, feeds), strict=True):
        found.setdefault(unit.kind, {})[option] = ratio
    return {u.name: found.get(u.kind, {}) for u in space_.units}
