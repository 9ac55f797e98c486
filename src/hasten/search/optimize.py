"""optimize: the main job. From a model, a task and a budget to the fastest model that keeps the budget, and the proof."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten import doors, profiles, runtimes
from hasten.advise.held import advice_details, predict
from hasten.errors import BadInput, Unsupported
from hasten.folder import FINISHED, RECORDS, Folder
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.machine import machine
from hasten.measure.process import Subject
from hasten.measure.record import Record, Records
from hasten.measure.statistics import Verdict, noise_floor, ratio_interval, smallest_provable_drop, verdict
from hasten.model import Model
from hasten.report.numbers import seconds
from hasten.runtimes import Target
from hasten.search.budget import Budget
from hasten.search.candidates import GRAPH_ONLY, Candidate, candidates, recipes
from hasten.search.details import details
from hasten.search.extras import Extras, check_extras, extras, missing
from hasten.search.guard import broken_guard, check_guards
from hasten.search.result import Outcome, Result, save_best, write_result
from hasten.search.run import Judged, Run
from hasten.task import BoundTask, Task
from hasten.voice import Told, speaking, voice

FINALISTS, MOST_FINALISTS, CLOSE = 3, 5, 1.1
"""The best three of the first two timings reach the finals, and whoever came within this factor of the third, up to five."""

LOOKED = 8
"""So many of the best of the first timing are timed a second time before the finalists are chosen: one process says little."""

MORE_PAIRS, QUIET, PATIENCE = 12, 0.05, 20.0
"""Rounds of fresh processes when six leave it open whether a finalist is faster; also, for so many seconds, when the noise floor is above
this share."""

WORTH_JUDGING = 0.95
"""Candidates slower than this share of the baseline's speed in the first timing are not judged for accuracy: they can't win."""

NEAR = 0.75
"""A model's own framework that reaches this share of onnxruntime's speed takes part in the finals; a slower one can't be the baseline."""

JUDGING_SHARE = 0.4
"""Share of the time limit that accuracy on `validate` may take."""

JUDGING_SECONDS = 90.0
"""Where there is no time limit: after this long, only as many more are judged as the finals need."""

BASELINE, AGAIN = "baseline", "baseline again (A/A)"


def optimize(
    model: Any,
    task: Task | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    shapes: Mapping[str, int] | None = None,
    keep_dynamic: bool = False,
    resume: bool = False,
    force: bool = False,
    say: Callable[[str], None] | None = None,
    wanted: Extras = Extras(),  # noqa: B008 - frozen
    purpose: str | None = None,
    **budget: Any,
) -> Result:
    """Make `model` faster within a budget, measured on this machine.

    model: a path (.onnx, .keras, .pt2, `file.py:function`), ModelProto, nn.Module or ExportedProgram (with `example_inputs`), keras.Model.
    task: data and metric; None: only techniques that keep the results, and accuracy is not judged.
    out: the folder to write (best so far always in it; the same call resumes after an interruption); None: a temporary one, see `Result.save`.
    shapes: sizes for dynamic axes by name; those not named take the data's (all samples having one shape), unless
    `keep_dynamic`. wanted: what to measure of the chosen one beside speed and accuracy, such as `Extras(robust=True)`.
    budget: the fields of `hasten.Budget`, such as `max_drop=0.005`. say: gets a sentence now and then, such as `print`.
    purpose: a profile of `hasten.profiles` (`realtime`, `server`, …) that sets those fields which `budget` does not.
    Where nothing is better, the result holds the original and `result.reason` (the command line then ends with exit code 3).

    Raises BadInput, Unsupported, OutOfResources; never because a candidate crashed, hung or ran out of memory.
    """
    allowed = Budget(**profiles.apply(purpose, budget))
    listener = Told(say) if say is not None else voice()
    with speaking(listener), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        for line in profiles.spelled(purpose, budget) if purpose is not None else ():
            voice().say(line)
        loaded = doors.load(model, example_inputs=example_inputs, shapes=shapes, workdir=Path(private))
        for note in loaded.notes:
            voice().say(note)
        bound = task.bind(loaded.model) if task is not None else None
        for note in bound.notes if bound else ():
            voice().say(note)
        check_guards(allowed.guards, bound)
        model_shapes = dict(shapes or {})
        if bound is not None and not keep_dynamic and (sizes := _sizes_in(loaded.model, bound)):
            loaded = dataclasses.replace(loaded, model=doors.load(loaded.model, shapes=sizes, workdir=Path(private)).model)
            model_shapes |= sizes
            voice().say(
                f"dynamic axes fixed to what the data has: {', '.join(f'{k} = {v}' for k, v in sizes.items())} (--keep-dynamic keeps them)"
            )
        target = _target(loaded.model, allowed)
        folder = Folder(Path(out)) if out is not None else Folder(Path(tempfile.mkdtemp(prefix="hasten-result-")))
        if folder.state == FINISHED and not (resume or force):
            raise BadInput(f"{folder.path} holds a finished run; --resume shows it again, --force starts afresh")
        fresh, made = force or folder.state is None, out is None or not folder.path.exists()
        if fresh:
            folder.prepare(force)
        try:
            records = Records(folder.file(RECORDS))
            run = Run(loaded.model, bound, allowed, target, folder.work, records, loaded.origin)
            _identify(run, folder)
            if folder.state == FINISHED:
                done = Result.load(folder.path)
                for line in missing(done.manifest, wanted):
                    voice().say(line)
                return done
            folder.work.mkdir(exist_ok=True)
            baseline = _baseline(run)
            check_extras(run, wanted)
            predict(run, baseline)
        except (BadInput, Unsupported):
            if fresh:  # the original or the data can't be used: leave nothing behind
                folder.clear()
                if made:
                    folder.path.rmdir()
            raise
        return _search(run, folder, model_shapes, baseline, wanted)


