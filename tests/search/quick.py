"""A search that measures little, for tests of all but the measuring. A script too: `python -m tests.search.quick MODEL DATA OUT [RECIPE …]`."""

import sys
from collections.abc import Callable
from typing import Any

from hasten.measure import energy, judge, layers
from hasten.search import details, finals, shrinking
from hasten.search import optimize as searching
from hasten.task import Task

KNOBS = (
    (judge, {"ROUNDS": 2, "ROUND_SECONDS": 0.002, "CALLS_SECONDS": 0.002, "PAIRS": 2}),
    (finals, {"MORE_PAIRS": 2}),
    (energy, {"ROUNDS": 2, "SECONDS": 0.002}),
    (layers, {"SECONDS": 0.02}),
    (details, {"PROCESSES": 1, "CALLS_SECONDS": 0.002}),
    (shrinking, {"PRUNED": ()}),
)


def quicken(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Two rounds, a few calls each; energy, layers and single calls from one short stretch. `change`: a monkeypatch's setattr takes it back."""
    for module, values in KNOBS:
        for name, value in values.items():
            change(module, name, value)


def few_candidates(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """The original and one int8 model, each in every runtime, with the threads asked for alone: most of a search's time is processes that start."""
    from hasten.search import candidates

    few = tuple(r for r in candidates.RECIPES if r.name in ("original", "int8 static"))
    assert len(few) == 2
    change(candidates, "RECIPES", few)
    change(candidates, "SMALL_MODEL", 0.0)
    change(candidates, "NATIVE_SMALL", 0.0)


def main() -> None:
    quicken()
    model, data, out, *recipes = sys.argv[1:]
    few = {"runtimes": ("onnxruntime",), "threads": 1, "recipes": tuple(recipes)}
    result = searching.optimize(model, Task(data), out=out, max_drop=0.05, say=print, **few)
    print("finished", result.manifest["chosen"], flush=True)


if __name__ == "__main__":
    main()
