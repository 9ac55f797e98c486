"""Pruning on real data: what is left of the accuracy, and what of the time, plain and repaired, and after training with the original as teacher.

    python benchmarks/pruning.py cifar10_resnet20 macs 0.5 --epochs 20     # or: time 1.6, a measured speed-up in onnxruntime
    python benchmarks/pruning.py mobilenetv2 macs 0.8                      # ImageNet sample: no training; agreement with the original counts
    python benchmarks/pruning.py minilm parts 0.5                          # half of the heads, 30 % of the feed-forward; share of heads that go
    python benchmarks/pruning.py again cifar10_resnet20                    # times what was made once more, side by side

Beside ours stands plain magnitude pruning: the same share of every group, the smallest norms go, nothing is repaired. Every accuracy is of
onnxruntime on the whole test set, which is looked at once; 2,000 training images calibrate and validate. Times: medians of fresh processes in turn
with the original. One JSON line each in `results/pruning.jsonl`; models stay in build/pruning.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import case

ROOT = Path(__file__).resolve().parent.parent
BUILT, RESULTS = ROOT / "build" / "pruning", ROOT / "benchmarks" / "results" / "pruning.jsonl"
TRAINED = ("mnist_cnn", "cifar10_resnet20")
AUGMENT = {"mnist_cnn": ("shift:1", "mixup:1"), "cifar10_resnet20": ("crop:4", "flip", "mixup:1")}
CALIBRATED = 100
"""Images of the ImageNet sample that calibrate; the other 400 measure."""


def opened(name: str) -> tuple[Any, Any]:
    """The model, and the task with its splits."""
    from benchmarks.qat import bound_to

    from hasten import doors
    from hasten.task import Split, Task

    if name in TRAINED:
        return bound_to(name)
    here = case(name)
    if name == "minilm":
        return _sentences(here)
    with tempfile.TemporaryDirectory() as private:
        model = doors.load(str(here.model), workdir=Path(private)).model
    bound = Task(here.data, test=here.test, preprocess=here.preprocess).bind(model)
    samples = bound.calibrate.samples
    order = np.random.default_rng(0).permutation(len(samples))
    parts = (np.sort(order[:CALIBRATED]), np.sort(order[CALIBRATED:]))
    calibrate, test = (Split(samples, None, indices) for indices in parts)
    return model, dataclasses.replace(bound, calibrate=calibrate, validate=calibrate, test=test)


def _sentences(here: Any) -> tuple[Any, Any]:
    """MiniLM: calibrated on paragraphs of 128 tokens (no padding, which least squares would fit too), judged on SST-2's sentences."""
    from benchmarks.models import DATA, tokenized

    from hasten.model import Model
    from hasten.task import Task

    text = (DATA / "text" / "wikitext-2").rglob("*.txt")
    with tempfile.TemporaryDirectory() as private:
        lines = [line for path in sorted(text) for line in path.read_text().splitlines() if len(line) > 700]
        chosen = Path(private) / "lines.tsv"
        chosen.write_text("\n".join(lines[:600]))
        ids, mask = tokenized(chosen)
    whole = mask.all(1)
    model = Model.load(here.model)
    with np.load(here.data) as arrays:
        data = dict(arrays)
    bound = Task(data, calibration={"input_ids": ids[whole], "attention_mask": mask[whole]}).bind(model)
    return model, bound


def parts(model: Any, bound: Any, heads: float, forward: float, samples: int) -> dict[str, Any]:
    """The observation of a pruning by kind: this share of every layer's heads goes, and of its feed-forward units."""
    from hasten.calibrate import digest
    from hasten.shrink.importance import importance, see, strongest
    from hasten.shrink.prune_channels import _coupled

    coupled = _coupled(model)
    scores = importance("reconstruction", see(coupled, bound, samples))
    counts = {12: 1 - heads, 1536: 1 - forward}
    kept = {
        g.name: strongest(scores[g.name], 8 * round(share * g.channels / 8) if g.channels > 12 else round(share * g.channels)).tolist()
        for g in coupled.groups
        if (share := counts.get(g.channels)) is not None
    }
    return {"kept": kept, "left_out": [], "data": digest(bound, samples), "notes": []}


