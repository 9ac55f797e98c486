"""Accuracy on `validate`: the faster candidates are judged until the finals are full."""

from __future__ import annotations

import math
import time

from hasten.folder import Folder
from hasten.measure.judge import Failure
from hasten.search.finals import FINALISTS
from hasten.search.goal import allowed_drop, drop_of, objective
from hasten.search.guard import broken_guard
from hasten.search.result import Outcome, save_best
from hasten.search.run import Judged, Run
from hasten.voice import voice

WORTH_JUDGING = 0.95
"""Candidates slower than this share of the baseline's speed in the first timing are not judged for accuracy: they can't win."""

JUDGING_SHARE = 0.4
"""Share of the time limit that accuracy on `validate` may take."""

JUDGING_SECONDS = 90.0
"""Where there is no time limit: after this long, only as many more are judged as the finals need."""


def judge_accuracy(run: Run, tried: list[Outcome], folder: Folder, shapes: dict[str, int]) -> None:
    """Accuracy on `validate`, the best objective first, until the finals are full and the time for it is spent."""
    started_left, found = run.left, 0
    limit = JUDGING_SECONDS if math.isinf(started_left) else JUDGING_SHARE * started_left
    start = time.monotonic()
    timed = sorted((o for o in tried if not o.reason and o.timing), key=lambda o: objective(run, o))
    for number, outcome in enumerate(timed):
        voice().step("accuracy on validate", number, len(timed))
        if outcome.candidate is run.baseline:
            outcome.accuracy = _judged_or_none(run, outcome)
            continue
        if run.budget.objective != "flash" and outcome.screened < WORTH_JUDGING:
            outcome.reason = f"slower than the baseline: × {outcome.screened:.2f}"
            voice().candidate(outcome.candidate.name, note="slower than the baseline")
            continue
        if found >= FINALISTS and time.monotonic() - start > limit:
            outcome.reason = f"not judged: {found} faster candidates keep the budget"
            continue
        judge_one(run, outcome)
        if outcome.reason:
            continue
        found += 1
        if found == 1:
            save_best(run, outcome, folder, shapes)
            voice().say(f"best so far: {outcome.candidate.name}")
    voice().step("accuracy on validate", len(timed), len(timed))


def judge_one(run: Run, outcome: Outcome) -> None:
    """Judge one candidate on `validate`: its accuracy, and the reason if it breaks the budget there."""
    outcome.accuracy = _judged_or_none(run, outcome)
    run.forget(outcome.candidate)
    if outcome.accuracy and (drop := drop_of(run, outcome.accuracy)) > allowed_drop(run):
        outcome.reason = f"breaks the budget on validate: a drop of {drop:.4f}, {allowed_drop(run):g} is allowed"
    elif outcome.accuracy:
        outcome.reason = broken_guard(outcome.accuracy.guards, run.budget.guard_drop, None, "validate")
    if outcome.accuracy or outcome.reason:
        judged = (run.task.metric.name, outcome.accuracy.value) if run.task and outcome.accuracy else None
        voice().candidate(outcome.candidate.name, judged=judged, note=outcome.reason)


def _judged_or_none(run: Run, outcome: Outcome) -> Judged | None:
    if run.task is None:
        return None
    judged = run.judged(outcome.candidate, "validate")
    if isinstance(judged, Failure):
        outcome.reason = judged.reason
        return None
    return judged
