"""Finished folders for tests of the report: a manifest with known numbers in each state, made without measuring."""

import copy
import json
from pathlib import Path
from typing import Any

from hasten.folder import Folder, file_digest
from hasten.search.result import Result

EVIL = "node</script><img src=x onerror=alert(1)>"
"""A node's name as an attacker would choose it."""

TARGET = {"threads": 2, "batch": 1, "precision": "float32", "device": "cpu", "memory_limit": None}


def interval(estimate: float, low: float, high: float) -> dict[str, Any]:
    return {"estimate": estimate, "low": low, "high": high, "level": 0.95, "bound_low": low, "bound_high": high}


def judged(value: float, baseline: float = 0.9825, samples: int = 400) -> dict[str, Any]:
    difference = interval(value - baseline, value - baseline - 0.006, value - baseline + 0.004)
    return {"value": value, "baseline": baseline, "difference": difference, "samples": samples, "discordant": 0.01}


def candidate(name: str, state: str, **more: Any) -> dict[str, Any]:
    recipe, runtime, _ = name.split(" · ")
    usual = {"seconds": None, "accuracy": None, "ratio": None, "test": None, "verdict": None, "reason": "", "size": 1_234_567}
    return {"name": name, "recipe": recipe, "runtime": runtime, "target": TARGET, "state": state, **usual, **more}


def manifest(verdict: str = "proven") -> dict[str, Any]:
    """verdict: proven, not shown, kept (the original is returned), or none (there was no data)."""
    percentiles = {"50": 0.0001, "95": 0.0002, "99": 0.0003}
    candidates = [
        candidate(
            "original · onnxruntime · 2T",
            "baseline",
            seconds=0.00123,
            accuracy=judged(0.9825),
            percentiles=percentiles,
            peak_memory=90_000_000,
        ),
        candidate(
            "int8 static · openvino · 2T",
            "chosen",
            seconds=0.000456,
            size=345_678,
            accuracy=judged(0.9815),
            test=judged(0.9800),
            ratio=interval(2.697, 2.51, 2.89),
            noise_floor=0.021,
            peak_memory=120_000_000,
            verdict={"state": verdict, "drop": 0.0025, "worst": 0.0085, "samples_needed": 0 if verdict == "proven" else 321},
        ),
        candidate(
            "float16 · openvino · 2T", "front", seconds=0.00089, size=600_000, accuracy=judged(0.9825), reason="not among the finalists"
        ),
        candidate("int8 dynamic · onnxruntime · 2T", "lost", seconds=0.00244, size=400_000, reason="slower than the baseline: × 0.50"),
        candidate("int8 static attention · openvino · 2T", "lost", reason="does the work of 'int8 static' <b>"),
    ]
    found = {
        "hasten": "0.1.0",
        "state": "finished",
        "chosen": candidates[1]["name"],
        "runtime": "openvino",
        "target": TARGET,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 10]}],
        "judged": {"metric": "accuracy", "higher_is_better": True, "output": "y", "labels": True, "data": "d" * 64},
        "budget": {"max_drop": 0.01, "min_agreement": 0.98},
        "machine": {
            "cpu": "Test CPU 9000",
            "isa": [],
            "cores": 2,
            "memory": 16_000_000_000,
            "system": "Linux x86_64",
            "python": "3.11.7",
            "digest": "m",
        },
        "versions": {"hasten": "0.1.0", "onnxruntime": "1.22"},
        "seed": 0,
        "reason": "",
        "candidates": candidates,
        "front": [candidates[1]["name"], candidates[2]["name"]],
        "shapes": {},
        "details": details(),
    }
    if verdict == "kept":
        candidates[0]["state"], candidates[1]["state"], candidates[1]["reason"] = "chosen", "lost", "breaks the budget on test"
        found |= {"chosen": candidates[0]["name"], "runtime": "onnxruntime", "reason": "nothing better than the original within the budget"}
        found["details"] = {k: v for k, v in found["details"].items() if k in ("splits", "history")} | {"history": []}
    if verdict == "none":
        found["judged"] = None
        for each in candidates:
            each |= {"accuracy": None, "test": None, "verdict": None}
        found["details"] = {"history": found["details"]["history"]}
    return found


