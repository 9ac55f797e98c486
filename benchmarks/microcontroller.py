"""Flash and RAM of exported C code, and whether its test passes: `python benchmarks/microcontroller.py`, half a minute.

MNIST and CIFAR-10 nets are calibrated on real samples, the two of MLPerf Tiny on seeded random ones, for there is no data of theirs here: their codes
are not those of a good quantization, but bytes do not depend on them.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import hasten
from hasten import Task
from hasten.lower import c_export, c_memory, lower
from hasten.lower.arena import place

HERE = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HASTEN_DATA") or HERE.parent / "shared" / "data")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def models():
    """(name, file, task)."""
    rng = np.random.default_rng(0)
    mnist = Task(DATA / "mnist", preprocess="mnist")
    yield "mnist_mlp", HERE / "build/models/mnist_mlp.onnx", mnist
    yield "mnist_cnn", HERE / "build/models/mnist_cnn.onnx", mnist
    yield "cifar10_resnet20", DATA / "models/cifar10_resnet20.onnx", Task(DATA / "cifar10/cifar10_test.npz", preprocess="imagenet-torch")
    yield "kws_dscnn", DATA / "models/kws_dscnn.onnx", Task(rng.normal(0, 20, (300, 1, 49, 10)).astype(np.float32))
    yield "vww_mobilenetv1_025", DATA / "models/vww_mobilenetv1_025.onnx", Task(rng.random((300, 3, 96, 96), dtype=np.float32))


def apart(model) -> int:
    """The arena if no tensor might lie over the one that it is made of."""
    real, c_memory.distance = c_memory.distance, lambda op, x: 1 << 40
    try:
        return c_export.footprint(model).arena
    finally:
        c_memory.distance = real


def passes(made) -> str:
    """Whether the test program, strictly compiled and under sanitizers, ends well."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "no compiler"
    with tempfile.TemporaryDirectory() as private:
        c_export.save(made, Path(private) / "c")
        sources = [Path(private) / "c" / name for name in made.files if name.endswith(".c")]
        subprocess.run([compiler, *STRICT, *sources, "-o", f"{private}/program"], check=True)
        return "passes" if subprocess.run([f"{private}/program"], capture_output=True, check=False).returncode == 0 else "fails"


def main() -> None:
    print("| model | flash: constants | code, x86-64 -Os | arena | output | arena, none over another | engine's arena | test |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for name, file, task in models():
        model = hasten.apply("quantize_static", file, task)
        made = c_export.export(model, name)
        cost = made.footprint
        row = (cost.flash, c_export.machine_code(made), cost.arena, cost.outputs, apart(model), place(lower(model, "fixed").ops))
        print(f"| {name} | {' | '.join(f'{n:,}' if n is not None else '–' for n in row)} | {passes(made)} |", flush=True)


if __name__ == "__main__":
    main()
