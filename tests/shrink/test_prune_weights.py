"""prune_weights: exactly what was asked for goes, in every layout; methods that see data lose less; what stays dense says why; refusals."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import check, plan
from hasten.data.source import Arrays
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.graph import constant
from hasten.model import Model
from hasten.plan import Plan, PlannedStep
from hasten.shrink import inputs
from hasten.shrink import prune_weights as technique
from hasten.shrink.masks import mask, masks_of_all, pattern_of, smallest
from hasten.shrink.prune_weights import PruneWeights, prune_weights
from hasten.shrink.sparsegpt import solve
from hasten.shrink.weights import ends, weights
from hasten.task import Split, Task, without_data
from tests.conftest import mlp_model, model_of

METHODS = ("magnitude", "wanda", "sparsegpt")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(count: int, *shape: int) -> np.ndarray:
    """Samples whose channels hang together and have very different sizes, and so do neighbours in pictures, as the activations of networks do."""
    rng, size = np.random.default_rng(1), shape[0]
    mix = rng.standard_normal((size, size)) * np.exp(rng.standard_normal(size)) / size**0.5
    x = np.moveaxis(np.moveaxis(rng.standard_normal((count, *shape)), 1, -1) @ mix, -1, 1)
    for axis in range(2, len(shape) + 1):
        x = x + np.roll(x, 1, axis) + 0.5 * np.roll(x, 2, axis)
    return np.maximum(x, -0.2).astype(np.float32)


every = functools.partial(PruneWeights, first_last=True)
"""Settings with which no layer is spared."""


def observed(model: Model, x: np.ndarray):
    """A task whose samples x calibrate."""
    split = Split(Arrays({model.inputs[0].name: x}), None, np.arange(len(x)))
    return dataclasses.replace(without_data(), calibrate=split, output=model.outputs[0].name)


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {name: constant(v) for name, v in model.ir.graph.initializers.items()}


# --- matrices: what a row is summed with

LAYERS = {
    "conv": ("Conv <pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]> (x, w)", (6, 4, 3, 2), (3, 4, 9, 8)),
    "grouped": ("Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)", (6, 2, 3, 3), (3, 4, 5, 5)),
    "same": ('Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)', (2, 4, 4, 4), (3, 4, 7, 7)),
    "line": ("Conv <pads = [2, 2]> (x, w)", (5, 4, 3), (3, 4, 9)),
    "transposed": ("ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 0]> (x, w)", (4, 6, 3, 3), (3, 4, 5, 4)),
    "transposed, grouped": ("ConvTranspose <group = 2, strides = [2, 1], dilations = [1, 2]> (x, w)", (4, 3, 3, 2), (3, 4, 5, 4)),
    "transposed, cut": ("ConvTranspose <pads = [2, 2, 2, 2]> (x, w)", (4, 6, 2, 2), (3, 4, 5, 5)),
    "gemm": ("Gemm (x, w)", (4, 6), (3, 4)),
    "gemm, turned": ("Gemm <transB = 1> (x, w)", (6, 4), (3, 4)),
    "gemm, both turned": ("Gemm <transA = 1, transB = 1> (x, w)", (6, 4), (4, 3)),
    "matmul": ("MatMul (x, w)", (4, 6), (3, 5, 4)),
}


def layer(name: str) -> Model:
    text, shape, x = LAYERS[name]
    sizes = ", ".join(str(n) for n in x)
    return model_of(
        f"g (float[{sizes}] x) => (float[{', '.join(f'a{i}' for i in range(len(x)))}] y) {{ y = {text} }}", {"w": random(*shape)}
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_product_of_its_columns_and_its_matrix(name):
    model, (_, shape, size) = layer(name), LAYERS[name]
    x = random(*size, seed=1).astype(np.float32)
    (y,) = check.oracle(model).run(None, {"x": x})
    (w,), skipped = weights(model.ir.graph)
    assert not skipped
    array = arrays(model)["w"]
    np.testing.assert_array_equal(w.back(w.matrix(array)), array)
    (node,) = model.ir.graph
    found = inputs.columns(node, shape, x)
    parts = w.matrix(array).reshape(len(found), -1, found.shape[2])
    outputs = np.concatenate([c @ m.T for c, m in zip(found, parts, strict=True)], axis=1)
    flat = np.moveaxis(y, 1, -1).reshape(-1, w.rows) if node.op_type.startswith("Conv") else y.reshape(-1, w.rows)
    np.testing.assert_allclose(outputs, flat, rtol=0, atol=1e-4)


def test_recurrent_weights_have_a_row_for_each_unit_of_a_gate():
    model = model_of(
        "g (float[5, N, 4] x) => (float[5, 1, N, 3] y) { y = LSTM <hidden_size = 3> (x, w, r) }",
        {"w": random(1, 12, 4), "r": random(1, 12, 3)},
    )
    found, _ = weights(model.ir.graph)
    assert [(w.name, w.rows, w.width) for w in found] == [("w", 12, 4), ("r", 12, 3)]
    made = prune_weights(model, every(pattern="2:4"), None)
    assert np.all((arrays(made)["w"].reshape(-1, 4) != 0).sum(1) == 2)
    (why,) = [s.why for s in made.history[-1].skipped if s.node]
    assert why == "4 of 2:4 does not divide its 3 inputs"
    with pytest.raises(Refused, match="the inputs of a recurrent layer's weights are inside it; method magnitude needs none"):
        prune_weights(model, every(method="wanda"), observed(model, np.zeros((5, 2, 4), np.float32)))


# --- masks


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(["unstructured", "1:4", "2:4", "3:4", "1x4", "2x2", "4x1"]),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_exactly_so_many_go_and_they_are_the_smallest(rows, columns, text, share, by_row):
    scores = np.abs(random(4 * rows, 4 * columns, seed=rows * 7 + columns))
    pattern = pattern_of("p", text)
    share = pattern.sparsity or share
    gone = mask(scores, pattern, share, by_row=by_row)
    if pattern.of:
        groups, kept = gone.reshape(-1, 4), scores.reshape(-1, 4)
        assert np.all(groups.sum(1) == 4 - pattern.kept)
        assert all(kept[i][groups[i]].max() <= kept[i][~groups[i]].min() for i in range(len(kept)))
        return
    blocks = gone.reshape(gone.shape[0] // pattern.rows, pattern.rows, gone.shape[1] // pattern.columns, pattern.columns)
    whole = blocks.all(axis=(1, 3))
    assert np.array_equal(whole, blocks.any(axis=(1, 3)))
    if by_row:
        assert np.all(whole.sum(1) == round(share * whole.shape[1]))
    else:
        assert whole.sum() == round(share * whole.size)
    size = (scores**2).reshape(blocks.shape).sum(axis=(1, 3))
    if not by_row and whole.any() and not whole.all():
        assert size[whole].max() <= size[~whole].min()


def test_of_equal_scores_the_first_go():
    assert smallest(np.array([1.0, 0.0, 1.0, 1.0, 2.0]), 3).tolist() == [True, True, True, False, False]
    assert smallest(np.ones(3), 0).tolist() == [False, False, False]
    assert smallest(np.ones(3), 3).all()


def test_a_share_below_that_of_n_of_m_takes_the_groups_that_lose_least():
    scores = np.array([[4.0, 3, 2, 1, 40, 30, 20, 10]])
    gone = mask(scores, pattern_of("p", "2:4"), 0.25)
    assert gone.tolist() == [[False, False, True, True, False, False, False, False]]


def test_one_threshold_for_all_layers_and_one_for_each():
    small, large = np.abs(random(4, 8)) * 0.1, np.abs(random(4, 8, seed=1)) + 1
    a, b = masks_of_all([small, large], pattern_of("p", "unstructured"), 0.5)
    assert a.all() and not b.any()
    model = model_of(
        "g (float[N, 8] x) => (float[N, 8] y) { h = Gemm (x, w) y = Gemm (h, v) }", {"w": random(8, 8) * 0.01, "v": random(8, 8, seed=1)}
    )
    made = {scope: arrays(prune_weights(model, every(0.5, scope=scope), None)) for scope in ("layer", "global")}
    assert [int((made["layer"][n] == 0).sum()) for n in "wv"] == [32, 32]
    counts = [int((made["global"][n] == 0).sum()) for n in "wv"]
    assert sum(counts) == 64 and counts[0] > 60
    adaptive = arrays(prune_weights(model, every(0.5, scope="adaptive"), None))
    assert sum(int((adaptive[n] == 0).sum()) for n in "wv") == 64
    assert all(20 < int((adaptive[n] == 0).sum()) < 44 for n in "wv"), "the size of a layer's weights does not count"


def test_layer_adaptive_magnitudes_are_the_papers():
    """By the definition, weight by weight; no layer is lost whole, however much is asked for."""
    scores = [np.abs(random(3, 4)), np.abs(random(2, 5, seed=1)) * 1e-3]
    expected = [np.array([x**2 / np.sum(np.square(s[s >= x])) for x in s.ravel()]) for s in scores]
    form = pattern_of("p", "unstructured")
    for share in (0.1, 0.5, 0.8):
        threshold = np.sort(np.concatenate(expected))[round(share * 22) - 1]
        for gone, score in zip(masks_of_all(scores, form, share, adaptive=True), expected, strict=True):
            assert np.array_equal(gone.ravel(), score <= threshold)
    assert [int((~gone).sum()) for gone in masks_of_all(scores, form, 20 / 22, adaptive=True)] == [1, 1]


# --- models


@pytest.fixture(scope="module")
def net() -> Model:
    """Every kind of layer: x (N, 4, 6, 6) → y (N, 5)."""
    return model_of(
        """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <group = 2, pads = [1, 1, 1, 1]> (b, w2)
            d = Relu (c)
            e = Conv <group = 8, pads = [1, 1, 1, 1]> (d, depthwise)
            f = GlobalAveragePool (e)
            h = Flatten (f)
            i = MatMul (h, w3)
            j = Relu (i)
            k = Gemm (j, w4)
            y = Gemm <transB = 1> (k, w5)
        }""",
        {
            "w1": random(8, 4, 3, 3), "b1": random(8), "w2": random(8, 4, 3, 3), "depthwise": random(8, 1, 3, 3),
            "w3": random(8, 8), "w4": random(8, 8), "w5": random(5, 8),
        },
    )  # fmt: skip


PRUNED = ("w1", "w2", "w3", "w4", "w5")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "1x4", "4x1"])
def test_every_layer_has_the_pattern_and_nothing_else_changes(net, method, pattern):
    task = observed(net, correlated(12, 4, 6, 6))
    chosen = every(None if ":" in pattern else 0.5, pattern, method)
    made = prune_weights(net, chosen, task)
    check.legal(made)
    assert made.structure == net.structure
    before, after = arrays(net), arrays(made)
    assert all(np.array_equal(before[n], after[n]) for n in ("b1", "depthwise"))
    step = made.history[-1]
    fits = PRUNED if pattern != "4x1" else PRUNED[:-1]
    assert step.changed == len(fits)
    found, _ = weights(made.ir.graph)
    form = chosen.form
    for w in found:
        if w.name not in fits:
            continue
        matrix = w.matrix(after[w.name]) != 0
        if form.of:
            assert np.all(matrix.reshape(-1, form.of).sum(1) == form.kept)
            if w.op == "Conv":  # of the channels at one place of the kernel
                assert np.all((after[w.name].reshape(8, -1, form.of, 3, 3) != 0).sum(2) == form.kept)
        else:
            blocks = matrix.reshape(w.rows // form.rows, form.rows, -1, form.columns)
            assert np.array_equal(blocks.any(axis=(1, 3)), blocks.all(axis=(1, 3)))
            assert (~matrix).sum() == w.size // 2 or method == "wanda"  # wanda: half of each row, to the nearest block
        if method != "sparsegpt":
            assert np.array_equal(after[w.name][after[w.name] != 0], before[w.name][after[w.name] != 0])
    reasons = {s.node: s.why for s in step.skipped}
    (depthwise,) = [n.name for n in net.ir.graph if n.inputs and len(n.inputs) > 1 and n.inputs[1].name == "depthwise"]
    assert reasons[depthwise] == "it is depthwise: its 9 weights a channel are few, and each counts"
    assert "weights are zero (" in reasons[""]


def output_error(before: Model, after: Model, x: np.ndarray) -> float:
    (a,), (b,) = (check.oracle(m).run(None, {m.inputs[0].name: x}) for m in (before, after))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x4"])
@pytest.mark.parametrize("kind", ["gemm", "conv", "grouped"])
def test_methods_that_see_the_inputs_lose_less_of_the_output(kind, pattern):
    """On inputs that they have not seen, of the same distribution."""
    texts = {
        "gemm": ("Gemm <transB = 1> (x, w)", (24, 32), (32,)),
        "conv": ("Conv <pads = [1, 1, 1, 1]> (x, w)", (16, 8, 3, 3), (8, 6, 6)),
        "grouped": ("Conv <group = 2> (x, w)", (16, 4, 3, 3), (8, 6, 6)),
    }
    text, shape, size = texts[kind]
    sizes = ", ".join(map(str, size))
    model = model_of(f"g (float[N, {sizes}] x) => (float[N, {', '.join('abc'[: len(size)])}] y) {{ y = {text} }}", {"w": random(*shape)})
    x = correlated(1000, *size)
    sparsity = None if ":" in pattern else 0.5
    errors = {
        m: output_error(model, prune_weights(model, every(sparsity, pattern, m, samples=900), observed(model, x[:900])), x[900:])
        for m in METHODS
    }
    assert errors["wanda"] < errors["magnitude"]
    assert errors["sparsegpt"] < errors["wanda"]


def test_one_column_is_the_surgeon_of_the_textbook():
    """With one weight of one row to go, the others become what least squares makes of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 4))
    w = rng.standard_normal((1, 4))
    w[0, 0] = 0.01
    made = solve(w, x.T @ x, pattern_of("p", "unstructured"), 0.25)
    assert made[0, 0] == 0
    best = np.linalg.lstsq(x[:, 1:], x @ w[0], rcond=None)[0]
    np.testing.assert_allclose(made[0, 1:], best, rtol=0, atol=0.01)  # the damping


