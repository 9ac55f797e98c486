"""The native engine in a search: a candidate by default; what is chosen there runs through hasten.load and run.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.runtimes import DEFAULT, Target, native
from hasten.search import candidates as search_candidates
from hasten.search.budget import Budget
from hasten.search.candidates import ORIGINAL, RECIPES, TRAINED, Candidate, candidates
from hasten.search.result import Outcome
from hasten.search.shrinking import best_float
from hasten.task import Task
from tests.search.quick import quicken

built = pytest.mark.skipif(not native.available(), reason="the native engine was not built")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few calls; the native engine on 8-bit codes four times as fast as all else, by plan."""

    def time_once(subject, feeds, percentile=50.0):
        codes = b"QuantizeLinear" in Path(subject.path).read_bytes()
        seconds = 1e-3 / (4.0 if subject.runtime == "native" and codes else 1.0)
        return Timing(seconds, {"50": seconds, "95": seconds, "99": seconds, f"{percentile:g}": seconds}, 0.1, 1 << 20)

    quicken(monkeypatch.setattr)
    monkeypatch.setattr(judge, "time_once", time_once)


@built
def test_it_is_a_candidate_by_default_and_what_is_chosen_there_runs(digits_cnn, digits, tmp_path):
    out = tmp_path / "out"
    result = hasten.optimize(digits_cnn, Task(digits), out=out, threads=1, max_drop=0.02, recipes=("graph", "int8 static"))
    assert list(dict.fromkeys(c.recipe for c in result.candidates if c.runtime == "native")) == ["original", "graph", "int8 static"]
    assert (result.best.recipe, result.best.runtime, result.better) == ("int8 static", "native", True)
    assert result.best.ratio["estimate"] == pytest.approx(4)
    layers = result.manifest["details"]["layers"]["after"]
    assert layers["layers"], layers

    x = np.load(digits)["x_test"][:7, None].astype(np.float32) / 255
    fast = hasten.load(out)
    assert fast.runtime == "native"
    y = fast(x)
    assert y.shape == (7, 10)
    np.save(tmp_path / "x.npy", x)
    at_work = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(out / "run.py"), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")], check=True, env=at_work)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y)

    again = hasten.optimize(out / "model.onnx", None, out=tmp_path / "again", threads=1, recipes=("graph",))
    assert {c.recipe for c in again.candidates if c.runtime == "native"} == {"original", "graph"}
    assert again.best.runtime == "native"


def test_where_it_was_not_built_it_is_left_out_and_that_is_said_once(digits_cnn, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    lines = []
    result = hasten.optimize(digits_cnn, None, out=tmp_path / "out", threads=1, recipes=("graph",), say=lines.append)
    assert {c.runtime for c in result.candidates} == {"onnxruntime", "openvino"}
    assert [line for line in lines if "native" in line] == [
        "native is not among the runtimes that are tried: the engine was not built (`hasten doctor` says how to add it)"
    ]


def test_every_recipe_is_tried_there_but_for_float16_and_what_is_quantized_while_it_runs():
    def tried(of=None):
        return {c.recipe.name for c in candidates(Budget(), Target(1), 1.0, True, of) if c.runtime == "native"}

    assert Budget().runtimes == DEFAULT
    assert {r.name for r in RECIPES} - tried() == {"float16", "int8 dynamic"}
    assert tried(TRAINED) == {r.name for r in TRAINED}


def test_one_thread_is_tried_for_longer_calls_than_elsewhere(monkeypatch):
    monkeypatch.setattr(search_candidates, "SMALL_MODEL", 1e-4)
    monkeypatch.setattr(search_candidates, "NATIVE_SMALL", 1e-3)

    def tried(seconds, threads=2):
        found = candidates(Budget(), Target(threads), seconds, True)
        return sorted((c.runtime, c.target.threads) for c in found if c.recipe.name == "int8 static" and c.target.precision == "float32")

    rest = [("onnxruntime", 2), ("openvino", 2)]
    assert tried(5e-4) == [("native", 1), ("native", 2), *rest]
    assert tried(5e-3) == [("native", 2), *rest]
    assert tried(5e-4, threads=1) == [("native", 1), ("onnxruntime", 1), ("openvino", 1)]


def test_floats_are_measured_where_floats_did_best():
    def timed(recipe, runtime, speed):
        return Outcome(Candidate(recipe, runtime, Target(1)), "", timing=Timing(1e-3, {}, 0.1, 1), screened=speed)

    graph = next(r for r in RECIPES if r.name == "graph")
    tried = [timed(ORIGINAL, "onnxruntime", 1.0), timed(graph, "native", 3.0), timed(graph, "openvino", 2.0)]
    assert best_float(tried).runtime == "native"
    assert best_float(tried[:1]).runtime == "onnxruntime"
