"""What a run gathers beside speed and accuracy: stored, remembered, and labelled as what it is."""

import json

import pytest

import hasten
from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.report.terminal import extra_lines, show_result
from hasten.search import extras as gathering
from hasten.search import optimize as searching
from hasten.search.extras import Extras
from hasten.search.result import Result
from hasten.task import Task
from tests.search.quick import quicken


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Little measuring, and timings by plan: static int8 is twice as fast as the rest."""
    quicken(monkeypatch.setattr)

    def time_once(subject, feeds, percentile=50.0):
        seconds = 1e-3 / (2.0 if subject.path.stem == "int8-static" else 1.0)
        return Timing(seconds, {"50": seconds, "95": seconds, "99": seconds, f"{percentile:g}": seconds}, 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)


ALL = Extras(robust=True, robust_samples=40, explain=True, explain_samples=4, price_per_hour=3.6, watts_per_core=5)


def optimize(digits_cnn, digits, out, wanted, **more):
    return hasten.optimize(digits_cnn, Task(digits), out=out, runtimes=("onnxruntime",), threads=1, max_drop=0.02, wanted=wanted, **more)


def test_everything_asked_for_is_stored_shown_and_not_measured_again(digits_cnn, digits, tmp_path, monkeypatch, capsys):
    stop = KeyboardInterrupt()
    with monkeypatch.context() as interrupted:
        interrupted.setattr(searching, "write_result", lambda *a: (_ for _ in ()).throw(stop))
        with pytest.raises(KeyboardInterrupt):
            optimize(digits_cnn, digits, tmp_path / "out", ALL)
    kept = (tmp_path / "out" / "records.jsonl").read_text()
    for name in ("robustness", "explain"):
        monkeypatch.setattr(gathering.corrupting if name == "robustness" else gathering.explaining, name, None)
    monkeypatch.setattr(gathering, "energy", None)
    result = optimize(digits_cnn, digits, tmp_path / "out", ALL)
    assert (tmp_path / "out" / "records.jsonl").read_text() == kept
    kinds = [json.loads(line)["kind"] for line in kept.splitlines()]
    assert [kinds.count(k) for k in ("robustness", "calibration", "explanation", "energy")] == [1, 1, 1, 1]

    details = result.manifest["details"]
    assert result.best.recipe == "int8 static"
    assert (details["robustness"]["samples"], details["robustness"]["available"], len(details["robustness"]["levels"])) == (40, 600, 30)
    assert 0 < details["calibration"]["before"] < 0.05 and details["calibration"]["softmax"]
    assert details["explanation"]["samples"] == 4 and details["explanation"]["correlation"]["estimate"] > 0.9
    cost = details["cost"]
    assert cost["price_per_million"] == pytest.approx({"original": 1.0, "chosen": 0.5})
    assert cost["packages"][0]["name"] == "onnxruntime"
    built = {r["subject"]: r["values"] for r in map(json.loads, kept.splitlines()) if r["kind"] == "built"}
    assert cost["preparation_seconds"] == built["int8 static"]["seconds"]
    spent = details["energy"]
    assert spent["chosen"]["joules"] > 0 and spent["chosen"]["how"] in ("measured", "estimated")
    assert spent["chosen"]["method"].startswith(spent["chosen"]["how"])
    if spent["chosen"]["how"] == "estimated":
        assert spent["original"]["joules"] == pytest.approx(spent["original"]["cpu_seconds"] * 5)

    show_result(Result.load(tmp_path / "out"))
    shown = capsys.readouterr().out
    lines = extra_lines(result)
    assert [line.partition(":")[0].partition(" (")[0] for line in lines] == [
        "robustness",
        "calibration error",
        "explanation",
        "cost",
        "energy",
    ]
    for line in lines:
        assert line in shown
    assert "computed: seconds a call / batch × price an hour / 3600 × 1,000,000" in lines[3]
    assert "1 → 0.5 at 3.6 an hour" in lines[3]
    assert " out of range " in shown


def test_without_being_asked_for_there_are_cost_without_price_and_energy_alone(digits_cnn, digits, tmp_path):
    result = optimize(digits_cnn, digits, tmp_path / "out", Extras())
    assert result.manifest["details"].keys() >= {"cost", "energy"}
    assert not result.manifest["details"].keys() & {"robustness", "calibration", "explanation"}
    assert result.manifest["details"]["cost"]["price_per_million"] is None
    assert "million" not in extra_lines(result)[0]
    lines = []
    optimize(digits_cnn, digits, tmp_path / "out", ALL, resume=True, say=lines.append)
    assert [line for line in lines if "not asked for" in line] == [
        f"{name} was not asked for when this run was made; --force measures afresh" for name in ("robustness", "explanation")
    ]


def test_the_original_is_not_compared_with_itself(digits_cnn, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "time_once", lambda *a: Timing(1e-3, dict.fromkeys(("50", "95", "99"), 1e-3), 0.1, 1 << 20))
    result = optimize(digits_cnn, digits, tmp_path / "out", ALL)
    assert not result.better
    details = result.manifest["details"]
    assert details.keys() >= {"cost", "energy"}
    assert not details.keys() & {"robustness", "calibration", "explanation"}
    assert details["energy"]["original"] == details["energy"]["chosen"]
    assert details["cost"]["price_per_million"]["original"] == details["cost"]["price_per_million"]["chosen"]
    assert "→" not in extra_lines(result)[1]


def test_what_can_not_be_measured_says_why(digits_cnn, digits, tmp_path, monkeypatch):
    from hasten.measure.process import WorkerFailed

    def fails(*a, **k):
        raise WorkerFailed("timed out")

    monkeypatch.setattr(gathering, "energy", fails)
    monkeypatch.setattr(gathering.corrupting, "robustness", fails)
    result = optimize(digits_cnn, digits, tmp_path / "out", Extras(robust=True))
    lines = extra_lines(result)
    assert "robustness: timed out" in lines and "energy: timed out" in lines


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"price_per_hour": -1.0}, "--price-per-hour is -1.0"),
        ({"watts_per_core": 0.0}, "--watts-per-core is 0.0"),
        ({"robust_samples": 1}, "robust_samples is 1"),
    ],
)
def test_extras_that_make_no_sense(values, says):
    with pytest.raises(BadInput, match=says):
        Extras(**values)
