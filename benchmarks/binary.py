"""Binary and ternary networks on MNIST: errors of the 10,000 test images, sizes of the files, differing signs.

    python benchmarks/binary.py mlp cnn [--float-epochs 20] [--epochs 100] [--weights ternary] [--threads 2]

A float model (784-1024-1024-1024-10, and a LeNet-like CNN, both with batch norm and clipped linear activations) is trained by `hasten train`,
then binarized by `hasten binarize` with itself as the teacher: every layer has weights of one bit, every layer but the first reads signs (the
first reads pixels). 10,000 of the training images validate, the others train; the epoch that was best on them is kept. It goes on where it was
stopped (build/binary). Each training's epochs are in tools/logs, one JSON line a model in results/binary.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import DATA, ROOT

BUILT, LOGS, RESULTS = ROOT / "build" / "binary", ROOT / "tools" / "logs", ROOT / "benchmarks" / "results" / "binary.jsonl"


def mlp() -> Any:
    """784 → 1024 → 1024 → 1024 → 10."""
    from torch import nn

    sizes = (784, 1024, 1024, 1024, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.Hardtanh()]
    return nn.Sequential(*layers[:-1])


def cnn() -> Any:
    """Conv 5×5 (32), pool, conv 5×5 (64), pool, 1024 → 512 → 10; batch norm and clipping behind each."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.Hardtanh(),
        nn.Conv2d(32, 64, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(64), nn.Hardtanh(),
        nn.Flatten(), nn.Linear(1024, 512, bias=False), nn.BatchNorm1d(512), nn.Hardtanh(),
        nn.Linear(512, 10, bias=False), nn.BatchNorm1d(10),
    )  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn}
AUGMENT = ("shift:2", "rotate:10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--float-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--weights", default="binary")
    parser.add_argument("--activations", default="sign")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.names:
        run(name, arguments)


def run(name: str, arguments: argparse.Namespace) -> None:
    import torch

    from hasten import plan
    from hasten.doors import load
    from hasten.learn.binarize import Binarize, binarize
    from hasten.learn.train import Train, train
    from hasten.measure.before_after import before_after
    from hasten.model import Model
    from hasten.passes.fold_batchnorm import FoldBatchnorm, fold_batchnorm
    from hasten.task import Task

    BUILT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    loaded = load(MODELS[name]().eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model
    clean = tuple(plan.PlannedStep(r.name, r.settings()) for r in plan.TECHNIQUES if r.phase is plan.Phase.CLEAN)
    untrained, _ = plan.run(plan.Plan(clean), loaded, None)
    data = DATA / "mnist"
    task = Task(data, train=data).bind(untrained)
    loop = {"batch": 256, "augment": AUGMENT, "seed": arguments.seed, "workers": 1}

    def made(label: str, technique: Any, model: Model, settings: Any) -> Model:
        """The model of this training, from its file where it is finished."""
        path = BUILT / f"{label}.onnx"
        if not path.exists():
            place = BUILT / f"{label}.training"
            place.mkdir(exist_ok=True)
            technique(model, settings, dataclasses.replace(task, place=place)).save(path)
            (LOGS / f"binary_{label}.jsonl").write_bytes((place / "training.jsonl").read_bytes())
        return Model.load(path)

    floating = made(f"{name}_float", train, untrained, Train(epochs=arguments.float_epochs, rate=2e-3, smoothing=0.0, **loop))
    settings = Binarize(
        epochs=arguments.epochs,
        rate=arguments.rate,
        weights=arguments.weights,
        activations=arguments.activations,
        first="weights",
        last="binary",
        **loop,
    )
    label = f"{name}_{arguments.weights}" + ("" if arguments.activations == "sign" else f"_{arguments.activations}")
    packed = made(label, binarize, floating, settings)
    folded = fold_batchnorm(packed, FoldBatchnorm(), None)
    before, after, samples = before_after(floating, packed, task)
    _, after_folding, _ = before_after(floating, folded, task)
    line = {
        "model": name,
        "weights": settings.weights,
        "activations": settings.activations,
        "seed": arguments.seed,
        "test_images": samples,
        "float_errors": round((1 - before) * samples),
        "errors": round((1 - after) * samples),
        "errors_norm_folded": round((1 - after_folding) * samples),
        "signs": signs_that_differ(packed, floating, settings, task),
        "float_bytes": len(floating.to_bytes()),
        "bytes": len(packed.to_bytes()),
        "bytes_norm_folded": len(folded.to_bytes()),
        "bytes_xz": len(lzma.compress(packed.to_bytes())),
        "float_layers_bytes": layer_bytes(floating),
        "layers_bytes": layer_bytes(packed),
        "settings": dataclasses.asdict(settings),
        "float_epochs": arguments.float_epochs,
        "threads": os.cpu_count(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as f:
        f.write(json.dumps(line, sort_keys=True) + "\n")
    print(json.dumps(line, indent=1, sort_keys=True))


def layer_bytes(model: Any) -> int:
    """Bytes of the matrices and kernels alone."""
    from hasten.facts import MATRIX
    from hasten.own_operators import PACKED

    return sum(n.inputs[1].const_value.nbytes for n in model.ir.graph if n.op_type in (*MATRIX, *PACKED))


def signs_that_differ(packed: Any, floating: Any, settings: Any, task: Any) -> dict[str, int]:
    """How many of the signs inside differ between onnxruntime's default session on the packed file and without its optimisations."""
    import numpy as np
    import onnxruntime as ort

    from hasten.model import Model
    from hasten.own_operators import SIGNS

    edited = packed.edit()
    names = []
    for node in edited.graph:
        if node.op_type in SIGNS:
            edited.graph.outputs.append(node.outputs[0])
            names.append(node.outputs[0].name)
    data = Model(edited).to_bytes()
    sessions = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        sessions.append(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    different = total = 0
    for feeds in task.test.batches(500):
        one, other = (s.run(names, feeds) for s in sessions)
        for a, b in zip(one, other, strict=True):
            different += int(np.sum(a != b))
            total += a.size
    return {"different": different, "of": total}


if __name__ == "__main__":
    main()
