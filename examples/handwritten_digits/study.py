"""Handwritten digits, the whole road: 784-128-10 and its teacher 784-512-256-128-10, from Keras and PyTorch to the fastest model.

    python examples/handwritten_digits/study.py out/study                         # short: the digits that travel with hasten
    python examples/handwritten_digits/study.py out/study --mnist mnist.npz       # in full: MNIST as x_train, y_train, x_test, y_test

Every step is a command that can be typed; they are printed. An interrupted study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import hasten
from hasten.measure.energy import energy
from hasten.measure.judge import Timing, duel_round, timing_feeds
from hasten.measure.process import Subject
from hasten.model import Model
from hasten.runtimes import Target

HERE = Path(__file__).resolve().parent
ROUNDS = 7


class Study:
    """The folder of a study: each step writes one model, once."""

    def __init__(self, out: Path, data: Path, epochs: int, mnist: bool) -> None:
        self.out, self.data, self.epochs, self.mnist = out, data, epochs, mnist
        out.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []

    def step(self, name: str, file: str, verb: str, source: str, *options: str, trained: bool = True) -> None:
        """`hasten VERB SOURCE OUT …`, unless it was done, and its row of the table."""
        target = self.out / file
        given = ["--train-data", str(self.data)] if trained else ["--data", str(self.data)] if verb == "quantize-static" else []
        command = ["hasten", verb, source, str(target), *given, *options]
        print("$", " ".join(command).replace(str(self.out), "out").replace(str(HERE), "examples/handwritten_digits"), flush=True)
        if not target.exists():
            subprocess.run([sys.executable, "-m", *command, "-q"], check=True)
        self.rows.append({"step": name, "file": file, **self._training(target)})

    def _training(self, target: Path) -> dict[str, Any]:
        """Seconds of training, and of one step, from the training's own records."""
        records = target.with_name(f"{target.name}.training") / "training.jsonl"
        if not records.exists():
            return {}
        last = json.loads(records.read_text().splitlines()[-1])["values"]
        return {"training_seconds": last["seconds"], "step_seconds": last["step_seconds"], "training_memory": last["peak_memory"]}

    def framework(self, name: str, script: str, file: str) -> None:
        """The same network trained by its own framework."""
        target, said = self.out / file, self.out / f"{file}.json"
        if not said.exists():
            command = [sys.executable, str(HERE / script), str(self.data), str(target), str(self.epochs)]
            said.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found = json.loads(said.read_text())
        self.rows.append({"step": name, "training_seconds": found["seconds"], "accuracy": found["accuracy"]})

    def measure(self) -> None:
        """Accuracy on the test split, time of a call, size and energy of every model, in rounds of fresh processes."""
        from hasten.measure.judge import predict

        subjects, sizes = {}, {}
        for row in self.rows:
            if "file" in row:
                subjects[row["step"]] = Subject("onnxruntime", self.out / row["file"], Target(1))
                sizes[row["step"]] = (self.out / row["file"]).stat().st_size
        chosen = self.out / "best.hasten"
        manifest = json.loads((chosen / "manifest.json").read_text())
        name = "all together: the fastest of `hasten optimize`"
        subjects[name] = Subject(manifest["runtime"], chosen / "model.onnx", Target(**manifest["target"]))
        sizes[name] = (chosen / "model.onnx").stat().st_size
        self.rows.append({"step": name, "chosen": manifest["chosen"]})
        task = hasten.Task(self.data).bind(Model.load(self.out / "plain.onnx"))
        assert task.test is not None
        feeds = timing_feeds(task.test, 1, {})
        times: dict[str, list[float]] = {step: [] for step in subjects}
        for turn in range(ROUNDS):
            for step, timed in duel_round(subjects, feeds, turn).items():
                assert isinstance(timed, Timing), timed
                times[step].append(timed.seconds)
        spent = energy(subjects, feeds)
        for row in self.rows:
            step = row["step"]
            if step in subjects:
                outputs = predict(subjects[step], task.test, task.output, 1)
                row |= {"accuracy": task.metric.value(outputs, task.test.labels), "bytes": sizes[step]}
                row |= {"seconds": statistics.median(times[step]), "joules": spent[step].joules, "energy": spent[step].how}

    def show(self) -> None:
        """The table, and the picture: time of a call against test errors, the size as area."""
        samples = "MNIST, 10,000 test images" if self.mnist else "the 600 test digits that travel with hasten"
        lines = [
            f"Handwritten digits ({samples}), {self.epochs} epochs each\n",
            "| step | accuracy | training | a call | size | energy a call |",
        ]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
        for row in self.rows:
            training, call, size = row.get("training_seconds"), row.get("seconds"), row.get("bytes")
            cells = [f"{row['accuracy']:.4f}", f"{training:.1f} s" if training else "", f"{call * 1e6:.1f} µs" if call else ""]
            cells += [f"{size / 1e3:.1f} kB" if size else "", f"{row['joules'] * 1e6:.0f} µJ ({row['energy']})" if call else ""]
            lines.append(f"| {row['step']} | {' | '.join(cells)} |")
        (self.out / "study.md").write_text("\n".join(lines) + "\n")
        (self.out / "study.json").write_text(json.dumps({"epochs": self.epochs, "mnist": self.mnist, "rows": self.rows}, indent=1))
        print("\n" + "\n".join(lines))
        picture(self.rows, self.out / "study.svg")
        print(f"\n{self.out / 'study.md'}, {self.out / 'study.svg'}: open them")


