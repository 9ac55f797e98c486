"""The rules: every one can be met, each names a candidate that the search really tries, and real models get the advice their kind needs."""

import dataclasses
import shlex

import numpy as np
import pytest

from hasten import runtimes
from hasten.advise.inspection import known_facts
from hasten.advise.roofline import MEMORY, OVERHEAD, roofline
from hasten.advise.rules import LINES, RULES, advise
from hasten.advise.traits import Traits, traits
from hasten.doors.onnx import load_onnx
from hasten.runtimes import Target, native
from hasten.search.budget import Budget
from hasten.search.candidates import candidates
from tests.conftest import PEAKS, mlp_model, model_of
from tests.lower.quantized import Net

CNN = Traits(
    conv=0.98, depthwise=0.1, product=0.02, recurrent=0.0, attention=False, embedding=0.0, nodes=100, parameters=3_500_000, macs=300_000_000,
    weight_bytes=14_000_000, intensity=3.0, quantized=False, float16=False, transposes=0, batch_norms=0, dynamic=("N",), latency=2e-3,
    overhead=2e-5, roof=1e-3, bound="compute", cached=True, int8_gain=5.0, openvino_call=3e-5, int8_dot=True, bf16=True,
    runtimes=("onnxruntime", "openvino"), threads=2, batch=1, lossy=True,
)  # fmt: skip
TINY = {"latency": 3e-5, "overhead": 7e-6, "roof": 1.5e-5, "macs": 1_000_000}
DENSE = {"conv": 0.0, "product": 1.0, "depthwise": 0.0}
ORT = {"runtimes": ("onnxruntime",), "openvino_call": None}
PLAIN = {"int8_dot": False, "bf16": False}
NATIVE = {"runtimes": ("onnxruntime", "openvino", "native"), "native": True}
CASES = {
    "quantized, native": ({"quantized": True, **NATIVE}, "graph · native · 2T"),
    "convolutional, native, int8": (NATIVE, "int8 static · native · 2T"),
    "perceptron, native, int8": ({**DENSE, **TINY, **NATIVE}, "int8 static · native · 2T"),
    "quantized, OpenVINO pays": ({"quantized": True}, "graph · openvino · 2T"),
    "quantized": ({"quantized": True, **ORT}, "graph · onnxruntime · 2T"),
    "nothing to compute, native": (
        {**DENSE, "macs": 500, "latency": 6e-6, "roof": 1e-8, "bound": OVERHEAD, **NATIVE},
        "graph · native · 1T",
    ),
    "tiny float, native": ({**DENSE, **TINY, **NATIVE, "lossy": False}, "graph · native · 1T"),
    "nothing to compute": ({**DENSE, "macs": 500, "latency": 6e-6, "roof": 1e-8, "bound": OVERHEAD}, "graph · onnxruntime · 1T"),
    "tiny perceptron": ({**DENSE, **TINY}, "int8 dynamic · onnxruntime · 1T"),
    "tiny convolutional": (TINY, "int8 static · onnxruntime · 2T"),
    "convolutional, onnxruntime, int8": (ORT, "int8 static · onnxruntime · 2T"),
    "convolutional, OpenVINO, int8": ({}, "int8 static · openvino bf16 · 2T"),
    "convolutional, OpenVINO, int8, no bf16": ({"bf16": False}, "int8 static · openvino · 2T"),
    "transformer, OpenVINO, int8": ({**DENSE, "attention": True}, "int8 static · openvino bf16 · 2T"),
    "transformer, OpenVINO, bf16": ({**DENSE, "attention": True, "int8_dot": False}, "graph · openvino bf16 · 2T"),
    "transformer, onnxruntime": ({**DENSE, "attention": True, **ORT}, "int8 dynamic · onnxruntime · 2T"),
    "weights beyond the caches": ({**DENSE, "bound": MEMORY, "cached": False}, "int8 dynamic · onnxruntime · 2T"),
    "perceptron, OpenVINO": (DENSE, "int8 static · openvino bf16 · 2T"),
    "perceptron": ({**DENSE, **ORT}, "int8 dynamic · onnxruntime · 2T"),
    "channels last": ({"transposes": 20, "lossy": False}, "graph · onnxruntime · 2T"),
    "OpenVINO, bf16": ({"int8_dot": False}, "graph · openvino bf16 · 2T"),
    "OpenVINO": (PLAIN, "graph · openvino · 2T"),
    "8 bits without a dot product": ({**PLAIN, **ORT}, "int8 static · onnxruntime · 2T"),
    "short call": ({"conv": 0.0, "recurrent": 1.0, "latency": 5e-5, "macs": 10**6}, "graph · onnxruntime · 1T"),
    "clean graph": ({"conv": 0.0, "recurrent": 1.0}, "graph · onnxruntime · 2T"),
}


@pytest.mark.parametrize("rule", [r.name for r in RULES])
def test_each_rule_leads_where_it_should(rule):
    change, expected = CASES[rule]
    first = advise(dataclasses.replace(CNN, **change))[0]
    assert (first.rule, first.candidate) == (rule, expected)


