"""Plan: which techniques, in which order, with which settings. TECHNIQUES is the whole list of what there is."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hasten.errors import BadInput, Refused

if typing.TYPE_CHECKING:
    from hasten.model import Model
    from hasten.task import BoundTask

FORMAT = 1
"""Version of plan.json."""


NOT_THE_RESULT = ("seconds", "workers", "device")
"""Settings of a training that say how long, where or with how many hands, and not what comes out: with others it may be gone on with."""


class Phase(enum.IntEnum):
    """The stretches of the road; a plan runs them in this order."""

    CLEAN = 0
    SHRINK = 1
    LEARN = 2
    FOLD = 3
    QUANTIZE = 4
    TUNE = 5
    LOWER = 6


class Effect(enum.StrEnum):
    """What a technique does to the results: the same bits, within `check.FLOAT32`, lossy, or trained."""

    EQUIVALENT = "equivalent"
    ROUNDING = "rounding"
    LOSSY = "lossy"
    TRAINED = "trained"


@dataclasses.dataclass(frozen=True)
class Row:
    """One technique. File, function, settings class, CLI verb and test carry one name, so the name and its folder find them all.

    `observes`: the module also has `observe(model, settings, task)`, what the data shows, as plain JSON values that replay without data.
    `optional_data`: it observes without data too (the machine, or the weights alone), so the task may be None.
    `learns`: it trains on `task.train`, and the module has `prepare(model, settings, task)`, which makes what `learn.loop.fit` trains.
    `teaches`: `task.teacher` may hold another model to learn from.
    """

    name: str
    folder: str
    phase: Phase
    effect: Effect
    about: str
    observes: bool = False
    optional_data: bool = False
    learns: bool = False
    teaches: bool = False

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"hasten.{self.folder}.{self.name}")

    @property
    def settings(self) -> type[Any]:
        settings: type[Any] = getattr(self._module, "".join(part.capitalize() for part in self.name.split("_")))
        return settings

    @property
    def apply(self) -> Callable[[Model, Any, BoundTask | None], Model]:
        function: Callable[[Model, Any, BoundTask | None], Model] = getattr(self._module, self.name)
        return function

    @property
    def observe(self) -> Callable[[Model, Any, BoundTask | None], dict[str, Any]]:
        function: Callable[[Model, Any, BoundTask | None], dict[str, Any]] = self._module.observe
        return function

    @property
    def verb(self) -> str:
        return self.name.replace("_", "-")


TECHNIQUES = (
    Row("cleanup", "passes", Phase.CLEAN, Effect.EQUIVALENT, "Remove dead, duplicate and identity nodes."),
    Row("fold_constants", "passes", Phase.CLEAN, Effect.ROUNDING, "Compute once what never changes."),
    Row("resolve_shapes", "passes", Phase.CLEAN, Effect.EQUIVALENT, "Work out shapes that are computed but known."),
    Row("fold_branches", "passes", Phase.CLEAN, Effect.EQUIVALENT, "Decide now what a constant condition decides."),
    Row(
        "remove_noops", "passes", Phase.CLEAN, Effect.EQUIVALENT, "Remove what changes nothing; merge chains of reshapings, casts, slices."
    ),
    Row("fuse_operators", "passes", Phase.CLEAN, Effect.ROUNDING, "One operator for each LayerNorm, Gelu and the like written in pieces."),
    Row("simplify_algebra", "passes", Phase.CLEAN, Effect.ROUNDING, "Fewer operators for arithmetic with constants."),
    Row("push_transposes", "passes", Phase.CLEAN, Effect.ROUNDING, "Cancel the Transposes around channels-last layers."),
    Row("fold_activations", "passes", Phase.CLEAN, Effect.EQUIVALENT, "Merge successive Relu and Clip, and Pad into Conv."),
    Row(
        "prune_channels",
        "shrink",
        Phase.SHRINK,
        Effect.LOSSY,
        "Remove channels, heads and residual blocks; the rest is refitted.",
        observes=True,
        optional_data=True,
    ),
    Row(
        "factorize",
        "shrink",
        Phase.SHRINK,
        Effect.LOSSY,
        "Two thin layers in place of a wide one, where that is faster.",
        observes=True,
        optional_data=True,
    ),
    Row(
        "prune_weights",
        "shrink",
        Phase.SHRINK,
        Effect.LOSSY,
        "Set the weights to zero that count least, in a pattern if wanted.",
        observes=True,
        optional_data=True,
    ),
    Row("train", "learn", Phase.LEARN, Effect.TRAINED, "Train the weights on the task's own loss.", learns=True),
    Row("distill", "learn", Phase.LEARN, Effect.TRAINED, "Train a student on what a teacher says.", learns=True, teaches=True),
    Row(
        "sparsify",
        "learn",
        Phase.LEARN,
        Effect.TRAINED,
        "Train under penalties that switch channels, heads and branches off.",
        learns=True,
        teaches=True,
    ),
    Row(
        "binarize",
        "learn",
        Phase.LEARN,
        Effect.TRAINED,
        "Weights and activations of one bit, trained and stored packed.",
        learns=True,
        teaches=True,
    ),
    Row("fold_affine", "passes", Phase.FOLD, Effect.ROUNDING, "Fold constant biases and scales into the layer before them."),
    Row("fold_batchnorm", "passes", Phase.FOLD, Effect.ROUNDING, "Fold batch norm into the convolution or product before it."),
    Row("fold_scales", "passes", Phase.FOLD, Effect.ROUNDING, "Fold constant scales and shifts into the layer that reads them."),
    Row("merge_linear", "passes", Phase.FOLD, Effect.ROUNDING, "Two layers with nothing between them become one, where that costs less."),
    Row("merge_siblings", "passes", Phase.FOLD, Effect.ROUNDING, "Layers that read the same value become one and a Split."),
    Row("order_nodes", "passes", Phase.FOLD, Effect.EQUIVALENT, "An order of the nodes in which less memory is needed at once."),
    Row("to_float16", "passes", Phase.QUANTIZE, Effect.LOSSY, "Store and compute in 16-bit floats."),
    Row("quantize_dynamic", "quantize", Phase.QUANTIZE, Effect.LOSSY, "8-bit weights; activations quantized as they come."),
    Row("equalize", "quantize", Phase.QUANTIZE, Effect.LOSSY, "Even out channel ranges before depthwise convolutions.", observes=True),
    Row(
        "cluster_weights",
        "shrink",
        Phase.QUANTIZE,
        Effect.LOSSY,
        "At most 2ᵇ distinct weights a layer, to be stored as codes.",
        observes=True,
        optional_data=True,
    ),
    Row("quantize_static", "quantize", Phase.QUANTIZE, Effect.LOSSY, "8-bit weights and activations, calibrated on data.", observes=True),
    Row(
        "tune_clusters",
        "learn",
        Phase.TUNE,
        Effect.TRAINED,
        "Cluster the weights and train the numbers that they share.",
        learns=True,
        teaches=True,
    ),
    Row("qat", "learn", Phase.TUNE, Effect.TRAINED, "Train with the codes of 8 to 2 bits that will be deployed.", learns=True),
    Row("fuse_attention", "passes", Phase.LOWER, Effect.ROUNDING, "Attention and sums with a norm as onnxruntime's own operators."),
)


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedStep:
    """A technique with its settings (a frozen dataclass) and, once it ran, what its data showed."""

    technique: str
    settings: Any
    observation: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Techniques in order. `source` is the digest of the model it was made for, None if it fits any.

    `shapes` are the sizes that dynamic axes, by name, are fixed to when the model is loaded.
    """

    steps: tuple[PlannedStep, ...]
    source: str | None = None
    shapes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runtime: str = "onnxruntime"
    target: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises Refused if the phases are out of order."""
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            first, second = row(before.technique), row(after.technique)
            if second.phase < first.phase:
                raise Refused(
                    f"plan: {second.name} ({second.phase.name.lower()}) comes after {first.name} ({first.phase.name.lower()}); "
                    f"the phases run {' → '.join(p.name.lower() for p in Phase)}: put {second.name} first"
                )

    def to_json(self) -> str:
        """The plan as JSON text, the same text for the same plan."""
        return json.dumps(
            {
                "hasten_plan": FORMAT,
                "source": self.source,
                "shapes": dict(self.shapes),
                "runtime": self.runtime,
                "target": dict(self.target),
                "steps": [
                    {"technique": s.technique, "settings": dataclasses.asdict(s.settings)}
                    | ({"observation": s.observation} if s.observation is not None else {})
                    for s in self.steps
                ],
            },
            indent=1,
            sort_keys=True,
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises BadInput where the text is not a plan, Refused where its order is wrong."""
        try:
            raw = json.loads(text)
            if raw["hasten_plan"] != FORMAT:
                raise BadInput(f"plan: format {raw['hasten_plan']!r}, this hasten reads {FORMAT}; make the plan again")
            steps = tuple(
                PlannedStep(s["technique"], make_settings(s["technique"], s["settings"]), s.get("observation")) for s in raw["steps"]
            )
            return Plan(steps, raw["source"], raw["shapes"], raw["runtime"], raw["target"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise BadInput(f"this is not a plan ({type(e).__name__}: {e}); expected the plan.json that `hasten optimize` writes") from e


def row(name: str) -> Row:
    """The technique of that name (with `_` or `-`); BadInput lists what there is."""
    for candidate in TECHNIQUES:
        if candidate.name == name.replace("-", "_"):
            return candidate
    raise BadInput(f"there is no technique {name!r}; there are {', '.join(r.name for r in TECHNIQUES)}")


def make_settings(technique: str, values: Mapping[str, Any]) -> Any:
    """The technique's settings from plain JSON values (lists become tuples); BadInput names a setting that it does not have."""
    settings = row(technique).settings
    known = {f.name for f in dataclasses.fields(settings)}
    if unknown := sorted(set(values) - known):
        raise BadInput(f"{technique} has no setting {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
    return settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def needs_data(plan: Plan) -> bool:
    """Whether a step must observe data that the plan does not hold yet."""
    rows = ((row(s.technique), s.observation) for s in plan.steps)
    return any(r.observes and not r.optional_data and seen is None for r, seen in rows)


def run(plan: Plan, model: Model, task: BoundTask | None) -> tuple[Model, Plan]:
    """The model that the plan makes of `model`, and the plan with all that its data showed, which replays without data.

    Raises Refused if the plan was made for another model, or needs data and there is none. A training keeps its checkpoint in a folder under
    `task.place`, named by what it was begun with.
    """
    if plan.source is not None and plan.source != model.digest:
        raise Refused(f"plan: made for a model with digest {plan.source[:12]}…, this one has {model.digest[:12]}…; use the original model")
    done: list[PlannedStep] = []
    for step in plan.steps:
        technique = row(step.technique)
        seen = step.observation
        if technique.observes and seen is None:
            if not technique.optional_data and (task is None or task.calibrate is None):
                raise Refused(f"{technique.verb} needs data to calibrate on, and none came; give --data, or a plan that was run before")
            seen = technique.observe(model, step.settings, task)
        model = technique.apply(model, step.settings, _with_place(_with_observation(task, seen), technique, step.settings, model))
        done.append(PlannedStep(step.technique, _as_it_ran(technique, step.settings, model), seen))
    return model, dataclasses.replace(plan, steps=tuple(done))


def _as_it_ran(technique: Row, settings: Any, made: Model) -> Any:
    """The settings, of a training as the history has them: a time limit is there as the cut that it made."""
    if not technique.learns:
        return settings
    last = next(s for s in reversed(made.history) if s.name == technique.name)
    return make_settings(technique.name, last.settings)


def _with_place(task: BoundTask | None, technique: Row, settings: Any, model: Model) -> BoundTask | None:
    """Under the task's place a folder for this very training, so that several plans share one that they all begin with."""
    if task is None or task.place is None or not technique.learns:
        return task
    said = {k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_THE_RESULT}
    begun_with = json.dumps([technique.name, said, model.digest, task.digest])
    return dataclasses.replace(task, place=task.place / f"{technique.name}-{hashlib.sha256(begun_with.encode()).hexdigest()[:12]}")


def _with_observation(task: BoundTask | None, seen: dict[str, Any] | None) -> BoundTask | None:
    if seen is None:
        return task
    if task is None:
        from hasten.task import without_data

        task = without_data()
    return dataclasses.replace(task, observation=seen)
