"""The native engine beside onnxruntime and OpenVINO on the same files: `python benchmarks/native.py [MODEL ...] [--batch 32] [--tail]`.

Each model is quantized once by hasten (`quantize-static`); every contestant runs in a process of its own through its Python API, in rounds, the
order reversed every second round. MiniLM meets NNCF's int8 in OpenVINO, too, with the static shape that it wants. The ratio is the median over the
rounds of native's time to the fastest peer's in the same round; that of the float files stands for itself. Agreement is that of the first output
with onnxruntime's over the test split: share of equal class, and of equal numbers, for fixed point too; of embeddings the cosine.
`--tail`: two processes of one contestant at once on two cores, p50 and p99 of single calls. One JSON line per model goes to
`benchmarks/results/native.jsonl`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, case
from benchmarks.peers import child, nncf_int8, prepare

HERE = Path(__file__).resolve().parent
NAMES = ("mnist_mlp", "mnist_cnn", "cifar10_resnet20", "mobilenetv2", "resnet18_vq", "minilm")
CONTESTANTS = {
    "native": ("native", "int8"),
    "ORT int8": ("onnxruntime", "int8"),
    "OpenVINO int8": ("openvino", "int8"),
    "ORT fp32": ("onnxruntime", "float"),
    "OpenVINO fp32": ("openvino", "float"),
    "native fp32": ("native", "float"),
    "NNCF int8": ("openvino", "nncf"),
}
SAMPLES = 1000
"""Of the test split at most, for the agreement."""


def quantized(name: str) -> tuple[dict[str, Path], Path]:
    """The float and the int8 file, and the samples of the test split."""
    from hasten import plan
    from hasten.doors import load
    from hasten.search.candidates import GRAPH, INT8

    bench, task = prepare(case(name))
    path = bench.folder / "native_int8.onnx"
    if not path.exists():
        model = load(bench.float_model).model
        steps = tuple(plan.PlannedStep(n, plan.make_settings(n, s)) for n, s in (*GRAPH, *INT8))
        made, _ = plan.run(plan.Plan(steps), model, task.bind(model))
        made.save(path)
    files = {"float": bench.float_model, "int8": path}
    if name == "minilm":
        files["nncf"] = bench.folder / "nncf.xml"
        if not files["nncf"].exists():
            nncf_int8(bench)
    return files, bench.samples("test")


def agreement(files: dict[str, Path], samples: Path) -> dict[str, float]:
    """Shares of samples in which the engine and onnxruntime name the same class, and of outputs that are the same number."""
    import onnxruntime as ort

    from hasten import _native
    from hasten.lower import lower
    from hasten.model import Model

    with np.load(samples) as arrays:
        feeds = {k: np.ascontiguousarray(arrays[k][:SAMPLES]) for k in arrays.files}
    count = len(next(iter(feeds.values())))
    session = ort.InferenceSession(str(files["int8"]), providers=["CPUExecutionProvider"])
    rows = [{k: v[i : i + 1] for k, v in feeds.items()} for i in range(count)]
    right = np.concatenate([session.run(None, row)[0] for row in rows])
    found = {}
    if "nncf" in files:  # embeddings
        engine = _native.Model.from_bytes(lower(Model.load(files["int8"])).to_bytes())
        mine = np.concatenate([next(iter(engine.run(row).values())) for row in rows])
        cosine = (mine * right).sum(1) / np.sqrt((mine**2).sum(1) * (right**2).sum(1))
        return {"float, cosine, mean": float(cosine.mean()), "float, cosine, least": float(cosine.min())}
    for mode in ("float", "fixed"):
        engine = _native.Model.from_bytes(lower(Model.load(files["int8"]), mode).to_bytes())
        mine = np.concatenate([next(iter(engine.run(row).values())) for row in rows])
        found[f"{mode}, same class"] = float((mine.argmax(1) == right.argmax(1)).mean())
        found[f"{mode}, same numbers"] = float((mine == right).mean())
    return found


def run_case(name: str, threads: int, rounds: int, batch: int) -> dict[str, Any]:
    """Time every contestant; what is written."""
    files, samples = quantized(name)
    who_runs = [who for who, (_, file) in CONTESTANTS.items() if file in files]
    times: dict[str, list[float]] = {who: [] for who in who_runs}
    for turn in range(rounds):
        for who in who_runs if turn % 2 == 0 else who_runs[::-1]:
            kind, file = CONTESTANTS[who]
            times[who].append(json.loads(child(kind, files[file], samples, threads, "time", str(batch))))
    seconds = {who: statistics.median(t) for who, t in times.items()}
    peers = [who for who in who_runs if not who.startswith("native")]
    best = min(peers, key=seconds.__getitem__)
    best_float = min((who for who in peers if "fp32" in who), key=seconds.__getitem__)

    def share(mine: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[mine], times[other], strict=True)), 3)

    return {
        "model": name,
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        "rounds": rounds,
        "batch": batch,
        "ms": {who: round(s * 1e3, 5) for who, s in seconds.items()},
        "fastest_peer": best,
        "share_of_fastest_peer": share("native", best),
        "float_share": share("native fp32", best_float),
        "agreement": agreement(files, samples) if batch == 1 else {},
    }


def run_tail(name: str) -> dict[str, Any]:
    """p50 and p99 in milliseconds with two processes of two threads each at once, the worse of the two."""
    files, samples = quantized(name)
    found: dict[str, Any] = {"model": name, "date": datetime.date.today().isoformat(), "tail": {}}
    for who in ("native", "ORT int8"):
        kind, file = CONTESTANTS[who]
        command = [sys.executable, str(HERE / "peer_process.py"), kind, str(files[file]), str(samples), "2", "tail"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        values = [json.loads(p.communicate(timeout=300)[0].strip().splitlines()[-1]) for p in both]
        found["tail"][who] = {"p50": round(max(v[0] for v in values) * 1e3, 4), "p99": round(max(v[1] for v in values) * 1e3, 4)}
    return found


def main() -> None:
    """Run the cases named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(NAMES), help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tail", action="store_true")
    arguments = parser.parse_args()
    BUILT.mkdir(parents=True, exist_ok=True)
    (HERE / "results").mkdir(exist_ok=True)
    for name in arguments.models:
        report = run_tail(name) if arguments.tail else run_case(name, arguments.threads, arguments.rounds, arguments.batch)
        print(json.dumps(report, indent=1), flush=True)
        with (HERE / "results" / "native.jsonl").open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
