"""What real data shows to be idle in real models: `python benchmarks/dynamic.py [NAME ...]`, `hasten simplify --dynamic` on each, timed side by side.

The Visual Wake Words model has no labelled data here: pictures of ImageNet's sample, agreement with the original. One JSON line a model is
appended to `results/dynamic.jsonl`; docs/simplify.md shows the last one of each.
"""

from __future__ import annotations

import collections
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import DATA, NAMES, ROOT, Case, case

from hasten import check, doors, dynamic, simplify
from hasten.measure.judge import timing_feeds
from hasten.measure.machine import cores
from hasten.runtimes import Target
from hasten.search.budget import Budget
from hasten.shrink.drop_idle import DropIdle
from hasten.task import Task

RESULTS = ROOT / "benchmarks" / "results" / "dynamic.jsonl"
VWW = "vww_mobilenetv1_025"


def opened(name: str) -> Case:
    if name != VWW:
        return case(name)
    return Case(name, DATA / "models" / f"{name}.onnx", DATA / "imagenet_sample" / "imagenet_sample_even.zip", None, "unit", 0.02)


def findings(name: str) -> dict[str, Any]:
    """What was found, applied and undone, what it saves, and what the judge says."""
    here, started = opened(name), time.monotonic()
    original = doors.load(str(here.model)).model
    task = Task(here.data, test=here.test, preprocess=here.preprocess, labels=False if name == VWW else None).bind(original)
    rows = simplify.passes()
    static = simplify.simplify(original, rows, None, checked=False).model
    settings, budget = DropIdle(), Budget(max_drop=here.max_drop)
    fixed = next((p.shape[0] for p in original.inputs if isinstance(p.shape[0], int)), 1)
    target = Target(cores(), fixed)
    clock = dynamic.Clock(target, timing_feeds(task.validate, fixed, check.random_feeds(static, fixed)))
    made = dynamic.within_budget(
        static, original, task, settings, budget, lambda m: simplify.simplify(m, rows, None, checked=True).model, clock
    )
    before, after = simplify.Size.of(static), simplify.Size.of(made.model)
    return {
        "model": name,
        "date": datetime.date.today().isoformat(),
        "threads": target.threads,
        "samples": made.samples,
        "applied": dict(collections.Counter(f.kind for f in made.applied)),
        "undone": dict(collections.Counter(f.kind for f, _ in made.undone)),
        "left": len(made.left),
        "nodes": [before.nodes, after.nodes],
        "macs": [before.macs, after.macs],
        "bytes": [before.bytes, after.bytes],
        "judged": {j.split: [j.metric, j.before, j.after, j.allowed] for j in made.judged},
        "speed": {runtime: round(speed, 3) for runtime, speed in made.speed.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    for name in sys.argv[1:] or (*NAMES, "squeezenet1.1", VWW):
        line = json.dumps(findings(name))
        print(line, flush=True)
        with RESULTS.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
