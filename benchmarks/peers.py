"""hasten's choice beside what the field offers, at batch 1: `python benchmarks/peers.py [MODEL ...]`.

Every contestant in a process of its own, in rounds, the order reversed every second round. Accuracy on the test split that hasten judged on, one
sample at a time; without labels, the mean agreement with the float model. What breaks the budget is listed and does not count as the fastest.
One JSON line per model goes to `benchmarks/results/peers.jsonl` (with `--train`: `peers_trained.jsonl`).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, NAMES, Case, case

HERE = Path(__file__).resolve().parent
PLACE = BUILT.parent / "peers"
CALIBRATION = 300


@dataclasses.dataclass(frozen=True)
class Bench:
    """A case made ready: the float model as plain ONNX, samples as .npz, labels where there are some."""

    case: Case
    folder: Path
    float_model: Path
    labels: np.ndarray | None
    agreement: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def samples(self, split: str) -> Path:
        return self.folder / f"{split}.npz"


def prepare(it: Case) -> tuple[Bench, Any]:
    """The model and the splits, as hasten sees them. Returns the bench and hasten's task."""
    import hasten
    from hasten.doors import load
    from hasten.metrics import agreement

    folder = PLACE / it.name
    folder.mkdir(parents=True, exist_ok=True)
    task = hasten.Task(it.data, test=it.test, preprocess=it.preprocess)
    model = load(it.model).model
    bound = task.bind(model)
    model.save(folder / "float.onnx")
    for name, split, count in (("calibration", bound.calibrate, CALIBRATION), ("test", bound.test, len(bound.test))):
        np.savez(folder / f"{name}.npz", **next(iter(split.batches(count))))
    return Bench(it, folder, folder / "float.onnx", bound.test.labels, agreement), task


def static_shape(bench: Bench) -> Path:
    """The float model with a batch of one, which NNCF's graph analysis and OpenVINO's transformer patterns want."""
    import openvino as ov

    path = bench.folder / "static.xml"
    model = ov.Core().read_model(str(bench.float_model))
    with np.load(bench.samples("calibration")) as arrays:
        model.reshape({k: [1, *arrays[k].shape[1:]] for k in arrays.files})
    ov.save_model(model, str(path), compress_to_fp16=False)
    return path


def calibration(bench: Bench) -> Iterator[dict[str, np.ndarray]]:
    with np.load(bench.samples("calibration")) as arrays:
        data = {k: arrays[k] for k in arrays.files}
    for i in range(len(next(iter(data.values())))):
        yield {k: v[i : i + 1] for k, v in data.items()}


def ort_static(bench: Bench, per_channel: bool = False) -> Path:
    """onnxruntime's static quantization, QDQ, its other settings as they come."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = calibration(bench)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    ready = bench.folder / "ort_ready.onnx"
    quant_pre_process(str(bench.float_model), str(ready), skip_symbolic_shape=True)
    path = bench.folder / f"ort_static{'_channel' if per_channel else ''}.onnx"
    quantize_static(str(ready), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel)
    return path


def ort_static_channel(bench: Bench) -> Path:
    return ort_static(bench, per_channel=True)


def ort_dynamic(bench: Bench) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    path = bench.folder / "ort_dynamic.onnx"
    quantize_dynamic(str(bench.float_model), str(path))
    return path


def nncf_int8(bench: Bench) -> Path:
    """NNCF's post-training quantization with its defaults; its transformer preset for the transformer."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(static_shape(bench)))
    more = {"model_type": nncf.ModelType.TRANSFORMER} if bench.case.name == "minilm" else {}
    quantized = nncf.quantize(model, nncf.Dataset(list(calibration(bench))), subset_size=CALIBRATION, **more)
    path = bench.folder / "nncf.xml"
    ov.save_model(quantized, str(path))
    return path


def unchanged(bench: Bench) -> Path:
    return bench.float_model


def in_torch(bench: Bench) -> str | None:
    """Its name, if the model exists as a module here."""
    return bench.case.name if bench.case.name in ("mnist_mlp", "mnist_cnn", "minilm") else None


HASTEN, BASELINE = "hasten's choice", "ORT fp32"
PEERS: tuple[tuple[str, str, Callable[[Bench], Path | str | None]], ...] = (
    (BASELINE, "onnxruntime", unchanged),
    ("ORT quantize_static", "onnxruntime", ort_static),
    ("ORT quantize_static, per channel", "onnxruntime", ort_static_channel),
    ("ORT quantize_dynamic", "onnxruntime", ort_dynamic),
    ("OpenVINO fp32", "openvino", unchanged),
    ("OpenVINO bf16", "openvino_bf16", unchanged),
    ("NNCF int8", "openvino", nncf_int8),
    ("ORT's QDQ in OpenVINO", "openvino", ort_static),
    ("ORT's QDQ per channel in OpenVINO", "openvino", ort_static_channel),
    ("torch eager", "torch", in_torch),
    ("torch compiled", "torch_compiled", in_torch),
)


def child(kind: str, path: Path | str, samples: Path, threads: int, *what: str) -> str:
    """The last line that the process printed. Raises RuntimeError with its last line of error."""
    command = [sys.executable, str(HERE / "peer_process.py"), kind, str(path), str(samples), str(threads), *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200])
    return (done.stdout.strip().splitlines() or [""])[-1]