def _sizes_in(model: Model, task: BoundTask) -> dict[str, int]:
    """The sizes that the data has along the inputs' named dynamic axes, the batch aside: the axis names of the first axes."""
    split = task.validate
    assert split is not None
    feeds = next(iter(split.batches(1)))
    first = {p.shape[0] for p in model.inputs if p.shape}
    named = (
        (axis, size) for p in model.inputs for axis, size in zip(p.shape[1:], feeds[p.name].shape[1:], strict=True) if isinstance(axis, str)
    )
    return {axis: size for axis, size in named if axis not in first}


def _target(model: Model, budget: Budget) -> Target:
    """Where it will run. A model with a fixed batch keeps it; raises BadInput if another one was asked for."""
    axes = [port.shape[0] for port in model.inputs if port.shape]
    fixed = next((axis for axis in axes if isinstance(axis, int)), None)
    if budget.batch is not None and fixed is not None and budget.batch != fixed:
        raise BadInput(f"batch {budget.batch} was asked for, and the model's inputs have a fixed first axis of {fixed}; leave --batch out")
    return Target(budget.use_threads, fixed or budget.use_batch, memory_limit=budget.max_memory)


def _identify(run: Run, folder: Folder) -> None:
    """Refuse to resume what was begun otherwise. Raises BadInput."""
    before = run.records.get("run")
    if before is None:
        run.records.add(Record("run", "run", "", "digest of model, data, budget, machine and versions", {"identity": run.identity}))
    elif before.values["identity"] != run.identity:
        raise BadInput(
            f"{folder.path} was begun with another model, data, budget, machine or version of a library; "
            "give the same to resume, --force to start afresh, or another -o"
        )
    elif len(run.records) > 1:
        voice().say(f"resumed: {len(run.records)} measurements are kept")


def _search(run: Run, folder: Folder, shapes: dict[str, int], baseline: Timing, wanted: Extras) -> Result:
    """The stages in order; every one leaves its records, so a resumed run walks through them quickly."""
    tried = _screen(run, baseline)
    _judge_accuracy(run, tried, folder, shapes)
    _finals(run, tried)
    chosen, reason = _choose(run, tried)
    found = details(run, tried[0], chosen) | extras(run, tried[0], chosen, wanted) | {"advice": advice_details(run, tried, chosen)}
    return write_result(run, folder, tried, chosen, reason, shapes, found)


def _baseline(run: Run) -> Timing:
    """Build, time and judge the unchanged model first: nothing is worth comparing with a baseline that does not work."""
    built = run.build(run.baseline.recipe)
    if "failed" in built:
        raise BadInput(f"the original model can't be used: {built['failed']}")
    timed = run.time_baseline()
    if isinstance(timed, Failure):
        raise Unsupported(f"the original model does not run in onnxruntime: {timed.reason}")
    voice().say(f"baseline: {run.baseline.name}, batch {run.target.batch}: {seconds(timed.seconds)} on {machine().cpu}")
    if run.task is not None:
        run.settle_metric()
        judged = run.judged(run.baseline, "validate")
        if isinstance(judged, Failure):
            raise BadInput(f"the original model can't be judged: {judged.reason}")
        metric = run.task.metric
        voice().say(f"baseline: {metric.name} {judged.value:.4f} on {judged.samples} validation samples")
        _sane(run, judged)
        samples = len(run.split("test"))
        voice().say(
            f"budget: a drop of at most {allowed_drop(run):g}; the {samples} test samples can prove a drop of about "
            f"{smallest_provable_drop(samples):.4f} or more"
        )
    else:
        voice().say("no data: only techniques that keep the results are tried, and accuracy is not judged")
    _own_framework(run)
    return timed


