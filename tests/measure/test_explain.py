"""Attributions: known ranks, known regions, 1 for the same model, and a model that looks elsewhere is found out."""

import json

import numpy as np
import pytest

from hasten.data.source import Arrays
from hasten.errors import BadInput
from hasten.measure.contestant import enter
from hasten.measure.explain import Masked, explain, ranks, spearman, top_overlap
from hasten.measure.spread import spreads
from hasten.model import Port
from hasten.runtimes import Target
from hasten.task import Task
from tests.conftest import model_of

RNG = np.random.default_rng(0)


def test_spearman_against_known_values():
    # The example of IQ and hours of television in textbooks: −29/165.
    iq, hours = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(np.array(iq), np.array(hours)) == pytest.approx(-29 / 165)
    # With ties, Pearson's on the mean ranks [1, 2.5, 2.5, 4] and [1, 2, 3, 4]: 4.5 / √(4.5 · 5).
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(22.5))
    np.testing.assert_array_equal(ranks(np.array([5, 1, 5, 5, 2])), [4, 1, 4, 4, 2])
    a = RNG.standard_normal(50)
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(np.ones(3), np.ones(3)) == 1
    assert spearman(np.ones(3), np.arange(3)) == 0


def test_top_overlap():
    assert top_overlap(np.array([9, 8, 1, 0]), np.array([8, 9, 0, 1]), 2) == 1
    assert top_overlap(np.array([9, 8, 1, 0]), np.array([0, 9, 8, 1]), 2) == 0.5
    assert top_overlap(np.array([9, 8, 1, 0]), np.array([0, 1, 8, 9]), 2) == 0


def net(weights):
    """A linear model of pictures: score 1 is Σ x · weights, score 0 its negative."""
    flat = np.stack([-weights.reshape(-1), weights.reshape(-1)], 1)
    return model_of("m (float[N, 1, 14, 14] x) => (float[N, 2] y) { f = Flatten (x)\n y = MatMul (f, w) }", {"w": flat.astype(np.float32)})


PICTURES = RNG.random((60, 1, 14, 14)).astype(np.float32)
LEFT, RIGHT = np.zeros((14, 14)), np.zeros((14, 14))
LEFT[:, :7], RIGHT[:, 7:] = RNG.random((14, 7)) + 0.5, RNG.random((14, 7)) + 0.5


def of(tmp_path, first, second, data=PICTURES, **more):
    sides = [enter(m, tmp_path, target=Target(1)) for m in (first, second)]
    return explain(sides[0].subject, sides[1].subject, Task(data).bind(sides[0].model), sides[0].model.inputs, **more)


def test_the_same_model_twice_gives_1(tmp_path):
    found = of(tmp_path, net(LEFT), net(LEFT), samples=8)
    assert (found.samples, found.regions) == (8, 49)
    assert (found.correlation.estimate, found.overlap.estimate, found.lowest) == (1, 1, 1)
    assert (found.correlation.high, found.overlap.high) == (1, 1)
    assert found.chance == pytest.approx(5 / 49)
    json.dumps(found.to_json())


def test_a_model_that_looks_elsewhere_is_found_out_and_one_that_is_scaled_is_not(tmp_path):
    elsewhere = of(tmp_path, net(LEFT), net(RIGHT), samples=12)
    assert elsewhere.correlation.high < 0.5
    assert elsewhere.overlap.high < 0.5
    assert of(tmp_path, net(LEFT), net(3 * LEFT), samples=12).correlation.estimate > 0.999
    nearly = of(tmp_path, net(LEFT), net(LEFT + 0.05 * RNG.standard_normal((14, 14))), samples=12)
    assert 0.8 < nearly.lowest < 1


def test_an_attribution_is_what_the_score_loses():
    about = spreads([Port("x", "float32", ("N", 1, 14, 14))], {"x": PICTURES})
    grid = (np.arange(14) // 2)[:, None] * 7 + np.arange(14) // 2
    masked = Masked(Arrays({"x": PICTURES}), about, {"x": grid[None]}, 49)
    assert len(masked) == 60 * 50
    x = masked.take(np.array([3 * 50, 3 * 50 + 1 + 8]))["x"]
    np.testing.assert_array_equal(x[0], PICTURES[3])
    expected = PICTURES[3].copy()
    expected[:, 2:4, 2:4] = PICTURES.mean()
    np.testing.assert_allclose(x[1], expected, rtol=1e-6)


def test_tokens_and_features(tmp_path):
    ids = np.concatenate([np.full((40, 1), 9), RNG.integers(1, 9, (40, 5)), np.zeros((40, 2), int)], 1)
    table = RNG.standard_normal((10, 3))
    words = model_of(
        "m (int64[N, 8] ids) => (float[N, 3] y) { e = Gather (table, ids)\n y = ReduceSum <keepdims = 0> (e, axis) }",
        {"table": table, "axis": np.array([1])},
    )
    found = of(tmp_path, words, words, ids, samples=10)
    assert (found.correlation.estimate, found.regions) == (1, 5), "neither the start token nor what is the same in all"
    features = model_of("m (float[N, 100] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": RNG.standard_normal((100, 3))})
    found = of(tmp_path, features, features, RNG.standard_normal((40, 100)).astype(np.float32), samples=10)
    assert (found.correlation.estimate, found.regions) == (1, 64)


def test_what_can_not_be_explained_is_refused(tmp_path):
    same = model_of("m (float[N, 8] x) => (float[N, 2, 4] y) { y = Reshape (x, s) }", {"s": np.array([-1, 2, 4])})
    with pytest.raises(BadInput, match=r"--explain wants class scores, \(N, C\) floats.*is float32 \[N, 2, 4\].*leave --explain out"):
        of(tmp_path, same, same, RNG.standard_normal((40, 8)).astype(np.float32))
    single = model_of("m (float[N, 1] x) => (float[N, 2] y) { y = Concat <axis = 1> (x, x) }")
    with pytest.raises(BadInput, match="--explain: there is nothing to hide"):
        of(tmp_path, single, single, RNG.standard_normal((40, 1)).astype(np.float32))
