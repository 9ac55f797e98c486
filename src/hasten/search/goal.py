"""The goal: what the budget asks of a candidate, and how near it comes: its objective, its limits, its drop of the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hasten.measure.judge import Timing
from hasten.measure.statistics import Verdict, verdict
from hasten.report.numbers import seconds
from hasten.search.result import Outcome
from hasten.search.run import Judged, Run


def objective(run: Run, outcome: Outcome) -> float:
    """What is minimised: bytes, or time relative to the baseline (throughput at a given batch is time too), at the percentile asked for."""
    if run.budget.objective == "size":
        return float(outcome.size)
    if run.budget.objective == "flash":  # RAM decides between equals
        return outcome.footprint["flash"] + outcome.footprint["ram"] / 2**40 if outcome.footprint else math.inf
    if outcome.tail_ratio is not None:
        return 1 / outcome.tail_ratio.estimate
    if outcome.ratio is not None:
        return 1 / outcome.ratio.estimate
    return 1 / outcome.screened


def over(run: Run, timing: Timing) -> str:
    """Why a timing breaks a constraint, empty if it keeps them."""
    budget = run.budget
    if late := too_late(run, timing):
        return late
    if budget.max_memory is not None and timing.peak_memory > budget.max_memory:
        return f"it needs {timing.peak_memory / 2**20:.0f} MiB, {budget.max_memory / 2**20:.0f} MiB are allowed"
    return ""


def too_large(run: Run, footprint: Mapping[str, Any]) -> str:
    """Why the C code of a candidate can't be, or is larger than what the budget allows; empty if neither."""
    if "failed" in footprint:
        return str(footprint["failed"])
    for what, limit in (("flash", run.budget.max_flash), ("ram", run.budget.max_ram)):
        if limit is not None and footprint[what] > limit:
            name = "RAM" if what == "ram" else what
            return f"as C it needs {footprint[what]} bytes of {name}, {limit} are allowed"
    return ""


def too_late(run: Run, timing: Timing) -> str:
    """Why a timing breaks the limit on latency, empty if it keeps it or there is none."""
    budget = run.budget
    if budget.max_latency is None or reached(run, timing) <= budget.max_latency:
        return ""
    return f"p{budget.percentile:g} is {seconds(reached(run, timing))}, {seconds(budget.max_latency)} are allowed"


def reached(run: Run, timing: Timing) -> float:
    """The latency that the limit is about, in seconds: of single calls at the budget's percentile."""
    return timing.percentiles[f"{run.budget.percentile:g}"]


def allowed_drop(run: Run) -> float:
    """The drop that the budget allows: `max_drop`, or without labels what `min_agreement` leaves of 1."""
    assert run.task is not None
    return run.budget.max_drop if run.split("test").labels is not None else 1 - run.budget.min_agreement


def drop_of(run: Run, judged: Judged) -> float:
    """How much worse than the baseline, in the metric's unit; positive is worse."""
    assert run.task is not None
    return -judged.difference.estimate if run.task.metric.higher_is_better else judged.difference.estimate


def verdict_of(run: Run, judged: Judged) -> Verdict:
    """proven, not shown or broken."""
    assert run.task is not None
    difference = judged.difference
    if not run.task.metric.higher_is_better:
        difference = difference.mirrored()
    return verdict(difference, allowed_drop(run), judged.samples)