def _sane(run: Run, judged: Judged) -> None:
    """Stop at chance level: a float model that guesses means that the data does not fit it. Raises BadInput."""
    assert run.task is not None
    metric, labels = run.task.metric, run.split("validate").labels
    if metric.chance is None or labels is None:
        return
    chance = metric.chance(run.predictions(run.baseline, "validate"), labels)
    spread = 2 * math.sqrt(max(chance * (1 - chance), 0.0) / judged.samples) if 0 <= chance <= 1 else 0.0
    guessing = judged.value <= chance + spread if metric.higher_is_better else judged.value >= chance
    if chance == 1 and metric.higher_is_better:
        raise BadInput(
            f"the {judged.samples} labels are all the same, so that {metric.name} is {judged.value:.4f} and says nothing: "
            "give data with more than one class, or leave the labels out (the budget is then agreement with the original)"
        )
    if guessing:
        raise BadInput(
            f"the original model reaches {metric.name} {judged.value:.4f} on {judged.samples} samples, and guessing reaches {chance:.4f}: "
            "suspect the preprocessing (--preprocess: scale, mean, colour order), the layout (NCHW or NHWC), "
            "or the labels (their order, and whether they count from 0)"
        )


def _own_framework(run: Run) -> None:
    """Time the model in the framework it came from: the faster of the two is the baseline that must be beaten."""
    if run.origin is None:
        return
    names: list[str] = [run.origin.framework]
    if run.origin.framework == "torch" and run.left > 300 and run.budget.time_limit is not None:
        names.append("torch-compiled")
    for name in names:
        subject = Subject(name, run.origin.path, run.target)
        timed, ratio = run.screen(name, subject)
        if isinstance(timed, Failure):
            voice().say(f"baseline: {name}: {timed.reason}")
            continue
        voice().say(f"baseline: {name}: {seconds(timed.seconds)} ({ratio:.2f} × onnxruntime's speed)")
        if ratio > NEAR:
            run.subjects[name] = subject


def _screen(run: Run, baseline: Timing) -> list[Outcome]:
    """Build and time every candidate once; the cheapest checks come first."""
    tried: list[Outcome] = [Outcome(run.baseline, "", timing=baseline, screened=1.0, size=run.build(run.baseline.recipe)["bytes"])]
    todo = list(candidates(run.budget, run.target, baseline.seconds, judged=run.task is not None))
    voice().candidate(run.baseline.name, baseline.seconds, 1.0)
    for number, candidate in enumerate(todo):
        voice().step("first timing", number, len(todo))
        outcome = _screen_one(run, candidate)
        tried.append(outcome)
        if outcome.timing:
            voice().candidate(candidate.name, outcome.timing.seconds, outcome.screened, note=outcome.reason)
        else:
            voice().detail(f"  {candidate.name:42} not timed: {outcome.reason}")
    voice().step("first timing", len(todo), len(todo))
    return tried


def _screen_one(run: Run, candidate: Candidate) -> Outcome:
    if run.left < 0:
        return Outcome(candidate, "the time limit was reached before it was tried")
    built = run.build(candidate.recipe)
    if "failed" in built:
        return Outcome(candidate, built["failed"])
    size = built["bytes"]
    if (twin := _twin(run, candidate)) is not None:
        return Outcome(candidate, twin, size=size)
    if run.budget.max_size is not None and size > run.budget.max_size:
        return Outcome(candidate, f"its file has {size} bytes, {run.budget.max_size} are allowed", size=size)
    refusals = runtimes.get(candidate.runtime).unsupported(Model.load(run.path(candidate.recipe)), candidate.target)
    if refusals:
        return Outcome(candidate, "; ".join(f"{s.node}: {s.why}" if s.node else s.why for s in refusals[:3]), size=size)
    timed, ratio = run.screen(candidate.name, run.subject(candidate))
    if isinstance(timed, Failure):
        return Outcome(candidate, timed.reason, size=size)
    return Outcome(candidate, _over(run, timed), timing=timed, screened=ratio, size=size)


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


