"""What came out: every candidate with its numbers and the reason why it lost, the Pareto front, the choice, and the folder they fill."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics as stats
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hasten.errors import BadInput
from hasten.folder import (
    C_FILES,
    FINISHED,
    MANIFEST,
    MODEL,
    ORIGINAL,
    OURS,
    PLAN,
    RECORDS,
    RUN,
    UNFINISHED,
    WORK,
    C,
    Folder,
    file_digest,
    write_atomically,
)
from hasten.measure.judge import Timing
from hasten.measure.machine import machine, versions
from hasten.measure.statistics import Interval, Verdict
from hasten.model import Model
from hasten.report.numbers import restless
from hasten.search.candidates import Candidate
from hasten.search.run import Judged, Run

NOT_THE_TARGET = (
    "time was not measured on the target: all times are those of runtimes on this machine, and say nothing about a microcontroller"
)
"""What is said first where a model for a microcontroller was asked for."""


@dataclasses.dataclass(eq=False)
class Outcome:
    """A candidate on its way through the search; `reason` says why it lost, empty while it has not.

    `screened`: how many times faster than the baseline in the first timing, 0 where there was none.
    """

    candidate: Candidate
    reason: str
    timing: Timing | None = None
    screened: float = 0.0
    size: int = 0
    accuracy: Judged | None = None
    ratio: Interval | None = None
    tail_ratio: Interval | None = None
    own_ratios: dict[str, Interval] = dataclasses.field(default_factory=dict)
    own_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    floor: float = 0.0
    rounds: Sequence[Timing] = ()
    baseline_rounds: Sequence[Timing] = ()
    test: Judged | None = None
    verdict: Verdict | None = None
    footprint: dict[str, Any] | None = None
    as_c: Judged | None = None

    @property
    def typical(self) -> Timing:
        """The median over its fresh processes: in the finals where it came so far, else of the first timing."""
        assert self.timing is not None
        return _median(self.rounds) if self.rounds else self.timing


@dataclasses.dataclass(frozen=True)
class Choice:
    """One candidate as reported. Times in seconds a call of one batch, sizes in bytes.

    `ratio` is the speed-up over the baseline (above 1: faster), over fresh process pairs; `tail_ratio` the same at the budget's percentile,
    where latency is asked for at another one than 50; `own_ratios` over the other baselines (the model's own framework; the original on one
    thread), which took `own_seconds` in the same rounds. `accuracy` is on validate, `test` and `verdict` on test. `state`: chosen, front, lost
    or baseline; `reason`: why it lost. `footprint`: bytes of its C code (`flash`, `arena`, `outputs`, `ram`) and `as_c` its metric on test, where
    a microcontroller was asked for.
    """

    name: str
    recipe: str
    runtime: str
    target: dict[str, Any]
    state: str
    reason: str
    size: int
    seconds: float | None = None
    percentiles: dict[str, float] | None = None
    peak_memory: int | None = None
    load_seconds: float | None = None
    preparation_seconds: float | None = None
    accuracy: dict[str, Any] | None = None
    ratio: dict[str, float] | None = None
    tail_ratio: dict[str, float] | None = None
    own_ratios: dict[str, dict[str, float]] | None = None
    own_seconds: dict[str, float] | None = None
    noise_floor: float | None = None
    test: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    footprint: dict[str, int] | None = None
    as_c: dict[str, Any] | None = None

    @property
    def against(self) -> str | None:
        """The fastest of the baselines, which is the one that counts: a name of `own_ratios`; None: the first, that of `ratio`."""
        own = self.own_ratios or {}
        fastest = min(own, key=lambda name: own[name]["estimate"], default=None)
        return fastest if fastest and self.ratio and own[fastest]["estimate"] < self.ratio["estimate"] else None

    @property
    def speed_up(self) -> dict[str, float] | None:
        """How many times faster than the fastest baseline, with its interval; None where it came to no finals."""
        return (self.own_ratios or {})[self.against] if self.against else self.ratio


@dataclasses.dataclass(frozen=True)
class Result:
    """What `optimize` returns: a view of the folder that it wrote."""

    folder: Path
    manifest: dict[str, Any]

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Result:
        """Raises BadInput where the folder is not a finished one."""
        place = Folder(Path(folder))
        manifest = place.manifest()
        if manifest["state"] != FINISHED:
            raise BadInput(f"{place.path} holds a run that was not finished; run the same `hasten optimize` again and it goes on")
        return Result(place.path, manifest)

    @property
    def candidates(self) -> tuple[Choice, ...]:
        return tuple(Choice(**c) for c in self.manifest["candidates"])

    @property
    def best(self) -> Choice:
        """The chosen one; the original where nothing was better."""
        return next(c for c in self.candidates if c.name == self.manifest["chosen"])

    @property
    def front(self) -> tuple[Choice, ...]:
        """Those that no other candidate beats in time, accuracy and size together, fastest first."""
        return tuple(sorted((c for c in self.candidates if c.name in self.manifest["front"]), key=lambda c: c.seconds or 0.0))

    @property
    def better(self) -> bool:
        """Whether something better than the original was found."""
        return not self.manifest["reason"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the times are not to be relied on, a sentence each; empty where nothing is the matter."""
        return tuple(self.manifest.get("warnings", ()))

    @property
    def reason(self) -> str:
        """Why the original was returned; empty where something was better."""
        reason: str = self.manifest["reason"]
        return reason

    def model(self) -> Model:
        """The chosen model."""
        return Model.load(self.folder / MODEL)

    def report(self, form: str = "html") -> str:
        """The report as text: an HTML page in one piece, `markdown` (short, for a pull request) or `card` (a model card)."""
        from hasten.report.make import make

        return make(self, form)

    def save(self, folder: str | os.PathLike[str], force: bool = False) -> None:
        """Copy all that was written to another folder. Raises BadInput if it exists, unless `force`."""
        place = Folder(Path(folder))
        if place.path.resolve() == self.folder.resolve():
            return
        if place.state is not None and not force:
            raise BadInput(f"{place.path} exists; give another folder, or force=True")
        place.prepare(force)
        place.work.rmdir()
        for name in OURS:
            if (self.folder / name).is_file():
                place.file(name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.folder / name, place.file(name))


