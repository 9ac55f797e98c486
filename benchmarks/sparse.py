"""Sparse weights on MNIST: accuracy of the 10,000 test images in onnxruntime, of the LeNet-like CNN of tools/train_mnist.py (99.35 %).

`python benchmarks/sparse.py [--epochs 6 --rate 1e-3]`: 90 % unstructured and 2:4, each at once (magnitude, wanda, sparsegpt), at once and then
recovered, and gradually (both by distilling from the float model, no labels); then int8 by `quantize-static`, with a look at whether each zero is
still one. 2,000 training images calibrate and choose the best epoch; the test images are looked at once. The first and the last layer stay
dense. Resumes where it was stopped. One JSON line each in `results/sparse.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.qat import ROOT, accuracy, bound_to

MODEL = "mnist_cnn"
RESULTS, PLACE = ROOT / "benchmarks" / "results" / "sparse.jsonl", ROOT / "build" / "sparse"
PATTERNS: dict[str, dict[str, Any]] = {"90 %": {"sparsity": 0.9}, "2:4": {"pattern": "2:4"}}
METHODS = ("magnitude", "wanda", "sparsegpt")


def layers(model: Any) -> list[np.ndarray]:
    """Where the weights of each layer are zero (their codes, in a quantized model), in the graph's order."""
    from hasten.graph import constant

    found = []
    for node in model.ir.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            maker = node.inputs[1].producer()
            array = constant(maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else node.inputs[1])
            found.append(np.asarray(array).astype(np.float32) == 0)
    return found


def measured(model: Any, bound: Any, floats: list[np.ndarray] | None = None) -> dict[str, Any]:
    """Accuracy, size of the file as it is and compressed, share of zeros, and how many of the float model's zeros are none any more."""
    zeros, data = layers(model), model.to_bytes()
    return {
        "accuracy": accuracy(model, bound),
        "zeros": sum(int(z.sum()) for z in zeros) / sum(z.size for z in zeros),
        "bytes": len(data),
        "bytes_xz": len(lzma.compress(data, preset=9)),
    } | ({} if floats is None else {"zeros_lost": sum(int(np.sum(a & ~b)) for a, b in zip(floats, zeros, strict=True))})


def main() -> None:
    from hasten import plan
    from hasten.learn.distill import Distill, distill
    from hasten.model import Model
    from hasten.search.candidates import GRAPH, Recipe
    from hasten.shrink.prune_weights import PruneWeights, prune_weights

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = vars(arguments)
    model, bound = bound_to(MODEL)
    taught = dataclasses.replace(bound, teacher=model)
    loop = {"epochs": arguments.epochs, "rate": arguments.rate, "seed": arguments.seed, "soft": 1.0, "hard": 0.0}
    known: list[dict[str, Any]] = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []

    def trained(name: str, start: Any, **values: Any) -> Any:
        """The distilled model, from its file where it is finished."""
        place = PLACE / f"{name}-{arguments.epochs}-{arguments.rate:g}-{arguments.seed}".replace(" ", "").replace("%", "").replace(":", "")
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "model.onnx").exists():
            distill(start, Distill(**loop, **values), dataclasses.replace(taught, place=place)).save(place / "model.onnx")
        return Model.load(place / "model.onnx")

    def line(pattern: str, way: str, made: Any, wants: dict[str, Any]) -> None:
        """Measure and write, unless that line is there."""
        key = {"what": "sparse", "model": MODEL, "pattern": pattern, "way": way, "settings": wants}
        if any(key.items() <= k.items() for k in known):
            return
        floats, _ = plan.run(Recipe("float", GRAPH).plan(made), made, bound)
        static, _ = plan.run(Recipe("int8", (("quantize_static", {}),)).plan(floats), floats, bound)
        found = {"float": measured(made, bound), "int8": measured(static, bound, layers(made)), "measured_on": len(bound.test)}
        print(json.dumps(key | found), flush=True)
        with RESULTS.open("a") as f:
            f.write(json.dumps(key | found) + "\n")

    line("dense", "as it is", model, {})
    for pattern, values in PATTERNS.items():
        for method in METHODS:
            made = prune_weights(model, PruneWeights(method=method, samples=512, **values), bound)
            line(pattern, f"at once, {method}", made, {})
        line(pattern, f"at once, {METHODS[-1]}, recovered", trained(f"recovered {pattern}", made), settings)
        line(pattern, "gradually", trained(f"gradual {pattern}", model, **values), settings)


if __name__ == "__main__":
    main()
