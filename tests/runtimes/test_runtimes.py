"""The runtimes: one Protocol; each says no before it runs."""

import numpy as np
import pytest

from hasten.errors import BadInput, Unsupported
from hasten.runtimes import RUNTIMES, Target, get, native
from tests.conftest import mlp_model, model_of


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "native"])
def test_every_runtime_takes_a_model_and_its_file_alike(name, tmp_path):
    model = mlp_model()
    model.save(tmp_path / "m.onnx")
    runtime, target = get(name), Target(1, batch=2)
    assert runtime.unsupported(model, target) == ()
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    one = runtime.compile(model, target).run({"x": x})["y"]
    other = runtime.compile(tmp_path / "m.onnx", target).run({"x": x})["y"]
    np.testing.assert_array_equal(one, other)
    assert one.shape == (2, 4)
    if name != "null":
        np.testing.assert_allclose(one, get("reference").compile(model, target).run({"x": x})["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_hint_that_a_runtime_does_not_have_is_refused_before_it_runs(name):
    if name != "null":
        assert get(name).unsupported(mlp_model(), Target(1, precision="float8"))[0].why


def test_native_refuses_by_node_and_everything_where_it_was_not_built(monkeypatch):
    if native.available():
        assert get("native").unsupported(mlp_model(), Target(1)) == ()
        (skip,) = get("native").unsupported(model_of("m (float[N, 4] x) => (float[N, 4] y) { y = Sin (x) }"), Target(1))
        assert "no Sin" in skip.why
        assert skip.node
    monkeypatch.setattr(native, "available", lambda: False)
    (skip,) = get("native").unsupported(mlp_model(), Target(1))
    assert skip.why == native.ABSENT


def test_openvino_refuses_16_bit_codes_by_node():
    model = model_of(
        "g (float[N] x) => (float[N] y) { q = QuantizeLinear (x, s, z)\n y = DequantizeLinear (q, s, z) }",
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.int16)},
    )
    (skip,) = get("openvino").unsupported(model, Target(1))
    assert "int16 QDQ" in skip.why
    assert skip.node


def test_a_file_that_is_no_model_is_unsupported_with_the_runtime_s_reason(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(Unsupported, match="onnxruntime can't load the model"):
        get("onnxruntime").compile(tmp_path / "x.onnx", Target(1))


def test_an_unknown_runtime_is_refused():
    with pytest.raises(
        BadInput,
        match="no runtime 'tpu'; use one of onnxruntime, onnxruntime-plain, openvino, native, torch, torch-compiled, reference, null",
    ):
        get("tpu")
