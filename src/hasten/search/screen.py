"""The first timing: every candidate is made, checked, and timed once beside the baseline; the cheapest checks come first."""

from __future__ import annotations

import math

from hasten import runtimes
from hasten.measure.judge import Failure, Timing
from hasten.model import Model
from hasten.search.candidates import GRAPH_ONLY, Candidate, candidates, recipes
from hasten.search.goal import drop_of, over, too_large
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.voice import voice


def screen(run: Run, baseline: Timing) -> list[Outcome]:
    """Build and time every candidate once; the cheapest checks come first."""
    tried: list[Outcome] = [Outcome(run.baseline, "", timing=baseline, screened=1.0, size=run.build(run.baseline.recipe)["bytes"])]
    todo = list(candidates(run.budget, run.target, baseline.seconds, judged=run.task is not None))
    voice().candidate(run.baseline.name, baseline.seconds, 1.0)
    for number, candidate in enumerate(todo):
        voice().step("first timing", number, len(todo))
        outcome = screen_one(run, candidate)
        tried.append(outcome)
        if outcome.timing:
            voice().candidate(candidate.name, outcome.timing.seconds, outcome.screened, note=outcome.reason)
        else:
            voice().detail(f"  {candidate.name:42} not timed: {outcome.reason}")
    voice().step("first timing", len(todo), len(todo))
    return tried


def screen_one(run: Run, candidate: Candidate) -> Outcome:
    """Build one candidate and time it beside the baseline; the reason says why not."""
    if run.left < 0:
        return Outcome(candidate, "the time limit was reached before it was tried")
    built = run.build(candidate.recipe)
    if "failed" in built:
        return Outcome(candidate, built["failed"])
    size = built["bytes"]
    if (twin := _twin(run, candidate)) is not None:
        return Outcome(candidate, twin, size=size)
    return time_one(run, candidate, size)


def time_one(run: Run, candidate: Candidate, size: int) -> Outcome:
    """Time one that was built, beside the baseline."""
    if run.budget.max_size is not None and size > run.budget.max_size:
        return Outcome(candidate, f"its file has {size} bytes, {run.budget.max_size} are allowed", size=size)
    if run.budget.as_c:
        footprint = run.footprint(candidate.recipe)
        if why := too_large(run, footprint):
            return Outcome(candidate, why, size=size, footprint=None if "failed" in footprint else footprint)
    else:
        footprint = None
    refusals = runtimes.get(candidate.runtime).unsupported(Model.load(run.path(candidate.recipe)), candidate.target)
    if refusals:
        return Outcome(candidate, "; ".join(f"{s.node}: {s.why}" if s.node else s.why for s in refusals[:3]), size=size)
    timed, ratio = run.screen(candidate.name, run.subject(candidate))
    if isinstance(timed, Failure):
        return Outcome(candidate, timed.reason, size=size, footprint=footprint)
    return Outcome(candidate, over(run, timed), timing=timed, screened=ratio, size=size, footprint=footprint)


def _twin(run: Run, candidate: Candidate) -> str | None:
    """Why a candidate need not be timed because of another recipe: the same graph, or one of the same work that keeps more accuracy.

    Models of one structure differ only in their weights' values (scales chosen by other methods, say), so they take the same time: the one
    that keeps more of the metric on `validate` (in onnxruntime; the first where they are equal) stands for all of them.
    """
    mine = run.build(candidate.recipe)
    if candidate.recipe.steps and not mine["changed"] and candidate.recipe.name != GRAPH_ONLY:
        return "the technique changed nothing in this model"
    twins = [r for r in recipes(run.budget) if "structure" in (built := run.build(r)) and built["structure"] == mine["structure"]]
    if run.task is None or len(twins) < 2:
        return None
    drops = {}
    for recipe in twins:
        judged = run.judged(Candidate(recipe, run.baseline.runtime, run.target), "validate")
        drops[recipe.name] = math.inf if isinstance(judged, Failure) else drop_of(run, judged)
    best = min(drops, key=lambda name: drops[name])
    if best == candidate.recipe.name:
        return None
    return f"does the work of {best!r}, which keeps at least as much of the metric on validate"
