"""Every technique alone, every pair, and all together: time × accuracy × size, `python benchmarks/ablation.py mnist_cnn cifar10_resnet20`.

The order within a chain is fixed: channels (half of the MACs), low rank (0.75 of the MACs of what is large enough), zeros (70 %, SparseGPT), taught
(distilled from the original, the zeros held), clusters (4 bits), int8. Accuracy: onnxruntime, the whole test set. Size: the packed file. Made models
stay in build/ablation and are not made twice; `--time` then times all of them beside the original, in turns of fresh processes, one thread, batch 1.
One JSON line each in `results/ablation.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pruning import AUGMENT, opened, outputs, quality

ROOT = Path(__file__).resolve().parent.parent
BUILT, RESULTS = ROOT / "build" / "ablation", ROOT / "benchmarks" / "results" / "ablation.jsonl"
EPOCHS = {"mnist_cnn": 3, "cifar10_resnet20": 2}
SMALLEST = 1000
"""Weights of the smallest layer that low rank takes."""


def techniques(name: str) -> dict[str, tuple[tuple[str, dict[str, Any]], ...]]:
    """Each technique's steps, in the order of the chain."""
    teaching = {"epochs": EPOCHS[name], "rate": 2e-3, "augment": AUGMENT[name], "average": 0.99, "precision": "bfloat16"}
    return {
        "channels": (("prune_channels", {"keep_macs": 0.5}),),
        "low rank": (("factorize", {"keep_macs": 0.75, "smallest": SMALLEST, "time": False}),),
        "zeros": (("prune_weights", {"sparsity": 0.7, "method": "sparsegpt"}),),
        "taught": (("distill", teaching),),
        "clusters": (("cluster_weights", {"bits": 4}),),
        "int8": (("equalize", {}), ("quantize_static", {})),
    }


def chains(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """None, each alone, each pair, all."""
    return [(), *((n,) for n in names), *itertools.combinations(names, 2), names]


def make(name: str) -> None:
    """Make and judge what is not there yet."""
    from hasten import packed, plan
    from hasten.search.candidates import CLEAN, FOLD, Recipe

    source, bound = opened(name)
    known = techniques(name)
    place = BUILT / name
    place.mkdir(parents=True, exist_ok=True)
    clean = plan.run(Recipe("", CLEAN).plan(source), source, bound)[0]
    folded = plan.run(Recipe("", FOLD).plan(clean), clean, bound)[0]
    whole = outputs(folded, bound)
    for chain in chains(tuple(known)):
        file = place / f"{' + '.join(chain) or 'original'}.onnx"
        if file.exists():
            continue
        teach = dataclasses.replace(bound, teacher=folded, place=place / "trainings")
        # Batch norm is trained where there is training, so it is folded behind it.
        before = tuple(s for t in ("channels", "low rank", "zeros", "taught") if t in chain for s in known[t])
        after = tuple(s for t in ("clusters", "int8") if t in chain for s in known[t])
        made = plan.run(Recipe("", (*before, *FOLD, *after)).plan(clean), clean, teach)[0]
        line = {"model": name, "chain": list(chain), "date": datetime.date.today().isoformat(), **quality(made, bound, whole)}
        line |= dataclasses.asdict(packed.sizes(made))
        made.save(file)
        write(line)


def clock(name: str) -> None:
    """Time all that was made beside the original."""
    from hasten.measure import judge
    from hasten.measure.beside import ratios_beside
    from hasten.model import Model
    from hasten.runtimes import Target

    _, bound = opened(name)
    files = {p.stem: Model.load(p) for p in sorted((BUILT / name).glob("*.onnx"))}
    original = files.pop("original")
    feeds = judge.timing_feeds(bound.calibrate, 1, {})
    ratios = ratios_beside(original, list(files.values()), "onnxruntime", Target(1), feeds, rounds=7)
    times = {chain: round(1 / r, 3) for chain, r in zip(files, ratios, strict=True)}
    write({"model": name, "times": times, "date": datetime.date.today().isoformat()})


def write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=tuple(EPOCHS))
    parser.add_argument("--time", action="store_true", help="time what was made")
    given = parser.parse_args()
    for name in given.models:
        (clock if given.time else make)(name)


if __name__ == "__main__":
    main()
