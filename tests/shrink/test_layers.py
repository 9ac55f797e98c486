"""Layers as matrices: y = X Wᵀ + b, checked against onnxruntime for kernels, strides, groups, padding of each kind."""

import numpy as np
import onnx_ir as ir
import pytest

from hasten import check
from hasten.shrink.layers import layers
from tests.conftest import model_of

RNG = np.random.default_rng(0)


def run(model, x):
    return check.oracle(model).run(None, {model.inputs[0].name: x})[0]


@pytest.mark.parametrize("attributes, weight, size", [
    ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", (8, 4, 3, 3), 7),
    ("kernel_shape = [3, 3], pads = [0, 1, 2, 1], strides = [2, 1]", (8, 4, 3, 3), 8),
    ("kernel_shape = [3, 2], dilations = [2, 1]", (6, 4, 3, 2), 9),
    ("kernel_shape = [3, 3], group = 4, pads = [1, 1, 1, 1]", (8, 1, 3, 3), 6),
    ("kernel_shape = [3, 3], group = 2, auto_pad = \"SAME_UPPER\", strides = [2, 2]", (6, 2, 3, 3), 8),
    ("kernel_shape = [2, 2], auto_pad = \"SAME_LOWER\"", (5, 4, 2, 2), 5),
    ("kernel_shape = [1, 1], auto_pad = \"VALID\", strides = [2, 2]", (5, 4, 1, 1), 5),
])  # fmt: skip
def test_a_convolution_is_a_product_of_rows(attributes, weight, size):
    text = f"c (float[N, 4, {size}, {size}] x) => (float[N, {weight[0]}, H, W] y) {{ y = Conv <{attributes}> (x, w, b) }}"
    model = model_of(text, {"w": RNG.standard_normal(weight), "b": RNG.standard_normal(weight[0])})
    (layer,) = layers(model.ir.graph)
    x = RNG.standard_normal((3, 4, size, size)).astype(np.float32)
    expected = layer.results(run(model, x), np.random.default_rng(5), 7)
    rows = layer.rows(x, np.random.default_rng(5), 7)
    bias = model.ir.graph.initializers["b"].const_value.numpy().reshape(layer.groups, 1, -1)
    assert rows.shape[1] == 3 * 7 or rows.shape[1] % 3 == 0
    assert np.allclose(rows @ layer.matrices().transpose(0, 2, 1) + bias, expected, atol=1e-4)
    assert np.array_equal(layer.weight_of(layer.matrices()), layer.array)


@pytest.mark.parametrize("operator, weight", [("Gemm <transB = 1>", (5, 6)), ("Gemm", (6, 5)), ("MatMul", (6, 5))])
def test_products_of_matrices(operator, weight):
    model = model_of(f"g (float[N, 6] x) => (float[N, 5] y) {{ y = {operator} (x, w) }}", {"w": RNG.standard_normal(weight)})
    (layer,) = layers(model.ir.graph)
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    assert np.allclose(layer.rows(x, RNG)[0] @ layer.matrices()[0].T, layer.results(run(model, x), RNG)[0], atol=1e-5)
    assert np.array_equal(layer.weight_of(layer.matrices()), layer.array)


def test_shared_and_computed_weights_are_no_layers():
    text = "g (float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  v = Neg (u)  g = MatMul (h, v)  y = MatMul (g, w) }"
    model = model_of(text, {"w": RNG.standard_normal((4, 4)), "u": RNG.standard_normal((4, 4))})
    assert [layer.name for layer in layers(model.ir.graph)] == []
    assert isinstance(model.ir, ir.Model)
