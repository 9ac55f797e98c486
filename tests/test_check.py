"""check: the oracle is un-optimised, the tolerance has a name, and a wrong model fails."""

import numpy as np
import pytest

from hasten import check
from hasten.errors import CheckFailed
from tests.conftest import mlp_model, model_of


def scaled(factor: float):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 4)) * factor
    return model_of("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": w})


def test_the_same_model_is_the_same_to_the_bit():
    check.same(mlp_model(), mlp_model(), within=check.BITS)


def test_a_model_with_weights_one_percent_too_large_fails():
    with pytest.raises(CheckFailed, match="of its scale"):
        check.same(scaled(1.0), scaled(1.01), within=check.FLOAT32)
    check.same(scaled(1.0), scaled(1.0 + 1e-6), within=check.FLOAT32)


def test_another_shape_type_or_name_fails():
    one = model_of("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    other = model_of("g (float[N, 2] x) => (float[N, 2] z) { z = Relu(x) }")
    with pytest.raises(CheckFailed, match="outputs are"):
        check.same(one, other, within=check.FLOAT32)


def test_random_ids_stay_inside_the_table():
    model = model_of("g (int64[N, 5] ids) => (float[N, 5, 3] y) { y = Gather(table, ids) }", {"table": np.zeros((7, 3))})
    ids = np.concatenate([check.random_feeds(model, 50, seed=s)["ids"].ravel() for s in range(5)])
    assert ids.min() == 0
    assert ids.max() == 6


def test_nan_in_other_places_fails():
    one = model_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    other = model_of("g (float[N] x) => (float[N] y) { y = Log(x) }")
    with pytest.raises(CheckFailed, match="NaN"):
        check.same(one, other, within=check.FLOAT32, feeds=[{"x": np.array([-1, 1], np.float32)}])


def test_legal_refuses_duplicate_node_names():
    model = mlp_model()
    edited = model.edit()
    for node in edited.graph:
        node.name = "same"
    from hasten.model import Model

    with pytest.raises(CheckFailed, match="no name, or two have the same"):
        check.legal(Model(edited))
