"""Quantization: what the runtimes fuse, what is skipped, what calibration costs, what stays exact."""

import dataclasses
import tracemalloc

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hasten import check
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.numerics import dequantize, format_of, quantize, symmetric
from hasten.passes.fold_batchnorm import FoldBatchnorm, fold_batchnorm
from hasten.quantize.equalize import Equalize, equalize
from hasten.quantize.observers import Means, Observer, symmetric_mse
from hasten.quantize.quantize_dynamic import QuantizeDynamic, quantize_dynamic
from hasten.quantize.quantize_static import QuantizeStatic, quantize_static
from hasten.task import Task, without_data
from tests.conftest import model_of, operators

RNG = np.random.default_rng(0)


def fused(model, tmp_path) -> list[str]:
    """Operators of the graph that onnxruntime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]


def task_of(model, samples=64, seed=0, scale=1.0):
    """A task of random inputs for a model of one float input."""
    shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape[1:]]
    x = np.random.default_rng(seed).standard_normal((samples, *shape)).astype(np.float32) * scale
    return Task(x).bind(model)


@pytest.fixture(scope="module")
def cnn():
    return model_of(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            d = Conv <pads = [1, 1, 1, 1], group = 8> (r, w2)
            c = Clip (d, low, high)
            s = Add (c, r)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)
            g0 = GlobalAveragePool (p)
            f = Flatten (g0)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        {
            "w1": RNG.standard_normal((8, 3, 3, 3)) * np.logspace(-2, 0, 8).reshape(8, 1, 1, 1),
            "b1": RNG.standard_normal(8) / 10,
            "w2": RNG.standard_normal((8, 1, 3, 3)),
            "low": np.array(0.0, np.float32),
            "high": np.array(6.0, np.float32),
            "w3": RNG.standard_normal((5, 8)),
            "b3": RNG.standard_normal(5),
        },
    )


def test_onnxruntime_runs_every_operator_of_a_cnn_on_codes(cnn, tmp_path):
    made = quantize_static(cnn, QuantizeStatic(), task_of(cnn))
    check.legal(made)
    ops = fused(made, tmp_path)
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(ops)
    assert not {"Conv", "Relu", "Clip", "Gemm", "FusedConv", "GlobalAveragePool"} & set(ops)
    feeds = check.random_feeds(cnn, 16)
    (a,), (b,) = check.oracle(cnn).run(None, feeds), check.oracle(made).run(None, feeds)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


@pytest.mark.parametrize("method", ["auto", "mean", "mse", "minmax", "percentile"])
def test_every_method_stays_near_the_float_model(cnn, method):
    made = quantize_static(cnn, QuantizeStatic(method=method), task_of(cnn))
    feeds = check.random_feeds(cnn, 16)
    (a,), (b,) = check.oracle(cnn).run(None, feeds), check.oracle(made).run(None, feeds)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.15


def test_biases_are_int32_at_the_combined_scale_and_weights_int8_per_channel(cnn):
    made = quantize_static(cnn, QuantizeStatic(), task_of(cnn))
    weights = {k: v.const_value.numpy() for k, v in made.ir.graph.initializers.items()}
    assert weights["w1_codes"].dtype == np.int8
    assert weights["w1_scale"].shape == (8,)
    assert weights["w1_bias_codes"].dtype == np.int32
    np.testing.assert_allclose(weights["w1_bias_scale"], weights["x_scale"] * weights["w1_scale"], rtol=1e-6)


def test_a_channel_of_zero_weights_with_a_large_bias_does_not_overflow():
    model = model_of(
        "g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv (x, w, b) }",
        {"w": np.zeros((2, 2, 1, 1)), "b": np.array([1e4, -1e4])},
    )
    made = quantize_static(model, QuantizeStatic(), task_of(model))
    check.same(model, made, within=check.Tolerance("one step of 8 bits", 1 / 128))


def test_what_cannot_be_quantized_is_skipped_with_node_and_reason():
    model = model_of(
        """g (float[N, 4, 4] x) => (float[N, 4, 4] y, float[N, 4, 4] z) {
            t = Transpose <perm = [0, 2, 1]> (x)
            y = MatMul (x, t)
            z = MatMul (x, w)
        }""",
        {"w": RNG.standard_normal((4, 4))},
    )
    names = [n.name for n in model.ir.graph if n.op_type == "MatMul"]
    made = quantize_static(model, QuantizeStatic(exclude=(names[1],)), task_of(model))
    assert [(s.node, s.why) for s in made.history[-1].skipped] == [
        (names[0], "it multiplies two activations; `attention` quantizes it too"),
        (names[1], "excluded by the settings"),
    ]
    attention = quantize_static(model, QuantizeStatic(attention=True, exclude=(names[1],)), task_of(model))
    assert attention.history[-1].changed >= 1
    check.legal(attention)


def test_smoothing_costs_no_operator_and_helps_where_one_channel_is_large(tmp_path):
    w = RNG.standard_normal((16, 8))
    model = model_of("g (float[N, 6, 16] x) => (float[N, 6, 8] y) { y = MatMul (x, w) }", {"w": w})
    x = RNG.standard_normal((64, 6, 16)).astype(np.float32)
    x[..., 3] *= 60
    task = Task(x).bind(model)
    errors = []
    for smooth in (0.0, 0.6):
        made = quantize_static(model, QuantizeStatic(smooth=smooth, method="minmax"), task)
        (a,), (b,) = check.oracle(model).run(None, {"x": x}), check.oracle(made).run(None, {"x": x})
        errors.append(np.linalg.norm(a - b) / np.linalg.norm(a))
        assert sorted(operators(made)) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    assert errors[1] < errors[0]
    assert "MatMulIntegerToFloat" in fused(made, tmp_path)


def test_equalizing_changes_no_result_before_relu_and_evens_the_ranges(cnn):
    task = task_of(cnn)
    made = equalize(cnn, Equalize(), task)
    assert made.history[-1].changed == 0
    assert made.history[-1].skipped[0].why == "the tensor before it has other readers"
    chain = model_of(
        """g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {
            a = Conv (x, w1, b1)
            r = Relu (a)
            y = Conv <group = 8> (r, w2)
        }""",
        {
            "w1": RNG.standard_normal((8, 3, 1, 1)) * np.logspace(-2, 0, 8).reshape(8, 1, 1, 1),
            "b1": np.zeros(8),
            "w2": RNG.standard_normal((8, 1, 3, 3)),
        },
    )
    made = equalize(chain, Equalize(), task_of(chain))
    assert made.history[-1].changed == 1
    check.same(chain, made, within=check.FLOAT32)
    x = RNG.standard_normal((64, 3, 8, 8)).astype(np.float32)
    exposed = made.edit()
    exposed.graph.outputs.append(next(n.outputs[0] for n in exposed.graph if n.op_type == "Relu"))
    relu = check.oracle(dataclasses.replace(made, ir=exposed)).run(None, {"x": x})[1]
    peaks = relu.max(axis=(0, 2, 3))
    assert peaks.max() / peaks.min() < 3


def test_no_data_is_refused_before_anything_is_done(cnn):
    for apply, settings in ((quantize_static, QuantizeStatic()), (equalize, Equalize())):
        with pytest.raises(Refused, match="needs data"):
            apply(cnn, settings, None)
        with pytest.raises(Refused, match="needs data"):
            apply(cnn, settings, without_data())


def test_bad_settings_are_refused():
    for values in ({"method": "best"}, {"activations": "int4"}, {"percentile": 20}, {"samples": 0}, {"smooth": 1.0}):
        with pytest.raises(BadInput, match=next(iter(values))):
            QuantizeStatic(**values)
    with pytest.raises(BadInput, match="smallest"):
        QuantizeDynamic(smallest=-1)


def test_calibration_memory_does_not_grow_with_the_samples(cnn):
    def peak(samples: int) -> int:
        task = task_of(cnn, samples * 5)
        tracemalloc.start()
        quantize_static(cnn, QuantizeStatic(samples=samples, method="mse"), task)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(400) < 1.5 * peak(40)


def test_observers_see_the_exact_extremes_and_widen_without_losing_counts():
    observer = Observer()
    seen = [RNG.standard_normal((4, 50)).astype(np.float32) * s for s in (0.1, 1, 30)]
    for x in seen:
        observer.see(x)
    everything = np.concatenate([x.ravel() for x in seen])
    assert observer.minmax() == (everything.min(), everything.max())
    assert observer._bins.sum() == everything.size
    low, high = observer.percentile(90.0)
    assert np.mean((everything < low) | (everything > high)) == pytest.approx(0.1, abs=0.03)
    means = Means(1)
    means.see(np.ones((2, 3, 4), np.float32) * np.arange(3).reshape(1, 3, 1))
    assert means.means() == [0, 1, 2]
    with pytest.raises(ValueError, match="NaN"):
        observer.see(np.array([[np.nan]], np.float32))


def test_four_bits_take_the_scale_of_the_least_error():
    rows, to = RNG.standard_normal((6, 500)), format_of("int4")

    def error(scale):
        return np.mean((dequantize(quantize(rows, scale[:, None], 0, to), scale[:, None], 0) - rows) ** 2, axis=1)

    chosen, whole = symmetric_mse(rows, to), symmetric(np.abs(rows).max(axis=1), to)
    assert (error(chosen) < 0.8 * error(whole)).all()
    assert all((error(chosen) <= 1.02 * error(whole * np.float32(share))).all() for share in (0.5, 0.6, 0.7, 0.8, 0.9))


def test_dynamic_quantization_is_fused_and_leaves_small_products(tmp_path):
    model = model_of(
        """g (float[N, 64] x) => (float[N, 4] y) {
            h = Gemm <transB = 1, alpha = 2.0> (x, w1, b1)
            a = Relu (h)
            y = MatMul (a, w2)
        }""",
        {"w1": RNG.standard_normal((128, 64)), "b1": RNG.standard_normal(128), "w2": RNG.standard_normal((128, 4))},
    )
    made = quantize_dynamic(model, QuantizeDynamic(), None)
    check.legal(made)
    assert made.history[-1].changed == 1
    assert "fewer than 4096" in made.history[-1].skipped[0].why
    assert "DynamicQuantizeMatMul" in fused(made, tmp_path)
    feeds = check.random_feeds(model, 16)
    (a,), (b,) = check.oracle(model).run(None, feeds), check.oracle(made).run(None, feeds)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.03


def test_a_real_mobilenet_keeps_its_logits(shared_data):
    model = load_onnx(shared_data / "models" / "mobilenetv2.onnx")
    task = Task(shared_data / "imagenet_sample" / "imagenet_sample_even.zip", preprocess="imagenet-torch").bind(model)
    small = dataclasses.replace(task.calibrate, indices=task.calibrate.indices[:40], labels=None)
    task = dataclasses.replace(task, calibrate=small)
    made = fold_batchnorm(model, FoldBatchnorm(), None)
    made = quantize_static(equalize(made, Equalize(), task), QuantizeStatic(), task)
    feeds = task.validate.samples.take(task.validate.indices[:20])
    session, quantized = (ort.InferenceSession(m.to_bytes()) for m in (model, made))
    a, b = session.run(None, feeds)[0], quantized.run(None, feeds)[0]
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.11
    assert np.mean(a.argmax(1) == b.argmax(1)) >= 0.9
