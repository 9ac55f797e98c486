"""inspect: with and without timing, names of the profile, shapes that nodes compute, 10,000 nodes without anything quadratic."""

import json

import numpy as np
import pytest

from hasten.advise import inspection as module
from hasten.advise.inspection import complete, inspect, known_facts, match
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.judge import Failure
from hasten.measure.layers import LayerTime
from tests.conftest import mlp_model, model_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(judge, "ROUND_SECONDS", 0.002)
    monkeypatch.setattr(judge, "CALLS_SECONDS", 0.002)
    monkeypatch.setattr(module, "CALLS", 5)


def test_a_model_is_timed_layer_by_layer_and_advised(digits_cnn):
    found = inspect(load_onnx(digits_cnn), threads=1, name="digits.onnx")
    assert found.timing.seconds > 0
    assert found.missing == ()
    assert found.advice[0].command.startswith("hasten optimize digits.onnx ")
    convolutions = [p for p in found.roofline.layers if p.op == "Conv"]
    assert len(convolutions) == 2 and all(p.seconds and p.reached > 0 for p in convolutions)
    assert found.traits.macs == found.facts.macs > 0
    text = json.loads(json.dumps(found.to_json()))
    assert text["roofline"]["whole"]["bound"] in ("compute", "memory", "overhead")
    assert text["advice"][0]["candidate"] == found.advice[0].candidate
    assert len(text["layers"]) == len(found.layers)
    assert text["macs"] == found.facts.macs


def test_without_timing_nothing_is_run_and_it_is_said(monkeypatch):
    for name in ("peaks", "layer_times"):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("something was run"))
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: pytest.fail("something was run"))
    found = inspect(mlp_model(), timing=False)
    assert (found.timing, found.layers, found.advice) == (None, (), ())
    assert found.facts.macs == 128 * (8 + 4)
    assert "--no-timing" in found.missing[0]


@pytest.mark.parametrize("broken", ["peaks", "time_once", "layer_times"])
def test_what_can_not_be_measured_is_said(monkeypatch, broken):
    failing = lambda *a, **k: Failure("out of memory")  # noqa: E731
    monkeypatch.setattr(judge if broken == "time_once" else module, broken, failing)
    found = inspect(mlp_model(), threads=1)
    assert any("out of memory" in m for m in found.missing)
    assert found.facts.macs
    assert (found.advice == ()) == (broken == "peaks")


def test_the_three_sizes_and_what_is_too_large_for_a_look(monkeypatch):
    model = mlp_model()
    found = inspect(model, timing=False)
    assert found.sizes.raw == len(model.to_bytes()) > found.sizes.entropy_coded
    assert json.loads(json.dumps(found.to_json()))["sizes"]["packed"] == found.sizes.packed
    monkeypatch.setattr(module, "PACKED_NODES", 2)
    monkeypatch.setattr(module.packed, "sizes", lambda model: pytest.fail("it was packed"))
    found = inspect(model, timing=False)
    assert found.sizes is None and "only hasten convert --to packed tells it" in found.missing[-1]


def test_names_in_the_profile():
    model = model_of(
        """m (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            r = Relu (c)
            s = Sigmoid (r)
            y = Mul (s, r)
        }""",
        {"w": np.ones((4, 3, 3, 3))},
    )
    conv, _, sigmoid, mul = [n.name for n in model.ir.graph]
    found = match(
        model,
        [LayerTime(f"fused {conv}_nchwc", "Conv", 1.0), LayerTime("r_nchwc", "Conv", 2.0), LayerTime("ReorderOutput", "ReorderOutput", 4.0),
         LayerTime(sigmoid, "Sigmoid", 8.0), LayerTime(f"{mul}/QuickGeluFusion/", "QuickGelu", 16.0)],
    )  # fmt: skip
    assert found == {conv: 3.0, sigmoid: 8.0, mul: 16.0}


def test_shapes_that_nodes_compute():
    """What exporters write for a flatten with a dynamic batch: Shape → Squeeze → Concat → Reshape."""
    model = model_of(
        """m (float[N, 2, 4] x) => (float[N, 4] y) {
            n = Shape <start = 0, end = 1> (x)
            s = Squeeze (n)
            u = Unsqueeze (s, zero)
            shape = Concat <axis = 0> (u, rest)
            f = Reshape (x, shape)
            y = MatMul (f, w)
        }""",
        {"zero": np.zeros(1, np.int64), "rest": np.array([8]), "w": np.ones((8, 4))},
    )
    assert known_facts(model, batch=3).macs == 3 * 8 * 4


def test_sizes_that_nobody_gave():
    model = model_of("m (float[N, seq, 5] x) => (float[N, seq, 7] y) { y = MatMul (x, w) }", {"w": np.ones((5, 7))})
    sizes, notes = complete(model, {})
    assert sizes == {"seq": 8}
    assert "no size was given for seq: 8 was taken; give --shape" in notes[0]
    assert complete(model, {"seq": 3}) == ({"seq": 3}, ())
    with pytest.raises(BadInput, match="no dynamic axis 'length'; it has N, seq"):
        complete(model, {"length": 3})


def test_ten_times_the_nodes_are_not_a_hundred_times_the_work():
    """Counted, not timed: shape lookups grow with the nodes. See ARCHITECTURE for the seconds."""
    import sys

    def calls(nodes: int) -> int:
        body = "\n".join(f"x{i + 1} = Relu (x{i})" for i in range(nodes))
        model = model_of(f"m (float[N, 4] x0) => (float[N, 4] x{nodes}) {{ {body} }}")
        count = 0

        def counting(frame, event, argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(counting)
        try:
            found = inspect(model, timing=False)
        finally:
            sys.setprofile(None)
        assert len(found.facts.rows) == nodes
        return count

    assert calls(2000) < 12 * calls(200)
