"""numerics: each format keeps its error bound, and the definitions hold at their edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import BadInput
from hasten.numerics import (
    FORMATS,
    affine,
    binary,
    combined_scale,
    dequantize,
    format_of,
    pack_int4,
    pack_signs,
    pack_ternary,
    quantize,
    requantize,
    symmetric,
    ternary,
    unpack_int4,
    unpack_signs,
    unpack_ternary,
)


@pytest.mark.parametrize("to", FORMATS, ids=lambda f: f.name)
def test_the_error_on_gaussian_data_is_below_the_bound_and_not_far_below(to):
    x = np.random.default_rng(0).standard_normal((4096, 32)).astype(np.float64)
    if to.signed:
        scale, zero = symmetric(np.abs(x).max(1, keepdims=True), to), 0
    else:
        scale, zero = affine(x.min(1, keepdims=True), x.max(1, keepdims=True), to)
    if to.bits == 32:
        codes = np.clip(np.rint(x / scale.astype(np.float64)), to.lo, to.hi)
        y = codes * scale.astype(np.float64)
    else:
        y = dequantize(quantize(x.astype(np.float32), scale, zero, to), scale, zero)
    error = np.sqrt(np.mean((y - x) ** 2) / np.mean(x**2))
    assert to.error / 3 < error + (to.bits == 32) <= to.error + (to.bits == 32)


def test_two_naive_bits_are_worse_than_mean_scaled_signs():
    x = np.random.default_rng(0).standard_normal((4096, 32))
    two = format_of("int2")
    scale = symmetric(np.abs(x).max(1, keepdims=True), two)
    naive = dequantize(quantize(x.astype(np.float32), scale, 0, two), scale, 0)
    signs = np.where(x >= 0, 1, -1) * np.abs(x).mean(1, keepdims=True)
    assert np.mean((naive - x) ** 2) > np.mean((signs - x) ** 2)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_zero_is_exact_and_no_scale_is_zero_or_denormal(a, b):
    for name in ("uint8", "int8", "uint4"):
        to = format_of(name)
        scale, zero = affine(min(a, b), max(a, b), to)
        assert scale >= np.finfo(np.float32).tiny
        assert dequantize(quantize(np.zeros(1, np.float32), scale, zero, to), scale, zero)[0] == 0.0


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=50), st.floats(2**-20, 1.0, width=32), st.integers(0, 255))
def test_requantize_is_round_half_to_even_of_the_float32_product(sums, multiplier, zero):
    to = format_of("uint8")
    codes = requantize(np.array(sums, np.int32), np.float32(multiplier), zero, to)
    for s, code in zip(sums, codes, strict=True):
        exact = float(np.float32(np.float32(s) * np.float32(multiplier)))
        assert code == min(max(round(exact) + zero, 0), 255)


def test_halves_go_to_the_even_neighbour():
    assert requantize(np.array([1, 3, 5, -1], np.int32), np.float32(0.5), 10, format_of("uint8")).tolist() == [10, 12, 12, 10]


def test_the_combined_scale_is_multiplied_before_it_is_divided():
    x, w, y = np.float32(0.1), np.array([0.3], np.float32), np.float32(0.7)
    assert combined_scale(x, w, y)[0] == np.float32(np.float32(x * w[0]) / y)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=33))
def test_int4_packs_and_unpacks(values):
    packed = pack_int4(np.array(values, np.int8))
    assert len(packed) == -(-len(values) // 2)
    assert unpack_int4(packed, len(values), signed=True).tolist() == values


def test_nan_and_an_unknown_format_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([np.nan], np.float32), 1.0, 0, format_of("int8"))
    with pytest.raises(BadInput, match="no number format 'int9'; use one of int32"):
        format_of("int9")


@given(st.integers(1, 5), st.integers(1, 33), st.integers(0, 99))
def test_signs_and_ternary_codes_pack_and_unpack(rows, columns, seed):
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1, 1], (rows, columns)).astype(np.int8)
    packed = pack_signs(codes)
    assert packed.shape == (rows, -(-columns // 8))
    assert np.array_equal(unpack_signs(packed, columns), codes)
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    packed = pack_ternary(codes)
    assert packed.shape == (rows, -(-columns // 4))
    assert np.array_equal(unpack_ternary(packed, columns), codes)


def test_the_first_weight_is_in_the_lowest_bits():
    assert pack_signs(np.array([[1, -1, -1, -1, -1, -1, -1, -1, -1, 1]])).tolist() == [[1, 2]]
    assert pack_ternary(np.array([[1, 0, -1, -1, 1]])).tolist() == [[2 + 1 * 4, 2]]


def test_the_scale_of_signs_is_the_best_there_is():
    """No other scale of the signs is nearer to the weights, and no other signs are (XNOR-Net, section 3.1)."""
    w = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    w[0, 0] = 0.0
    codes, scale = binary(w)
    assert codes[0, 0] == 1
    best = np.square(w - scale[:, None] * codes).sum(1)
    for factor in (0.97, 1.03):
        assert (np.square(w - factor * scale[:, None] * codes).sum(1) > best).all()
    codes[:, 3] *= -1
    assert (np.square(w - scale[:, None] * codes).sum(1) > best).all()


def test_ternary_codes_are_nearer_than_signs_and_zero_where_weights_are_small():
    w = np.random.default_rng(0).standard_normal((4, 400)).astype(np.float32)
    (signs_of, one), (codes, scale) = binary(w), ternary(w)
    assert np.square(w - scale[:, None] * codes).mean() < 0.6 * np.square(w - one[:, None] * signs_of).mean()
    threshold = 0.7 * np.abs(w).mean(1, keepdims=True)
    assert np.array_equal(codes == 0, np.abs(w) <= threshold)
    assert np.array_equal(codes[codes != 0], np.sign(w)[codes != 0])
    assert ternary(np.zeros((1, 4), np.float32))[1].tolist() == [0.0]
