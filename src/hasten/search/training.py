"""Training: candidates that must be trained first. Each is timed before it is trained, so that only those that can win are trained.

How long a graph takes does not depend on its weights' values: the student of a distillation, or the calibrated start of quantization-aware
training, is as fast before the training as behind it.
"""

from __future__ import annotations

import math

from hasten.measure.judge import Timing
from hasten.search.accuracy import judge_one
from hasten.search.candidates import TRAINED, Candidate, Recipe, candidates
from hasten.search.goal import objective
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.search.screen import screen_one
from hasten.voice import voice

WORTH_TRAINING = 0.95
"""A candidate is trained where it promises at most this share of the time of the best that needs no training."""

SECONDS, SHARE = 600.0, 0.5
"""A training takes at most so many seconds; where the search has a time limit, this share of what is left, divided among the trainings."""

FEWEST_SECONDS = 5.0
"""With less time than this nothing is trained."""


def train_candidates(run: Run, tried: list[Outcome], baseline: Timing) -> None:
    """Add to `tried` what training can better, trained, timed and judged on `validate`; and why the others were not trained."""
    budget = run.budget
    if run.task is None or run.task.train is None or not budget.training:
        return
    recipes = tuple(r for r in TRAINED if not budget.recipes or r.name in budget.recipes)
    bar = min((objective(run, o) for o in tried if not o.reason and o.timing), default=math.inf) * WORTH_TRAINING
    promising: dict[Recipe, list[Outcome]] = {}
    todo = [(recipe, c) for recipe in recipes for c in candidates(budget, run.target, baseline.seconds, True, of=(recipe.untrained,))]
    for number, (recipe, untrained) in enumerate(todo):
        voice().step("first timing of what would be trained", number, len(todo))
        outcome = screen_one(run, untrained)
        outcome.candidate = Candidate(recipe, untrained.runtime, untrained.target)
        tried.append(outcome)
        if outcome.reason:
            continue
        if objective(run, outcome) > bar:
            outcome.reason = f"not trained: × {outcome.screened:.2f} is not faster than what needs no training"
            continue
        voice().candidate(
            outcome.candidate.name, outcome.timing.seconds if outcome.timing else None, outcome.screened, note="before training"
        )
        promising.setdefault(recipe, []).append(outcome)
    voice().step("first timing of what would be trained", len(todo), len(todo))
    order = sorted(promising, key=lambda r: min(objective(run, o) for o in promising[r]))
    for number, recipe in enumerate(order):
        _train(run, recipe, promising[recipe], trainings=len(order) - number)


def _train(run: Run, recipe: Recipe, outcomes: list[Outcome], trainings: int) -> None:
    """Train one recipe and judge its candidates. `trainings`: how many are still to come, this one included."""

    def compute() -> dict[str, float]:
        return {"seconds": SECONDS if math.isinf(run.left) else min(SECONDS, SHARE * run.left / trainings)}

    seconds = run.remember("time to train", recipe.name, "a share of the time that was left", compute)["seconds"]
    if seconds < FEWEST_SECONDS:
        for outcome in outcomes:
            outcome.reason = f"not trained: the time limit leaves {max(seconds, 0):.0f} s for it"
        return
    voice().say(f"training {recipe.name}: at most {seconds:.0f} s")
    built = run.build(recipe.within(seconds))
    for outcome in outcomes:
        if "failed" in built:
            outcome.reason = built["failed"]
            continue
        outcome.size = built["bytes"]
        judge_one(run, outcome)