def _over(run: Run, timing: Timing) -> str:
    """Why a timing breaks a constraint, empty if it keeps them."""
    budget = run.budget
    reached = timing.percentiles[f"{budget.percentile:g}"]
    if budget.max_latency is not None and reached > budget.max_latency:
        return f"p{budget.percentile:g} is {seconds(reached)}, {seconds(budget.max_latency)} are allowed"
    if budget.max_memory is not None and timing.peak_memory > budget.max_memory:
        return f"it needs {timing.peak_memory / 2**20:.0f} MiB, {budget.max_memory / 2**20:.0f} MiB are allowed"
    return ""


def _judge_accuracy(run: Run, tried: list[Outcome], folder: Folder, shapes: dict[str, int]) -> None:
    """Accuracy on `validate`, the best objective first, until the finals are full and the time for it is spent."""
    started_left, found = run.left, 0
    limit = JUDGING_SECONDS if math.isinf(started_left) else JUDGING_SHARE * started_left
    start = time.monotonic()
    timed = sorted((o for o in tried if not o.reason and o.timing), key=lambda o: _objective(run, o))
    for number, outcome in enumerate(timed):
        voice().step("accuracy on validate", number, len(timed))
        if outcome.candidate is run.baseline:
            outcome.accuracy = _judged_or_none(run, outcome)
            continue
        if outcome.screened < WORTH_JUDGING:
            outcome.reason = f"slower than the baseline: × {outcome.screened:.2f}"
            voice().candidate(outcome.candidate.name, note="slower than the baseline")
            continue
        if found >= FINALISTS and time.monotonic() - start > limit:
            outcome.reason = f"not judged: {found} faster candidates keep the budget"
            continue
        outcome.accuracy = _judged_or_none(run, outcome)
        run.forget(outcome.candidate)
        if outcome.accuracy and (drop := drop_of(run, outcome.accuracy)) > allowed_drop(run):
            outcome.reason = f"breaks the budget on validate: a drop of {drop:.4f}, {allowed_drop(run):g} is allowed"
        elif outcome.accuracy:
            outcome.reason = broken_guard(outcome.accuracy.guards, run.budget.guard_drop, None, "validate")
        if outcome.accuracy or outcome.reason:
            accuracy = outcome.accuracy.value if outcome.accuracy else None
            voice().candidate(outcome.candidate.name, accuracy=accuracy, note=outcome.reason)
        if outcome.reason:
            continue
        found += 1
        if found == 1:
            save_best(run, outcome, folder, shapes)
            voice().say(f"best so far: {outcome.candidate.name}")
    voice().step("accuracy on validate", len(timed), len(timed))


def _judged_or_none(run: Run, outcome: Outcome) -> Judged | None:
    if run.task is None:
        return None
    judged = run.judged(outcome.candidate, "validate")
    if isinstance(judged, Failure):
        outcome.reason = judged.reason
        return None
    return judged


