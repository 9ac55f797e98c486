"""Trains the MNIST models of the benchmarks: an MLP 784-128-10 and the LeNet-like CNN. They do not travel with the package.

    python tools/train_mnist.py --data ../shared/data/mnist --out build/models

Resumes where it was stopped; logs to tools/logs/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from training import LeNetLike, Mlp, train

from hasten.data.read import read
from hasten.doors import load

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "mnist"))
    parser.add_argument("--out", default=str(ROOT / "build" / "models"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    source = read(arguments.data)
    assert source.test is not None
    everything = [
        (s.take(np.arange(len(s)))["x"][:, None].astype(np.float32) / 255, y) for s, y in ((source.samples, source.labels), source.test)
    ]
    (x, y), (x_test, y_test) = everything
    for name, make, epochs in (("mnist_mlp", Mlp, 8), ("mnist_cnn", LeNetLike, 4)):
        torch.manual_seed(0)
        model = make()
        accuracy = train(model, x, y, x_test, y_test, ROOT / "tools" / "logs" / f"{name}.jsonl", out / f"{name}.pt", epochs)
        model.eval()
        load(model, example_inputs=x[:2]).model.save(out / f"{name}.onnx")
        print(f"{name}: test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