def details() -> dict[str, Any]:
    """Everything that a run can gather."""
    ranks = [*range(1, 50, 2), 50, *range(51, 100, 2)]
    layers = [{"name": f"conv_{i}", "op": "Conv", "seconds": (20 - i) * 1e-5} for i in range(15)] + [
        {"name": EVIL, "op": "Add", "seconds": 1e-6}
    ]
    levels = [
        {
            "corruption": name,
            "strength": 0.1 * i,
            "unit": "σ of the data",
            "before": 0.98 - 0.1 * i,
            "after": 0.97 - 0.11 * i,
            "difference": interval(-0.01, -0.02, 0.0),
            "excess": interval(0.01, 0.0, 0.02),
            "flips": i,
        }
        for name in ("gaussian noise", "blur")
        for i in range(1, 6)
    ]
    package = {"name": "openvino", "version": "2026.4", "bytes": 45_000_000, "licence": "Apache-2.0"}
    joules = {
        "joules": 0.0021,
        "how": "estimated",
        "method": "estimated: CPU time × 6 W a core",
        "cpu_seconds": 0.0001,
        "watts_per_core": 6.0,
        "ratio": interval(2.0, 1.8, 2.2),
    }
    return {
        "splits": {"calibrate": 100, "validate": 300, "test": 400},
        "rounds": 6,
        "history": [
            {"name": "fold_batchnorm", "settings": {}, "changed": 2, "skipped": []},
            {
                "name": "quantize_static",
                "settings": {"samples": 256},
                "changed": 5,
                "skipped": [{"node": f"n{i}", "why": "the Conv output has other readers"} for i in range(20)] + [{"node": EVIL, "why": "<i>why</i>"}],
            },
        ],
        "layers": {
            "before": {"layers": layers, "call_seconds": 0.0031},
            "after": {"failed": "torch tells no time per layer; onnxruntime, openvino and native do"},
        },
        "latency": {
            "ranks": ranks,
            "calls": {"before": 1234, "after": 2345},
            "before": [0.0011 + 4e-6 * r for r in ranks],
            "after": [0.0004 + 2e-6 * r for r in ranks],
        },
        "flips": 7,
        "classes": [{"label": i, "before": 0.98, "after": 0.98 - (0.04 if i == 3 else -0.02 if i == 4 else 0), "samples": 40} for i in range(10)],
        "robustness": {
            "metric": "accuracy", "higher_is_better": True, "samples": 212, "available": 400, "seed": 0, "clean_before": 0.98, "clean_after": 0.97,
            "levels": levels, "worst": levels[4], "bound": 0.05, "mean_excess": 0.01, "words": "as robust as the original within 0.05",
        },
        "calibration": {"before": 0.0123, "after": 0.0145, "difference": interval(0.0022, -0.001, 0.005), "bins": 15,
            "samples": 400, "softmax": True},
        "explanation": {
            "samples": 32, "regions": 49, "correlation": interval(0.971, 0.96, 0.98), "overlap": interval(0.9, 0.85, 0.95),
            "chance": 0.1, "lowest": 0.7, "words": "both look at the same things",
        },
        "cost": {
            "preparation_seconds": 1.5, "preparation_seconds_all": 4.5, "packages": [package], "packages_original": [package],
            "price_per_hour": 0.4, "price_per_million": {"original": 0.137, "chosen": 0.051}, "formula": "price × time", "batch": 1,
            "threads": {"original": 2, "chosen": 2},
        },
        "energy": {"batch": 1, "original": joules | {"joules": 0.0042}, "chosen": joules},
        "advice": {
            "lines": [
                {"candidate": "int8 static · openvino · 2T", "recipe": "int8 static", "gain": [1.8, 3.1], "reason": "many convolutions"}
            ],
            "held": True,
            "why": "int8 static · openvino · 2T was advised and chosen",
        },
    }  # fmt: skip


def result(folder: Path, verdict: str = "proven", changes: dict[str, Any] | None = None) -> Result:
    """A finished folder of that verdict; `changes` replace keys of the manifest."""
    folder.mkdir(exist_ok=True)
    made = copy.deepcopy(manifest(verdict)) | (changes or {})
    for name in ("model.onnx", "original.onnx", "plan.json", "records.jsonl", "run.py"):
        (folder / name).write_bytes(b"made for a test")
    made["digests"] = {name: file_digest(folder / name) for name in ("model.onnx", "plan.json", "run.py", "original.onnx", "records.jsonl")}
    (folder / "manifest.json").write_text(json.dumps(made, indent=1, sort_keys=True))
    return Result(folder, Folder(folder).manifest())
