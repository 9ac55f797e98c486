"""Training: candidates that must be trained first. Each is timed before it is trained, so that only those that can win are trained.

How long a graph takes does not depend on its weights' values: the student of a distillation, or the calibrated start of quantization-aware
training, is as fast before the training as behind it.
"""

from __future__ import annotations

import math
from typing import Any

from hasten.learn.records import RECORDS, time_to
from hasten.measure.judge import Failure, Timing
from hasten.measure.record import Records
from hasten.search.accuracy import judge_one
from hasten.search.candidates import GRAPH_ONLY, TRAINED, Candidate, Recipe, candidates
from hasten.search.goal import allowed_drop, objective
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.search.screen import screen_one
from hasten.voice import voice

WORTH_TRAINING = 0.95
"""A candidate is trained where it promises at most this share of the time of the best that needs no training."""

SECONDS, SHARE = 600.0, 0.5
"""A training takes at most so many seconds; where the search has a time limit, this share of what is left, divided among the trainings."""

PLACES = 3
"""In so many places (runtime, hint, threads) a recipe that must be trained is tried."""

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
    todo = [(recipe, c) for recipe in recipes for c in _where_its_like_did_best(run, recipe, tried, baseline)]
    for number, (recipe, untrained) in enumerate(todo):
        voice().step("first timing of what would be trained", number, len(todo))
        outcome = screen_one(run, untrained)
        outcome.candidate = Candidate(recipe, untrained.runtime, untrained.target)
        tried.append(outcome)
        if outcome.reason:
            continue
        if objective(run, outcome) > bar:
            outcome.reason = f"not trained: × {outcome.screened:.2f} would not be faster than what needs no training"
            continue
        voice().candidate(
            outcome.candidate.name, outcome.timing.seconds if outcome.timing else None, outcome.screened, note="before training"
        )
        promising.setdefault(recipe, []).append(outcome)
    voice().step("first timing of what would be trained", len(todo), len(todo))
    order = sorted(promising, key=lambda r: min(objective(run, o) for o in promising[r]))
    for number, recipe in enumerate(order):
        _train(run, recipe, promising[recipe], trainings=len(order) - number)


def _where_its_like_did_best(run: Run, recipe: Recipe, tried: list[Outcome], baseline: Timing) -> list[Candidate]:
    """The recipe, untrained, in those runtimes, hints and threads in which a model of its kind (8 bits, or float) was the fastest."""
    like = "int8 static" if any(name in ("quantize_static", "qat") for name, _ in recipe.steps) else GRAPH_ONLY
    ranked = sorted((o for o in tried if o.candidate.recipe.name == like and o.timing), key=lambda o: -o.screened)
    places = [(o.candidate.runtime, o.candidate.target) for o in ranked[:PLACES]]
    found = candidates(run.budget, run.target, baseline.seconds, True, of=(recipe.untrained,))
    return [c for c in found if not places or (c.runtime, c.target) in places]


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
    run.remember("training", recipe.name, "the training's own records: wall time of its steps, peak resident memory", lambda: _summary(run))
    for outcome in outcomes:
        if "failed" in built:
            outcome.reason = built["failed"]
            continue
        outcome.size = built["bytes"]
        judge_one(run, outcome)


def _summary(run: Run) -> dict[str, Any]:
    """The trainings that no earlier recipe had: what they took, and when the metric on `validate` first reached what the budget asks for."""
    assert run.task is not None
    known = {t["folder"] for record in run.records if record.kind == "training" for t in record.values["trainings"]}
    split = run.split("validate")
    found = []
    for place in sorted(run.trainings.glob(f"*/{RECORDS}")):
        records = Records(place)
        whole = records.get("training")
        if whole is None or not whole.values["epochs"] or place.parent.name in known:
            continue
        before = run.judged(run.baseline, "validate")
        allowed = None
        if split.labels is not None and not isinstance(before, Failure):
            higher = run.task.metric.higher_is_better
            allowed = time_to(records, before.value + (-1 if higher else 1) * allowed_drop(run), higher)
        curve = [(r.values["epoch"], r.values["loss"], r.values["value"]) for r in records if r.kind == "epoch"]
        found.append({"folder": place.parent.name, **whole.values, "seconds_to_budget": allowed, "curve": curve})
    return {"trainings": found}


def training_details(run: Run) -> dict[str, Any]:
    """`training`: one entry for each training of the search, with the recipe that it was for; nothing where there was none."""
    found = [
        {"recipe": record.subject, "technique": t["folder"].rpartition("-")[0], **{k: v for k, v in t.items() if k != "folder"}}
        for record in run.records
        if record.kind == "training"
        for t in record.values["trainings"]
    ]
    return {"training": found} if found else {}
