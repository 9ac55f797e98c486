"""What lives at once, measured while torch runs a graph, beside what is computed from its shapes."""

import numpy as np
import pytest

from hasten import check
from hasten.learn.live_memory import measured_peak
from hasten.memory import peak
from hasten.passes.order_nodes import OrderNodes, order_nodes
from tests.conftest import model_of

BRANCHES = """g (float[1, 1000] x) => (float[1, 1] y) {
    a = Sin (x) b = Cos (x) c = Exp (x) d = Tanh (x)
    e = MatMul (a, w) f = MatMul (b, w) g0 = MatMul (c, w) h = MatMul (d, w)
    i = Add (e, f) j = Add (g0, h) y = Add (i, j)
}"""


@pytest.fixture
def model():
    """Four wide values, each summed to one number: wasteful in this order."""
    return model_of(BRANCHES, {"w": np.ones((1000, 1))})


def test_a_better_order_lowers_the_measured_peak_as_computed(model):
    better = order_nodes(model, OrderNodes(), None)
    feeds = check.random_feeds(model, 1)
    for made in (model, better):
        computed, measured = peak(made).bytes, measured_peak(made, feeds)
        assert computed <= measured <= computed + 4000 + 64, "the caller of the module holds its input, 4,000 bytes, to the end"
    assert measured_peak(better, feeds) < 0.7 * measured_peak(model, feeds)


def test_weights_and_views_do_not_count(model):
    text = "g (float[2, 50] x) => (float[50, 2] y) { s = Add (x, w) r = Reshape (s, shape) t = Transpose (r) y = Transpose (t) }"
    made = model_of(text, {"w": np.ones((2, 50)), "shape": np.array([50, 2])})
    assert measured_peak(made, check.random_feeds(made, 1)) == 2 * 2 * 50 * 4