def outputs(model: Any, bound: Any) -> np.ndarray:
    """Of the test set, in onnxruntime."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    fixed = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), None)
    return np.concatenate([session.run([bound.output], feeds)[0] for feeds in bound.test.batches(fixed or 100)])


def quality(model: Any, bound: Any, whole: np.ndarray) -> dict[str, float]:
    """Accuracy where there are labels; agreement with the original and the relative error of the outputs."""
    found = outputs(model, bound)
    error = float(np.linalg.norm(found - whole) / np.linalg.norm(whole))
    agreement = float(np.mean(found.reshape(len(found), -1).argmax(1) == whole.reshape(len(whole), -1).argmax(1)))
    if (
        found.ndim == 2 and found.shape[1] > 100 and np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-3)
    ):  # embeddings: cosines of all pairs
        upper = np.triu_indices(len(found), 1)
        pairs = [(e @ e.T)[upper] for e in (whole, found)]
        ranks = [p.argsort().argsort().astype(np.float64) for p in pairs]
        cosine = float(np.mean(np.sum(whole * found, 1) / np.linalg.norm(found, axis=1)))
        return {"pearson": float(np.corrcoef(*pairs)[0, 1]), "spearman": float(np.corrcoef(*ranks)[0, 1]), "cosine": cosine}
    labelled = {} if bound.test.labels is None else {"accuracy": float(bound.metric.value(found, bound.test.labels))}
    return {**labelled, "agreement": round(agreement, 4), "error": round(error, 4)}


def made(name: str, goal: str, value: float, epochs: int, rate: float, threads: int) -> dict[str, Any]:
    from hasten import plan
    from hasten.facts import facts
    from hasten.learn.distill import Distill, distill
    from hasten.search.candidates import CLEAN, FOLD, INT8, Recipe
    from hasten.shrink.prune_channels import PruneChannels, observe, prune_channels
    from hasten.voice import Told, speaking

    place = BUILT / f"{name}-{goal}-{value:g}"
    place.mkdir(parents=True, exist_ok=True)
    source, bound = opened(name)
    line: dict[str, Any] = {"model": name, "goal": goal, "value": value, "date": datetime.date.today().isoformat()}
    with speaking(Told(lambda text: print(f"{place.name}: {text}", flush=True))):

        def then(steps: Any, model: Any) -> Any:
            return plan.run(Recipe("", steps).plan(model), model, bound)[0]

        model = then(CLEAN, source)
        whole = outputs(model, bound)
        line["original"] = quality(model, bound, whole)
        settings = PruneChannels(
            **{"speedup" if goal == "time" else "keep_macs": value}, threads=threads, samples=192 if goal == "parts" else 512
        )
        kept = place / "observation.json"
        if kept.exists():
            seen = json.loads(kept.read_text())
        else:
            seen = parts(model, bound, value, 0.6 * value, 192) if goal == "parts" else observe(model, settings, bound)
        kept.write_text(json.dumps(seen))
        repaired = prune_channels(model, settings, dataclasses.replace(bound, observation=seen))
        unrepaired = prune_channels(model, settings, dataclasses.replace(bound, observation=seen | {"data": None}))
        share = facts(repaired).macs / facts(model).macs
        plain = prune_channels(
            model,
            PruneChannels(keep_macs=min(0.99, share + 0.01), importance="magnitude", scope="layer", blocks=False, multiple=1, repair=False),
            bound,
        )
        line["macs"], line["parameters"] = round(share, 4), round(facts(repaired).parameters / facts(model).parameters, 4)
        line["plain"] = quality(plain, bound, whole) | {"macs": round(facts(plain).macs / facts(model).macs, 4)}
        line["unrepaired"], line["repaired"] = quality(unrepaired, bound, whole), quality(repaired, bound, whole)
        print(json.dumps(line), flush=True)
        files = {"original": source, "repaired": then(FOLD, repaired)}
        if epochs and name in TRAINED:
            teach = dataclasses.replace(bound, teacher=model, place=place / "training")
            recipe = Distill(epochs=epochs, rate=rate, batch=128, augment=AUGMENT[name], average=0.99, precision="bfloat16")
            taught = distill(repaired, recipe, teach)
            files["taught"] = then(FOLD, taught)
            files["taught, int8"] = then(INT8, files["taught"])
            line["epochs"] = epochs
            for key in ("taught", "taught, int8"):
                line[key] = quality(files[key], bound, whole)
        for key, model in files.items():
            model.save(place / f"{key}.onnx")
        line["times"] = times(place, bound)
    return line


def times(place: Path, bound: Any) -> dict[str, float]:
    """Speed-ups over the original in onnxruntime fp32, all cores, batch 1; and of the original in int8."""
    from hasten.measure import judge
    from hasten.measure.beside import ratios_beside
    from hasten.measure.machine import cores
    from hasten.model import Model
    from hasten.runtimes import Target

    files = {p.stem: Model.load(p) for p in sorted(place.glob("*.onnx"))}
    original = files.pop("original")
    feeds = judge.timing_feeds(bound.calibrate, 1, {})
    ratios = ratios_beside(original, list(files.values()), "onnxruntime", Target(cores()), feeds, rounds=7)
    return {name: round(1 / r, 3) for name, r in zip(files, ratios, strict=True)}


def write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["again"]:
        name = sys.argv[2]
        _, bound = opened(name)
        for place in sorted(BUILT.glob(f"{name}-*")):
            _, goal, value = place.name.rsplit("-", 2)
            write(
                {
                    "model": name,
                    "goal": goal,
                    "value": float(value),
                    "date": datetime.date.today().isoformat(),
                    "times": times(place, bound),
                }
            )
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("goal", choices=("macs", "time", "parts"))
    parser.add_argument("value", type=float)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=0, help="of the runtime in which widths are measured; 0: all")
    given = parser.parse_args()
    write(made(given.model, given.goal, given.value, given.epochs, given.rate, given.threads))


if __name__ == "__main__":
    main()
