"""What a run gathers for its report: measured once, stored, left out past the time limit."""

import json
import time

import pytest

import hasten
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.search import details as gathering
from hasten.search import optimize as searching
from hasten.search.details import RANKS
from hasten.task import Task
from tests.search.quick import quicken

MEASURED = ("layers", "latency", "classes")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Little measuring, and timings by plan: static int8 is twice as fast as the rest."""
    quicken(monkeypatch.setattr)

    def time_once(subject, feeds, percentile=50.0):
        seconds = 1e-3 / (2.0 if subject.path.stem == "int8-static" else 1.0)
        return Timing(seconds, {"50": seconds, "95": seconds, "99": seconds, f"{percentile:g}": seconds}, 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)


def optimize(digits_cnn, digits, out, **more):
    return hasten.optimize(
        digits_cnn,
        Task(digits),
        out=out,
        runtimes=("onnxruntime",),
        recipes=("original", "graph", "int8 static"),
        threads=1,
        max_drop=0.02,
        **more,
    )


def test_details_are_stored_and_not_measured_again(digits_cnn, digits, tmp_path, monkeypatch):
    with monkeypatch.context() as interrupted:
        interrupted.setattr(searching, "write_result", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            optimize(digits_cnn, digits, tmp_path)
    kept = (tmp_path / "records.jsonl").read_text()
    kinds = [json.loads(line)["kind"] for line in kept.splitlines()]
    assert [kinds.count(kind) for kind in MEASURED] == [2, 1, 1]
    for name in ("layers", "Worker", "class_changes"):
        monkeypatch.setattr(gathering, name, None)
    result = optimize(digits_cnn, digits, tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == kept

    found = result.manifest["details"]
    assert result.best.recipe == "int8 static"
    assert found["splits"]["test"] == result.best.test["samples"]
    assert found["rounds"] == 2
    assert [s["name"] for s in found["history"]][-1] == "quantize_static"
    assert any(layer["op"].startswith("QLinear") for layer in found["layers"]["after"]["layers"])
    assert any(layer["op"] == "Conv" for layer in found["layers"]["before"]["layers"])
    latency = found["latency"]
    assert latency["ranks"] == list(RANKS)
    for side in ("before", "after"):
        assert latency[side] == sorted(latency[side])
        assert len(latency[side]) == len(RANKS)
        assert latency["calls"][side] >= 20
    assert {50, 95, 99} <= set(RANKS)
    classes = found["classes"]
    assert [c["label"] for c in classes] == list(range(10))
    assert sum(c["samples"] for c in classes) == result.best.test["samples"]
    # The recalls, weighted by their samples, are the accuracies that were judged.
    for side, value in (("before", "baseline"), ("after", "value")):
        total = sum(c[side] * c["samples"] for c in classes) / result.best.test["samples"]
        assert total == pytest.approx(result.best.test[value])
    assert found["flips"] >= abs(result.best.test["value"] - result.best.test["baseline"]) * result.best.test["samples"] - 1e-6
    assert "Where the time goes" in result.report()


def test_past_the_time_limit_nothing_is_begun(digits_cnn, digits, tmp_path, monkeypatch):
    choose = searching.choose

    def late(run, tried):
        chosen = choose(run, tried)
        run.started = time.monotonic() - 1000
        return chosen

    monkeypatch.setattr(searching, "choose", late)
    found = optimize(digits_cnn, digits, tmp_path, time_limit=500.0).manifest["details"]
    assert not found.keys() & {*MEASURED, "flips"}
    assert {"history", "splits"} <= found.keys()
