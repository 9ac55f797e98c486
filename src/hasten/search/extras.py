"""What a run measures beside speed and accuracy of the chosen one: robustness, calibration, attributions, cost and energy."""

from __future__ import annotations

import dataclasses
from typing import Any

from hasten.errors import BadInput
from hasten.measure import explain as explaining
from hasten.measure import robustness as corrupting
from hasten.measure.calibration import calibration
from hasten.measure.cost import FORMULA, check_price, packages, preparation, price_per_million
from hasten.measure.energy import WATTS_PER_CORE, check_watts, energy, method
from hasten.measure.process import WorkerFailed
from hasten.measure.spread import spreads
from hasten.search.result import Outcome
from hasten.search.run import Run
from hasten.voice import voice


@dataclasses.dataclass(frozen=True)
class Extras:
    """What to measure of the chosen model beside the original; checked when made. Samples: None takes the default number.

    `price_per_hour`: what an hour of this machine costs, in any currency. `watts_per_core`: for the estimate of energy where it can't be
    measured.
    """

    robust: bool = False
    robust_samples: int | None = None
    explain: bool = False
    explain_samples: int | None = None
    price_per_hour: float | None = None
    watts_per_core: float = WATTS_PER_CORE

    def __post_init__(self) -> None:
        if self.price_per_hour is not None:
            check_price(self.price_per_hour)
        check_watts(self.watts_per_core)
        for name in ("robust_samples", "explain_samples"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise BadInput(f"{name} is {value}, expected at least 2")


def check_extras(run: Run, wanted: Extras) -> None:
    """Raises BadInput, before the search, for what this model or its data can't give."""
    if not (wanted.robust or wanted.explain):
        return
    if run.task is None:
        raise BadInput(f"--{'robust' if wanted.robust else 'explain'} needs data to judge by; give --data")
    if wanted.robust:
        _, few = corrupting.sample(run.task, corrupting.FEWEST_SAMPLES, run.budget.seed)
        corrupting.applicable(spreads(run.model.inputs, few.samples.take(few.indices)), run.model.inputs)
    if wanted.explain:
        explaining.check_classes(run.predictions(run.baseline, "validate"))


def extras(run: Run, original: Outcome, chosen: Outcome, wanted: Extras) -> dict[str, Any]:
    """For manifest["details"]: `cost` and `energy` always; `robustness`, `calibration`, `explanation` where wanted and a model was chosen.

    Each is remembered, so a resumed run does not measure it again; what can't be had is {"failed": why}.
    """
    found: dict[str, Any] = {"cost": _cost(run, original, chosen, wanted), "energy": _energy(run, original, chosen, wanted)}
    if run.task is None or chosen is original:
        return found
    if wanted.robust:
        found["robustness"] = _robustness(run, chosen, wanted)
        found["calibration"] = _calibration(run, chosen)
    if wanted.explain:
        found["explanation"] = _explanation(run, chosen, wanted)
    return {k: v for k, v in found.items() if v is not None}


def _cost(run: Run, original: Outcome, chosen: Outcome, wanted: Extras) -> dict[str, Any]:
    """Computed from records, the timings and the installed packages; nothing is measured."""
    made = preparation(run.records)
    seconds = {"original": _seconds(original, chosen), "chosen": chosen.typical.seconds}
    price = wanted.price_per_hour
    return {
        "preparation_seconds": made.get(chosen.candidate.recipe.name),
        "preparation_seconds_all": sum(made.values()),
        "packages": [dataclasses.asdict(p) for p in packages(chosen.candidate.runtime)],
        "packages_original": [dataclasses.asdict(p) for p in packages(original.candidate.runtime)],
        "price_per_hour": price,
        "price_per_million": None if price is None else {k: price_per_million(v, run.target.batch, price) for k, v in seconds.items()},
        "formula": FORMULA,
        "batch": run.target.batch,
        "threads": {"original": original.candidate.target.threads, "chosen": chosen.candidate.target.threads},
    }


def _seconds(original: Outcome, chosen: Outcome) -> float:
    """Of the original in the same rounds as the chosen, where there were some."""
    rounds = chosen.baseline_rounds
    return dataclasses.replace(original, rounds=rounds).typical.seconds if rounds else original.typical.seconds


def _energy(run: Run, original: Outcome, chosen: Outcome, wanted: Extras) -> dict[str, Any]:
    """`original` and `chosen`, measured in the same rounds; the same where the original was chosen."""
    subjects = {"original": run.subject(original.candidate)}
    if chosen is not original:
        subjects["chosen"] = run.subject(chosen.candidate)

    def compute() -> dict[str, Any]:
        if run.left < 0:
            return {"failed": "not measured: the time limit was reached"}
        try:
            return {name: found.to_json() for name, found in energy(subjects, run.feeds, wanted.watts_per_core).items()}
        except WorkerFailed as e:
            return {"failed": str(e)}

    key = f"energy:{wanted.watts_per_core:g}:{chosen.candidate.name}"
    values = run.remember("energy", chosen.candidate.name, f"joules of a call, {method(wanted.watts_per_core)}", compute, key)
    return values if "failed" in values else {"batch": run.target.batch, "chosen": values["original"], **values}


def missing(manifest: dict[str, Any], wanted: Extras) -> list[str]:
    """What is asked for now and was not when a finished folder was made, a line each."""
    details = manifest.get("details", {})
    asked = {"robustness": wanted.robust, "explanation": wanted.explain}
    return [
        f"{name} was not asked for when this run was made; --force measures afresh"
        for name, now in asked.items()
        if now and name not in details and not manifest["reason"]
    ]


def _robustness(run: Run, chosen: Outcome, wanted: Extras) -> dict[str, Any]:
    assert run.task is not None
    task, candidate = run.task, chosen.candidate

    def compute() -> dict[str, Any]:
        voice().say("robustness: both under every corruption that applies, at five strengths")
        try:
            sides = run.subject(run.baseline), run.subject(candidate)
            return corrupting.robustness(*sides, task, run.model.inputs, wanted.robust_samples, run.budget.seed).to_json()
        except WorkerFailed as e:
            return {"failed": str(e)}

    said = f"{task.metric.name} on corrupted test samples, paired with the original in onnxruntime; 95 % intervals"
    return run.remember("robustness", candidate.name, said, compute, f"robustness:{wanted.robust_samples or 0}:{candidate.name}")


def _calibration(run: Run, chosen: Outcome) -> dict[str, Any] | None:
    if run.split("test").labels is None:
        return None

    def compute() -> dict[str, Any]:
        found = calibration(run.predictions(run.baseline, "test"), run.predictions(chosen.candidate, "test"), run.labels("test"))
        return {"none": "the outputs are no class scores"} if found is None else found.to_json()

    said = "expected calibration error on the test split, 15 bins of equal width; paired bootstrap"
    values = run.remember("calibration", chosen.candidate.name, said, compute)
    return None if "none" in values else values


def _explanation(run: Run, chosen: Outcome, wanted: Extras) -> dict[str, Any]:
    assert run.task is not None
    task, candidate, samples = run.task, chosen.candidate, wanted.explain_samples or explaining.SAMPLES

    def compute() -> dict[str, Any]:
        voice().say(f"explanation: occlusion attributions of both on {samples} samples")
        try:
            return explaining.explain(
                run.subject(run.baseline), run.subject(candidate), task, run.model.inputs, samples, run.budget.seed
            ).to_json()
        except (BadInput, WorkerFailed) as e:
            return {"failed": str(e)}

    said = "occlusion attributions on test samples, original against chosen: Spearman's rank correlation and top-10 % overlap"
    return run.remember("explanation", candidate.name, said, compute, f"explanation:{samples}:{candidate.name}")
