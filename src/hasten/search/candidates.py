"""What the search tries: recipes (chains of techniques) × runtimes × precision hints × threads. RECIPES is the whole list."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hasten import passes, plan, runtimes
from hasten.model import Model
from hasten.plan import Effect, Plan, PlannedStep
from hasten.quantize import VARIANTS
from hasten.runtimes import Target
from hasten.search.budget import Budget

SMALL_MODEL = 1e-4
"""Below this baseline latency (seconds) one thread is tried too: sharing the work then costs more than it brings."""

Steps = tuple[tuple[str, dict[str, Any]], ...]

CLEAN: Steps = tuple((name, {}) for name in passes.CLEAN)
FOLD: Steps = tuple((name, {}) for name in passes.FOLD)
GRAPH: Steps = (*CLEAN, *FOLD)


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A named chain of techniques with their settings (plain values)."""

    name: str
    steps: Steps

    @property
    def effect(self) -> Effect:
        """The strongest effect of its steps."""
        order = list(Effect)
        return max((plan.row(name).effect for name, _ in self.steps), key=order.index, default=Effect.EQUIVALENT)

    @property
    def untrained(self) -> Recipe:
        """The same chain without a step of training: the same work for the runtime, so its time tells before whether training can pay."""
        quick: dict[str, dict[str, Any]] = {"quantize_static": {"method": "minmax"}, "prune_channels": {"repair": False}}
        steps = tuple((n, s | ({"epochs": 0} if plan.row(n).learns else quick.get(n, {}))) for n, s in self.steps)
        return Recipe(f"{self.name}, untrained", steps)

    def within(self, seconds: float) -> Recipe:
        """The same chain, each of its trainings taking so many seconds at most."""
        return Recipe(self.name, tuple((n, s | ({"seconds": seconds} if plan.row(n).learns else {})) for n, s in self.steps))

    def measured_in(self, runtime: str, target: Target) -> Recipe:
        """The same chain; what lets time decide measures there."""
        there: dict[str, Any] = {"runtime": runtime, "threads": target.threads, "batch": target.batch}
        return Recipe(self.name, tuple((n, s | (there if n == "prune_channels" else {})) for n, s in self.steps))

    @property
    def zeros(self) -> tuple[float, str] | None:
        """Share and pattern of the zeros that it makes, None for none."""
        made = next((plan.make_settings(n, s) for n, s in self.steps if n == "prune_weights"), None)
        return None if made is None else (made.share, made.pattern)

    @property
    def training(self) -> Steps:
        """The chain as far as its last training; recipes that begin with the same one share it."""
        last = max((i for i, (n, _) in enumerate(self.steps) if plan.row(n).learns), default=-1)
        return self.steps[: last + 1]

    def longer(self, rung: int) -> Recipe:
        """The same chain, its last training once more, from where it ended."""
        again = self.training[-1:]
        return Recipe(f"{self.name.partition(', rung')[0]}, rung {rung}", (*self.training, *again, *self.steps[len(self.training) :]))

    def plan(self, source: Model) -> Plan:
        """The recipe as a plan for that model."""
        return Plan(tuple(PlannedStep(n, plan.make_settings(n, s)) for n, s in self.steps), source=source.digest)


ORIGINAL = Recipe("original", ())
GRAPH_ONLY = "graph"

RECIPES = (
    ORIGINAL,
    Recipe(GRAPH_ONLY, GRAPH),
    Recipe("float16", (*GRAPH, ("to_float16", {}))),
    Recipe("int8 dynamic", (*GRAPH, ("quantize_dynamic", {}))),
    *(Recipe(f"int8 {name}", (*GRAPH, ("equalize", {}), ("quantize_static", settings))) for name, settings in VARIANTS),
)


EPOCHS = 30
"""Of a training in a search, at most; its time is limited too."""


def _narrow(share: float) -> Steps:
    """A student with this share of the model's channels, taught by the model itself."""
    return (*CLEAN, ("distill", {"student": f"narrow:{share:g}", "epochs": EPOCHS}), *FOLD)


SPEEDUPS, TAUGHT = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), (1.5, 2.0, 3.0, 4.0, 6.0)
"""Of pruned models, as measured where a model of their kind did best: refitted, bisected for; and taught by the original."""

INT8: Steps = (("equalize", {}), ("quantize_static", {}))

PRUNED = tuple(
    Recipe(f"pruned {s:g}x{name}", (*CLEAN, ("prune_channels", {"speedup": s}), *FOLD, *more))
    for s in SPEEDUPS
    for name, more in (("", ()), (", int8", INT8))
)
"""Recipes that shrink without training, tried where there is data to repair with; see `search/shrinking.py`."""


