"""What goes into a layer from the front: scales and shifts of what it reads (fold_scales), and the layer before it (merge_linear)."""

import numpy as np
import pytest

from hasten import check
from hasten.facts import facts
from hasten.passes.fold_scales import FoldScales, fold_scales
from hasten.passes.merge_linear import MergeLinear, merge_linear
from tests.conftest import model_of, operators

RNG = np.random.default_rng(0)
LAYERS = {
    "Conv": ("<group = 2>", "float[N, 4, 6, 6]", "float[N, 6, H, W]", (6, 2, 3, 3)),
    "ConvTranspose": ("<group = 2>", "float[N, 4, 6, 6]", "float[N, 6, H, W]", (4, 3, 3, 3)),
    "Gemm": ("<transB = 1, alpha = 0.5, beta = 2.0>", "float[N, 4]", "float[N, 6]", (6, 4)),
    "MatMul": ("", "float[N, 4]", "float[N, 6]", (4, 6)),
}


def a_layer(layer: str, operator: str, attributes: str | None = None, source: str | None = None):
    own, reads, gives, shape = LAYERS[layer]
    image = layer.startswith("Conv")
    weights = {"w": RNG.standard_normal(shape), "c": RNG.uniform(0.5, 2, (4, 1, 1) if image else 4)}
    if layer != "MatMul":
        weights["b"] = RNG.standard_normal(6)
    text = f"g ({source or reads} x) => ({gives if source is None else 'float[N, T, 6]'} y) {{ a = Relu (x) s = {operator} "
    return model_of(
        text + f"y = {layer} {own if attributes is None else attributes} (s, w{'' if layer == 'MatMul' else ', b'}) }}", weights
    )


