"""MNIST's idx files as one .npz, for the case study: `python tools/mnist_npz.py build/mnist.npz [--data FOLDER]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from hasten.data.read import read

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HASTEN_DATA") or ROOT.parent / "shared" / "data") / "mnist")
    given = parser.parse_args()
    source = read(str(given.data))
    assert source.test is not None
    arrays = {}
    for name, samples, labels in (("train", source.samples, source.labels), ("test", *source.test)):
        arrays |= {f"x_{name}": samples.take(np.arange(len(samples)))["x"], f"y_{name}": labels}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(given.out, **arrays)
    print(f"{given.out}: {len(arrays['x_train'])} and {len(arrays['x_test'])} samples")


if __name__ == "__main__":
    main()