def write_result(
    run: Run, folder: Folder, tried: Sequence[Outcome], chosen: Outcome, reason: str, shapes: dict[str, int], details: dict[str, Any]
) -> Result:
    """Write the chosen model and everything about the run; the manifest comes last, so a folder is finished or it is not."""
    front = pareto(run, tried)
    choices = [_choice(run, o, chosen, front) for o in tried]
    _write_model(run, folder, chosen, shapes)
    _write_c(run, folder, chosen)
    copy_model(run.path(run.baseline.recipe), folder.file(ORIGINAL))
    _write_manifest(
        run,
        folder,
        chosen,
        FINISHED,
        {
            "reason": reason,
            "warnings": [*([NOT_THE_TARGET] if run.budget.as_c else []), *restless(max((o.floor for o in tried), default=0.0))],
            "candidates": choices,
            "front": [o.candidate.name for o in front],
            "shapes": shapes,
            "details": details,
        },
    )
    shutil.rmtree(folder.file(WORK))
    return Result.load(folder.path)


def save_best(run: Run, best: Outcome, folder: Folder, shapes: dict[str, int]) -> None:
    """The best so far, usable at once, while the search goes on."""
    _write_model(run, folder, best, shapes)
    _write_manifest(run, folder, best, UNFINISHED, {"reason": "the run is not finished: speed and accuracy are first estimates"})


def pareto(run: Run, tried: Sequence[Outcome]) -> list[Outcome]:
    """The measured outcomes that no other one dominates in time, accuracy (on validate) and size."""
    sign = -1.0 if run.task is None or run.task.metric.higher_is_better else 1.0

    def cost(o: Outcome) -> tuple[float, float, int]:
        return o.typical.seconds, sign * o.accuracy.value if o.accuracy else 0.0, o.size

    measured = [o for o in tried if o.timing is not None and (run.task is None or o.accuracy is not None)]
    return [
        o for o in measured if not any(all(a <= b for a, b in zip(cost(p), cost(o), strict=True)) and cost(p) != cost(o) for p in measured)
    ]


