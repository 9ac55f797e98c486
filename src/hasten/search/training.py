"""Training: candidates that must be trained first. Each is timed before it is trained, so that only those that can win are trained.

How long a graph takes does not depend on its weights' values: the student of a distillation, or the calibrated start of quantization-aware
training, is as fast before the training as behind it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from hasten.learn.records import RECORDS, time_to
from hasten.measure.judge import Failure, Timing
from hasten.measure.record import Records
from hasten.search.accuracy import judge_one
from hasten.search.candidates import TRAINED, Recipe
from hasten.search.goal import allowed_drop, drop_of, objective
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.search.shrinking import screen_costly
from hasten.search.zeros import screen_zeros
from hasten.voice import voice

WORTH_TRAINING = 0.95
"""A candidate is trained where it promises at most this share of the time of the best that needs no training."""

TIMED_AGAIN, ENOUGH = 8, 3
"""The best that needs no training sets the bar once it was timed so often (ENOUGH); so many timings more there are for it at most."""

RUNGS = 3
"""So often those that do not keep the budget yet are trained on, half as many each time, for twice as long."""

LOOKING = 0.3
"""Where the search has a time limit: the share of what is left in which recipes are timed untrained; the rest is for training."""

SECONDS, SHARE = 150.0, 0.7
"""A training of the first rung takes at most so many seconds; where the search has a time limit, this share of what is left, divided among the
rungs and the trainings."""

FEWEST_SECONDS = 5.0
"""With less time than this nothing is trained."""


def train_candidates(run: Run, tried: list[Outcome], baseline: Timing) -> None:
    """Add to `tried` what training can better, trained, timed and judged on `validate`; and why the others were not trained."""
    budget = run.budget
    if run.task is None or run.task.train is None or not budget.training:
        return
    recipes = tuple(r for r in TRAINED if not budget.recipes or r.name in budget.recipes)
    bar = _bar(run, tried)
    promising: dict[Recipe, list[Outcome]] = {}
    begun_with = run.left
    for number, recipe in enumerate(recipes):
        if not math.isinf(begun_with) and run.left < (1 - LOOKING) * begun_with:
            voice().say(f"not looked at, to leave time for training: {', '.join(r.name for r in recipes[number:])}")
            break
        timed = screen_zeros(run, recipe, tried, bar) if recipe.zeros else screen_costly(run, recipe, tried, baseline, bar)
        for outcome in timed:
            promising.setdefault(outcome.candidate.recipe, []).append(outcome)
    for rung in range(RUNGS):
        _train_all(run, promising, rung)
        promising = _better_half(run, promising, tried, rung)


def _bar(run: Run, tried: list[Outcome]) -> float:
    """What a training must promise to reach. Whatever looks best is timed again for it: by one lucky timing nothing would be trained."""
    rivals = [o for o in tried if not o.reason and o.timing]
    ratios = {o.candidate.name: [o.screened] for o in rivals}
    for _ in range(TIMED_AGAIN if rivals and not run.budget.by_bytes else 0):
        best = min(rivals, key=lambda o: objective(run, o))
        name, times = best.candidate.name, len(ratios[best.candidate.name])
        if times == ENOUGH:
            break
        timed, ratio = run.screen(name, run.subject(best.candidate), f"screened before training, {times}")
        ratios[name].append(best.screened if isinstance(timed, Failure) else ratio)
        best.screened = statistics.median(ratios[name])
    return min((objective(run, o) for o in rivals), default=math.inf) * WORTH_TRAINING


def _train_all(run: Run, promising: dict[Recipe, list[Outcome]], rung: int) -> None:
    """Train each, the fastest first; recipes that begin with the same training share it."""
    order = sorted(promising, key=lambda r: min(objective(run, o) for o in promising[r]))
    trainings = list(dict.fromkeys(repr(r.training) for r in order))
    allowed: dict[str, float] = {}
    for recipe in order:
        training = repr(recipe.training)
        if training not in allowed:
            allowed[training] = _seconds(run, recipe, len(trainings) - len(allowed), rung)
        _train(run, recipe, promising[recipe], allowed[training])


def _better_half(run: Run, trained: dict[Recipe, list[Outcome]], tried: list[Outcome], rung: int) -> dict[Recipe, list[Outcome]]:
    """Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): of those that do not keep the budget yet and would be faster than what does,
    the half that came nearest is trained on."""
    best = min((objective(run, o) for o in tried if not o.reason and o.timing), default=math.inf) * WORTH_TRAINING
    near = {
        recipe: min(drop_of(run, o.accuracy) for o in outcomes if o.accuracy)
        for recipe, outcomes in trained.items()
        if all(o.reason for o in outcomes) and any(o.accuracy for o in outcomes) and min(objective(run, o) for o in outcomes) <= best
    }
    if rung + 1 == RUNGS or not near:
        return {}
    chosen = sorted(near, key=lambda r: near[r])[: max(1, len(near) // 2)]
    found: dict[Recipe, list[Outcome]] = {}
    for recipe in chosen:
        on = recipe.longer(rung + 2)
        for outcome in trained[recipe]:
            again = dataclasses.replace(outcome, candidate=dataclasses.replace(outcome.candidate, recipe=on), reason="", accuracy=None)
            tried.append(again)
            found.setdefault(on, []).append(again)
    return found


def _seconds(run: Run, recipe: Recipe, trainings: int, rung: int) -> float:
    """What a training may take. `trainings`: how many are still to come in this rung, this one included."""

    def compute() -> dict[str, float]:
        most = SECONDS * 2**rung
        return {"seconds": most if math.isinf(run.left) else min(most, SHARE * run.left / trainings / min(RUNGS - rung, trainings))}

    seconds: float = run.remember("time to train", recipe.name, "a share of the time that was left", compute)["seconds"]
    return seconds


def _train(run: Run, recipe: Recipe, outcomes: list[Outcome], seconds: float) -> None:
    """Train one recipe and judge its candidates."""
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