def test_several_blocks_of_columns_have_the_share_together():
    w, x = random(6, 300), correlated(400, 300)
    for text, share in (("unstructured", 0.37), ("2x2", 0.3)):
        made = solve(w, x.T @ x, pattern_of("p", text), share)
        units = made.reshape(3, 2, 150, 2).any(axis=(1, 3)) if "x" in text else made != 0
        assert (~units).sum() == round(share * units.size)


def test_inputs_that_are_always_zero_go_first():
    x = correlated(100, 16)
    x[:, ::2] = 0
    w = random(5, 16)
    model = model_of("g (float[N, 16] x) => (float[N, 5] y) { y = Gemm <transB = 1> (x, w) }", {"w": w})
    for method in METHODS[1:]:
        made = prune_weights(model, every(0.25, method=method), observed(model, x))
        assert output_error(model, made, x) < 1e-6
        assert np.all(arrays(made)["w"][:, 1::2] != 0)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_that_are_there_stay(method):
    w = random(16, 16)
    w[random(16, 16, seed=3) < 0.6] = 0
    model = model_of("g (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", {"w": w})
    made = arrays(prune_weights(model, every(0.2, method=method), observed(model, correlated(50, 16))))["w"]
    assert np.all(made[w == 0] == 0)


# --- what stays dense


