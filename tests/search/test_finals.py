"""The finals: which baselines take part, what is said of a restless machine, and that both end up in what is shown."""

import dataclasses
import itertools

import pytest

import hasten
from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.measure.verify import verify
from hasten.report import terminal
from hasten.task import Task
from tests.search.quick import quicken

ALONE = "original · onnxruntime · 1T"


@pytest.fixture
def times(monkeypatch):
    """Microseconds a call by (recipe, threads) instead of by clock; a cycle takes turns."""
    quicken(monkeypatch.setattr)
    planned = {}

    def time_once(subject, feeds, percentile=50.0):
        name = {"model": "int8-static"}.get(subject.path.stem, subject.path.stem)
        spent = planned.get((name, subject.target.threads)) or planned["original", subject.target.threads]
        seconds = 1e-6 * (next(spent) if isinstance(spent, itertools.cycle) else spent)
        return Timing(
            seconds, {"50": seconds, "95": seconds, "99": seconds, f"{percentile:g}": seconds}, 0.1, planned.get("memory", 1 << 20)
        )

    monkeypatch.setattr(judge, "time_once", time_once)
    return planned


def run(digits_cnn, digits, out, **more):
    return hasten.optimize(
        digits_cnn, Task(digits), out=out, runtimes=("onnxruntime",), recipes=("int8 static",), **{"threads": 2, "max_drop": 0.02, **more}
    )


def test_a_small_model_must_beat_the_original_on_one_thread_too(digits_cnn, digits, tmp_path, times):
    times |= {("original", 2): 90, ("original", 1): 45, ("int8-static", 1): 30, ("int8-static", 2): 80}
    result = run(digits_cnn, digits, tmp_path / "out")
    best = result.best
    assert (best.name, best.against) == ("int8 static · onnxruntime · 1T", ALONE)
    assert (best.ratio["estimate"], best.speed_up["estimate"]) == (pytest.approx(3), pytest.approx(1.5))
    assert best.own_seconds == {ALONE: pytest.approx(45e-6)}
    lines = terminal.verdict(result)
    assert "1.50 × faster [1.50, 1.50] than the original on one thread, 30 µs against 45 µs a call of 1" in lines[0]
    assert lines[1] == "against the original in onnxruntime on 2 threads: 3.00 × faster [3.00, 3.00]"
    assert "1.50 times faster" in result.report("markdown")


def test_a_busy_moment_does_not_hide_that_a_model_is_small(digits_cnn, digits, tmp_path, times, monkeypatch):
    times |= {("original", 2): 90, ("original", 1): 45, ("int8-static", 1): 30, ("int8-static", 2): 80}
    quiet, calls = judge.time_once, []

    def busy_at_first(*arguments):
        timed, first = quiet(*arguments), not calls
        calls.append(1)
        return dataclasses.replace(timed, seconds=4e-4, percentiles=timed.percentiles | {"95": 9e-4}) if first else timed

    monkeypatch.setattr(judge, "time_once", busy_at_first)
    assert run(digits_cnn, digits, tmp_path / "out").best.against == ALONE


def test_what_is_slower_than_the_original_on_one_thread_gains_nothing(digits_cnn, digits, tmp_path, times):
    times |= {("original", 2): 90, ("original", 1): 30, ("int8-static", 1): 31, ("int8-static", 2): 80}
    result = run(digits_cnn, digits, tmp_path / "out")
    assert (result.best.name, result.best.ratio["estimate"], result.best.own_ratios) == (ALONE, pytest.approx(3), None)
    lost = next(c for c in result.candidates if c.name == "int8 static · onnxruntime · 1T")
    assert lost.reason.startswith(f"not shown to be faster than {ALONE}: × 0.968")


def test_a_larger_model_and_one_on_one_thread_have_the_usual_baseline_alone(digits_cnn, digits, tmp_path, times):
    times |= {("original", 2): 200, ("original", 1): 190, ("int8-static", 1): 100, ("int8-static", 2): 100}
    for threads, out in ((2, "large"), (1, "alone")):
        if threads == 1:
            times["original", 1] = 50
            times["int8-static", 1] = 25
        result = run(digits_cnn, digits, tmp_path / out, threads=threads)
        assert (result.best.ratio["estimate"], result.best.own_ratios) == (pytest.approx(2), None)


def test_verify_measures_against_the_baseline_that_counted(digits_cnn, digits, tmp_path, times):
    times |= {("original", 2): 90, ("original", 1): 45, ("int8-static", 1): 30, ("int8-static", 2): 80}
    run(digits_cnn, digits, tmp_path / "out")

    def speed():
        return next(c for c in verify(tmp_path / "out", tmp_path) if c.name == "speed")

    assert (speed().state, speed().claimed.estimate) == ("holds", pytest.approx(1.5))
    times["original", 2] = 500  # a busy moment makes two threads slow: nothing to do with the claim
    assert speed().state == "holds"
    times["original", 1] = 30
    assert speed().state == "fails"


def test_a_restless_machine_is_warned_of_whatever_is_chosen(digits_cnn, digits, tmp_path, times, monkeypatch):
    monkeypatch.setattr(judge, "PAIRS", 6)
    times |= {("original", 1): itertools.cycle([300, 300, 300, 420]), ("int8-static", 1): 60}
    result = run(digits_cnn, digits, tmp_path / "better", threads=1)
    assert result.better and result.best.noise_floor > 0.1
    (warning,) = result.warnings
    assert warning.startswith("the machine was restless (the original against itself, measured the same way, differs by ")
    assert warning.endswith("measure again on a quiet machine before relying on these times")
    assert f"beware: {warning}" in terminal.verdict(result)

    times["int8-static", 1] = 290
    times["original", 1] = itertools.cycle([300, 300, 300, 420])
    kept = run(digits_cnn, digits, tmp_path / "kept", threads=1)
    assert not kept.better
    assert kept.reason.endswith(kept.warnings[0])


def test_a_quiet_machine_is_not_warned_of(digits_cnn, digits, tmp_path, times):
    times |= {("original", 1): 300, ("int8-static", 1): 150}
    result = run(digits_cnn, digits, tmp_path / "out", threads=1)
    assert (result.better, result.warnings) == (True, ())
    assert "restless" not in " ".join(terminal.verdict(result))


def test_an_original_that_misses_the_deadline_is_said_with_what_came_nearest(digits_cnn, digits, tmp_path, times):
    times |= {("original", 1): 300, ("int8-static", 1): 150}
    missed = run(digits_cnn, digits, tmp_path / "missed", threads=1, max_latency=50e-6)
    assert missed.reason == (
        "the original itself misses the limit on latency (p50 is 300 µs, 50 µs are allowed), and nothing that keeps the budget meets it; "
        "the nearest, int8 static · onnxruntime · 1T, takes 150 µs, 3.00 × the limit"
    )
    times |= {("int8-static", 1): 20, "memory": 2 << 30}
    tight = run(digits_cnn, digits, tmp_path / "size", threads=1, max_latency=50e-6, max_memory=1 << 30)
    assert (
        "the nearest, int8 static · onnxruntime · 1T, takes 20 µs and keeps it, but it needs 2048 MiB, 1024 MiB are allowed" in tight.reason
    )
    with pytest.raises(BadInput, match=r"the original model can't be judged: out of memory: \d+ MiB used, 1 MiB allowed"):
        run(digits_cnn, digits, tmp_path / "none", threads=1, max_memory=1 << 20)
    met = run(digits_cnn, digits, tmp_path / "met", threads=1, max_latency=400e-6, max_memory=1 << 30)
    assert met.reason.startswith("nothing better than the original within the budget; the closest: ")