def picture(rows: list[dict[str, Any]], place: Path) -> None:
    import altair as alt
    import vl_convert

    points = [
        {"step": r["step"], "time (µs)": r["seconds"] * 1e6, "error (%)": 100 * (1 - r["accuracy"]), "kB": r["bytes"] / 1e3}
        for r in rows
        if "seconds" in r
    ]
    points = [p for p in points if "the same" not in p["step"]]
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_circle(opacity=0.75)
        .encode(
            x=alt.X("time (µs):Q", scale=alt.Scale(type="log", padding=20)),
            y=alt.Y("error (%):Q", scale=alt.Scale(zero=False, padding=20)),
            size=alt.Size("kB:Q", scale=alt.Scale(range=[60, 1200])),
            color=alt.Color("step:N", sort=[p["step"] for p in points], legend=alt.Legend(labelLimit=320)),
        )
    )
    place.write_text(vl_convert.vegalite_to_svg(chart.properties(width=560, height=340).to_dict()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mnist", type=Path, help="MNIST as .npz; without it the digits that travel with hasten")
    parser.add_argument("--epochs", type=int, help="of each training; 30 for MNIST, 40 for the digits")
    given = parser.parse_args()
    data = given.mnist or Path(hasten.__file__).parent / "models" / "digits.npz"
    study = Study(given.out, data, given.epochs or (30 if given.mnist else 40), bool(given.mnist))
    epochs = ("--epochs", str(study.epochs), "--batch", "128" if given.mnist else "32")
    network = HERE / "networks.py"
    shape, moved = ("--example-input", "1x1x28x28"), ("--augment", "shift:1")
    at = study.out
    study.framework("Keras 3, its own fit", "in_keras.py", "keras.keras")
    study.framework("PyTorch, a loop of one's own", "in_torch.py", "torch.pt")
    study.step("trained on the graph", "plain.onnx", "train", f"{network}:student", *shape, *epochs, "--compile", "never")
    study.step("the same, compiled step", "compiled.onnx", "train", f"{network}:student", *shape, *epochs, "--compile", "always")
    study.step(
        "the same, two processes", "two.onnx", "train", f"{network}:student", *shape, *epochs, "--processes", "2", "--compile", "never"
    )
    study.step(
        "the same, bfloat16", "bf16.onnx", "train", f"{network}:student", *shape, *epochs, "--precision", "bfloat16", "--compile", "never"
    )
    study.step("the teacher", "teacher.onnx", "train", f"{network}:teacher", *shape, *epochs, *moved, "--average", "0.998")
    teacher = ("--teacher", str(at / "teacher.onnx"))
    study.step("distilled", "distilled.onnx", "distill", f"{network}:student", *shape, *epochs, *moved, *teacher, "--average", "0.998")
    study.step("distilled, simplified", "simple.onnx", "fold-constants", str(at / "distilled.onnx"), trained=False)
    study.step("distilled, int8 (static)", "static.onnx", "quantize-static", str(at / "distilled.onnx"), trained=False)
    study.step(
        "distilled, int8 (trained: QAT)",
        "qat.onnx",
        "qat",
        str(at / "distilled.onnx"),
        *epochs[2:],
        "--epochs",
        str(max(2, study.epochs // 5)),
    )
    study.step("binary", "binary.onnx", "binarize", str(at / "plain.onnx"), *epochs, "--first", "weights", "--last", "binary")
    best = at / "best.hasten"
    if not (best / "manifest.json").exists():
        hasten.optimize(str(at / "distilled.onnx"), hasten.Task(data), out=best, max_drop=0.005, say=print)
    study.measure()
    study.show()


if __name__ == "__main__":
    main()
