"""held: what was advised before the search, and whether it was right afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hasten.advise.inspection import complete, known_facts
from hasten.advise.roofline import roofline
from hasten.advise.rules import Line, advise
from hasten.advise.traits import traits
from hasten.measure.judge import Failure, Timing
from hasten.measure.peaks import peaks
from hasten.plan import Effect
from hasten.search.candidates import GRAPH_ONLY
from hasten.voice import voice

if TYPE_CHECKING:
    from hasten.search.result import Outcome
    from hasten.search.run import Run

CLOSE = 1.10
"""The advice held where its candidate won, or took at most so many times the winner's time."""


TIME_ALONE = ("not among", "not judged", "not shown", "slower")
"""How reasons begin that are about time; any other, such as a broken budget, says that a candidate could not be returned at all."""


def predict(run: Run, baseline: Timing) -> None:
    """Write the advice to the records before any candidate is tried: from the model, the machine's peaks and the baseline's time alone."""

    def compute() -> dict[str, Any]:
        try:
            return lines_for()
        except Exception as e:  # noqa: BLE001 - advice is a remark by the way: whatever is wrong with it must not end a search
            return {"lines": [], "missing": f"the model could not be looked at: {type(e).__name__}: {' '.join(str(e).split())[:200]}"}

    def lines_for() -> dict[str, Any]:
        known = peaks()
        if isinstance(known, Failure):
            return {"lines": [], "missing": f"the machine's peaks could not be measured: {known.reason}"}
        sizes, _ = complete(run.model, {})
        found = known_facts(run.model, sizes, run.target.batch)
        roof = roofline(found, known, baseline.seconds)
        budget = run.budget
        seen = traits(run.model, found, roof, known, budget.runtimes, run.target.threads, run.target.batch, run.task is not None)
        lines = [line for line in advise(seen) if not budget.recipes or line.recipe in budget.recipes]
        return {"lines": [dataclasses.asdict(line) for line in lines]}

    values = run.remember("advice", "advice", "rules on the model's traits, the machine's peaks and the baseline's time", compute)
    if values["lines"]:
        first = values["lines"][0]
        voice().say(f"advice: {first['candidate']}, expected × {first['gain'][0]:.1f} to {first['gain'][1]:.1f}: {first['reason']}")


def advice_details(run: Run, tried: Sequence[Outcome], chosen: Outcome) -> dict[str, Any]:
    """What the manifest says of the advice: its lines, whether the first one held (None where there was none), and why."""
    record = run.records.get("advice:advice")
    lines = [Line(**{**line, "gain": tuple(line["gain"])}) for line in record.values["lines"]] if record else []
    if not lines:
        return {"lines": [], "held": None, "why": (record.values.get("missing") if record else None) or "no rule had a candidate to name"}
    held, why = judge_advice(lines[0], tried, chosen, run.baseline.name)
    return {"lines": [dataclasses.asdict(line) for line in lines], "held": held, "why": why}


def judge_advice(first: Line, tried: Sequence[Outcome], chosen: Outcome, baseline: str, better: str = "") -> tuple[bool, str]:
    """Whether the first line's candidate is the chosen one or within 10 % of its time, both against the baseline of the same moment.

    `better`: a trained candidate that beat them all.
    """
    if chosen.candidate.recipe.effect is Effect.TRAINED:
        held, why = judge_advice(first, tried, _best_untrained(tried, chosen), baseline, better=chosen.candidate.name)
        return held, f"{why} (of what needs no training, for which alone there is advice; {chosen.candidate.name} was trained)"
    winner = chosen.candidate.name
    if first.candidate == winner:
        return True, f"{winner} was advised and chosen"
    if winner == baseline and first.recipe == GRAPH_ONLY and first.gain[0] <= 1.0:
        return True, "no gain was promised for certain, and nothing was better than the original"
    outcome = next((o for o in tried if o.candidate.name == first.candidate), None)
    if outcome is None:
        return False, f"{first.candidate} was advised and is not among the candidates"
    if outcome.timing is None:
        return False, f"{first.candidate} was advised and not timed: {outcome.reason}"
    factor = _speed(chosen, outcome) / _speed(outcome, chosen)
    if factor > CLOSE:
        return False, f"{first.candidate} was advised and takes {factor:.2f} × the time of {winner}"
    if outcome.reason and not outcome.reason.startswith((*TIME_ALONE, winner, better or winner)):
        return False, f"{first.candidate} was advised and lost: {outcome.reason}"
    return True, f"{first.candidate} was advised and takes {factor:.2f} × the time of {winner}, which was chosen"


def _best_untrained(tried: Sequence[Outcome], chosen: Outcome) -> Outcome:
    """The fastest that needs no training and lost for its time alone; the original where there is none."""
    lost = (*TIME_ALONE, chosen.candidate.name)
    found = [
        o for o in tried[1:] if o.timing and o.candidate.recipe.effect is not Effect.TRAINED and (not o.reason or o.reason.startswith(lost))
    ]
    return max(found, key=lambda o: o.ratio.estimate if o.ratio is not None else o.screened, default=tried[0])


def _speed(outcome: Outcome, other: Outcome) -> float:
    """Times faster than the baseline: in the finals where both came so far, else in the first timing."""
    return outcome.ratio.estimate if outcome.ratio is not None and other.ratio is not None else outcome.screened
