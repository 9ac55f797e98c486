"""Runs the model beside this file as `hasten optimize` chose: its runtime, threads and settings. Needs numpy and that runtime, not hasten
(where torch or the native engine was chosen, it does: torch alone opens no ONNX file, and the engine is hasten's own).

python run.py                        describe the model
python run.py input.npy output.npy   run it on an array (or on an .npz with one array for each input)
python run.py --measure              time it here: p50, p95, p99 of single calls on random input
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reports the models it opens to its maker unless told not to
HERE = Path(__file__).resolve().parent


def load(folder=HERE):
    """The model as a function: dict of arrays by input name -> dict of arrays by output name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    target, path = manifest["target"], str(folder / "model.onnx")
    names = [port["name"] for port in manifest["outputs"]]
    if manifest["runtime"] in ("native", "torch", "torch-compiled"):
        import hasten

        fast = hasten.load(folder)
        return lambda feeds: fast(feeds)
    if manifest["runtime"] == "openvino":
        import openvino as ov

        core = ov.Core()
        model = core.read_model(path)
        shapes = {port: port.get_partial_shape() for port in model.inputs}
        for shape in shapes.values():
            if len(shape) and shape[0].is_dynamic:
                shape[0] = ov.Dimension(target["batch"])
        model.reshape(shapes)
        precision = {"float32": "f32", "bfloat16": "bf16"}[target["precision"]]
        settings = {"INFERENCE_NUM_THREADS": target["threads"], "INFERENCE_PRECISION_HINT": precision}
        request = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}).create_infer_request()
        return lambda feeds: dict(zip(names, request.infer(feeds, share_inputs=True).to_tuple()))
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target["threads"], 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: dict(zip(names, session.run(names, feeds)))


def random_feeds(manifest, batch):
    """Arrays of the right shapes: uniform 0..1 floats, zeros for whole numbers (always a legal token id)."""
    rng = np.random.default_rng(0)
    feeds = {}
    for port in manifest["inputs"]:
        shape = [d if isinstance(d, int) else (batch if i == 0 else 8) for i, d in enumerate(port["shape"])]
        real = np.dtype(port["dtype"]).kind == "f"
        feeds[port["name"]] = (rng.random(shape) if real else np.zeros(shape)).astype(port["dtype"])
    return feeds


def main(arguments):
    """The command line above."""
    manifest = json.loads((HERE / "manifest.json").read_text())
    if arguments == ["--measure"]:
        run, feeds = load(), random_feeds(manifest, manifest["target"]["batch"])
        for _ in range(20):
            run(feeds)
        seconds = []
        while len(seconds) < 50 or (len(seconds) < 20000 and sum(seconds) < 2.0):
            start = time.perf_counter()
            run(feeds)
            seconds.append(time.perf_counter() - start)
        p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1e3
        print(f"{manifest['runtime']}, {manifest['target']['threads']} threads, batch {manifest['target']['batch']}: ", end="")
        print(f"p50 {p50:.4f} ms, p95 {p95:.4f} ms, p99 {p99:.4f} ms over {len(seconds)} calls")
    elif len(arguments) == 2:
        data = np.load(arguments[0], allow_pickle=False)
        feeds = dict(data) if hasattr(data, "files") else {manifest["inputs"][0]["name"]: data}
        run, batch, parts = load(), manifest["target"]["batch"], []
        total = len(next(iter(feeds.values())))
        for start in range(0, total, batch):
            rows = np.minimum(np.arange(start, start + batch), total - 1)  # the last batch repeats its last sample
            parts.append(run({k: v[rows] for k, v in feeds.items()})[manifest["outputs"][0]["name"]][: total - start])
        np.save(arguments[1], np.concatenate(parts), allow_pickle=False)
    else:
        print(__doc__)
        for kind in ("inputs", "outputs"):
            for port in manifest[kind]:
                print(f"{kind[:-1]:7}{port['name']}  {port['dtype']}  {port['shape']}")


if __name__ == "__main__":
    main(sys.argv[1:])