def test_small_first_and_last_and_excluded_layers_stay_dense_with_the_reason():
    model = model_of(
        "g (float[N, 2] x) => (float[N, 2] y) { a = MatMul (x, w1) b = MatMul (a, w2) c = MatMul (b, w3) y = MatMul (c, w4) }",
        {"w1": random(2, 32), "w2": random(32, 32), "w3": random(32, 32), "w4": random(32, 2)},
    )
    names = [n.name for n in model.ir.graph]
    assert ends(model.ir.graph) == ({names[0]}, {names[3]})
    made = prune_weights(model, PruneWeights(exclude=(names[2],)), None)
    assert {n: int((a == 0).sum()) for n, a in arrays(made).items()} == {"w1": 0, "w2": 512, "w3": 0, "w4": 0}
    assert {s.node: s.why for s in made.history[-1].skipped} == {
        names[0]: "it is the first layer and has only 2.9% of the weights; `first_last` prunes it too",
        names[2]: "excluded by the settings",
        names[3]: "it is the last layer and has only 2.9% of the weights; `first_last` prunes it too",
        "": f"512 of 1024 weights are zero (50.0%): {names[1]} 50.0%",
    }
    made = prune_weights(model, every(0.25), None)
    assert {n: int((a == 0).sum()) for n, a in arrays(made).items()} == {"w1": 16, "w2": 256, "w3": 256, "w4": 16}
    with pytest.raises(BadInput, match="there is no layer 'conv9' to exclude; there are "):
        prune_weights(model, PruneWeights(exclude=("conv9",)), None)


