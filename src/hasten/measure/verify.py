"""verify: measure again what a folder claims, and say whether it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hasten.errors import BadInput
from hasten.folder import FINISHED, ORIGINAL, Folder
from hasten.measure import judge
from hasten.measure.benchmark import benchmark
from hasten.measure.compare import metric_difference, predictions, test_split
from hasten.measure.contestant import enter, feeds_for
from hasten.measure.machine import machine
from hasten.measure.statistics import Interval
from hasten.metrics import decide
from hasten.runtimes import Target
from hasten.task import BoundTask, Task

HOLDS, FAILS, OPEN = "holds", "fails", "not checked"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of the folder: what it said, what was measured now, and whether their intervals overlap."""

    name: str
    state: str
    claimed: Interval | None = None
    measured: Interval | None = None
    why: str = ""


def verify(
    folder: Path,
    workdir: Path,
    task: Task | None = None,
    skip_speed: bool = False,
    rounds: int = judge.PAIRS,
) -> tuple[Claim, ...]:
    """Check digests (ClaimFailed where a file was changed), then speed against the original in the folder, then accuracy where data came.

    A claim holds where the new 95 % interval overlaps the reported one. Raises BadInput for an unfinished folder.
    """
    place = Folder(folder)
    manifest = place.check()
    if manifest["state"] != FINISHED:
        raise BadInput(f"{folder} holds a run that was not finished; run the same `hasten optimize` again and it goes on")
    claims = [Claim("digests", HOLDS, why=f"{len(manifest['digests'])} files are as they were written")]
    best = next(c for c in manifest["candidates"] if c["name"] == manifest["chosen"])
    target = Target(**manifest["target"])
    claimed, baseline = _fastest_baseline(manifest["candidates"], best)
    original = enter(place.file(ORIGINAL), workdir, target=Target(**baseline["target"]))
    chosen = enter(folder, workdir, target=target)
    bound = task.bind(original.model) if task is not None else None
    claims.append(_speed(manifest, claimed, original, chosen, bound, skip_speed, rounds))
    claims.append(_accuracy(manifest, best, original, chosen, bound))
    return tuple(claims)


def _fastest_baseline(candidates: list[dict[str, Any]], best: dict[str, Any]) -> tuple[dict[str, float] | None, dict[str, Any]]:
    """(the claimed speed-up, None where there is none; the baseline that it is over): of those that the folder can run, the one that counts.

    These are the first candidate and, for a small model, the original on one thread, which is a candidate too.
    """
    first, *others = candidates
    own = best.get("own_ratios") or {}
    found = [(best["ratio"], first), *((own[c["name"]], c) for c in others if c["name"] in own)]
    return min(found, key=lambda pair: pair[0]["estimate"] if pair[0] else 0.0)


def _speed(
    manifest: dict[str, Any],
    ratio: dict[str, float] | None,
    original: Any,
    chosen: Any,
    task: BoundTask | None,
    skip: bool,
    rounds: int,
) -> Claim:
    name = "speed"
    if ratio is None:
        return Claim(name, HOLDS, why="the folder holds the original and claims no gain")
    claimed = Interval(**ratio)
    if skip:
        return Claim(name, OPEN, claimed, why="left out by --skip-speed")
    if manifest["machine"]["digest"] != machine().digest:
        return Claim(name, OPEN, claimed, why="this is another machine than the one measured; optimize again here")
    feeds = feeds_for(original, task), feeds_for(chosen, task)
    measured = benchmark((original, chosen), feeds, rounds).standings[1].ratio
    if measured is None:
        return Claim(name, FAILS, claimed, why="the model could not be timed")
    return Claim(name, HOLDS if _overlap(claimed, measured) else FAILS, claimed, measured)


def _accuracy(manifest: dict[str, Any], best: dict[str, Any], original: Any, chosen: Any, task: BoundTask | None) -> Claim:
    name = "accuracy"
    if manifest["judged"] is None:
        return Claim(name, OPEN, why="the run had no data, so accuracy was not judged")
    if best["test"] is None:
        return Claim(name, HOLDS, why="the folder holds the original and claims no difference")
    claimed = Interval(**best["test"]["difference"])
    if task is None:
        return Claim(name, OPEN, claimed, why="give --data to measure it again (hasten keeps no sample)")
    split = test_split(task)
    if task.digest != manifest["judged"]["data"]:
        return Claim(name, OPEN, claimed, why="this is other data, metric or preprocessing than the run was judged on")
    outputs = predictions(original, task, split), predictions(chosen, task, split)
    labels = split.labels if split.labels is not None else outputs[0]
    measured = metric_difference(decide(task.metric, outputs[0], labels), *outputs, labels)
    return Claim(name, HOLDS if _overlap(claimed, measured) else FAILS, claimed, measured)


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high
