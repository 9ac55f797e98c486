"""cluster_weights: so many values and no more, zeros stay, the centres are the best there are, and what data shows counts."""

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import check, plan
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput
from hasten.model import Model
from hasten.plan import Plan, PlannedStep
from hasten.shrink.cluster_weights import STARTS, ClusterWeights, cluster, cluster_weights, clustered, observe
from hasten.task import Task
from tests.conftest import mlp_model, model_of

RNG = np.random.default_rng(0)


def weights(model: Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy() for n, v in model.ir.graph.initializers.items()}


def pruned(model: Model, share: float) -> Model:
    """The model with that share of each matrix exactly 0."""
    edited = model.edit()
    for value in edited.graph.initializers.values():
        array = value.const_value.numpy()
        if array.ndim > 1:
            value.const_value = ir.Tensor(np.where(np.abs(array) < np.quantile(np.abs(array), share), 0, array).astype(array.dtype))
    return Model(edited)


def squared(array, made, mass=1.0) -> float:
    return float((mass * (array.astype(np.float64) - made) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_at_most_so_many_values_and_every_zero_stays(data):
    count, start = data.draw(st.sampled_from([2, 3, 4, 16, 256])), data.draw(st.sampled_from(STARTS))
    numbers = st.floats(-4, 4, width=16) | st.sampled_from([0.0, 1.0, -1.0])
    array = np.array(data.draw(st.lists(numbers, min_size=1, max_size=300)), data.draw(st.sampled_from([np.float32, np.float16])))
    mass = RNG.random(array.shape) if data.draw(st.booleans()) else None
    made = cluster(array, count, mass, start)
    assert made.dtype == array.dtype and made.shape == array.shape
    assert len(np.unique(made)) <= count
    assert (made[array == 0] == 0).all()
    assert made.min() >= min(array.min(), 0) and made.max() <= max(array.max(), 0)
    if len(np.unique(array)) <= count and start == "optimal":
        np.testing.assert_allclose(made, array, rtol=1e-3, atol=1e-6)


def test_the_optimum_of_few_numbers_is_found():
    """Against every way to cut the sorted numbers into intervals."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        array, mass = np.sort(rng.standard_normal(12)).astype(np.float32) + 5, rng.random(12)
        found = squared(array, cluster(array, 4, mass), mass)
        least = np.inf
        for cuts in itertools.combinations(range(1, 12), 3):
            parts = np.split(np.arange(12), cuts)
            least = min(least, sum(squared(array[p], np.average(array[p], weights=mass[p]), mass[p]) for p in parts))
        assert found == pytest.approx(least, rel=1e-4)


def test_optimal_beats_linear_and_both_beat_even_steps():
    array = RNG.standard_t(4, 20_000).astype(np.float32)
    even = np.linspace(array.min(), array.max(), 16)
    errors = [squared(array, cluster(array, 16, start=start)) for start in STARTS]
    assert errors[0] < errors[1] < squared(array, even[np.abs(array[:, None] - even).argmin(axis=1)])


def test_the_layers_have_few_values_and_biases_are_left_alone():
    model = mlp_model()
    made = cluster_weights(model, ClusterWeights(bits=3), None)
    check.legal(made)
    found = weights(made)
    assert {n: len(np.unique(a)) for n, a in found.items() if a.ndim > 1} == {"w1_clustered": 8, "w2_clustered": 8}
    assert all((found[b] == weights(model)[b]).all() for b in ("b1", "b2"))
    assert made.history[-1].changed == 2
    feeds = check.random_feeds(model, 16)
    (a,), (b,), (c,) = (check.oracle(m).run(None, feeds) for m in (model, made, cluster_weights(model, ClusterWeights(bits=8), None)))
    assert np.linalg.norm(a - c) < 0.02 * np.linalg.norm(a) < np.linalg.norm(a - b) < 0.4 * np.linalg.norm(a)


def test_biases_are_clustered_where_they_are_asked_for():
    model = pruned(mlp_model(), 0.5)
    made = cluster_weights(model, ClusterWeights(bits=4, bits_bias=3), None)
    check.legal(made)
    found = weights(made)
    assert len(np.unique(found["b1_clustered"])) == 8 and len(np.unique(found["w1_clustered"])) == 16
    assert np.array_equal(found["b2"], weights(model)["b2"]), "four numbers are no more than eight"
    assert set(clustered(made, ClusterWeights(bits=4, bits_bias=3))) == {"w1_clustered", "b1_clustered", "w2_clustered", "b2"}
    assert set(clustered(made, ClusterWeights(bits=4))) == {"w1_clustered", "w2_clustered"}
    assert clustered(model, ClusterWeights(bits=2)) == []


def test_what_is_pruned_stays_pruned_and_zero_is_one_of_the_values():
    model = pruned(mlp_model(), 0.9)
    made = cluster_weights(model, ClusterWeights(bits=2), None)
    for name in ("w1", "w2"):
        before, after = weights(model)[name], weights(made)[f"{name}_clustered"]
        assert ((before == 0) == (after == 0)).all()
        assert len(np.unique(after)) == 4


def test_convolutions_may_have_bits_of_their_own():
    model = model_of(
        "m (float[N, 3, 8, 8] x) => (float[N, 5] y) { a = Conv (x, k) b = GlobalAveragePool (a) c = Flatten (b) y = MatMul (c, w) }",
        {"k": RNG.standard_normal((40, 3, 3, 3)), "w": RNG.standard_normal((40, 5))},
    )
    found = weights(cluster_weights(model, ClusterWeights(bits=5, bits_conv=8), None))
    assert 32 < len(np.unique(found["k_clustered"])) <= 256
    assert len(np.unique(found["w_clustered"])) == 32


def test_what_is_left_alone_says_why():
    model = model_of(
        """m (float[N, 4] x) => (float[N, 4] y) {
            [few] a = MatMul (x, w)
            [sum] b = Add (a, table)
            [out] c = MatMul (b, v)
            [twice] d = MatMul (c, v2)
            y = MatMul (d, v2)
        }""",
        {
            "w": np.sign(RNG.standard_normal((4, 4))),
            "table": RNG.standard_normal((1, 4)),
            **{v: RNG.standard_normal((4, 4)) for v in ("v", "v2")},
        },
    )
    made = cluster_weights(model, ClusterWeights(bits=1, exclude=("out",)), None)
    whys = {s.node: s.why for s in made.history[-1].skipped}
    assert "no more than 2 distinct values as they are" in whys["few"]
    assert "not the weights of a layer alone: Add reads it as something else" in whys["sum"]
    assert whys["out"] == "excluded by the settings"
    assert made.history[-1].changed == 2


def test_biases_of_two_axes_are_left_alone():
    shapes = {"w": (1, 32, 5), "r": (1, 32, 8), "b": (1, 64), "v": (8, 20), "c": (1, 20)}
    model = model_of(
        """m (float[T, N, 5] x) => (float[N, 20] y) {
            a, h = LSTM <hidden_size = 8> (x, w, r, b)
            f = Flatten <axis = 2> (h)
            y = Gemm (f, v, c)
        }""",
        {name: RNG.standard_normal(shape) for name, shape in shapes.items()},
    )
    made = cluster_weights(model, ClusterWeights(), None)
    assert {n for n in weights(made) if n.endswith("_clustered")} == {"w_clustered", "r_clustered", "v_clustered"}
    assert [s.why for s in made.history[-1].skipped] == [
        "'b' is not the weights of a layer alone: LSTM reads it as something else",
        "'c' is not the weights of a layer alone: Gemm reads it as something else",
    ]


def test_what_data_shows_makes_the_outputs_error_smaller():
    """Half of the inputs are small, and their weights large."""
    scale = np.repeat([1.0, 0.05], 16)
    model = model_of(
        "m (float[N, 32] x) => (float[N, 24] y) { y = MatMul (x, w) }", {"w": RNG.standard_normal((32, 24)) / np.sqrt(scale)[:, None]}
    )
    x = (RNG.standard_normal((200, 32)) * scale).astype(np.float32)
    task = Task(x).bind(model)
    seen = observe(model, ClusterWeights(bits=2), task)
    name = next(n.name for n in model.ir.graph)
    assert len(seen["moments"][name]) == 32 and min(seen["moments"][name][:16]) > 50 * max(seen["moments"][name][16:])
    (a,), (plain,), (aware,) = (
        check.oracle(m).run(None, {"x": x})
        for m in (model, cluster_weights(model, ClusterWeights(bits=2), None), cluster_weights(model, ClusterWeights(bits=2), task))
    )
    errors = [np.linalg.norm(a - y) for y in (aware, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_a_plan_that_ran_replays_without_data(digits_cnn, digits):
    model = load_onnx(digits_cnn)
    todo = Plan((PlannedStep("fold_batchnorm", plan.make_settings("fold_batchnorm", {})), PlannedStep("cluster_weights", ClusterWeights())))
    made, done = plan.run(todo, model, Task(digits).bind(model))
    again, _ = plan.run(Plan.from_json(done.to_json()), load_onnx(digits_cnn), None)
    assert again.to_bytes() == made.to_bytes()
    assert plan.run(todo, model, None)[0].digest != made.digest


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bits": 0}, "bits is 0, expected 1 to 8"),
        ({"bits": 9}, "bits is 9, expected 1 to 8"),
        ({"bits_conv": 9}, "bits_conv is 9"),
        ({"start": "random"}, "start is 'random', expected one of optimal, linear"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_settings_that_can_not_be_are_refused(values, says):
    with pytest.raises(BadInput, match=says):
        ClusterWeights(**values)
    assert dataclasses.asdict(ClusterWeights())["bits"] == 4