def test_the_only_layers_are_pruned_however_they_stand():
    made = prune_weights(mlp_model(), PruneWeights(), None)
    assert {n: int((a == 0).sum()) for n, a in arrays(made).items()} == {"w1": 512, "b1": 0, "w2": 256, "b2": 0}


def test_what_can_not_be_pruned_is_said():
    model = model_of(
        """g (float[N, 6] x, float[6, 6] z) => (float[N, 6] y) {
            a = MatMul (x, shared)
            b = MatMul (a, shared)
            c = Gemm (b, z)
            d = MatMul (c, w)
            e = MatMul (d, odd)
            y = Relu (e)
        }""",
        {"shared": random(6, 6), "w": random(6, 4), "odd": random(4, 6)},
    )
    made = prune_weights(model, every(pattern="2:4"), None)
    names = [n.name for n in model.ir.graph]
    assert [(s.node, s.why) for s in made.history[-1].skipped[:-1]] == [
        (names[2], "its weights are computed, not constant"),
        (names[0], "its weights are read by other nodes too"),
        (names[1], "its weights are read by other nodes too"),
        (names[3], "4 of 2:4 does not divide its 6 inputs"),
    ]
    with pytest.raises(Refused) as e:
        prune_weights(model, every(0.5, "1x5"), None)
    assert str(e.value).startswith(f"prune_weights: there is nothing to prune ({names[2]}: its weights are computed, not constant; ")
    blocks = prune_weights(model, every(0.5, "4x1"), None)
    assert (names[4], "blocks of 4x1 need outputs in multiples of 4, and it has 6") in [(s.node, s.why) for s in blocks.history[-1].skipped]


