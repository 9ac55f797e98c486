"""Quantization-aware training on real data: accuracy on the whole test set, in onnxruntime, beside the float model and static quantization.

`python benchmarks/qat.py mnist_cnn 4 4 [--epochs 3 --rate 5e-4 …]`: model, bits of weights, bits of activations; first and last layer have 8.
The start is calibrated and judged for the best epoch on training images that are not trained on; the test set is used once, at the end.
Resumes where it was stopped. One JSON line each in `results/learning.jsonl`.

`python benchmarks/qat.py cost MODEL`: the processor time of a training step on codes beside that of the float model, and what exact sums cost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
KEPT_BACK = 2000
"""Training images that calibrate and validate."""

BASE = {
    "mnist_cnn": {"augment": ("shift:2",), "epochs": 2, "rate": 3e-4},
    "cifar10_resnet20": {"augment": ("crop:4", "flip"), "epochs": 5, "rate": 5e-4},
}
PREPROCESS = {"mnist_cnn": None, "cifar10_resnet20": "imagenet-torch"}


def images(name: str) -> tuple[Any, Any, Any]:
    """((x, y) to train on, (x, y) to calibrate and validate, (x, y) to test)."""
    data = Path(os.environ.get("HASTEN_DATA") or ROOT.parent / "shared" / "data")
    if name == "mnist_cnn":
        from hasten.data.read import read

        source = read(str(data / "mnist"))
        assert source.test is not None
        both = [(s.take(np.arange(len(s)))["x"], np.asarray(y)) for s, y in ((source.samples, source.labels), source.test)]
        (x, y), test = ((a[:, None].astype(np.float32) / 255, b) for a, b in both)
    else:
        parts = [np.load(data / "cifar10" / f"cifar10_{p}.npz") for p in ("train_part1", "train_part2", "test")]
        x, y = (np.concatenate([p[k] for p in parts[:2]]) for k in ("x", "y"))
        test = (parts[2]["x"], parts[2]["y"])
    return (x[KEPT_BACK:], y[KEPT_BACK:]), (x[:KEPT_BACK], y[:KEPT_BACK]), test


def accuracy(model: Any, bound: Any) -> float:
    """In onnxruntime, as it is deployed."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run([bound.output], feeds)[0] for feeds in bound.test.batches(250)])
    return float(bound.metric.value(outputs, bound.test.labels))


def differing(model: Any, bound: Any, samples: int = 64) -> dict[str, int]:
    """How many outputs of onnxruntime differ, in any bit, from those of the integer reference."""
    import onnxruntime as ort

    from hasten.runtimes import Target, get

    feeds = bound.test.samples.take(bound.test.indices[:samples])
    here = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"]).run([bound.output], feeds)[0]
    truth = get("reference").compile(model, Target(1)).run(feeds)[bound.output]
    return {"differ": int(np.sum(here != truth)), "of": here.size}


def cost(name: str, batch: int = 128, rounds: int = 7) -> dict[str, Any]:
    """Medians of the processor time of a step (forward, loss, backward; one thread, eager), in interleaved rounds, over that of the float model."""
    import time

    import torch

    from hasten import plan
    from hasten.learn import codes
    from hasten.learn.executor import build
    from hasten.learn.qat import Qat, prepare
    from hasten.search.candidates import GRAPH, Recipe

    torch.set_num_threads(1)
    model, bound = bound_to(name)
    bound = dataclasses.replace(bound, train=dataclasses.replace(bound.train, indices=bound.train.indices[:batch], labels=None))
    floats, _ = plan.run(Recipe("float", GRAPH).plan(model), model, bound)
    quick = {"epochs": 0, "method": "mse", "samples": 16}
    modules = {"float": build(floats).module}
    for w, a in ((8, 8), (4, 4)):
        modules[f"w{w}a{a}"] = prepare(floats, Qat(weights=w, activations=a, **quick), bound).executor.module
    modules["w8a8, sums not divided"] = modules["w8a8"]
    (x,) = (torch.from_numpy(v) for v in bound.train.samples.take(bound.train.indices).values())
    seconds: dict[str, list[float]] = {key: [] for key in modules}
    exact = codes.EXACT
    for _ in range(rounds + 1):
        for key, module in modules.items():
            codes.EXACT = 1 << 62 if key.endswith("divided") else exact
            module.train()
            begun = time.process_time()
            module(x)[0].square().mean().backward()
            seconds[key].append(time.process_time() - begun)
    codes.EXACT = exact
    step = {key: float(np.median(times[1:])) for key, times in seconds.items()}
    return {"what": "qat cost", "model": name, "batch": batch, "seconds": step, "ratio": {k: v / step["float"] for k, v in step.items()}}


def bound_to(name: str) -> tuple[Any, Any]:
    """The model, and the task with its training, held-back and test images."""
    from hasten.doors.onnx import load_onnx
    from hasten.task import Task

    data = Path(os.environ.get("HASTEN_DATA") or ROOT.parent / "shared" / "data")
    places = [ROOT / "build" / "models" / f"{name}.onnx", data / "models" / f"{name}.onnx"]
    model = load_onnx(next(p for p in places if p.exists()))
    train, held, test = images(name)
    return model, Task(held, train=train, test=test, preprocess=PREPROCESS[name]).bind(model)


def write(line: dict[str, Any]) -> None:
    print(json.dumps(line))
    with (ROOT / "benchmarks" / "results" / "learning.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["cost"]:
        write(cost(sys.argv[2]))
        return
    from hasten import plan
    from hasten.learn.qat import Qat
    from hasten.measure.record import Records
    from hasten.search.candidates import GRAPH, Recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(BASE))
    parser.add_argument("weights", type=int)
    parser.add_argument("activations", type=int)
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Qat) if type(f.default) in (int, float, str)}
    for name, kind in kinds.items():
        if name not in ("weights", "activations"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    arguments = vars(parser.parse_args())
    name = arguments.pop("model")
    values = BASE[name] | {k: v for k, v in arguments.items() if v is not None}
    values["augment"] = tuple(values["augment"])  # type: ignore[arg-type]
    settings = Qat(**values)  # type: ignore[arg-type]
    model, bound = bound_to(name)
    key = f"{name}-w{settings.weights}a{settings.activations}"
    place = ROOT / "build" / "qat" / key
    place.mkdir(parents=True, exist_ok=True)
    floats, _ = plan.run(Recipe("float", (*GRAPH, ("equalize", {}))).plan(model), model, bound)
    static, _ = plan.run(Recipe("qat", (("qat", dataclasses.asdict(settings) | {"epochs": 0}),)).plan(floats), floats, bound)
    trained, _ = plan.run(
        Recipe("qat", (("qat", dataclasses.asdict(settings)),)).plan(floats), floats, dataclasses.replace(bound, place=place)
    )
    trained.save(place / f"{key}.onnx")
    records = [r for folder in sorted(place.rglob("training.jsonl")) for r in Records(folder)]
    line = {
        "what": "qat",
        "model": name,
        "weights": settings.weights,
        "activations": settings.activations,
        "settings": {k: v for k, v in values.items() if k not in ("weights", "activations")},
        "trained_on": len(bound.train),
        "measured_on": len(bound.test),
        "accuracy": {"float": accuracy(model, bound), "calibrated": accuracy(static, bound), "trained": accuracy(trained, bound)},
        "outputs_that_differ_from_integer_truth": differing(trained, bound),
        "training": next((r.values for r in reversed(records) if r.kind == "training"), None),
    }
    write(line)


if __name__ == "__main__":
    main()
