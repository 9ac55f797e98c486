"""The finals: the best are timed once more, and the best of those meet the baseline in rounds of fresh processes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection

from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.statistics import noise_floor, ratio_interval
from hasten.search.goal import objective, over
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.voice import voice

FINALISTS, MOST_FINALISTS, CLOSE = 3, 5, 1.1
"""The best three of the first two timings reach the finals, and whoever came within this factor of the third, up to five."""

LOOKED = 8
"""So many of the best of the first timing are timed a second time before the finalists are chosen: one process says little."""

MORE_PAIRS, QUIET, PATIENCE = 12, 0.05, 20.0
"""Rounds of fresh processes when six leave it open whether a finalist is faster; also, for so many seconds, when the noise floor is above
this share."""

BASELINE, AGAIN = "baseline", "baseline again (A/A)"


def finals(run: Run, tried: list[Outcome]) -> None:
    """The finalists against the baseline(s), in rounds of fresh processes; the interval is over the rounds' ratios."""
    rivals = sorted((o for o in tried if not o.reason and o.timing and o.candidate is not run.baseline), key=lambda o: objective(run, o))
    rivals = _second_timing(run, rivals)
    enough = objective(run, rivals[:FINALISTS][-1]) * CLOSE if rivals else 0.0
    admitted = [o for i, o in enumerate(rivals[:MOST_FINALISTS]) if i < FINALISTS or objective(run, o) <= enough]
    finalists = {o.candidate.name: o for o in rivals if o in admitted or o.candidate.name in run.subjects}
    for outcome in rivals:
        if outcome.candidate.name not in finalists:
            outcome.reason = f"not among the finalists: {len(admitted)} candidates were better in the first timings"
    if not finalists:
        return
    subjects = {BASELINE: run.subject(run.baseline), AGAIN: run.subject(run.baseline), **run.subjects}
    subjects |= {name: run.subject(o.candidate) for name, o in finalists.items()}
    rounds: list[dict[str, Timing | Failure]] = []
    voice().say(f"finals: {len(finalists)} candidates, {judge.PAIRS} rounds of fresh processes")
    patient_until = time.monotonic() + PATIENCE
    while len(rounds) < judge.PAIRS or (
        len(rounds) < MORE_PAIRS and run.left > 0 and _open(rounds, finalists, run.subjects, noisy=time.monotonic() < patient_until)
    ):
        rounds.append(run.duel(subjects, len(rounds)))
        voice().step("finals, rounds of fresh processes", len(rounds), max(judge.PAIRS, len(rounds)))
    floor = noise_floor(_pairs(rounds, BASELINE, AGAIN))
    for name, outcome in finalists.items():
        failed = [t for r in rounds if isinstance(t := r[name], Failure)]
        if failed:
            outcome.reason = failed[0].reason
            continue
        outcome.ratio = ratio_interval(_pairs(rounds, BASELINE, name))
        if run.budget.at_the_tail:
            outcome.tail_ratio = ratio_interval(_pairs(rounds, BASELINE, name, f"{run.budget.percentile:g}"))
        ran = [own for own in run.subjects if own != name and len(_pairs(rounds, own, name)) == len(rounds)]
        outcome.own_ratios = {own: ratio_interval(_pairs(rounds, own, name)) for own in ran}
        outcome.own_seconds = {own: statistics.median(one for one, _ in _pairs(rounds, own, name)) for own in ran}
        outcome.floor = floor
        outcome.rounds = [t for r in rounds if isinstance(t := r[name], Timing)]
        outcome.baseline_rounds = [t for r in rounds if isinstance(t := r[BASELINE], Timing)]
        outcome.reason = over(run, outcome.typical)
        interval = f"[{outcome.ratio.low:.3f}, {outcome.ratio.high:.3f}]"
        voice().candidate(name, outcome.typical.seconds, outcome.ratio.estimate, note=f"final: × {outcome.ratio.estimate:.3f} {interval}")
    voice().say(f"  noise floor (A/A, the same way): {floor:.1%}")


def _second_timing(run: Run, rivals: list[Outcome]) -> list[Outcome]:
    """The best of `rivals` timed once more; what counts then is the geometric mean of both ratios. Those that still run, in order."""
    if len(rivals) > FINALISTS and run.left > 0 and not run.budget.by_bytes:
        for number, outcome in enumerate(rivals[:LOOKED]):
            voice().step("second timing", number, min(LOOKED, len(rivals)))
            timed, ratio = run.screen(outcome.candidate.name, run.subject(outcome.candidate), "screened again")
            if isinstance(timed, Failure):
                outcome.reason = timed.reason
            else:
                outcome.screened = math.sqrt(outcome.screened * ratio)
                voice().candidate(outcome.candidate.name, speed=outcome.screened)
        voice().step("second timing", LOOKED, LOOKED)
    return sorted((o for o in rivals if not o.reason), key=lambda o: objective(run, o))


def _open(rounds: list[dict[str, Timing | Failure]], finalists: Collection[str], others: Collection[str], noisy: bool) -> bool:
    """Whether some finalist's interval holds 1 although its estimate is above, or (`noisy`) finalists can't be told apart for the noise.

    `others`: the baselines beside the first.
    """
    again = _pairs(rounds, BASELINE, AGAIN)
    if noisy and len(again) == len(rounds) and noise_floor(again) > QUIET:
        return True
    duels = [(one, name) for one in (BASELINE, *others) for name in finalists if one != name]
    intervals = [ratio_interval(p) for one, name in duels if len(p := _pairs(rounds, one, name)) == len(rounds)]
    return any(i.low <= 1 < i.estimate for i in intervals)


def _pairs(rounds: list[dict[str, Timing | Failure]], one: str, other: str, percentile: str = "") -> list[tuple[float, float]]:
    """Seconds of both in each round: of the typical call, or of the call at `percentile`."""

    def spent(t: Timing) -> float:
        return t.percentiles[percentile] if percentile else t.seconds

    return [(spent(a), spent(b)) for r in rounds if isinstance(a := r[one], Timing) and isinstance(b := r[other], Timing)]