def test_a_layer_of_too_many_inputs_is_left_to_wanda(monkeypatch):
    monkeypatch.setattr(technique, "LARGEST", 16)
    model = mlp_model(inputs=24, hidden=8)
    made = prune_weights(model, every(method="sparsegpt"), observed(model, correlated(20, 24)))
    assert "its 24 inputs are more than the 16 that sparsegpt takes; method wanda prunes it" in [s.why for s in made.history[-1].skipped]


# --- settings, data, plans


@pytest.mark.parametrize("values, said", [
    ({"sparsity": 1.0}, "prune_weights: sparsity is 1.0, expected the share of zeros, above 0 and below 1"),
    ({"sparsity": 0.9, "pattern": "2:4"}, "prune_weights: pattern 2:4 has a sparsity of 0.5, and sparsity 0.9 was given; leave it out"),
    ({"pattern": "4:2"}, "prune_weights: pattern '4:2' is not understood; expected unstructured, N:M with N below M (2:4: two of four inputs stay), "
                         "or a block of outputs x inputs (4x1)"),
    ({"pattern": "0x4"}, "prune_weights: pattern '0x4' is not understood; expected unstructured, N:M with N below M (2:4: two of four inputs stay), "
                         "or a block of outputs x inputs (4x1)"),
    ({"method": "guess"}, "prune_weights: method 'guess' is unknown; use one of magnitude, wanda, sparsegpt"),
    ({"scope": "all"}, "prune_weights: scope 'all' is unknown; use one of layer, global, adaptive"),
    ({"scope": "global", "pattern": "2:4"},
     "prune_weights: pattern 2:4 gives every layer the same sparsity, so scope global has no meaning; leave it out"),
    ({"scope": "global", "method": "wanda"},
     "prune_weights: wanda compares within a layer, so scope global has no meaning; use method magnitude, or scope layer"),
    ({"samples": 0}, "prune_weights: samples is 0, expected at least 1"),
])  # fmt: skip
def test_settings_are_checked(values, said):
    with pytest.raises(BadInput) as e:
        PruneWeights(**values)
    assert str(e.value) == said


