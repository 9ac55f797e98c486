"""Distillation on MNIST, test errors of 10,000: `python benchmarks/distillation.py [NAME ...]`; resumable, one JSON line each.

After Hinton, Vinyals and Dean (arXiv 1503.02531): a student 2×800, plain and distilled; and 784-128-10. The teacher is the LeNet-like CNN of
tools/train_mnist.py (theirs was a perceptron 2×1200 with 67 errors). Everything through hasten: torch writes the untrained graph, hasten trains
it. Of the 60,000 images 9,000 are kept back to choose the best epoch by; the test images are looked at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, DATA

HERE = Path(__file__).resolve().parent
PLACE = BUILT.parent / "learning"
LITTLE = ("shift:1", "rotate:8", "zoom:0.08")
MOVED = ("shift:2", "rotate:10", "zoom:0.1")
SEED = 0


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: the widths of the network, whether it is taught, the settings."""

    widths: tuple[int, ...]
    taught: bool
    settings: dict[str, Any]


GENTLY = {"average": 0.999, "temperature": 4.0, "soft": 1.0, "hard": 0.0}
TRAININGS = {
    "784-128-10, plain": Training((784, 128, 10), False, {"epochs": 30}),
    "784-128-10, plain, augmented": Training(
        (784, 128, 10), False, {"epochs": 60, "rate": 3e-3, "augment": ("shift:1",), "average": 0.999}
    ),
    "784-128-10, distilled": Training((784, 128, 10), True, {"epochs": 80, "rate": 3e-3, "augment": ("shift:1",)} | GENTLY),
    "student 2x800, plain": Training((784, 800, 800, 10), False, {"epochs": 15}),
    "student 2x800, plain, augmented": Training((784, 800, 800, 10), False, {"epochs": 30, "augment": MOVED, "average": 0.999}),
    "student 2x800, distilled": Training((784, 800, 800, 10), True, {"epochs": 40, "rate": 2e-3, "augment": LITTLE} | GENTLY),
    "student 2x800, distilled longer": Training((784, 800, 800, 10), True, {"epochs": 120, "rate": 2e-3, "augment": LITTLE} | GENTLY),
}


def untrained(widths: tuple[int, ...]) -> Any:
    import torch

    from hasten.doors import load

    torch.manual_seed(SEED)
    layers: list[Any] = [torch.nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return load(torch.nn.Sequential(*layers[:-1]).eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model


def run(name: str) -> dict[str, Any]:
    """Train it, unless that was done, and count the test errors."""
    import hasten
    from hasten import plan
    from hasten.learn.records import RECORDS
    from hasten.measure.before_after import before_after
    from hasten.model import Model
    from hasten.voice import Told, speaking

    training, place = TRAININGS[name], PLACE / name.replace(", ", "-").replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    source = untrained(training.widths)
    task = dataclasses.replace(hasten.Task(DATA / "mnist", train=DATA / "mnist", seed=SEED).bind(source), place=place)
    if training.taught:
        task = dataclasses.replace(task, teacher=Model.load(BUILT / "mnist_cnn.onnx"))
    done = place / "model.onnx"
    row = plan.row("distill" if training.taught else "train")
    if not done.exists():
        with speaking(Told(lambda line: print(f"{name}: {line}", flush=True))):
            row.apply(source, row.settings(**{"batch": 128, "rate": 1e-3, "seed": SEED} | training.settings), task).save(done)
    _, accuracy, samples = before_after(source, Model.load(done), task)
    logs = HERE / "results" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    shutil.copy(place / RECORDS, logs / f"{place.name}.jsonl")
    last = json.loads((place / RECORDS).read_text().splitlines()[-1])["values"]
    return {
        "training": name,
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "settings": training.settings,
        "errors": round((1 - accuracy) * samples),
        "samples": samples,
        "epoch": last["epoch"],
        "seconds": round(last["seconds"], 1),
        "step_ms": round(last["step_seconds"] * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(TRAININGS), help=f"some of {'; '.join(TRAININGS)}")
    for name in parser.parse_args().names:
        report = run(name)
        print(json.dumps(report), flush=True)
        with (HERE / "results" / "distillation.jsonl").open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
