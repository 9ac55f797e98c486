"""packing: a tensor of every kind in every layout and back, and the layout that is chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import packing
from hasten.packing import CODES, GAPS, MASK, NONE, PLANES, RAW, Layout, choose, entropy, pieces_of, restore, tight

RNG = np.random.default_rng(0)


def arrays():
    """Arrays of every kind that a model may hold, with the patterns that the layouts are made for."""
    dtypes = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_, np.uint16]
    shapes = st.sampled_from([(), (0,), (1,), (3, 0, 2), (17,), (5, 7), (4, 3, 3, 3), (300, 2), (1, 600)])
    patterns = st.sampled_from(["noise", "few", "zeros", "sparse", "sparse few", "channels", "minus zero", "long gaps"])
    return st.tuples(st.sampled_from(dtypes), shapes, patterns, st.integers(0, 99)).map(lambda t: made(*t))


def made(dtype, shape, pattern, seed) -> np.ndarray:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape) * 50
    if "few" in pattern:
        array = rng.choice([1.5, -2.0, 3.0, 70.0, -0.25], shape)
    if "sparse" in pattern:
        array = np.where(rng.random(shape) < 0.9, 0, array)
    if pattern == "zeros":
        array = np.zeros(shape)
    if pattern == "channels" and array.ndim > 1:
        array[::2] = 0
    if pattern == "minus zero":
        array = np.where(rng.random(shape) < 0.5, -0.0, 0.0) * np.ones(shape)
    if pattern == "long gaps":
        array = np.where(rng.random(shape) < 0.002, array, 0)
    return np.asarray(array).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(array=arrays())
def test_a_tensor_of_every_kind_comes_back_in_every_layout(array):
    data, size, first = array.tobytes(), array.itemsize, array.shape[0] if array.ndim else 1
    layout, pieces = choose(data, size, first)
    assert [(kind, len(piece)) for kind, piece in pieces] == pieces_of(layout, size, array.size)
    assert restore(layout, size, first, array.size, [piece for _, piece in pieces]) == data
    assert tight(data, size) <= len(data)
    # The choice was one of these: each of them must come back.
    elements = np.frombuffer(data, f"<u{size}")
    book = packing._book(elements)
    for where in (NONE, MASK, GAPS):
        kept = elements[elements != 0] if where else elements
        places = packing._places(elements, where)
        base = Layout(where, nonzero=len(kept) if where else 0, gaps=len(places[0][1]) if where == GAPS else 0)
        for way, values in packing._values(kept, size, base, book):
            parts = places + values
            assert [(kind, len(piece)) for kind, piece in parts] == pieces_of(way, size, array.size)
            assert restore(way, size, first, array.size, [piece for _, piece in parts]) == data


def test_the_estimates():
    assert entropy(b"") == 0
    assert entropy(bytes(1000)) == 0
    assert entropy(bytes(range(256)) * 4) == pytest.approx(1024)
    # 1000 elements of 4 bytes, 10 of them not zero: 1000 bits of mask, or about 10 gaps of some bits, and the book of one number.
    array = np.zeros(1000, np.float32)
    array[::100] = 2
    assert tight(array.tobytes(), 4) < 30


def test_layouts_are_those_that_were_meant():
    few = RNG.choice(np.array([1.5, -2, 0.25, 8], np.float32), 5000)
    assert choose(few.tobytes(), 4, 1)[0].values == CODES
    assert choose(RNG.standard_normal(5000).astype(np.float32).tobytes(), 4, 1)[0].values == PLANES
    assert choose(RNG.integers(-128, 128, 5000).astype(np.int8).tobytes(), 1, 1)[0] == Layout(NONE, RAW)
    sparse = np.where(RNG.random(5000) < 0.99, 0, few)
    assert choose(sparse.tobytes(), 4, 1)[0].zeros == GAPS
    columns = np.zeros((50, 400), np.uint8)
    columns[:, RNG.random(400) < 0.5] = RNG.integers(1, 200, (50, 1))
    assert choose(columns.tobytes(), 1, 50)[0].turned or choose(columns.T.tobytes(), 1, 400)[0].turned