def test_n_of_m_brings_its_own_sparsity():
    assert (PruneWeights().share, every(pattern="1:4").share, every(0.67, "1:3").share) == (0.5, 0.75, pytest.approx(2 / 3))


@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_that_want_data_say_so_and_replay_without_it(method, net):
    stranger = model_of("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w0) }", {"w0": random(4, 4)})
    chosen = every(method=method, samples=8)
    with pytest.raises(
        Refused, match=f"method {method} looks at the inputs of the layers, and no data came; give --data, or use method magnitude"
    ):
        prune_weights(net, chosen, None)
    todo = Plan((PlannedStep("prune_weights", chosen),), source=net.digest)
    with pytest.raises(Refused, match="no data came"):
        plan.run(todo, net, None)
    made, done = plan.run(todo, net, observed(net, correlated(8, 4, 6, 6)))
    again, _ = plan.run(Plan.from_json(json.dumps(json.loads(done.to_json()))), net, None)
    assert again.to_bytes() == made.to_bytes()
    with pytest.raises(Refused, match="saw no weight 'w0'; it was made for another model"):
        plan.run(Plan(done.steps), stranger, None)


def test_bad_data_is_refused(net):
    x = correlated(8, 4, 6, 6)
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(Refused, match="tensor 'x' has values that are not finite on the calibration data"):
        prune_weights(net, every(method="wanda"), observed(net, x))


def test_hessians_that_do_not_fit_at_once_take_several_passes(net, monkeypatch):
    task, chosen = observed(net, correlated(8, 4, 6, 6)), every(method="sparsegpt")
    whole = prune_weights(net, chosen, task)
    monkeypatch.setattr(technique, "AT_ONCE", 100)
    assert prune_weights(net, chosen, task).to_bytes() == whole.to_bytes()


def test_real_digits_survive_half_of_their_weights(digits, digits_cnn):
    model = load_onnx(digits_cnn)
    task = Task(digits).bind(model)
    split = task.test
    labels, feeds = split.labels[:200], split.samples.take(split.indices[:200])

    def right(m: Model) -> float:
        return float((check.oracle(m).run(None, feeds)[0].argmax(1) == labels).mean())

    for chosen in (PruneWeights(0.5), PruneWeights(pattern="2:4", method="sparsegpt", samples=64)):
        assert right(prune_weights(model, chosen, task)) > right(model) - 0.05
