"""The search beside an exhaustive evaluation of the same space: `python benchmarks/exhaustive.py digits_cnn [--train]`.

Exhaustive: every plan of the space is made (trained to the end, with --train), judged on `validate`, and each that keeps the budget there is
timed in rounds of fresh processes, as the search times its finalists. Both choose by `validate` and time, so the test set has no say. In the same
rounds stands the search's choice: it should be within the noise floor of the best. One JSON line each in `results/exhaustive.jsonl`; what was done
is kept in build/exhaustive, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import case

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "src" / "hasten" / "models"
BUILT, RESULTS = ROOT / "build" / "exhaustive", ROOT / "benchmarks" / "results" / "exhaustive.jsonl"


def opened(name: str, train: bool) -> tuple[Path, Any, float]:
    """The model, the task, and the drop that is allowed."""
    from benchmarks.peers import training_data

    from hasten.task import Task

    if name == "digits_cnn":
        digits = MODELS / "digits.npz"
        return MODELS / "digits_cnn.onnx", Task(digits, train=digits if train else None), 0.01
    it = case(name)
    return it.model, Task(it.data, test=it.test, preprocess=it.preprocess, train=training_data(it) if train else None), it.max_drop


def exhaustive(model: Any, task: Any, budget: Any, place: Path, choice: Path) -> dict[str, Any]:
    """All plans of the space, judged and timed beside the search's choice. `seconds`: without those of the choice."""
    from hasten import runtimes
    from hasten.measure import judge
    from hasten.measure.judge import Failure, Timing
    from hasten.measure.process import Subject
    from hasten.measure.record import Records
    from hasten.measure.statistics import noise_floor, ratio_interval
    from hasten.model import Model
    from hasten.runtimes import Target
    from hasten.search.candidates import PRUNED, RECIPES, TRAINED, candidates
    from hasten.search.finals import AGAIN, BASELINE
    from hasten.search.goal import allowed_drop, drop_of
    from hasten.search.run import Run

    target = Target(budget.use_threads, 1)
    started = time.monotonic()
    run = Run(model, task.bind(model), budget, target, place, Records(place / "records.jsonl"))
    run.build(run.baseline.recipe)
    run.settle_metric()
    baseline = run.time_baseline()
    if isinstance(baseline, Failure):
        raise RuntimeError(baseline.reason)
    of = (*RECIPES, *(r.measured_in("onnxruntime", target) for r in PRUNED), *(TRAINED if run.task.train is not None else ()))
    space = [c for c in candidates(budget, target, baseline.seconds, True, of=of) if not c.recipe.zeros]
    subjects = {}
    for number, candidate in enumerate(space):
        print(f"{number + 1} of {len(space)}: {candidate.name}", flush=True)
        if "failed" in run.build(candidate.recipe):
            continue
        if runtimes.get(candidate.runtime).unsupported(Model.load(run.path(candidate.recipe)), target):
            continue
        judged = run.judged(candidate, "validate")
        run.forget(candidate)
        if not isinstance(judged, Failure) and drop_of(run, judged) <= allowed_drop(run):
            subjects[candidate.name] = run.subject(candidate)
    made = time.monotonic() - started
    manifest = json.loads((choice / "manifest.json").read_text())
    chosen = Subject(manifest["runtime"], choice / "model.onnx", Target(**manifest["target"]))
    everyone = {BASELINE: run.subject(run.baseline), AGAIN: run.subject(run.baseline), "search": chosen, **subjects}
    started = time.monotonic()
    rounds = []
    for turn in range(judge.PAIRS):
        rounds.append(run.duel(everyone, turn))
        print(f"round {turn + 1} of {judge.PAIRS}, {len(everyone)} subjects", flush=True)
    timed = (time.monotonic() - started) * len(subjects) / len(everyone)

    def pairs(name: str) -> list[tuple[float, float]]:
        found = [(r[BASELINE], r[name]) for r in rounds]
        return [(a.seconds, b.seconds) for a, b in found if isinstance(a, Timing) and isinstance(b, Timing)]

    ratios = {n: ratio_interval(p).estimate for n in (*subjects, "search") if len(p := pairs(n)) == len(rounds)}
    best = max((n for n in ratios if n != "search"), key=ratios.__getitem__)
    return {
        "plans": len(space),
        "in_budget": len(subjects),
        "best": best,
        "best_speed": round(ratios[best], 3),
        "choice": manifest["chosen"],
        "choice_speed": round(ratios["search"], 3),
        "faster_than_choice": sum(r > ratios["search"] for n, r in ratios.items() if n != "search"),
        "noise_floor": round(noise_floor(pairs(AGAIN)), 4),
        "seconds": round(made + timed, 1),
        "ratios": {n: round(r, 3) for n, r in sorted(ratios.items(), key=lambda item: -item[1])},
    }


def main() -> None:
    import hasten
    from hasten.doors import load
    from hasten.search.budget import Budget

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train", action="store_true", help="recipes that train too")
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    given = parser.parse_args()
    path, task, drop = opened(given.model, given.train)
    place = BUILT / f"{given.model}{'-trained' if given.train else ''}"
    (place / "all").mkdir(parents=True, exist_ok=True)
    budget: dict[str, Any] = {"max_drop": drop, "runtimes": tuple(given.runtimes.split(","))}
    if (place / "search").exists() and not (place / "search.json").exists():
        shutil.rmtree(place / "search")
    if not (place / "search.json").exists():
        started = time.monotonic()
        hasten.optimize(str(path), task, out=place / "search", say=print, **budget)
        (place / "search.json").write_text(json.dumps({"search_seconds": round(time.monotonic() - started, 1)}))
    line = {"model": given.model, "trained": given.train, "date": datetime.date.today().isoformat(), "max_drop": drop}
    line |= json.loads((place / "search.json").read_text())
    line |= exhaustive(load(str(path)).model, task, Budget(**budget), place / "all", place / "search")
    line["share_of_time"] = round(line["search_seconds"] / line["seconds"], 3)
    print(json.dumps(line), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