def _pruned(speedup: float) -> Steps:
    """Channels and blocks removed, then taught by the original."""
    return (*CLEAN, ("prune_channels", {"speedup": speedup}), ("distill", {"epochs": EPOCHS}), *FOLD)


TRAINED = (
    *(Recipe(f"distilled narrow {share:g}", _narrow(share)) for share in (0.5, 0.25)),
    *(Recipe(f"distilled narrow {share:g}, int8", (*_narrow(share), *INT8)) for share in (0.5, 0.25)),
    *(Recipe(f"pruned {s:g}x, distilled{name}", (*_pruned(s), *more)) for s in TAUGHT for name, more in (("", ()), (", int8", INT8))),
    Recipe("int8 qat", (*GRAPH, ("qat", {"epochs": EPOCHS // 3}))),
    Recipe("distilled zeros 0.9", (*CLEAN, ("prune_weights", {"sparsity": 0.9}), ("distill", {"epochs": EPOCHS}), *FOLD)),
)
"""Recipes that must be trained, tried where there is data to train on; see `search/training.py`."""

STATIC = ("quantize_static", "qat")
"""Techniques whose models compute on 8-bit codes."""

NOT_NATIVE = ("to_float16", "quantize_dynamic")
"""Techniques whose models the native engine does not take: it has no float16, and quantizes nothing while it runs."""

HINTLESS = ("original", "float16")
"""Recipes that a precision hint adds nothing to: `graph` with the hint computes the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A recipe in a runtime on a target."""

    recipe: Recipe
    runtime: str
    target: Target

    @property
    def name(self) -> str:
        hint = {"float32": "", "bfloat16": " bf16"}[self.target.precision]
        return f"{self.recipe.name} · {self.runtime}{hint} · {self.target.threads}T"

    @property
    def lossy(self) -> bool:
        return self.recipe.effect in (Effect.LOSSY, Effect.TRAINED) or self.target.precision != "float32"


def named(text: str) -> tuple[str, ...]:
    """The names of recipes in a text, by commas; those that hold a comma themselves are known by it."""
    known = {r.name for r in (*RECIPES, *PRUNED, *TRAINED)}
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    found = []
    while pieces:
        count = next((n for n in range(len(pieces), 1, -1) if ", ".join(pieces[:n]) in known), 1)
        found.append(", ".join(pieces[:count]))
        pieces = pieces[count:]
    return tuple(found)


def recipes(budget: Budget) -> tuple[Recipe, ...]:
    """Those that may be tried: all, or the original and those that the budget names."""
    return tuple(r for r in RECIPES if not budget.recipes or r is ORIGINAL or r.name in budget.recipes)


NATIVE_SMALL = 50 * SMALL_MODEL
"""The same bound for the native engine. Its threads wait for each other behind every layer, a few µs apart: where another process has one of the
cores, a call on two threads may take some times that on one (seen: 66 µs against 21, and 12 where both cores are free)."""


def one_thread_too(target: Target, baseline_seconds: float) -> bool:
    """Whether the model is so small that one thread is tried beside the target's."""
    return target.threads > 1 and baseline_seconds < SMALL_MODEL


def candidates(
    budget: Budget,
    target: Target,
    baseline_seconds: float,
    judged: bool,
    of: tuple[Recipe, ...] | None = None,
) -> Iterator[Candidate]:
    """All that is worth a try (of these recipes, if given), the baseline itself excluded. Not judged (no data): nothing lossy."""
    threads = [target.threads] + ([1] if one_thread_too(target, baseline_seconds) else [])
    native = [target.threads] + ([1] if target.threads > 1 and baseline_seconds < NATIVE_SMALL else [])
    for recipe in recipes(budget) if of is None else of:
        for runtime in budget.runtimes:
            if runtime == "native" and any(name in NOT_NATIVE for name, _ in recipe.steps):
                continue
            for precision in runtimes.get(runtime).hints:
                codes = any(name in STATIC for name, _ in recipe.steps)
                if precision != "float32" and (recipe.name in HINTLESS or (runtime == "native" and codes)):
                    continue
                for count in native if runtime == "native" else threads:
                    candidate = Candidate(recipe, runtime, dataclasses.replace(target, precision=precision, threads=count))
                    is_baseline = recipe is ORIGINAL and runtime == "onnxruntime" and count == target.threads
                    if not is_baseline and (judged or not candidate.lossy):
                        yield candidate
