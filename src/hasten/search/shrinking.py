"""Shrinking: candidates with fewer channels and blocks, refitted to calibration data, not trained; bisected for the fastest that keeps the budget."""

from __future__ import annotations

import math
import time

from hasten.measure.judge import Timing
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.search.accuracy import judge_one
from hasten.search.candidates import GRAPH_ONLY, PRUNED, STATIC, Candidate, Recipe, candidates
from hasten.search.goal import objective
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.search.screen import screen_one
from hasten.shrink.groups import couple
from hasten.shrink.layers import layers
from hasten.shrink.prune_channels import AUTO, LOOKED, PruneChannels
from hasten.shrink.widths import space
from hasten.voice import voice

PLACES = 2
"""In so many places (runtime, hint, threads) a recipe that takes long to make is tried."""

SECONDS, SHARE = 60.0, 0.25
"""Once the widths were looked at, shrinking begins no further speed-up after so many seconds; where the search has a time limit, after this share of
what was left. A model that would take longer to look at is left as wide as it is."""

OVERHEAD, COPIED = 0.08, 3e8
"""Of a trial beside its samples: seconds, and bytes of weights a second, which are written and read again."""


def shrink_candidates(run: Run, tried: list[Outcome], baseline: Timing) -> None:
    """Add to `tried` the pruned candidates that were looked at: of each kind the fastest that keeps the budget, and slower and faster ones on the
    way to it. PRUNED has each kind by rising speed-up."""
    if run.task is None or run.task.calibrate is None:
        return
    wanted = [r for r in PRUNED if not run.budget.recipes or r.name in run.budget.recipes]
    allowed = SECONDS if math.isinf(run.left) else SHARE * run.left
    if wanted and (effort := _effort(run, baseline)) > allowed:
        voice().say(
            f"pruning is left out: to look at each width takes about {effort:.0f} s, {allowed:.0f} s are allowed (--time-limit allows more)"
        )
        return
    until = math.inf
    for eight_bits in (False, True):
        recipes = [r for r in wanted if any(name == "quantize_static" for name, _ in r.steps) == eight_bits]
        low, high = 0, len(recipes)
        while low < high and time.monotonic() < until:
            middle = (low + high) // 2
            if _keeps_the_budget(run, recipes[middle], tried, baseline):
                low = middle + 1
            else:
                high = middle
            until = min(until, time.monotonic() + allowed)


def _keeps_the_budget(run: Run, recipe: Recipe, tried: list[Outcome], baseline: Timing) -> bool:
    """Make, time and judge a recipe; its outcomes go to `tried`."""
    outcomes = screen_costly(run, recipe, tried, baseline)
    for outcome in outcomes:
        built = run.build(outcome.candidate.recipe)
        if "failed" in built:
            outcome.reason = built["failed"]
        else:
            outcome.size = built["bytes"]
            judge_one(run, outcome)
    return any(not o.reason for o in outcomes)


def _effort(run: Run, baseline: Timing) -> float:
    """Seconds, roughly, that looking at the harm of each width takes, and one repair."""
    coupled = couple(fold_constants(run.model, FoldConstants(), None))
    trials = len(AUTO) * sum(len(u.options) - 1 for u in space(coupled, coupled.groups, 0, True).units)
    sample = baseline.seconds / run.target.batch
    products = sum(1 for _ in layers(coupled.model.ir.graph))
    return trials * (OVERHEAD + run.model.weight_bytes / COPIED + LOOKED * sample) + products * PruneChannels().samples * sample / 2


def screen_costly(run: Run, recipe: Recipe, tried: list[Outcome], baseline: Timing, bar: float = float("inf")) -> list[Outcome]:
    """Time a recipe before what takes long (training, repair), where its like did best; all outcomes go to `tried`, those with a chance come back.

    `bar`: the objective above which it has none.
    """
    found: list[Outcome] = []
    recipe = _measured_where_floats_did_best(recipe, tried)
    places = _where_its_like_did_best(run, recipe, tried, baseline)
    for number, untrained in enumerate(places):
        voice().step(f"first timing of {recipe.name}", number, len(places))
        found += promising(run, recipe, screen_one(run, untrained), tried, bar)
    voice().step(f"first timing of {recipe.name}", len(places), len(places))
    return found


def promising(run: Run, recipe: Recipe, outcome: Outcome, tried: list[Outcome], bar: float) -> list[Outcome]:
    """The outcome of the untrained recipe as one of the recipe, in `tried`; and alone in a list where it has a chance."""
    outcome.candidate = Candidate(recipe, outcome.candidate.runtime, outcome.candidate.target)
    tried.append(outcome)
    if outcome.reason:
        return []
    if objective(run, outcome) > bar:
        outcome.reason = f"not trained: × {outcome.screened:.2f} would not be faster than what needs no training"
        return []
    seconds = outcome.timing.seconds if outcome.timing else None
    voice().candidate(outcome.candidate.name, seconds, outcome.screened, note="before training or repair")
    return [outcome]


def _measured_where_floats_did_best(recipe: Recipe, tried: list[Outcome]) -> Recipe:
    best = best_float(tried)
    return recipe.measured_in(best.runtime, best.target)


def best_float(tried: list[Outcome]) -> Candidate:
    """Where the better graph alone was the fastest in float32; the original where there is none."""
    graphs = [o for o in tried if o.candidate.recipe.name == GRAPH_ONLY and o.timing and o.candidate.target.precision == "float32"]
    return max(graphs, key=lambda o: o.screened, default=tried[0]).candidate


def _where_its_like_did_best(run: Run, recipe: Recipe, tried: list[Outcome], baseline: Timing) -> list[Candidate]:
    """The recipe, untrained, in those runtimes, hints and threads in which a model of its kind (8 bits, or float) was the fastest."""
    like = "int8 static" if any(name in STATIC for name, _ in recipe.steps) else GRAPH_ONLY
    ranked = sorted((o for o in tried if o.candidate.recipe.name == like and o.timing), key=lambda o: -o.screened)
    places = [(o.candidate.runtime, o.candidate.target) for o in ranked[:PLACES]]
    found = candidates(run.budget, run.target, baseline.seconds, True, of=(recipe.untrained,))
    return [c for c in found if not places or (c.runtime, c.target) in places]