@pytest.mark.parametrize("operator", ["Mul (a, c)", "Mul (c, a)", "Div (a, c)", "Add (a, c)", "Add (c, a)", "Sub (a, c)", "Sub (c, a)"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_scale_goes_into_the_weights_and_a_shift_into_the_bias(layer, operator):
    before = a_layer(layer, operator)
    after = fold_scales(before, FoldScales(), None)
    if layer == "ConvTranspose" and operator[:3] in ("Add", "Sub"):
        assert operators(after) == operators(before)
        assert "takes no shift" in after.history[-1].skipped[0].why
        return
    shifted = layer == "MatMul" and operator[:3] in ("Add", "Sub")
    assert operators(after) == ["Relu", "Gemm" if shifted else layer]
    check.same(before, after, within=check.FLOAT32)


def test_a_normalisation_of_pictures_goes_into_the_first_convolution():
    before = model_of(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
            s = Sub (x, mean)
            d = Div (s, deviation)
            y = Conv (d, w)
        }""",
        {
            "mean": RNG.uniform(0.4, 0.5, (3, 1, 1)),
            "deviation": RNG.uniform(0.2, 0.3, (1, 3, 1, 1)),
            "w": RNG.standard_normal((4, 3, 3, 3)),
        },
    )
    after = fold_scales(before, FoldScales(), None)
    assert operators(after) == ["Conv"]
    check.same(before, after, within=check.FLOAT32)


@pytest.mark.parametrize("attributes", ["<pads = [1, 1, 1, 1]>", '<auto_pad = "SAME_UPPER">'])
def test_a_convolution_that_pads_takes_a_scale_and_no_shift(attributes):
    shifted, scaled = (
        a_layer("Conv", "Add (a, c)", f"{attributes[:-1]}, group = 2>"),
        a_layer("Conv", "Mul (a, c)", f"{attributes[:-1]}, group = 2>"),
    )
    left = fold_scales(shifted, FoldScales(), None)
    assert operators(left) == ["Relu", "Add", "Conv"]
    assert [s.why for s in left.history[-1].skipped] == ["the convolution pads, and its zeros are not shifted"]
    after = fold_scales(scaled, FoldScales(), None)
    assert operators(after) == ["Relu", "Conv"]
    check.same(scaled, after, within=check.FLOAT32)


def test_a_shift_of_more_axes_goes_into_the_addition_behind():
    weights = {"w": RNG.standard_normal((4, 6)), "c": RNG.standard_normal(4), "d": RNG.standard_normal(6)}
    behind = model_of("g (float[N, T, 4] x) => (float[N, T, 6] y) { s = Add (x, c) p = MatMul (s, w) y = Add (d, p) }", weights)
    after = fold_scales(behind, FoldScales(), None)
    assert operators(after) == ["MatMul", "Add"]
    check.same(behind, after, within=check.FLOAT32)
    alone = fold_scales(a_layer("MatMul", "Add (a, c)", source="float[N, T, 4]"), FoldScales(), None)
    assert "no bias that could take the shift" in alone.history[-1].skipped[0].why


def test_the_scale_of_an_rms_norm_stays_with_it():
    weights = {
        "w": RNG.standard_normal((4, 6)), "c": RNG.standard_normal(4), "two": np.array(2.0), "last": np.array([-1]), "eps": np.array(1e-5)
    }  # fmt: skip
    squares = "q = Pow (x, two) v = ReduceMean (q, last) e = Add (v, eps) d = Sqrt (e)"
    text = "g (float[N, T, 4] x) => (float[N, T, 6] y) {{ {} {} s = Mul (n, c) y = MatMul (s, w) }}"
    before = model_of(text.format(squares, "n = Div (x, d)"), weights)
    after = fold_scales(before, FoldScales(), None)
    assert operators(after) == operators(before)
    assert "the scale of an RMS normalization" in after.history[-1].skipped[0].why
    other = model_of(text.format(squares, "z = Relu (x) n = Div (z, d)"), weights)
    assert operators(fold_scales(other, FoldScales(), None)) == [k for k in operators(other) if k != "Mul"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N, 4] x) => (float[N, 6] y, float[N, 4] s) { s = Mul (x, c) y = MatMul (s, w) }",
        "g (float[N, 4] x) => (float[N, 6] y) { s = Mul (x, wide) z = ReduceMean <keepdims = 0> (s, zero) y = MatMul (z, w) }",
        "g (float[4] x) => (float[N, 6] y) { s = Mul (x, wide) y = MatMul (s, w) }",
        "g (float[N, 4] x, float[4, 6] w2) => (float[N, 6] y) { s = Mul (x, c) y = MatMul (s, w2) }",
    ],
)
def test_what_others_read_or_what_grows_is_left(text):
    weights = {"w": RNG.standard_normal((4, 6)), "c": RNG.standard_normal(4), "wide": RNG.standard_normal((3, 1, 4)), "zero": np.array([0])}
    before = model_of(text, weights)
    after = fold_scales(before, FoldScales(), None)
    assert operators(after) == operators(before)
    assert after.history[-1].changed == 0


STRETCHES = {
    "Gemm Gemm": ("h = Gemm <transB = 1, alpha = 2.0> (x, v, b) y = Gemm <beta = 0.5> (h, w, c)", (9, 4), (9, 5), True),
    "MatMul Gemm": ("h = MatMul (x, v) y = Gemm <transB = 1> (h, w, c)", (4, 9), (5, 9), True),
    "Gemm MatMul": ("h = Gemm (x, v, b) y = MatMul (h, w)", (4, 9), (9, 5), True),
    "MatMul MatMul": ("h = MatMul (x, v) y = MatMul (h, w)", (4, 9), (9, 5), False),
}


@pytest.mark.parametrize("name", STRETCHES)
def test_two_products_become_one(name):
    text, first, second, biased = STRETCHES[name]
    weights = {"v": RNG.standard_normal(first), "w": RNG.standard_normal(second), "b": RNG.standard_normal(9), "c": RNG.standard_normal(5)}
    before = model_of(f"g (float[N, 4] x) => (float[N, 5] y) {{ {text} }}", weights)
    after = merge_linear(before, MergeLinear(), None)
    assert operators(after) == ["Gemm" if biased else "MatMul"]
    assert facts(after).macs == 20
    check.same(before, after, within=check.FLOAT32)


@pytest.mark.parametrize("bias", ["", ", b"])
def test_a_convolution_and_one_of_1x1_become_one(bias):
    before = model_of(
        f"""g (float[N, 3, 9, 9] x) => (float[N, 4, H, W] y) {{
            h = Conv <pads = [1, 0, 1, 0], strides = [2, 1], kernel_shape = [3, 3]> (x, v{bias})
            y = Conv <kernel_shape = [1, 1]> (h, w, c)
        }}""",
        {
            "v": RNG.standard_normal((8, 3, 3, 3)),
            "b": RNG.standard_normal(8),
            "w": RNG.standard_normal((4, 8, 1, 1)),
            "c": RNG.standard_normal(4),
        },
    )
    after = merge_linear(before, MergeLinear(), None)
    assert operators(after) == ["Conv"]
    check.same(before, after, within=check.FLOAT32)


def test_three_in_a_row_become_one_and_a_bottleneck_stays():
    weights = {
        "u": RNG.standard_normal((4, 9)),
        "v": RNG.standard_normal((9, 8)),
        "w": RNG.standard_normal((8, 5)),
        "low": RNG.standard_normal((4, 1)),
    }
    row = model_of("g (float[N, 4] x) => (float[N, 5] y) { a = MatMul (x, u) b = MatMul (a, v) y = MatMul (b, w) }", weights)
    after = merge_linear(row, MergeLinear(), None)
    assert operators(after) == ["MatMul"]
    check.same(row, after, within=check.FLOAT32)
    weights = {"low": RNG.standard_normal((4, 1)), "up": RNG.standard_normal((1, 9))}
    narrow = model_of("g (float[N, 4] x) => (float[N, 9] y) { a = MatMul (x, low) y = MatMul (a, up) }", weights)
    left = merge_linear(narrow, MergeLinear(), None)
    assert operators(left) == ["MatMul", "MatMul"]
    assert [s.why for s in left.history[-1].skipped] == ["one layer would have 36 weights, the two have 13"]