@pytest.mark.parametrize("case", CASES)
def test_every_line_is_a_candidate_that_optimize_tries(case):
    """By its very name, at these threads and hints; and its command is one line that a shell takes apart."""
    t = dataclasses.replace(CNN, **CASES[case][0])
    tried = {c.name for c in candidates(Budget(), Target(t.threads), t.latency or 1.0, judged=t.lossy)}
    lines = advise(t, "my model.onnx")
    assert 1 <= len(lines) <= LINES
    assert len({line.command for line in lines}) == len(lines)
    for line in lines:
        # One thread is tried besides where the model is small; a user's --threads 1 otherwise.
        assert line.candidate in tried, (line, tried)
        words = shlex.split(line.command)
        assert words[:3] == ["hasten", "optimize", "my model.onnx"]
        assert words[words.index("--recipes") + 1] == line.recipe
        assert ("--data" in words) == (line.recipe != "graph" or "bf16" in line.candidate)
        assert 0 < line.gain[0] <= line.gain[1]
        assert "{" not in line.reason and "–" not in line.reason


def test_a_gain_is_bounded_by_what_the_call_costs():
    assert advise(CNN)[0].gain[1] == pytest.approx(4.5, rel=0.05)
    half = dataclasses.replace(CNN, overhead=1e-3)
    assert advise(half)[0].gain[1] < 2


def test_nothing_lossy_is_advised_without_data():
    for change, _ in CASES.values():
        for line in advise(dataclasses.replace(CNN, **{**change, "lossy": False})):
            assert line.recipe == "graph" and "bf16" not in line.candidate


def test_a_runtime_that_may_not_be_used_is_not_advised():
    assert {line.runtime for line in advise(dataclasses.replace(CNN, **ORT))} == {"onnxruntime"}


def test_the_native_engine_s_gain_is_not_bounded_by_the_call_of_others():
    first = advise(dataclasses.replace(CNN, **DENSE, **TINY, **NATIVE))[0]
    assert first.gain == (2.5, 9.0)
    assert "that of onnxruntime 7 µs" in first.reason


def seen(model, latency, **more):
    found = known_facts(model)
    return traits(model, found, roofline(found, PEAKS, latency), PEAKS, threads=2, **more)


def test_traits_of_a_perceptron_and_of_the_digits_cnn(digits_cnn):
    t = seen(mlp_model(), 1e-5)
    assert (t.product, t.conv, t.attention, t.dynamic, t.quantized) == (1.0, 0.0, False, ("N",), False)
    cnn = seen(load_onnx(digits_cnn), 3e-5)
    assert cnn.conv > 0.9
    assert cnn.batch_norms == 2
    assert not cnn.openvino  # its call alone would take as long
    assert not seen(load_onnx(digits_cnn), 3e-3).openvino  # nor on a busy machine: what counts is the least time
    assert dataclasses.replace(cnn, openvino_call=1e-6).openvino
    assert dataclasses.replace(cnn, openvino_call=None).openvino
    assert not dataclasses.replace(cnn, openvino_call=1e-6, runtimes=("onnxruntime",)).openvino


@pytest.mark.usefixtures("engine")
def test_whether_the_native_engine_takes_a_model(digits_cnn, monkeypatch):
    """By the operators of a float model, by the lowering of a quantized one; never where its kernels are scalar or it may not be used."""
    from hasten import _native

    monkeypatch.setattr(_native, "isa", lambda: "avx512vnni")
    assert seen(load_onnx(digits_cnn), 3e-5).native
    assert not seen(load_onnx(digits_cnn), 3e-5, runtimes=("onnxruntime",)).native
    net = Net(3, 8, 6, 6)
    x = net.conv(net.first, 8, 3)
    assert seen(net.model(x), 3e-5).native
    sine = "m (float[N, 8] x) => (float[N, 4] y) { s = MatMul (x, w)\n y = Sin (s) }"
    assert not seen(model_of(sine, {"w": np.ones((8, 4))}), 1e-5).native
    monkeypatch.setattr(_native, "isa", lambda: "scalar")
    assert not seen(load_onnx(digits_cnn), 3e-5).native
    monkeypatch.setattr(native, "available", lambda: False)
    t = seen(load_onnx(digits_cnn), 3e-5)
    assert ("native" in t.runtimes, t.native) == (False, False)


def test_traits_of_attention_recurrence_and_quantized_weights():
    attention = model_of(
        """m (float[N, 4, 8] x) => (float[N, 4, 8] y) {
            q = MatMul (x, w)
            k = Transpose <perm = [0, 2, 1]> (q)
            s = MatMul (q, k)
            p = Softmax (s)
            y = MatMul (p, q)
        }""",
        {"w": np.ones((8, 8))},
    )
    assert seen(attention, 1e-3).attention
    lstm = model_of(
        "m (float[5, 1, 3] x) => (float[5, 1, 1, 4] y) { y = LSTM <hidden_size = 4> (x, w, r) }",
        {"w": np.ones((1, 16, 3)), "r": np.ones((1, 16, 4))},
    )
    assert seen(lstm, 1e-3).recurrent == 1.0
    codes = model_of(
        "m (float[N, 8] x) => (float[N, 4] y) { w = DequantizeLinear <axis = 1> (codes, scale, zero)\n y = MatMul (x, w) }",
        {"codes": np.ones((8, 4), np.int8), "scale": np.ones(4, np.float32), "zero": np.zeros(4, np.int8)},
    )
    assert seen(codes, 1e-3).quantized
    assert all(r in runtimes.RUNTIMES for r in seen(codes, 1e-3).runtimes)
