"""Static int8 beside NNCF's and onnxruntime's defaults: agreement with the float model and the relative error of its outputs.

`python benchmarks/accuracy.py [MODEL ...] [--seeds 0 1 2]`: the same calibration samples (100) and the same measured samples for all of them,
everything run in OpenVINO in float32 but for onnxruntime's own file. A seed draws other samples. One JSON line each in `results/accuracy.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import case

NAMES = ("mobilenetv2", "resnet18_vq", "squeezenet1.1", "cifar10_resnet20", "mnist_cnn")
CALIBRATION = 100


def openvino_outputs(model: bytes | Any, samples: np.ndarray, name: str) -> np.ndarray:
    """(N, ...) outputs, one sample at a time."""
    import openvino as ov

    core = ov.Core()
    loaded = core.read_model(model) if isinstance(model, bytes) else model
    loaded.reshape({name: [1, *samples.shape[1:]]})
    request = core.compile_model(loaded, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return np.concatenate([request.infer({name: samples[i : i + 1]})[0].copy() for i in range(len(samples))])


def ours(model: Any, bound: Any) -> bytes:
    """hasten's graph passes, equalization and static quantization, as `optimize` chains them."""
    from hasten import plan
    from hasten.quantize import VARIANTS
    from hasten.search.candidates import GRAPH, Recipe

    recipe = Recipe("int8", (*GRAPH, ("equalize", {}), ("quantize_static", dict(VARIANTS)["static"])))
    return plan.run(recipe.plan(model), model, bound)[0].to_bytes()


def nncf_default(model: bytes, samples: np.ndarray, name: str) -> Any:
    """NNCF with its defaults, the model's shape fixed first."""
    import nncf
    import openvino as ov

    loaded = ov.Core().read_model(model)
    loaded.reshape({name: [1, *samples.shape[1:]]})
    return nncf.quantize(loaded, nncf.Dataset([samples[i : i + 1] for i in range(len(samples))]), subset_size=len(samples))


def ort_default(model: bytes, samples: np.ndarray, name: str, measured: np.ndarray) -> np.ndarray:
    """The outputs of onnxruntime's quantize_static (QDQ, pre-processed, its defaults) in onnxruntime."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = iter({name: samples[i : i + 1]} for i in range(len(samples)))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (str(Path(folder) / f"{n}.onnx") for n in ("source", "ready", "target"))
        Path(source).write_bytes(model)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(ready, target, Reader(), quant_format=QuantFormat.QDQ)
        session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {name: measured[i : i + 1]})[0] for i in range(len(measured))])


def run(which: str, seed: int) -> dict[str, Any]:
    """One model, one draw of samples."""
    import hasten
    from hasten.doors import load
    from hasten.task import Split

    it = case(which)
    model = load(it.model).model
    bound = hasten.Task(it.data, test=it.test, preprocess=it.preprocess, seed=seed).bind(model)
    name = model.inputs[0].name
    chosen = Split(bound.calibrate.samples, None, bound.calibrate.indices[:CALIBRATION])
    calibration = next(iter(chosen.batches(len(chosen))))[name]
    parts = (bound.test,) if len(bound.test) >= 1000 else (bound.validate, bound.test)
    measured = np.concatenate([next(iter(p.batches(len(p))))[name] for p in parts])
    labels = np.concatenate([p.labels for p in parts])
    source = model.to_bytes()
    reference = openvino_outputs(source, measured, name)

    def row(outputs: np.ndarray) -> dict[str, float]:
        return {
            "agreement": round(float(np.mean(outputs.argmax(1) == reference.argmax(1))), 4),
            "relative_error": round(float(np.linalg.norm(outputs - reference) / np.linalg.norm(reference)), 4),
            "accuracy": round(float(np.mean(outputs.argmax(1) == labels)), 4),
        }

    limited = dataclasses.replace(bound, calibrate=chosen)
    return {
        "model": which,
        "seed": seed,
        "calibrated_on": len(calibration),
        "measured_on": len(measured),
        "float": row(reference),
        "hasten": row(openvino_outputs(ours(model, limited), measured, name)),
        "nncf": row(openvino_outputs(nncf_default(source, calibration, name), measured, name)),
        "onnxruntime": row(ort_default(source, calibration, name, measured)),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    results = Path(__file__).resolve().parent / "results"
    results.mkdir(exist_ok=True)
    for which in arguments.models:
        for seed in arguments.seeds:
            report = run(which, seed)
            print(f"{which}, seed {seed}, {report['measured_on']} samples", flush=True)
            for name in ("float", "hasten", "nncf", "onnxruntime"):
                r = report[name]
                print(
                    f"  {name:12s} agreement {r['agreement']:.4f}  relative error {r['relative_error']:.4f}  accuracy {r['accuracy']:.4f}",
                    flush=True,
                )
            with (results / "accuracy.jsonl").open("a") as file:
                file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
