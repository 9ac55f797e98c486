"""Candidates that must be trained: timed before, trained where they can win, within the time that is left."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import hasten
from hasten.learn.records import RECORDS
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.report.make import write
from hasten.search import candidates, training
from hasten.search.candidates import Recipe
from hasten.task import Task
from tests.search.quick import quicken


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The original, its better graph and two students; times by plan: the narrowest student 3 times as fast, the other one as the original."""
    quicken(monkeypatch.setattr)
    monkeypatch.setattr(candidates, "RECIPES", tuple(r for r in candidates.RECIPES if r.name in ("original", "graph")))
    students = tuple(
        Recipe(r.name, tuple((n, s | {"epochs": 8, "batch": 32, "rate": 3e-3} if n == "distill" else s) for n, s in r.steps))
        for r in candidates.TRAINED
        if r.name in ("distilled narrow 0.5", "distilled narrow 0.25")
    )
    monkeypatch.setattr(training, "TRAINED", students)

    def time_once(subject, feeds, percentile=50.0):
        timed.append(subject.path.stem)
        seconds = 1e-3 / next((f for name, f in FACTORS.items() if subject.path.stem.startswith(name)), 1.0)
        return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

    timed = []
    monkeypatch.setattr(judge, "time_once", time_once)
    return timed


FACTORS = {"distilled-narrow-0.5": 3.0}


def run(digits_cnn, digits, out, train=True, **more):
    task = Task(digits, train=digits if train else None)
    return hasten.optimize(digits_cnn, task, out=out, runtimes=("onnxruntime",), threads=1, **{"max_drop": 0.05, **more})


def reasons(result) -> dict[str, str]:
    return {c.recipe: c.reason for c in result.candidates if c.recipe.startswith("distilled")}


def test_what_promises_to_win_is_trained_and_returned_and_the_rest_is_not_trained(digits_cnn, digits, tmp_path, quick):
    result = run(digits_cnn, digits, tmp_path / "out")
    assert result.best.recipe == "distilled narrow 0.5"
    assert reasons(result)["distilled narrow 0.25"] == "not trained: × 1.00 would not be faster than what needs no training"
    assert quick.index("distilled-narrow-0.5-untrained") < quick.index("distilled-narrow-0.5")
    steps = json.loads((tmp_path / "out" / "plan.json").read_text())["steps"]
    assert [s["technique"] for s in steps if s["technique"] == "distill"] == ["distill"]
    small, original = (hasten.Model.load(tmp_path / "out" / name) for name in ("model.onnx", "original.onnx"))
    assert small.weight_bytes < 0.6 * original.weight_bytes
    (trained,) = result.manifest["details"]["training"]
    assert trained["recipe"] == "distilled narrow 0.5"
    assert trained["seconds"] > 0
    assert trained["epochs"] == 8
    assert trained["peak_memory"] > 1e7
    page = write(result.folder).read_text()
    assert "What was trained" in page
    assert "distilled narrow 0.5" in page


def test_nothing_is_trained_without_data_or_permission(digits_cnn, digits, tmp_path):
    assert reasons(run(digits_cnn, digits, tmp_path / "a", train=False)) == {}
    assert reasons(run(digits_cnn, digits, tmp_path / "b", training=False)) == {}


def test_too_little_time_is_said(digits_cnn, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHARE", 0.0)
    said = reasons(run(digits_cnn, digits, tmp_path / "out", time_limit=600.0))
    assert said["distilled narrow 0.5"] == "not trained: the time limit leaves 0 s for it"


def test_a_resumed_search_goes_on_with_its_training(digits_cnn, digits, tmp_path, monkeypatch):
    from hasten.learn import loop

    end_epoch, ended = loop._Training._end_epoch, []

    def stopping(self, epoch):
        end_epoch(self, epoch)
        ended.append(epoch)
        if len(ended) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(digits_cnn, digits, tmp_path / "out")
    (records,) = (p for p in (tmp_path / "out").rglob(RECORDS) if '"kind": "epoch"' in p.read_text())
    before = records.read_text().splitlines()
    monkeypatch.setattr(loop._Training, "_end_epoch", lambda self, epoch: ended.append(epoch) or end_epoch(self, epoch))
    result = run(digits_cnn, digits, tmp_path / "out")
    assert ended == [0, 1, 2, 3, 4, 5, 6, 7]
    assert result.best.recipe == "distilled narrow 0.5"
    assert len(before) == 3


def test_a_keras_model_is_distilled_quantized_and_agrees_with_keras(digits, tmp_path, monkeypatch):
    """From a .keras file to int8 weights of a narrow student; beside it stands what Keras itself predicts."""
    source, said = tmp_path / "net.keras", tmp_path / "said.npz"
    script = KERAS.format(digits=str(digits), source=str(source), said=str(said))
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"KERAS_BACKEND": "torch"}, check=True, capture_output=True)
    (wanted,) = (r for r in candidates.TRAINED if r.name == "distilled narrow 0.5, int8")
    steps = tuple((n, s | {"epochs": 8, "batch": 32, "rate": 3e-3} if n == "distill" else s) for n, s in wanted.steps)
    monkeypatch.setattr(training, "TRAINED", (Recipe(wanted.name, steps),))
    result = run(source, digits, tmp_path / "out")
    assert result.best.recipe == "distilled narrow 0.5, int8"
    assert "QuantizeLinear" in {n.op_type for n in hasten.Model.load(tmp_path / "out" / "model.onnx").ir.graph}
    with np.load(digits) as arrays, np.load(said) as keras:
        x = arrays["x_test"].astype(np.float32) / 255
        ours = hasten.load(result.folder)(x)
        assert np.mean(ours.argmax(1) == keras["outputs"].argmax(1)) > 0.93


KERAS = """
import keras, numpy as np
keras.utils.set_random_seed(0)
arrays = np.load({digits!r})
x, x_test = (arrays[k].reshape(-1, 28, 28).astype("float32") / 255 for k in ("x_train", "x_test"))
model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, arrays["y_train"], batch_size=32, epochs=15, verbose=0)
model.save({source!r})
np.savez({said!r}, outputs=model.predict(x_test, verbose=0))
"""


def test_one_lucky_timing_does_not_keep_a_student_from_being_trained(digits_cnn, digits, tmp_path, monkeypatch):
    """The better graph looks 20 times as fast at first and is not faster at all, so a student of 3 times the speed has its chance."""
    usual, lucky = judge.time_once, iter((20.0,))

    def time_once(subject, feeds, percentile=50.0):
        found = usual(subject, feeds, percentile)
        return dataclasses.replace(found, seconds=found.seconds / next(lucky, 1.0)) if subject.path.stem == "graph" else found

    monkeypatch.setattr(judge, "time_once", time_once)
    assert run(digits_cnn, digits, tmp_path / "out").best.recipe == "distilled narrow 0.5"
    assert next(lucky, None) is None
