"""Deep Compression on MNIST (Han et al., arXiv 1510.00149): bytes of the packed file against errors of the 10,000 test images.

    python benchmarks/deep_compression.py [lenet_300_100] [lenet_5] [--deepest 0.99] [--seed 0]

LeNet-300-100 and LeNet-5 (Caffe's: ReLU behind the first dense layer alone), each trained as floats by `hasten train`, then pruned level by level
by `hasten distill --sparsity`, each level from the one before and taught by the float model, and at every level clustered to 5, 4 and 3 bits:
as it is (`cluster-weights`), and with its code books trained (`tune-clusters`). What is measured is the model that comes out of the packed file.

9,000 of the 60,000 training images validate: they choose the epochs, and the point of each network that is reported (`chosen`: the smallest file
whose share of errors on them is no larger than the paper's on the test images). Each point's test images are looked at once. Goes on where it was
stopped (build/deep_compression); one JSON line for each network, level, bits and way in results/deep_compression.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, DATA

HERE = Path(__file__).resolve().parent
PLACE, RESULTS = BUILT.parent / "deep_compression", HERE / "results" / "deep_compression.jsonl"


def lenet_300_100() -> Any:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet_5() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Network:
    """How it is made and trained, its float parameters, and the paper's: the share of errors and how much smaller the parameters became. levels:
    sparsity → epochs to get there from the one before."""

    title: str
    module: Any
    parameters: int
    paper_error: float
    paper_ratio: float
    levels: dict[float, int]
    bits: tuple[int, ...]
    floats: dict[str, Any]
    pruning: dict[str, Any]
    tuning: dict[str, Any]


NETWORKS = {
    "lenet_300_100": Network(
        "LeNet-300-100",
        lenet_300_100,
        266_610,
        0.0158,
        40,
        {0.9: 15, 0.95: 15, 0.97: 40, 0.98: 40},
        (5, 4, 3),
        {"epochs": 60, "rate": 3e-3, "augment": ("shift:1",), "average": 0.999},
        {"rate": 2e-3, "augment": ("shift:1",), "average": 0.999, "scope": "adaptive"},
        {"epochs": 3, "rate": 1e-3, "augment": ("shift:1",), "average": 0.999},
    ),
    "lenet_5": Network(
        "LeNet-5",
        lenet_5,
        431_080,
        0.0074,
        39,
        {0.97: 6, 0.985: 6, 0.99: 6},
        (5, 4, 3),
        {"epochs": 16, "rate": 2e-3, "augment": ("shift:1", "rotate:8", "zoom:0.08"), "average": 0.999},
        {"rate": 2e-3, "augment": ("shift:1", "rotate:8", "zoom:0.08"), "average": 0.999, "scope": "adaptive"},
        {"epochs": 1, "rate": 1e-3, "augment": ("shift:1", "rotate:8", "zoom:0.08"), "average": 0.99},
    ),
}
LOOP = {"batch": 128}
TUNED = 4
"""With more bits than these a clustering loses nothing that a training could take back."""


class Bench:
    """One network on its way: its float model, its task, and what is already done."""

    def __init__(self, name: str, seed: int) -> None:
        import torch

        import hasten
        from hasten.doors import load

        torch.manual_seed(seed)
        self.name, self.seed, self.network = name, seed, NETWORKS[name]
        self.untrained = load(self.network.module().eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model
        self.task = hasten.Task(DATA / "mnist", train=DATA / "mnist", seed=seed).bind(self.untrained)

    def made(self, label: str, technique: str, model: Any, **values: Any) -> Any:
        """What a training makes, from its file where it is finished; its epochs go to results/logs."""
        from hasten import plan
        from hasten.learn.records import RECORDS
        from hasten.model import Model
        from hasten.voice import Told, speaking

        place = PLACE / f"{self.name}-{self.seed}-{label}"
        done, row = place / "model.onnx", plan.row(technique)
        if not done.exists():
            place.mkdir(parents=True, exist_ok=True)
            task = dataclasses.replace(self.task, place=place, teacher=self.floats if row.teaches else None)
            with speaking(Told(lambda line: print(f"{self.name} {label}: {line}", flush=True))):
                row.apply(model, row.settings(**LOOP | {"seed": self.seed} | values), task).save(done)
        logs = HERE / "results" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / RECORDS, logs / f"deep-compression-{place.name}.jsonl")
        return Model.load(done)

    def run(self, deepest: float) -> None:
        from hasten.shrink.cluster_weights import ClusterWeights, cluster_weights

        self.floats = None
        self.floats = self.made("float", "train", self.untrained, **self.network.floats)
        self.line(0.0, 32, "float", self.floats, {})
        model = self.floats
        for level, epochs in ((x, n) for x, n in self.network.levels.items() if x <= deepest):
            model = self.made(f"{level:g}", "distill", model, sparsity=level, epochs=epochs, **self.network.pruning)
            self.line(level, 32, "pruned", model, {})
            for bits in self.network.bits:
                settings = {"bits": bits, "bits_bias": bits}
                self.line(level, bits, "clustered", cluster_weights(model, ClusterWeights(**settings), self.task), settings)
            for bits in (b for b in self.network.bits if b <= TUNED):
                settings = {"bits": bits, "bits_bias": bits}
                tuned = self.made(f"{level:g}-{bits}", "tune_clusters", model, **settings, **self.network.tuning)
                self.line(level, bits, "tuned", tuned, settings)

    def line(self, level: float, bits: int, way: str, model: Any, settings: dict[str, Any]) -> None:
        """Pack, unpack, measure and write, unless that line is there."""
        from hasten import packed
        from hasten.model import Model

        key = {"network": self.name, "seed": self.seed, "level": level, "bits": bits, "way": way}
        if any(key.items() <= known.items() for known in lines()):
            return
        file = PLACE / f"{self.name}-{self.seed}-{level:g}-{bits}-{way}.packed"
        sizes = packed.save(model, file)
        back = file.with_suffix(".onnx")
        back.write_bytes(packed.unpack(file.read_bytes()))
        again = Model.load(back)
        floats = sum(v.const_value.size for v in self.floats.ir.graph.initializers.values())
        assert floats == self.network.parameters, (floats, self.network.parameters)
        found = {
            "date": datetime.date.today().isoformat(),
            "settings": settings,
            "parameters": floats,
            "nonzero": sum(int(np.count_nonzero(v.const_value.numpy())) for v in again.ir.graph.initializers.values()),
            "float_bytes": len(self.floats.to_bytes()),
            "packed_bytes": sizes.entropy_coded,
            "validate_errors": errors(again, self.task.validate, self.task.output),
            "validate_samples": len(self.task.validate),
            "errors": errors(again, self.task.test, self.task.output),
            "samples": len(self.task.test),
        }
        print(json.dumps(key | found), flush=True)
        with RESULTS.open("a") as file_:
            file_.write(json.dumps(key | found) + "\n")


def chosen(points: list[dict[str, Any]], network: Network) -> dict[str, Any] | None:
    """The smallest file whose share of errors on the validating images is no larger than the paper's on the test images."""
    fit = [p for p in points if p["validate_errors"] <= network.paper_error * p["validate_samples"]]
    return min(fit, key=lambda p: p["packed_bytes"], default=None)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def errors(model: Any, split: Any, output: str) -> int:
    """Wrong answers of the model in onnxruntime."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run([output], feeds)[0].argmax(axis=1) for feeds in split.batches(500)])
    return int(np.sum(found != split.labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--deepest", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.names:
        Bench(name, arguments.seed).run(arguments.deepest)


if __name__ == "__main__":
    main()