def _write_model(run: Run, folder: Folder, outcome: Outcome, shapes: dict[str, int]) -> None:
    plan = dataclasses.replace(run.plan_of(outcome.candidate), shapes=shapes)
    copy_model(run.path(outcome.candidate.recipe), folder.file(MODEL))
    folder.write(PLAN, plan.to_json())
    folder.write(RUN, resources.files("hasten").joinpath("run_template.py").read_text())


def _write_c(run: Run, folder: Folder, chosen: Outcome) -> None:
    """The C code of the chosen model, with seeded samples in its test: no sample of the user's is written. None where it has none."""
    if chosen.footprint is not None:
        from hasten.lower import c_export

        c_export.save(c_export.export(Model.load(run.path(chosen.candidate.recipe)), Path(MODEL).stem), folder.file(C), force=True)


def _write_manifest(run: Run, folder: Folder, chosen: Outcome, state: str, more: dict[str, Any]) -> None:
    model = Model.load(folder.file(MODEL))
    files = [MODEL, PLAN, RUN] + ([ORIGINAL, RECORDS] if state == FINISHED else [])
    if state == FINISHED and chosen.footprint is not None:
        files += C_FILES
    manifest = {
        "hasten": versions().get("hasten", ""),
        "state": state,
        "chosen": chosen.candidate.name,
        "runtime": chosen.candidate.runtime,
        "target": dataclasses.asdict(chosen.candidate.target),
        "inputs": [dataclasses.asdict(p) for p in model.inputs],
        "outputs": [dataclasses.asdict(p) for p in model.outputs],
        "judged": None
        if run.task is None
        else {
            "metric": run.task.metric.name,
            "higher_is_better": run.task.metric.higher_is_better,
            "output": run.task.output,
            "labels": run.split("test").labels is not None,
            "data": run.task.digest,
        },
        "budget": dataclasses.asdict(run.budget),
        "machine": dataclasses.asdict(machine()) | {"digest": machine().digest},
        "versions": versions(),
        "seed": run.budget.seed,
        "digests": {name: file_digest(folder.file(name)) for name in files},
        **more,
    }
    folder.write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))


def copy_model(made: Path, place: Path) -> None:
    """Copy an ONNX file atomically; one with weights beside it is written anew, so that its weights go by the new name."""
    if made.with_name(made.name + ".data").exists():
        Model.load(made).save(place)
    else:
        write_atomically(place, made.read_bytes())


def _choice(run: Run, o: Outcome, chosen: Outcome, front: Sequence[Outcome]) -> dict[str, Any]:
    measured = o.typical if o.timing else None
    if o.candidate is run.baseline:
        rounds = next((other.baseline_rounds for other in [chosen] if other.baseline_rounds), ())
        measured = _median(rounds) if rounds else measured
    state = "chosen" if o is chosen else "baseline" if o.candidate is run.baseline else "front" if o in front else "lost"
    built = run.records.get(f"built:{o.candidate.recipe.name}")
    return dataclasses.asdict(
        Choice(
            o.candidate.name,
            o.candidate.recipe.name,
            o.candidate.runtime,
            dataclasses.asdict(o.candidate.target),
            state,
            o.reason,
            o.size,
            **({f.name: getattr(measured, f.name) for f in dataclasses.fields(Timing)} if measured else {}),
            preparation_seconds=built.values.get("seconds") if built else None,
            accuracy=dataclasses.asdict(o.accuracy) if o.accuracy else None,
            ratio=dataclasses.asdict(o.ratio) if o.ratio else None,
            tail_ratio=dataclasses.asdict(o.tail_ratio) if o.tail_ratio else None,
            own_ratios={k: dataclasses.asdict(v) for k, v in o.own_ratios.items()} or None,
            own_seconds=o.own_seconds or None,
            noise_floor=o.floor if o.ratio else None,
            test=dataclasses.asdict(o.test) if o.test else None,
            verdict=dataclasses.asdict(o.verdict) if o.verdict else None,
            footprint=o.footprint,
            as_c=dataclasses.asdict(o.as_c) if o.as_c else None,
        )
    )


def _median(rounds: Sequence[Timing]) -> Timing:
    return Timing(
        stats.median(t.seconds for t in rounds),
        {q: stats.median(t.percentiles[q] for t in rounds) for q in rounds[0].percentiles},
        stats.median(t.load_seconds for t in rounds),
        round(stats.median(t.peak_memory for t in rounds)),
    )
