"""Zeros: a recipe that trains with zeros is timed before, beside the dense graph where that did best; where the runtime does not skip them, it is not
trained."""

from __future__ import annotations

from hasten.model import Model
from hasten.search.candidates import Candidate, Recipe
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.search.screen import time_one
from hasten.search.shrinking import best_float, promising
from hasten.search.worth import Worth, worth
from hasten.voice import voice

INSTEAD = "channels go instead"


def screen_zeros(run: Run, recipe: Recipe, tried: list[Outcome], bar: float) -> list[Outcome]:
    """The recipe's one candidate goes to `tried`; it comes back where its runtime gains by the zeros, and with them has a chance.

    Where size is the objective nothing is timed: what counts is the ONNX file, and zeros take as much of it as other numbers.
    """
    assert recipe.zeros is not None
    share, pattern = recipe.zeros
    dense = best_float(tried)
    untrained = Candidate(recipe.untrained, dense.runtime, dense.target)
    outcome = Outcome(Candidate(recipe, dense.runtime, dense.target), "")
    if run.left < 0:
        outcome.reason = "the time limit was reached before it was tried"
    elif "failed" in (built := run.build(untrained.recipe)):
        outcome.reason = built["failed"]
    else:
        outcome.size = built["bytes"]
        sized = run.budget.by_bytes

        def compute() -> dict[str, object]:
            whole, pruned = (Model.load(run.path(c.recipe)) for c in (dense, untrained))
            return worth(whole, pruned, share, pattern, () if sized else (dense.runtime,), dense.target, run.feeds).to_json()

        found = Worth.from_json(
            run.remember("zeros", recipe.name, "fresh processes beside the dense graph; sizes of both, packed", compute)
        )
        if found.gains:
            return promising(run, recipe, time_one(run, untrained, outcome.size), tried, bar)
        why = "; the objective counts the raw ONNX file" if sized else ""
        outcome.reason = f"not trained: {found.sentence}{why}; {INSTEAD}"
    tried.append(outcome)
    voice().detail(f"  {outcome.candidate.name:42} {outcome.reason}")
    return []