def training_data(it: Case) -> Any:
    """What a trained search may train on. The peers train nothing, as they can't without the model's source."""
    if it.name == "cifar10_resnet20":
        parts = [np.load(it.data.with_name(f"cifar10_{part}.npz")) for part in ("train_part1", "train_part2")]
        return tuple(np.concatenate([p[k] for p in parts]) for k in ("x", "y"))
    return it.data


def run_case(it: Case, threads: int, rounds: int, again: bool, minutes: float) -> dict[str, Any]:
    """Make, judge and time every contestant of one case. `minutes`: of a search that trains too, 0: it does not. Returns what is written."""
    import hasten

    bench, task = prepare(it)
    out = bench.folder / ("hasten-trained" if minutes else "hasten")
    if minutes:
        task = dataclasses.replace(task, train=training_data(it))
    if again and out.exists():
        shutil.rmtree(out)
    start = datetime.datetime.now()
    result = hasten.optimize(
        it.model, task, out=out, max_drop=it.max_drop, threads=threads, resume=out.exists(), time_limit=minutes * 60 or None
    )
    took = (datetime.datetime.now() - start).total_seconds()
    print(f"{it.name}: hasten chose {result.best.name} in {took:.0f} s", flush=True)

    entries: dict[str, tuple[str, Path | str]] = {HASTEN: ("hasten", out)}
    failed: dict[str, str] = {}
    made: dict[Callable[[Bench], Path | str | None], Path | str | None] = {}
    for name, kind, make in PEERS:
        try:
            if make not in made:
                made[make] = make(bench)
            path = made[make]
            if path is not None:
                entries[name] = (kind, path)
        except Exception as e:  # noqa: BLE001 - a peer that fails is a line of the table
            failed[name] = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
    budget = {}
    for name, (kind, path) in list(entries.items()):
        where = bench.folder / "outputs.npy"
        try:
            child(kind, path, bench.samples("test"), threads, "predict", str(where))
            budget[name] = np.load(where)
        except (RuntimeError, subprocess.TimeoutExpired) as e:
            failed[name] = str(e)[:200]
            del entries[name]
    base = budget[BASELINE]
    values = {
        n: float(np.mean(o.argmax(1) == bench.labels) if bench.labels is not None else np.mean(bench.agreement(o, base)))
        for n, o in budget.items()
    }
    floor = values[BASELINE] - it.max_drop if bench.labels is not None else 0.98

    times: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds):
        for name in list(entries) if turn % 2 == 0 else list(entries)[::-1]:
            kind, path = entries[name]
            times[name].append(json.loads(child(kind, path, bench.samples("test"), threads, "time")))
        print(f"  round {turn + 1} of {rounds}", flush=True)
    seconds = {n: statistics.median(t) for n, t in times.items()}
    keep = [n for n in entries if n != HASTEN and values[n] >= floor]
    fastest = min(keep, key=seconds.__getitem__)
    paired = {n: statistics.median(a / b for a, b in zip(times[HASTEN], times[n], strict=True)) for n in entries}
    return {
        "model": it.name,
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        "rounds": rounds,
        "trained": bool(minutes),
        "chosen": result.best.name,
        "bytes": {HASTEN: (out / "model.onnx").stat().st_size, BASELINE: bench.float_model.stat().st_size},
        "optimize_seconds": round(took, 1),
        "advice": advised(result.manifest["details"]["advice"]),
        "judged_by": "accuracy" if bench.labels is not None else "cosine with the float model",
        "floor": round(floor, 4),
        "rows": {n: {"ms": round(seconds[n] * 1e3, 4), "value": round(values[n], 4), "keeps_budget": values[n] >= floor} for n in entries},
        "failed": failed,
        "fastest_peer": fastest,
        "hasten_to_fastest_peer": round(paired[fastest], 3),
        "hasten_to_ort_fp32": round(paired[BASELINE], 3),
    }


def advised(found: dict[str, Any]) -> dict[str, Any]:
    """What `inspect` would have said to try first, and whether it held: made before any candidate was tried, judged by the search itself."""
    first = found["lines"][0] if found["lines"] else None
    return {"first": first and first["candidate"], "gain": first and first["gain"], "held": found["held"], "why": found["why"]}


def show(report: dict[str, Any]) -> None:
    """The case as a table."""
    print(
        f"\n{report['model']} ({report['judged_by']}, at least {report['floor']}); {report['threads']} threads, {report['rounds']} processes each"
    )
    for name, row in sorted(report["rows"].items(), key=lambda item: item[1]["ms"]):
        print(f"  {name:34s} {row['ms']:9.4f} ms  {row['value']:.4f}{'' if row['keeps_budget'] else '  breaks the budget'}")
    for name, why in report["failed"].items():
        print(f"  {name:34s} failed: {why}")
    print(
        f"  {report['chosen']}: {report['hasten_to_fastest_peer']} × the time of the fastest peer in budget ({report['fastest_peer']}), "
        f"{report['hasten_to_ort_fp32']} × ORT fp32's\n"
        f"  advice {'held' if report['advice']['held'] else 'failed'}: {report['advice']['why']}\n",
        flush=True,
    )


def main() -> None:
    """Run the cases named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(NAMES), help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="optimize afresh, even where an earlier choice is there")
    parser.add_argument("--train", type=float, default=0.0, metavar="MINUTES", help="let the search train too, for so long in all")
    arguments = parser.parse_args()
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for name in arguments.models:
        report = run_case(case(name), arguments.threads, arguments.rounds, arguments.again, arguments.train)
        show(report)
        with (results / ("peers_trained.jsonl" if arguments.train else "peers.jsonl")).open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
