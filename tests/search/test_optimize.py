"""optimize: the contract, resume, replay, privacy, and what it says when it returns the original."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import hasten
from hasten import plan
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, ClaimFailed
from hasten.folder import FINISHED, Folder
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.measure.record import Records
from hasten.measure.verify import verify
from hasten.search.budget import Budget, parse_quantity
from hasten.task import Task
from tests.conftest import mlp_model
from tests.search.quick import quicken

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch.setattr)


@pytest.fixture
def speeds(monkeypatch):
    """Timings by plan instead of by clock: static int8 twice as fast, the rest as fast as the baseline."""

    def time_once(subject, feeds, percentile=50.0):
        seconds = 1e-3 / FACTORS.get(subject.path.stem, 1.0)
        return Timing(seconds, {"50": seconds, "95": seconds, "99": seconds, f"{percentile:g}": seconds}, 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)


FACTORS = {"int8-static": 2.0, "float16": 0.5}


def run(digits_cnn, digits, out, **more):
    return hasten.optimize(digits_cnn, Task(digits), out=out, runtimes=("onnxruntime",), threads=1, **{"max_drop": 0.02, **more})


def test_the_faster_model_within_the_budget_is_chosen_saved_and_explained(digits_cnn, digits, tmp_path, speeds):
    lines = []
    result = run(digits_cnn, digits, tmp_path / "out", say=lines.append)
    assert result.better
    assert result.best.recipe == "int8 static"
    assert result.best.ratio["estimate"] == pytest.approx(2)
    assert result.best.verdict["state"] in ("proven", "not shown")
    assert result.best in result.front
    assert all(c.reason for c in result.candidates if c.state == "lost")
    assert any("can prove a drop of about" in line for line in lines)
    folder = tmp_path / "out"
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "original.onnx", "plan.json", "records.jsonl", "manifest.json", "run.py"}
    onnx.checker.check_model(str(folder / "model.onnx"))
    ort.InferenceSession(str(folder / "model.onnx"))

    # The plan replays to the same bytes, without data.
    todo = plan.Plan.from_json((folder / "plan.json").read_text())
    again, _ = plan.run(todo, load_onnx(digits_cnn), None)
    assert again.to_bytes() == (folder / "model.onnx").read_bytes()

    # hasten.load runs it, any batch; run.py runs it without hasten.
    x = np.load(digits)["x_test"][:7, None].astype(np.float32) / 255
    y = hasten.load(folder)(x)
    assert y.shape == (7, 10)
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-I", str(folder / "run.py"), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), y, atol=1e-5)
    done = subprocess.run([sys.executable, "-I", str(folder / "run.py"), "--measure"], check=True, capture_output=True, text=True)
    assert "p99" in done.stdout

    # A finished folder is kept.
    with pytest.raises(BadInput, match="holds a finished run; --resume shows it again, --force starts afresh"):
        run(digits_cnn, digits, folder)
    assert run(digits_cnn, digits, folder, resume=True).manifest == result.manifest
    with pytest.raises(BadInput, match="exists"):
        result.save(folder.parent / "out2") or result.save(folder.parent / "out2")

    # A file that was changed is noticed.
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(ClaimFailed, match=r"model.onnx has digest .* it was changed"):
        hasten.load(folder)


def test_nothing_faster_returns_the_original_and_says_why(digits_cnn, digits, tmp_path, speeds, monkeypatch):
    monkeypatch.setitem(FACTORS, "int8-static", 0.9)
    result = run(digits_cnn, digits, tmp_path / "out")
    assert not result.better
    assert result.best.recipe == "original"
    assert "nothing better than the original" in result.reason
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "out" / "original.onnx").read_bytes()
    assert {c.name: c.state for c in result.candidates}[result.best.name] == "chosen"


def test_a_candidate_that_breaks_the_budget_is_not_returned_however_fast(digits_cnn, digits, tmp_path, speeds, monkeypatch):
    from hasten.quantize import quantize_static as module

    monkeypatch.setattr(module, "affine", lambda low, high, to: (np.float32(0.5), np.asarray(0, to.dtype)))
    monkeypatch.setitem(FACTORS, "int8-static-attention", 2.0)
    result = run(digits_cnn, digits, tmp_path / "out", max_drop=0.0)
    assert "int8 static" not in result.best.recipe
    assert any("breaks the budget" in c.reason for c in result.candidates)


def test_constraints_and_objectives(digits_cnn, digits, tmp_path, speeds):
    small = run(digits_cnn, digits, tmp_path / "a", objective="size")
    assert small.best.size == min(c.size for c in small.front)
    tight = run(digits_cnn, digits, tmp_path / "b", max_size=10)
    assert not tight.better
    assert any("bytes, 10 are allowed" in c.reason for c in tight.candidates)
    late = run(digits_cnn, digits, tmp_path / "c", max_latency=1e-6, percentile=99.0)
    assert any("p99 is 500 µs, 1 µs are allowed" in c.reason for c in late.candidates)


def test_a_resumed_run_repeats_nothing_that_was_finished(digits_cnn, digits, tmp_path, speeds, monkeypatch):
    real, calls = judge.time_once, []
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: calls.append(a[0].path.stem) or real(*a, **k))
    run(digits_cnn, digits, tmp_path / "whole")
    in_all = len(calls)

    class Stop(BaseException):
        pass

    def stopping(*a, **k):
        if len(calls) == in_all // 2:
            raise Stop
        calls.append(a[0].path.stem)
        return real(*a, **k)

    calls.clear()
    monkeypatch.setattr(judge, "time_once", stopping)
    with pytest.raises(Stop):
        run(digits_cnn, digits, tmp_path / "half")
    kept = len(Records(tmp_path / "half" / "records.jsonl"))
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: calls.append(a[0].path.stem) or real(*a, **k))
    result = run(digits_cnn, digits, tmp_path / "half")
    assert result.better
    assert len(calls) <= in_all + 1  # at most the one pair that was not finished
    assert len(Records(tmp_path / "half" / "records.jsonl")) > kept

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "records.jsonl").write_text((tmp_path / "half" / "records.jsonl").read_text())
    with pytest.raises(BadInput, match="was begun with another model, data, budget"):
        run(digits_cnn, digits, tmp_path / "other", max_drop=0.5)


def test_chance_level_stops_and_names_the_suspects(digits_cnn, digits, tmp_path):
    with np.load(digits) as d:
        x, y = d["x_train"], RNG.permutation(d["y_train"])
    with pytest.raises(BadInput, match=r"guessing reaches .*preprocessing.*layout.*labels"):
        hasten.optimize(digits_cnn, Task((x, y)), out=tmp_path / "out")


def test_without_labels_fidelity_is_judged_and_without_data_nothing_lossy_is_tried(digits_cnn, digits, tmp_path, speeds):
    x = np.load(digits)["x_train"]
    result = hasten.optimize(digits_cnn, Task(x), out=tmp_path / "a", runtimes=("onnxruntime",), threads=1)
    assert result.manifest["judged"] == {**result.manifest["judged"], "metric": "agreement", "labels": False}
    assert result.better
    seen = []

    def same_class(outputs, originals):
        seen.append(originals.shape[1:])
        return (outputs.argmax(1) == originals.argmax(1)).astype(float)

    own = hasten.optimize(digits_cnn, Task(x, metric=same_class), out=tmp_path / "own", runtimes=("onnxruntime",), threads=1)
    assert (own.manifest["judged"]["metric"], set(seen)) == ("same_class", {(10,)})
    assert own.best.test["value"] == result.best.test["value"]
    blind = hasten.optimize(digits_cnn, None, out=tmp_path / "b", runtimes=("onnxruntime", "openvino"), threads=1)
    assert blind.manifest["judged"] is None
    assert {c.recipe for c in blind.candidates} == {"original", "graph"}
    assert {c.target["precision"] for c in blind.candidates} == {"float32"}


def test_nothing_of_the_user_is_in_any_file_written(tmp_path, speeds):
    place = tmp_path / "user_jane_doe"
    place.mkdir()
    model = mlp_model(outputs=3)
    model.save(place / "private_model_name.onnx")
    x = np.random.default_rng(77).standard_normal((200, 8)).astype(np.float32)
    y = check_labels(model, x)
    np.savez(place / "private_data_name.npz", x=x, y=y)
    out = tmp_path / "out"
    hasten.optimize(
        str(place / "private_model_name.onnx"), Task(place / "private_data_name.npz"), out=out, runtimes=("onnxruntime",), max_drop=1.0
    )
    assert Folder(out).state == FINISHED
    for path in out.rglob("*"):
        data = path.read_bytes()
        for marker in (b"jane_doe", b"private_model_name", b"private_data_name", str(tmp_path).encode()):
            assert marker not in data, f"{path.name} holds {marker!r}"
        for row in x[:20]:
            assert row.tobytes() not in data
            assert row[1:3].tobytes() not in data
            assert repr(float(row[1])).encode() not in data


def check_labels(model, x):
    from hasten import check

    return check.oracle(model).run(None, {"x": x})[0].argmax(1)


def test_verify_holds_and_says_what_it_did_not_check(digits_cnn, digits, tmp_path, speeds):
    run(digits_cnn, digits, tmp_path / "out")
    claims = {c.name: c for c in verify(tmp_path / "out", tmp_path, Task(digits))}
    assert [claims[n].state for n in ("digests", "accuracy")] == ["holds", "holds"]
    blind = {c.name: c for c in verify(tmp_path / "out", tmp_path, None, skip_speed=True)}
    assert blind["speed"].state == blind["accuracy"].state == "not checked"
    assert "--data" in blind["accuracy"].why
    lying = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for candidate in lying["candidates"]:
        if candidate["test"]:
            candidate["test"]["difference"].update(low=0.5, high=0.6)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(lying))
    assert {c.name: c.state for c in verify(tmp_path / "out", tmp_path, Task(digits), skip_speed=True)}["accuracy"] == "fails"


def test_folders_that_cannot_be_used_are_refused_and_left_alone(digits_cnn, digits, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for force in (False, True):
        with pytest.raises(BadInput, match="not empty and not hasten's"):
            run(digits_cnn, digits, tmp_path / "mine", force=force)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        run(digits_cnn, digits, tmp_path / "file")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"objective": "beauty"}, "objective 'beauty' is unknown"),
        ({"max_drop": -1.0}, "max_drop is -1.0"),
        ({"percentile": 100.0}, "percentile is 100.0"),
        ({"batch": 0}, "batch is 0"),
        ({"runtimes": ("tpu",)}, "no runtime 'tpu'"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(values, text):
    with pytest.raises(BadInput, match=text):
        Budget(**values)


def test_quantities():
    assert parse_quantity("10us", "time") == pytest.approx(1e-5)
    assert parse_quantity("2m", "time") == 120
    assert parse_quantity("4MB", "size") == 4_000_000
    assert parse_quantity("1 KiB", "size") == 1024
    for text, kind in (("10", "time"), ("fast", "time"), ("3 parsecs", "size")):
        with pytest.raises(BadInput, match=f"is not a {kind}"):
            parse_quantity(text, kind)
