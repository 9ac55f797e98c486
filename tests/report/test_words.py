"""The verdict in words says what the manifest says, in each state."""

import pytest

from hasten.report import terminal, words
from hasten.report.card import card
from hasten.report.markdown import markdown
from hasten.report.numbers import change, interval, metric, restless, seconds, share, size, size_unit, time_unit, times
from hasten.report.page import page
from tests.report.made import judged, result


def test_proven_is_said_with_its_numbers(tmp_path):
    found = result(tmp_path, "proven")
    assert words.headline(found) == "2.70 times faster, 3.6 times smaller, accuracy kept"
    assert words.speed(found)[0] == (
        "2.70 × [2.51, 2.89] as fast as the original in onnxruntime: 456 µs against 1.23 ms for a call of 1 sample with 2 threads."
    )
    assert "over 6 rounds" in words.speed(found)[1]
    assert "differs by 2.1 %" in words.speed(found)[1]
    numbers, budget = words.accuracy(found)
    assert numbers == "Accuracy went from 0.9825 to 0.9800 on 400 test samples: a difference of −0.0025 [−0.0085, +0.0015]."
    assert (
        budget
        == "The budget allows a drop of 0.01. It is kept, and the test data proves it: with 95 % confidence the drop is at most 0.0085."
    )


def with_one_thread(found, first, alone):
    """The chosen one on one thread, set against the original on two threads and, with `alone`, on one."""
    best = found.manifest["candidates"][1]
    best |= {"target": best["target"] | {"threads": 1}, "ratio": interval_of(first)}
    best |= {"own_ratios": {"original · onnxruntime · 1T": interval_of(alone)}, "own_seconds": {"original · onnxruntime · 1T": 6.4e-4}}
    return found


def interval_of(estimate):
    return {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}


def test_the_faster_of_two_baselines_counts_and_both_are_named(tmp_path):
    found = with_one_thread(result(tmp_path), 3.2, 1.41)
    assert (found.best.against, found.best.speed_up["estimate"]) == ("original · onnxruntime · 1T", 1.41)
    assert words.headline(found).startswith("1.41 times faster, ")
    assert words.speed(found)[:2] == [
        "1.41 × [1.31, 1.51] as fast as the original on one thread: 456 µs against 640 µs for a call of 1 sample with 1 thread.",
        "Against the original in onnxruntime on 2 threads: 3.20 × [3.10, 3.30].",
    ]
    first, second = terminal.verdict(found)[:2]
    assert first.startswith(
        "int8 static · openvino · 2T: 1.41 × faster [1.31, 1.51] than the original on one thread, 456 µs against 640 µs"
    )
    assert second == "against the original in onnxruntime on 2 threads: 3.20 × faster [3.10, 3.30]"
    assert "1.41 × as fast" in page(found)
    assert "against the original on one thread." in page(found)
    assert "### hasten: 1.41 times faster" in markdown(found)

    other = with_one_thread(result(tmp_path), 1.2, 1.5)
    assert (other.best.against, other.best.speed_up["estimate"]) == (None, 1.2)
    assert words.speed(other)[0].startswith(
        "1.20 × [1.10, 1.30] as fast as the original in onnxruntime on 2 threads: 456 µs against 1.23 ms"
    )


def test_a_framework_that_is_faster_counts_too(tmp_path):
    found = result(tmp_path)
    found.manifest["candidates"][1]["own_ratios"] = {"keras": interval_of(1.5)}
    assert words.speed(found)[0].startswith("1.50 × [1.40, 1.60] as fast as the original in keras, its own framework: 456 µs for a call")
    assert words.speed(found)[1] == "Against the original in onnxruntime: 2.70 × [2.51, 2.89]."


@pytest.mark.parametrize("floor", [0.099, 0.224])
def test_a_restless_machine_is_said_everywhere(tmp_path, floor):
    found = result(tmp_path, changes={"warnings": restless(floor)})
    texts = [" ".join(terminal.verdict(found)), " ".join(words.speed(found)), markdown(found), card(found), page(found)]
    says = "achine was restless (the original against itself, measured the same way, differs by 22 %): measure again on a quiet machine"
    assert [says in text for text in texts] == [floor > 0.1] * 5


def test_not_shown_never_sounds_like_proven(tmp_path):
    found = result(tmp_path, "not shown")
    assert words.headline(found).endswith("accuracy likely kept")
    text = " ".join(words.accuracy(found))
    assert "do not prove it: a drop of up to 0.0085 is plausible. About 321 more samples would decide." in text
    assert "proves" not in text


def test_the_original_is_returned_with_the_reason(tmp_path):
    found = result(tmp_path, "kept")
    assert words.headline(found) == "The original is kept: nothing better was shown"
    assert words.accuracy_state(found) == words.UNCHANGED
    assert words.accuracy(found) == ["Accuracy stays 0.9825 on 400 validation samples: the original is returned."]


def test_without_data_nothing_is_said_of_accuracy(tmp_path):
    found = result(tmp_path, "none")
    assert words.headline(found) == "2.70 times faster, 3.6 times smaller, the results kept"
    assert "not judged" in words.accuracy(found)[0]
    assert any("nothing is said about accuracy" in line for line in words.limits(found))


def test_without_labels_the_budget_is_agreement(tmp_path):
    about = {"metric": "agreement", "higher_is_better": True, "output": "y", "labels": False, "data": "d"}
    found = result(tmp_path, "proven", {"judged": about})
    assert words.allowed_drop(found) == pytest.approx(0.02)
    assert "there were no labels: the original's own answers count as right" in words.accuracy(found)[0]


def test_a_metric_that_should_fall_rises(tmp_path):
    about = {"metric": "mse", "higher_is_better": False, "output": "y", "labels": True, "data": "d"}
    assert "budget allows a rise of 0.01" in words.accuracy(result(tmp_path, "proven", {"judged": about}))[1]


def test_guarded_classes_are_named(tmp_path):
    found = result(tmp_path, "proven")
    guards = [{"label": 1, "before": 0.99, "after": 0.98, "samples": 50}, {"label": 2, "before": 0.9, "after": 0.95, "samples": 40}]
    found.manifest["candidates"][1]["test"] = judged(0.98) | {"guards": guards}
    assert words.accuracy(found)[-1] == (
        "Guarded, and kept, is the recall of 2 classes; the least so in class 1: 0.9900 → 0.9800 on 50 test samples."
    )


def test_numbers():
    assert (seconds(1.5), seconds(0.00123), seconds(4.56e-5), seconds(5e-8), seconds(None)) == ("1.5 s", "1.23 ms", "45.6 µs", "50 ns", "–")
    assert (size(999), size(345_678), size(1.2e9), size(None)) == ("999 B", "346 KB", "1.2 GB", "–")
    assert (times(2.345), times(None), metric(0.5), share(0.123, 1), change(-0.5), change(-1e-9)) == (
        "2.35 ×",
        "–",
        "0.5000",
        "12.3 %",
        "−0.5000",
        "0.0000",
    )
    assert interval({"low": -0.01, "high": 0.02}, 4, "+") == "[−0.0100, +0.0200]"
    assert interval(None) == interval({"low": None, "high": None}) == ""
    assert (time_unit(0.002), time_unit(1e-5), time_unit(1e-8)) == (("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    assert size_unit(5e6) == ("MB", 1e6)