def _finals(run: Run, tried: list[Outcome]) -> None:
    """The finalists against the baseline(s), in rounds of fresh processes; the interval is over the rounds' ratios."""
    rivals = sorted((o for o in tried if not o.reason and o.timing and o.candidate is not run.baseline), key=lambda o: _objective(run, o))
    rivals = _second_timing(run, rivals)
    enough = _objective(run, rivals[:FINALISTS][-1]) * CLOSE if rivals else 0.0
    admitted = [o for i, o in enumerate(rivals[:MOST_FINALISTS]) if i < FINALISTS or _objective(run, o) <= enough]
    for outcome in rivals[len(admitted) :]:
        outcome.reason = f"not among the finalists: {len(admitted)} candidates were better in the first timings"
    finalists = {o.candidate.name: o for o in admitted}
    if not finalists:
        return
    subjects = {BASELINE: run.subject(run.baseline), AGAIN: run.subject(run.baseline), **run.subjects}
    subjects |= {name: run.subject(o.candidate) for name, o in finalists.items()}
    rounds: list[dict[str, Timing | Failure]] = []
    voice().say(f"finals: {len(finalists)} candidates, {judge.PAIRS} rounds of fresh processes")
    patient_until = time.monotonic() + PATIENCE
    while len(rounds) < judge.PAIRS or (
        len(rounds) < MORE_PAIRS and run.left > 0 and _open(rounds, finalists, noisy=time.monotonic() < patient_until)
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
        outcome.own_ratios = {own: ratio_interval(_pairs(rounds, own, name)) for own in run.subjects}
        outcome.floor = floor
        outcome.rounds = [t for r in rounds if isinstance(t := r[name], Timing)]
        outcome.baseline_rounds = [t for r in rounds if isinstance(t := r[BASELINE], Timing)]
        outcome.reason = _over(run, outcome.typical)
        interval = f"[{outcome.ratio.low:.3f}, {outcome.ratio.high:.3f}]"
        voice().candidate(name, outcome.typical.seconds, outcome.ratio.estimate, note=f"final: × {outcome.ratio.estimate:.3f} {interval}")
    voice().say(f"  noise floor (A/A, the same way): {floor:.1%}")


def _second_timing(run: Run, rivals: list[Outcome]) -> list[Outcome]:
    """The best of `rivals` timed once more; what counts then is the geometric mean of both ratios. Those that still run, in order."""
    if len(rivals) > FINALISTS and run.left > 0 and run.budget.objective != "size":
        for number, outcome in enumerate(rivals[:LOOKED]):
            voice().step("second timing", number, min(LOOKED, len(rivals)))
            timed, ratio = run.screen(outcome.candidate.name, run.subject(outcome.candidate), "screened again")
            if isinstance(timed, Failure):
                outcome.reason = timed.reason
            else:
                outcome.screened = math.sqrt(outcome.screened * ratio)
                voice().candidate(outcome.candidate.name, speed=outcome.screened)
        voice().step("second timing", LOOKED, LOOKED)
    return sorted((o for o in rivals if not o.reason), key=lambda o: _objective(run, o))


def _open(rounds: list[dict[str, Timing | Failure]], finalists: Mapping[str, Outcome], noisy: bool) -> bool:
    """Whether some finalist's interval holds 1 although its estimate is above, or (`noisy`) finalists can't be told apart for the noise."""
    again = _pairs(rounds, BASELINE, AGAIN)
    if noisy and len(again) == len(rounds) and noise_floor(again) > QUIET:
        return True
    intervals = [ratio_interval(p) for name in finalists if len(p := _pairs(rounds, BASELINE, name)) == len(rounds)]
    return any(i.low <= 1 < i.estimate for i in intervals)


def _pairs(rounds: list[dict[str, Timing | Failure]], one: str, other: str, percentile: str = "") -> list[tuple[float, float]]:
    """Seconds of both in each round: of the typical call, or of the call at `percentile`."""

    def spent(t: Timing) -> float:
        return t.percentiles[percentile] if percentile else t.seconds

    return [(spent(a), spent(b)) for r in rounds if isinstance(a := r[one], Timing) and isinstance(b := r[other], Timing)]


def _choose(run: Run, tried: list[Outcome]) -> tuple[Outcome, str]:
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
        elif broken := broken_guard(judged.guards, run.budget.guard_drop, run.budget.guard_margin, "test"):
            outcome.reason = broken
        else:
            return _won(tried, outcome), ""
    return original, _why_nothing(tried)


def _won(tried: list[Outcome], chosen: Outcome) -> Outcome:
    """Say of the other finalists why they lost."""
    for outcome in tried:
        if outcome is not chosen and outcome.ratio is not None and not outcome.reason:
            outcome.reason = f"{chosen.candidate.name} is better, or not slower and more accurate or smaller"
    return chosen


def _not_faster(run: Run, outcome: Outcome) -> str:
    """Why a finalist may not be returned for its speed, empty if it may. For size it need not be faster, only not slower."""
    assert outcome.ratio is not None
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
    rest, ordered = sorted(finalists, key=lambda o: _objective(run, o)), []
    while rest:
        best = _objective(run, rest[0])
        floor = 0.0 if run.budget.objective == "size" else rest[0].floor
        equal = [o for o in rest if _objective(run, o) <= best * (1 + floor)]
        sign = -1 if run.task is None or run.task.metric.higher_is_better else 1
        equal.sort(key=lambda o: (sign * (o.accuracy.value if o.accuracy else 0.0), o.size, o.candidate.name))
        ordered += equal
        rest = [o for o in rest if o not in equal]
    return ordered


def _objective(run: Run, outcome: Outcome) -> float:
    """What is minimised: bytes, or time relative to the baseline (throughput at a given batch is time too), at the percentile asked for."""
    if run.budget.objective == "size":
        return float(outcome.size)
    if outcome.tail_ratio is not None:
        return 1 / outcome.tail_ratio.estimate
    if outcome.ratio is not None:
        return 1 / outcome.ratio.estimate
    return 1 / outcome.screened


def _why_nothing(tried: list[Outcome]) -> str:
    reasons = [f"{o.candidate.name}: {o.reason}" for o in sorted(tried[1:], key=lambda o: -o.screened)]
    return "nothing better than the original within the budget; the closest: " + ("; ".join(reasons[:2]) or "no candidate was left to try")


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
