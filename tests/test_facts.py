"""facts: MACs and bytes beside numbers worked out by hand."""

import json

import numpy as np
import pytest

from hasten.errors import BadInput
from hasten.facts import facts
from tests.conftest import mlp_model, model_of

FLOAT = 4
ONES = np.ones

BY_HAND = {
    # 3 × 3 kernels of 3 channels at 4 · 4 · 4 places; stride 2 halves 8 × 8.
    "Conv": (
        "(float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) { y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) }",
        {"w": ONES((4, 3, 3, 3)), "b": ONES(4)},
        (4 * 4 * 4) * (3 * 3 * 3),
        (4 * 3 * 3 * 3 + 4) * FLOAT,
        (3 * 8 * 8 + 4 * 4 * 4) * FLOAT,
    ),
    # Each of the 8 kernels sees the 2 channels of its group alone.
    "Conv in groups": (
        "(float[N, 4, 5, 5] x) => (float[N, 8, 3, 3] y) { y = Conv <group = 2> (x, w) }",
        {"w": ONES((8, 2, 3, 3))},
        (8 * 3 * 3) * (2 * 3 * 3),
        8 * 2 * 3 * 3 * FLOAT,
        (4 * 5 * 5 + 8 * 3 * 3) * FLOAT,
    ),
    # Each of 2 · 3 · 3 values goes into 4 channels of 2 × 2.
    "ConvTranspose": (
        "(float[N, 2, 3, 3] x) => (float[N, 4, 6, 6] y) { y = ConvTranspose <strides = [2, 2]> (x, w) }",
        {"w": ONES((2, 4, 2, 2))},
        (2 * 3 * 3) * (4 * 2 * 2),
        2 * 4 * 2 * 2 * FLOAT,
        (2 * 3 * 3 + 4 * 6 * 6) * FLOAT,
    ),
    "Gemm": (
        "(float[N, 8] x) => (float[N, 4] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": ONES((4, 8)), "b": ONES(4)},
        8 * 4,
        (8 * 4 + 4) * FLOAT,
        (8 + 4) * FLOAT,
    ),
    # The sum runs over the first axis of x, 5 long, and not over its last.
    "Gemm transA": (
        "(float[5, 3] x) => (float[3, 2] y) { y = Gemm <transA = 1> (x, w) }",
        {"w": ONES((5, 2))},
        3 * 2 * 5,
        5 * 2 * FLOAT,
        (5 * 3 + 3 * 2) * FLOAT,
    ),
    "MatMul by a weight": (
        "(float[N, 6, 5] x) => (float[N, 6, 7] y) { y = MatMul (x, w) }",
        {"w": ONES((5, 7))},
        6 * 7 * 5,
        5 * 7 * FLOAT,
        (6 * 5 + 6 * 7) * FLOAT,
    ),
    "MatMul of activations": (
        "(float[N, 2, 4, 5] a, float[N, 2, 5, 6] b) => (float[N, 2, 4, 6] y) { y = MatMul (a, b) }",
        {},
        2 * 4 * 6 * 5,
        0,
        (2 * 4 * 5 + 2 * 5 * 6 + 2 * 4 * 6) * FLOAT,
    ),
    # Four gates of 4 units, at 5 steps, of the 3 inputs and the 4 units before.
    "LSTM": (
        "(float[5, 1, 3] x) => (float[5, 1, 1, 4] y) { y = LSTM <hidden_size = 4> (x, w, r) }",
        {"w": ONES((1, 16, 3)), "r": ONES((1, 16, 4))},
        5 * 16 * (3 + 4),
        16 * (3 + 4) * FLOAT,
        (5 * 3 + 5 * 4) * FLOAT,
    ),
    # Nothing is multiplied by weights; a value that is read by two nodes is read twice.
    "no products": (
        "(float[N, 8] x) => (float[N, 8] y) { a = Relu (x)\n y = Add (x, a) }",
        {},
        0,
        0,
        (8 + 8 + 8 + 8 + 8) * FLOAT,
    ),
}


@pytest.mark.parametrize(("text", "weights", "macs", "weight_bytes", "activation_bytes"), BY_HAND.values(), ids=BY_HAND)
def test_a_node_by_hand(text, weights, macs, weight_bytes, activation_bytes):
    found = facts(model_of(f"m {text}", weights))
    assert (found.macs, found.weight_bytes, found.activation_bytes, found.unknown) == (macs, weight_bytes, activation_bytes, 0)
    assert (sum(r.macs for r in found.rows), sum(r.weight_bytes for r in found.rows)) == (macs, weight_bytes)
    assert found.parameters == weight_bytes // FLOAT
    assert found.intensity == macs / (weight_bytes + activation_bytes)


def test_rows_operators_and_batch():
    model = mlp_model(inputs=8, hidden=128, outputs=4)
    one, many = facts(model), facts(model, batch=5)
    assert one.operators == {"Gemm": 2, "Relu": 1}
    assert [(r.op, r.shape, r.macs, r.bits) for r in one.rows] == [
        ("Gemm", (1, 128), 1024, 32),
        ("Relu", (1, 128), 0, None),
        ("Gemm", (1, 4), 512, 32),
    ]
    assert (many.macs, many.activation_bytes, many.weight_bytes) == (5 * one.macs, 5 * one.activation_bytes, one.weight_bytes)
    assert json.loads(json.dumps(one.to_json()))["intensity"] == one.intensity
    assert [p.shape for p in model.inputs] == [("N", 8)]  # the model given is left as it is


def test_dynamic_axes_are_unknown_until_they_have_a_size():
    model = model_of("m (float[N, seq, 5] x) => (float[N, seq, 7] y) { a = Relu (x)\n y = MatMul (a, w) }", {"w": ONES((5, 7))})
    open_ = facts(model)
    assert [r.macs for r in open_.rows] == [0, None]
    assert (open_.unknown, open_.macs, open_.activation_bytes) == (2, 0, 0)  # both rows are left out of a total
    known = facts(model, {"seq": 6}, batch=2)
    assert (known.unknown, known.macs) == (0, 2 * 6 * 7 * 5)
    assert known.activation_bytes == 2 * 6 * (5 + 5 + 5 + 7) * FLOAT
    with pytest.raises(BadInput, match="the model has no dynamic axis 'length'; it has N, seq"):
        facts(model, {"length": 6})


def test_a_constant_node_is_a_weight_and_no_row():
    found = facts(model_of("m (float[N, 2] x) => (float[N, 2] y) { c = Constant <value = float[2] {1.0, 2.0}> ()\n y = Mul (x, c) }"))
    assert (found.operators, found.weight_bytes, found.parameters) == ({"Mul": 1}, 2 * FLOAT, 2)
    assert found.activation_bytes == (2 + 2) * FLOAT


def test_quantized_weights_count_as_stored():
    """DequantizeLinear of a weight is folded by every runtime: its float result is no activation that moves."""
    found = facts(
        model_of(
            "m (float[N, 8] x) => (float[N, 4] y) { w = DequantizeLinear <axis = 1> (codes, scale, zero)\n y = MatMul (x, w) }",
            {"codes": ONES((8, 4), np.int8), "scale": ONES(4, np.float32), "zero": np.zeros(4, np.int8)},
        )
    )
    assert (found.macs, found.weight_bytes) == (8 * 4, 8 * 4 + 4 * FLOAT + 4)
    assert found.activation_bytes == (8 + 4) * FLOAT
    assert next(r for r in found.rows if r.op == "MatMul").bits == 8
