"""Patches: what the kernel reads at each place, against the definition in loops; what layers make of them is tested with the layers."""

import numpy as np
import onnx_ir as ir
import pytest

from hasten.patches import Slide, drawn, patches, slide

RNG = np.random.default_rng(0)


def read(x, how):
    """The definition: (samples · places, channels, *kernel) of a batch with two spatial axes."""
    rows = []
    for sample in x:
        for place in np.ndindex(*how.out(x.shape[2:])):
            row = np.zeros((x.shape[1], *how.kernel), x.dtype)
            for tap in np.ndindex(*how.kernel):
                at = [o * s + k * d - b for o, s, k, d, (b, _) in zip(place, how.strides, tap, how.dilations, how.pads, strict=True)]
                if all(0 <= a < n for a, n in zip(at, x.shape[2:], strict=True)):
                    row[(slice(None), *tap)] = sample[(slice(None), *at)]
            rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("how", [
    Slide((3, 2), (1, 1), (1, 1), ((0, 0), (0, 0))),
    Slide((3, 2), (2, 1), (1, 2), ((1, 2), (0, 1))),
    Slide((2, 2), (1, 3), (2, 1), ((-1, 0), (2, -2))),
])  # fmt: skip
def test_all_places_and_chosen_ones(how):
    x = RNG.standard_normal((3, 2, 7, 6)).astype(np.float32)
    expected = read(x, how)
    np.testing.assert_array_equal(patches(x, how), expected)
    chosen = drawn(len(expected), np.random.default_rng(1), 5)
    np.testing.assert_array_equal(patches(x, how, chosen), expected[chosen])


@pytest.mark.parametrize("attributes, pads, out", [
    ({}, ((0, 0), (0, 0)), (4, 3)),
    ({"auto_pad": "VALID", "strides": [2, 2]}, ((0, 0), (0, 0)), (2, 2)),
    ({"auto_pad": "NOTSET", "pads": [1, 0, 2, 1]}, ((1, 2), (0, 1)), (7, 4)),
    ({"auto_pad": "SAME_UPPER", "strides": [2, 1]}, ((0, 1), (1, 2)), (3, 6)),
    ({"auto_pad": "SAME_LOWER", "dilations": [1, 2]}, ((1, 1), (3, 3)), (6, 6)),
])  # fmt: skip
def test_padding_of_each_kind(attributes, pads, out):
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")], attributes)
    found = slide(node, (3, 4), (6, 6))
    assert (found.pads, found.out((6, 6))) == (pads, out)


def test_so_many_are_drawn_in_order_and_all_where_there_are_no_more():
    assert drawn(4, RNG, 4).tolist() == [0, 1, 2, 3]
    some = drawn(100, RNG, 10)
    assert len(set(some.tolist())) == 10 and some.tolist() == sorted(some.tolist())
