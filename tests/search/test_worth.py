"""What zeros bring, by planned times: nothing is claimed within the noise, what can't be timed is said, sizes are those of the packed files."""

import json

import numpy as np
import pytest

from hasten import check, packed
from hasten.errors import Refused, Unsupported
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.statistics import Interval
from hasten.runtimes import Target
from hasten.search import worth as module
from hasten.search.worth import Worth, by_magnitude, worth
from tests.conftest import mlp_model

MODEL = mlp_model(inputs=32, outputs=32, hidden=256)
BOTH = ("onnxruntime", "openvino")


@pytest.fixture
def clock(monkeypatch):
    """Times of the pruned model by runtime, the dense one taking 1 ms; and what was timed, in order."""
    planned, timed = {}, []

    def time_once(subject, feeds, percentile=50.0):
        timed.append((subject.runtime, subject.path.stem))
        found = planned.get(subject.runtime, 1e-3) if subject.path.stem == "pruned" else 1e-3
        found = next(found) if hasattr(found, "__next__") else found
        return found if isinstance(found, Failure) else Timing(found, {}, 0.0, 0)

    monkeypatch.setattr(judge, "time_once", time_once)
    return planned, timed


def look(names=BOTH, share=0.9, pattern="unstructured") -> Worth:
    return worth(MODEL, by_magnitude(MODEL, share, pattern), share, pattern, names, Target(1), check.random_feeds(MODEL))


def test_without_a_gain_two_rounds_are_enough_and_it_is_said(clock):
    found = look()
    assert found.gains == ()
    assert found.time == "no runtime here gains (onnxruntime × 1.00, openvino × 1.00)"
    assert found.sentence.startswith("90 % unstructured zeros: no runtime here gains (onnxruntime × 1.00")
    assert len(clock[1]) == 2 * 2 * 2


def test_a_gain_is_told_with_its_runtime(clock):
    clock[0]["openvino"] = 5e-4
    found = look()
    assert found.gains == ("openvino",)
    assert found.time == "faster in openvino (onnxruntime × 1.00, openvino × 2.00 [2.00, 2.00])"
    assert [runtime for runtime, _ in clock[1]].count("openvino") == 2 * module.ROUNDS


@pytest.mark.parametrize("times", [
    [5e-4, 1.5e-3, 5e-4, 1.2e-3],  # faster on the whole, and not beyond the noise
    [0.97e-3] * 4,  # faster beyond the noise, and not worth a training
])  # fmt: skip
def test_no_gain_within_the_noise_or_too_small(clock, times):
    clock[0]["onnxruntime"] = iter(times)
    found = look(("onnxruntime",))
    i = found.speed["onnxruntime"]
    assert i.estimate > 1
    assert found.gains == ()
    interval = f" [{i.low:.2f}, {i.high:.2f}]" if i.estimate >= module.GAIN else ""
    assert found.time == f"no runtime here gains (onnxruntime × {i.estimate:.2f}{interval})"


def test_what_can_not_be_timed_is_said(clock):
    clock[0]["openvino"] = Failure("crashed: the worker was killed by signal 11")
    assert "openvino not timed: crashed: the worker was killed by signal 11" in look().time


def test_sizes_are_those_of_the_packed_files_apart(clock):
    found = look(())
    assert clock[1] == []
    dense, pruned = packed.sizes(MODEL), packed.sizes(by_magnitude(MODEL, 0.9, "unstructured"))
    assert (found.dense, found.pruned) == (dense, pruned)
    assert (found.gains, found.time) == ((), "")
    ratios = [getattr(dense, n) / getattr(pruned, n) for n in ("packed", "entropy_coded")]
    assert min(ratios) > 4
    raw, small, coded = found.storage.split(", ")
    assert raw.startswith("raw ")
    assert raw.endswith(" as before")
    assert small.endswith(f" ({ratios[0]:.1f} × smaller)")
    assert coded.startswith("entropy-coded ")
    assert coded.endswith(f" ({ratios[1]:.1f} × smaller)")
    assert found.sentence == f"90 % unstructured zeros: {found.storage}"


def test_a_large_model_is_not_packed_in_passing(clock, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 100)
    found = look()
    assert (found.dense, found.pruned) == (None, None)
    assert found.sentence.endswith("; not packed: too large to be packed in passing")
    assert Worth.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_model_that_can_not_be_packed_says_why(clock, monkeypatch):
    def sizes(model):
        raise Unsupported("the model holds hardly anything but zeros")

    monkeypatch.setattr(packed, "sizes", sizes)
    assert look().storage == "not packed: the model holds hardly anything but zeros"


def test_it_goes_through_json(clock):
    clock[0]["openvino"] = Failure("timed out")
    found = look(pattern="2:4", share=0.5)
    assert Worth.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.sentence.startswith("50 % 2:4 zeros: ")


def test_the_shape_has_the_zeros_that_a_training_would_end_with():
    weights = [v.const_value.numpy() for v in by_magnitude(MODEL, 0.75, "unstructured").ir.graph.initializers.values()]
    assert {float(np.mean(w == 0)) for w in weights if w.ndim == 2} == {0.75}
    with pytest.raises(Refused, match="there is nothing to prune"):
        by_magnitude(MODEL, 0.5, "1x5")


def test_a_bound_below_one_is_no_gain():
    assert Worth(0.9, "unstructured", {"openvino": Interval(1.2, 0.9, 1.6, bound_low=0.98, bound_high=1.5)}).gains == ()
