"""The choice: the first finalist that is faster than every baseline and keeps the budget on `test`, else the original, and why."""

from __future__ import annotations

import math

from hasten.measure.judge import Failure
from hasten.report.numbers import restless, seconds
from hasten.search.goal import allowed_drop, drop_of, objective, reached, too_late, verdict_of
from hasten.search.guard import broken_guard
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.voice import voice


def choose(run: Run, tried: list[Outcome]) -> tuple[Outcome, str]:
    """The first finalist, in order, that is faster than every baseline and keeps the budget on `test`; else the original and why."""
    original = tried[0]
    finalists = [o for o in tried if not o.reason and o.ratio is not None]
    for outcome in finalists:
        outcome.reason = _not_faster(run, outcome)
    for outcome in _ordered(run, [o for o in finalists if not o.reason]):
        if run.task is None:
            return _won(tried, outcome), ""
        judged = run.judged(outcome.candidate, "test")
        if isinstance(judged, Failure):
            outcome.reason = judged.reason
            continue
        outcome.test, outcome.verdict = judged, verdict_of(run, judged)
        voice().say(f"test: {outcome.candidate.name}: {run.task.metric.name} {judged.value:.4f} ({outcome.verdict.state})")
        if outcome.verdict.state == "broken":
            outcome.reason = f"breaks the budget on test: a drop of {drop_of(run, judged):.4f}, {allowed_drop(run):g} is allowed"
        elif run.budget.strict and outcome.verdict.state != "proven":
            outcome.reason = f"--strict: not proven; about {outcome.verdict.samples_needed} more samples would decide"
        elif broken := broken_guard(judged.guards, run.budget.guard_drop, run.budget.guard_margin, "test") or _broken_as_c(run, outcome):
            outcome.reason = broken
        else:
            return _won(tried, outcome), ""
    return original, "; ".join([_why_nothing(run, tried), *restless(max((o.floor for o in tried), default=0.0))])


def _broken_as_c(run: Run, outcome: Outcome) -> str:
    """Why the C code, whose sums are rounded in fixed point, breaks the budget on test; empty if it keeps it or none was asked for."""
    if not run.budget.as_c:
        return ""
    outcome.as_c = judged = run.judged_as_c(outcome.candidate)
    assert run.task is not None
    voice().say(f"test, as C: {outcome.candidate.name}: {run.task.metric.name} {judged.value:.4f}")
    if (drop := drop_of(run, judged)) > allowed_drop(run):
        return f"breaks the budget on test as C: a drop of {drop:.4f}, {allowed_drop(run):g} is allowed"
    return ""


def _won(tried: list[Outcome], chosen: Outcome) -> Outcome:
    """Say of the other finalists why they lost."""
    for outcome in tried:
        if outcome is not chosen and outcome.ratio is not None and not outcome.reason:
            outcome.reason = f"{chosen.candidate.name} is better, or not slower and more accurate or smaller"
    return chosen


def _not_faster(run: Run, outcome: Outcome) -> str:
    """Why a finalist may not be returned for its speed, empty if it may. For size it need not be faster, only not slower."""
    assert outcome.ratio is not None
    if run.budget.objective == "flash":  # this machine's times say nothing about a microcontroller
        return ""
    for name, ratio in {run.baseline.name: outcome.ratio, **outcome.own_ratios}.items():
        if run.budget.objective == "size":
            if ratio.estimate < 1:
                return f"slower than {name}: × {ratio.estimate:.3f}"
        elif ratio.low <= 1 or ratio.estimate <= 1 + outcome.floor:
            return (
                f"not shown to be faster than {name}: × {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], "
                f"noise floor {outcome.floor:.1%}"
            )
    if outcome.tail_ratio is not None and outcome.tail_ratio.high < 1:
        tail = outcome.tail_ratio
        return f"slower than {run.baseline.name} at p{run.budget.percentile:g}: × {tail.estimate:.3f} [{tail.low:.3f}, {tail.high:.3f}]"
    return ""


def _ordered(run: Run, finalists: list[Outcome]) -> list[Outcome]:
    """Best objective first; those within the noise floor of the best count as equal and go by accuracy, size, name."""
    rest, ordered = sorted(finalists, key=lambda o: objective(run, o)), []
    while rest:
        best = objective(run, rest[0])
        floor = 0.0 if run.budget.by_bytes else rest[0].floor
        equal = [o for o in rest if objective(run, o) <= best * (1 + floor)]
        sign = -1 if run.task is None or run.task.metric.higher_is_better else 1
        equal.sort(key=lambda o: (sign * (o.accuracy.value if o.accuracy else 0.0), o.size, o.candidate.name))
        ordered += equal
        rest = [o for o in rest if o not in equal]
    return ordered


def _why_nothing(run: Run, tried: list[Outcome]) -> str:
    """In words. Where the original itself misses the limit on latency, that is said first, with what came nearest to it."""
    missed = too_late(run, tried[0].typical)
    timed = [o for o in tried[1:] if o.timing]
    if missed and timed:
        nearest = min(timed, key=lambda o: reached(run, o.typical))
        far = reached(run, nearest.typical) / (run.budget.max_latency or math.inf)
        came = f"the nearest, {nearest.candidate.name}, takes {seconds(reached(run, nearest.typical))}"
        came += f", {far:.2f} × the limit" if far > 1 else f" and keeps it, but {nearest.reason}"
        return f"the original itself misses the limit on latency ({missed}), and nothing that keeps the budget meets it; {came}"
    reasons = [f"{o.candidate.name}: {o.reason}" for o in sorted(tried[1:], key=lambda o: -o.screened)]
    return "nothing better than the original within the budget; the closest: " + ("; ".join(reasons[:2]) or "no candidate was left to try")
