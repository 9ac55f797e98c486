"""Time per layer on a real model in both runtimes; what has no profiler says so, and no profile is left behind."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hasten import check
from hasten.measure.judge import Failure
from hasten.measure.layers import LayerTime, Profile, layer_times, profile
from hasten.measure.process import Subject
from hasten.model import Model
from hasten.runtimes import Target
from hasten.runtimes.onnxruntime import kernel_times, middle_mean


@pytest.mark.parametrize("runtime, convolution, dense", [("onnxruntime", "Conv", "Gemm"), ("openvino", "Convolution", "FullyConnected")])
def test_layers_of_the_digits_cnn(digits_cnn: Path, runtime: str, convolution: str, dense: str, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = set(os.listdir())
    feeds = check.random_feeds(Model.load(digits_cnn), 4, seed=0)
    found = profile(Subject(runtime, digits_cnn, Target(1, batch=4)), feeds, calls=60)
    assert isinstance(found, Profile), found
    ops = [layer.op for layer in found.layers]
    assert ops.count(convolution) == 2
    assert any(dense in op for op in ops)
    assert len({layer.name for layer in found.layers}) == len(found.layers)
    assert all(layer.seconds >= 0 for layer in found.layers)
    least = dict.fromkeys((layer.name for layer in found.layers), math.inf)  # of three profiles: what else the machine does only adds time
    for again in (found, *(profile(Subject(runtime, digits_cnn, Target(1, batch=4)), feeds, calls=60) for _ in range(2))):
        least |= {layer.name: min(least[layer.name], layer.seconds) for layer in again.layers}
    heaviest = max(found.layers, key=lambda layer: least[layer.name])
    assert heaviest.op == convolution  # the second convolution has 18 times the MACs of the dense layers together
    assert found.call_seconds > 0
    assert 0 < found.explained <= 1
    assert found.overhead == pytest.approx(max(0.0, found.call_seconds - sum(layer.seconds for layer in found.layers)))
    assert set(os.listdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_runtime_without_a_profiler_says_so(digits_cnn: Path):
    found = layer_times(Subject("reference", digits_cnn, Target(1)), {})
    assert found == Failure("reference tells no time per layer; onnxruntime, openvino and native do")


def test_feeds_of_the_wrong_shape_are_a_failure(digits_cnn: Path):
    found = layer_times(Subject("onnxruntime", digits_cnn, Target(1)), {"image": np.zeros((1, 2), np.float32)})
    assert isinstance(found, Failure)
    assert str(digits_cnn.parent) not in found.reason


def test_warm_up_is_left_out_and_a_loop_counts_its_inside():
    events = []
    for call in range(25):
        start, slow = call * 100, 40 if call < 5 else 0
        events.append({"name": "model_run", "ts": start, "dur": 90, "args": {}})
        kernels = [("conv", "Conv", 1, 10 + slow), ("loop", "Loop", 60, 20), ("inner", "Add", 61, 4), ("inner", "Add", 70, 4)]
        events += [{"name": f"{n}_kernel_time", "ts": start + at, "dur": d, "args": {"op_name": op}} for n, op, at, d in kernels]
    found = [LayerTime(*row) for row in kernel_times(events)]
    assert [(layer.name, layer.op) for layer in found] == [("conv", "Conv"), ("inner", "Add")]
    assert [layer.seconds for layer in found] == pytest.approx([10e-6, 8e-6])


def test_the_mean_of_the_middle_half_ignores_outliers():
    assert middle_mean([3, 4, 3, 4, 3, 4, 3, 4000]) == pytest.approx(3.5)
