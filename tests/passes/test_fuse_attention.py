"""fuse_attention: attention is found in every form that exporters write it in, and its numbers stay; what is none stays and says why."""

import os

import numpy as np
import pytest

from hasten import check, plan
from hasten.doors import load
from hasten.errors import Refused
from hasten.facts import facts
from hasten.learn.executor import refusals
from hasten.passes.fuse_attention import FuseAttention, fuse_attention
from hasten.passes.fuse_operators import FuseOperators, fuse_operators
from hasten.runtimes import Target
from hasten.runtimes import get as runtime
from tests.conftest import model_of, operators
from tests.passes.encoders import cleaned, encoder, examples, exported, feeds, transformer_layer

RNG = np.random.default_rng(0)

# 5 queries, 7 keys, 3 heads of 4 channels: no two sizes are alike, so no axis can be taken for another.
INPUTS = "float[N, 5, 12] q, float[N, 7, 12] k, float[N, 7, 12] v"
WEIGHTS = {
    "parted_q": np.array([0, 5, 3, 4]), "parted": np.array([-1, 7, 3, 4]), "joined": np.array([-1, 5, 12]), "half": np.array(0.5),
    "two": np.array([2.0]), "merged": np.array([-1, 7, 4]), "apart": np.array([-1, 3, 4, 7]), "low": np.array(-1e30), "axis": np.array([1]),
    "square": RNG.standard_normal((5, 7)), "per_head": RNG.standard_normal((1, 3, 5, 7)), "per_key": RNG.standard_normal((1, 7)),
    "row_q": np.array([-1, 5, 3, 4, 1]), "last": np.array([4]), "sums": np.array([1]), "fourth": np.array([3]),
}  # fmt: skip

Q = "q1 = Reshape (q, parted_q) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)"
K = "k1 = Reshape (k, parted) k2 = Transpose <perm = [0, 2, 3, 1]> (k1)"
V = "v1 = Reshape (v, parted) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)"
SCORES = "s0 = MatMul (q2, k2) s = Mul (s0, half)"
END = "m = MatMul (w, v2) m1 = Transpose <perm = [0, 2, 1, 3]> (m) y = Reshape (m1, joined)"

FORMS = {
    "plain": f"{Q} {K} {V} {SCORES} w = Softmax <axis = -1> (s) {END}",
    "no factor": f"{Q} {K} {V} s = MatMul (q2, k2) w = Softmax <axis = 3> (s) {END}",
    "divided": f"{Q} {K} {V} s0 = MatMul (q2, k2) s = Div (s0, two) w = Softmax <axis = -1> (s) {END}",
    "queries scaled": f"{Q} q3 = Mul (half, q2) {K} {V} s = MatMul (q3, k2) w = Softmax <axis = -1> (s) {END}",
    "scaled before the heads part": f"q0 = Mul (q, half) {Q.replace('(q,', '(q0,')} {K} {V} s = MatMul (q2, k2) w = Softmax <axis = -1> (s) {END}",
    "both scaled": f"{Q} q3 = Mul (half, q2) {K} k3 = Mul (k2, two) {V} s = MatMul (q3, k3) w = Softmax <axis = -1> (s) {END}",
    "values scaled": f"{Q} {K} {V} v3 = Mul (v2, two) {SCORES} w = Softmax <axis = -1> (s) {END.replace('v2', 'v3')}",
    "keys turned twice": f"""{Q} k1 = Reshape (k, parted) k3 = Transpose <perm = [0, 2, 1, 3]> (k1) k2 = Transpose <perm = [0, 1, 3, 2]> (k3)
        {V} {SCORES} w = Softmax <axis = -1> (s) {END}""",
    "keys turned in one batch of heads": f"""{Q} k1 = Reshape (k, parted) k3 = Transpose <perm = [0, 2, 1, 3]> (k1) k4 = Reshape (k3, merged)
        k5 = Transpose <perm = [0, 2, 1]> (k4) k2 = Reshape (k5, apart) {V} {SCORES} w = Softmax <axis = -1> (s) {END}""",
    "an axis of one in between": f"""q0 = Reshape (q, row_q) q1 = Squeeze (q0, last) q2 = Transpose <perm = [0, 2, 1, 3]> (q1) {K} {V} {SCORES}
        w = Softmax <axis = -1> (s) {END}""",
    "mask for each key": f"{Q} {K} {V} {SCORES} s1 = Add (s, per_key) w = Softmax <axis = -1> (s1) {END}",
    "mask for all heads": f"{Q} {K} {V} {SCORES} s1 = Add (square, s) w = Softmax <axis = -1> (s1) {END}",
    "mask for each head": f"{Q} {K} {V} {SCORES} s1 = Add (s, per_head) w = Softmax <axis = -1> (s1) {END}",
    "mask that is computed": f"""{Q} {K} {V} {SCORES} b = ReduceMean (q1, fourth) c = Transpose <perm = [0, 2, 1, 3]> (b) f = ReduceSum (k1, fourth)
        g = Transpose <perm = [0, 2, 3, 1]> (f) h = Add (c, g) s1 = Add (s, h) w = Softmax <axis = -1> (s1) {END}""",
    "mask to be widened": f"""{Q} {K} {V} {SCORES} f = ReduceSum (k1, fourth) g = Transpose <perm = [0, 2, 3, 1]> (f) s1 = Add (s, g)
        w = Softmax <axis = -1> (s1) {END}""",
}


def fused(text: str, inputs: str = INPUTS, result: str = "float[N, 5, 12] y"):
    before = model_of(f"g ({inputs}) => ({result}) {{ {text} }}", WEIGHTS)
    after = fuse_attention(before, FuseAttention(), None)
    check.legal(after)
    check.same(before, after, within=check.FLOAT32)
    assert fuse_attention(after, FuseAttention(), None).history[-1].changed == 0
    return before, after


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_attention_in_pieces_becomes_one_operator(text):
    _, after = fused(text)
    kinds = operators(after)
    assert kinds.count("MultiHeadAttention") == 1
    assert "Softmax" not in kinds and "MatMul" not in kinds
    (node,) = [n for n in after.ir.graph if n.op_type == "MultiHeadAttention"]
    assert (node.domain, node.attributes.get_int("num_heads")) == ("com.microsoft", 3)
    assert node.outputs[0].shape[1:] == (5, 12)
    if "s1" not in text and "v3" not in text:  # a mask is computed and widened; a factor of the values stays where it was
        assert kinds == ["MultiHeadAttention"]
    assert [v.name for v in node.inputs[:2]] == ["q", "k"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FORMS["plain"].replace("<axis = -1>", "<axis = 2>"), "its Softmax is not over the keys"),
        (f"{Q} {K} {V} {SCORES} c = Greater (s, half) t = Where (c, s, low) w = Softmax <axis = -1> (t) {END}", "masked by Where, not by one sum"),
        (
            f"{Q} {K} {V} {SCORES} w = Softmax <axis = -1> (s) m0 = MatMul (w, v2) r = ReduceSum (w, fourth) m = Mul (m0, r)"
            f" {END.partition('(w, v2)')[2]}",
            "its weights, the Softmax's output, have other readers",
        ),
    ],
)  # fmt: skip
def test_attention_that_is_another_stays_and_says_why(text, why):
    before, after = fused(text)
    assert operators(after) == operators(before)
    assert [s.why for s in after.history[-1].skipped if why in s.why], after.history[-1].skipped


def test_products_of_three_axes_stay_and_say_why():
    before, after = fused(
        "t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) w = Softmax <axis = -1> (s) y = MatMul (w, v)",
    )
    assert operators(after) == operators(before)
    assert [s.why for s in after.history[-1].skipped] == ["its products have 3 axes, expected batch, heads, positions, channels"]


@pytest.mark.parametrize(
    "text",
    [
        f"{Q} {K} {V} {SCORES} s1 = Add (s, per_key) s2 = Mul (s1, two) w = Softmax <axis = -1> (s2) {END}",  # the mask is scaled too
        f"{Q} {K} {V} {SCORES} t = Relu (s) w = Softmax <axis = -1> (t) {END}",
        f"{Q} {K} {V} {SCORES} w0 = Softmax <axis = -1> (s) w = Mul (w0, half) {END}",
    ],
)
def test_what_only_looks_like_attention_stays(text):
    before, after = fused(text)
    assert operators(after) == operators(before)


def test_one_head_of_keys_for_all_queries_stays_and_says_why():
    text = f"{Q} {K} {V} {SCORES} w = Softmax <axis = -1> (s) {END}".replace("(k, parted)", "(k, one_head)")
    before = model_of(
        f"g ({INPUTS.replace('7, 12] k', '7, 4] k')}) => (float[N, 5, 12] y) {{ {text} }}", {**WEIGHTS, "one_head": np.array([-1, 7, 1, 4])}
    )
    after = fuse_attention(before, FuseAttention(), None)
    assert operators(after) == operators(before)
    assert "one known number of heads" in after.history[-1].skipped[0].why


def test_where_the_heads_are_not_joined_again_they_are_parted_for_the_reader():
    _, after = fused(f"{Q} {K} {V} {SCORES} w = Softmax <axis = -1> (s) m = MatMul (w, v2) y = Relu (m)", result="float[N, 3, 5, 4] y")
    assert operators(after) == ["MultiHeadAttention", "Reshape", "Transpose", "Relu"]


def test_a_fixed_batch_of_one_and_positions_that_are_known_at_run_time_only():
    text = FORMS["plain"]
    _, after = fused(text, INPUTS.replace("N", "1"), "float[1, 5, 12] y")
    assert operators(after) == ["MultiHeadAttention"]
    zeros = {"parted_q": np.array([0, 0, 3, 4]), "parted": np.array([0, 0, 3, 4]), "joined": np.array([0, 0, 12])}
    before = model_of(
        f"g (float[N, S, 12] q, float[N, L, 12] k, float[N, L, 12] v) => (float[N, S, 12] y) {{ {text} }}", {**WEIGHTS, **zeros}
    )
    after = fuse_attention(before, FuseAttention(), None)
    assert operators(after).count("MultiHeadAttention") == 1
    fed = {"q": (2, 6, 12), "k": (2, 9, 12), "v": (2, 9, 12)}
    check.same(before, after, check.FLOAT32, [{k: RNG.standard_normal(s).astype(np.float32) for k, s in fed.items()}])


def test_a_sum_and_its_norm_become_one_and_the_sum_is_there_for_other_readers():
    weights = {"g": RNG.uniform(0.5, 2, 6), "b": RNG.standard_normal(6), "rows": RNG.standard_normal((4, 6)), "row": RNG.standard_normal(6)}
    text = "g (float[N, 4, 6] x, float[N, 4, 6] z) => (float[N, 4, 6] y) {{ s = Add ({of}) n = LayerNormalization (s, g, b) y = {end} }}"
    for of, end, kinds in (
        ("x, z", "Relu (n)", ["SkipLayerNormalization", "Relu"]),
        ("x, z", "Add (n, s)", ["SkipLayerNormalization", "Add"]),
        ("rows, x", "Add (n, z)", ["SkipLayerNormalization", "Add"]),
        ("row, x", "Add (n, z)", ["Add", "LayerNormalization", "Add"]),
    ):
        before = model_of(text.format(of=of, end=end), weights)
        after = fuse_attention(before, FuseAttention(), None)
        check.legal(after)
        check.same(before, after, within=check.FLOAT32)
        assert operators(after) == kinds
    assert [s.why for s in after.history[-1].skipped] == ["the two that are summed have other shapes"]


RMS = "q = Pow (s, two) v = ReduceMean (q, last) e = Add (v, eps) d = Sqrt (e)"
RMS_WEIGHTS = {
    "g": RNG.uniform(0.5, 2, 6), "two": np.array(2.0), "last": np.array([-1]), "first": np.array([1]), "eps": np.array(1e-5),
    "row": RNG.standard_normal(6), "rows": RNG.standard_normal((4, 1)), "minus": np.array(-1e-9),
}  # fmt: skip


def fused_rms(text: str, results: str = "float[N, 4, 6] y"):
    before = model_of(f"g (float[N, 4, 6] x, float[N, 4, 6] z) => ({results}) {{ {text} }}", RMS_WEIGHTS)
    after = fuse_attention(before, FuseAttention(), None)
    check.legal(after)
    check.same(before, after, within=check.FLOAT32)
    assert fuse_attention(after, FuseAttention(), None).history[-1].changed == 0
    return before, after


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"s = Add (x, z) {RMS} n = Div (s, d) y = Mul (n, g)", ["Skip"]),
        (f"s = Add (x, z) {RMS} r = Reciprocal (d) n = Mul (r, s) y = Mul (g, n)", ["Skip"]),
        (f"s = Add (x, z) {RMS} y = Div (s, d)", ["Skip"]),
        (f"s = Add (x, z) {RMS} n = Div (s, d) h = Mul (n, g) y = Add (h, s)", ["Skip", "Add"]),
        (f"s = Add (x, z) {RMS} n = Div (s, d) h = Mul (n, g) u = Relu (s) y = Add (h, u)", ["Skip", "Relu", "Add"]),
        (f"s = Add (x, z) {RMS} n = Div (s, d) h = Mul (n, g) k = Mul (n, row) y = Add (h, k)", ["Skip", "Mul", "Mul", "Add"]),
        (
            f"s = Add (x, z) {RMS} n = Div (s, d) h = Mul (n, g) q2 = Mul (s, s) v2 = ReduceMean (q2, last) e2 = Add (v2, eps) d2 = Sqrt (e2)"
            " n2 = Div (s, d2) k = Mul (n2, row) y = Add (h, k)",
            ["Skip", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"],
        ),
    ],
)  # fmt: skip
def test_a_sum_and_its_rms_norm_become_one(text, kinds):
    _, after = fused_rms(text)
    assert operators(after) == [k.replace("Skip", "SkipSimplifiedLayerNormalization") for k in kinds]
    assert all(o.shape[1:] == (4, 6) for n in after.ir.graph if n.domain for o in n.outputs if o.name)


def test_the_sum_before_an_rms_norm_may_be_an_output():
    _, after = fused_rms(f"s = Add (x, z) {RMS} n = Div (s, d) y = Mul (n, g)", "float[N, 4, 6] y, float[N, 4, 6] s")
    assert operators(after) == ["SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            f"s = Add (x, z) {RMS.replace('last', 'first')} n = Div (s, d) y = Mul (n, g)",
            "computed over axes [1], here only the last is meant",
        ),
        (f"s = Add (x, z) {RMS.replace('eps', 'minus')} n = Div (s, d) y = Mul (n, g)", "ε is -1e-09, which must be positive"),
        (f"s = Add (x, row) {RMS} n = Div (s, d) y = Mul (n, g)", "the two that are summed have other shapes"),
        (f"s = Add (x, z) {RMS} n = Div (s, d) h = Mul (n, g) y = Add (h, d)", "d, computed on the way, has other readers"),
        (f"s = Add (x, z) {RMS.replace('(v, eps)', '(v, v)')} n = Div (s, d) y = Mul (n, g)", None),  # ε is computed
        (f"s = Add (x, z) {RMS.replace('(s, two)', '(x, two)')} n = Div (s, d) y = Mul (n, g)", None),  # the mean of something else
        (f"s = Mul (x, z) {RMS} n = Div (s, d) y = Mul (n, g)", None),  # no sum
    ],
)
def test_a_sum_and_another_rms_norm_stay(text, why):
    before, after = fused_rms(text)
    assert operators(after) == operators(before)
    reasons = [s.why for s in after.history[-1].skipped]
    assert reasons == [] if why is None else why in reasons[0]


def test_a_scale_of_another_shape_stays_behind_the_rms_norm():
    _, after = fused_rms(f"s = Add (x, z) {RMS} n = Div (s, d) y = Mul (n, rows)")
    assert operators(after) == ["SkipSimplifiedLayerNormalization", "Mul"]


CASES = [
    *((attention, exporter) for attention in ("by hand", "masked", "sdpa", "causal") for exporter in ("opset 14", "opset 17", "dynamo")),
    ("layer", "dynamo"),
]


@pytest.mark.parametrize(("attention", "exporter"), CASES)
def test_every_attention_and_norm_of_torch_is_found(attention, exporter):
    module = transformer_layer() if attention == "layer" else encoder(attention=attention)
    before = exported(module, examples(attention == "masked"), exporter)
    fine = fuse_operators(before, FuseOperators(), None)
    after = fuse_attention(fine, FuseAttention(), None)
    kinds, layers = operators(after), 1 if attention == "layer" else 2
    assert (kinds.count("MultiHeadAttention"), kinds.count("SkipLayerNormalization"), kinds.count("Gelu")) == (layers, 2 * layers, layers)
    assert after.history[-1].skipped == ()
    check.legal(after)
    check.same(before, after, check.FLOAT32, [feeds(before, 1), feeds(before, 3)])
    assert fuse_attention(after, FuseAttention(), None).history[-1].changed == 0
    if attention in ("by hand", "sdpa"):
        assert not {"Transpose", "Reshape"} & set(kinds)
    if attention == "masked":
        assert kinds.count("Expand") == 1, "one mask for both layers"


@pytest.mark.parametrize(("norm", "exporter"), [("rms", "dynamo"), ("by hand", "dynamo"), ("by hand", "opset 14"), ("by hand", "opset 17")])
def test_every_sum_with_an_rms_norm_of_torch_is_found(norm, exporter, tmp_path):
    before = exported(encoder(attention="sdpa", norm=norm), examples(), exporter)
    after = fuse_attention(before, FuseAttention(), None)
    kinds = operators(after)
    assert (kinds.count("MultiHeadAttention"), kinds.count("SkipSimplifiedLayerNormalization")) == (2, 4)
    assert after.history[-1].skipped == () and "Sqrt" not in kinds
    check.legal(after)
    check.same(before, after, check.FLOAT32, [feeds(before, 1), feeds(before, 3)])
    fed, target = feeds(before, 2), Target(1, 2)
    (wanted,) = check.oracle(before).run(None, fed)
    for name in ("onnxruntime", "openvino"):
        assert runtime(name).unsupported(after, target) == ()
        (found,) = runtime(name).compile(after, target).run(fed).values()
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert "com.microsoft::SkipSimplifiedLayerNormalization" in " ".join(s.why for s in refusals(after))
    assert (facts(after, batch=2).macs, facts(after, batch=2).unknown) == (facts(before, batch=2).macs, 0)
    after.save(tmp_path / "fused.onnx")
    assert load(tmp_path / "fused.onnx").model.to_bytes() == after.to_bytes()


def test_a_keras_block_ends_in_the_same_operators(tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    source = keras.Input((8, 32))
    x = layers.LayerNormalization()(source + layers.MultiHeadAttention(4, 8)(source, source))
    y = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, activation="gelu")(x)))
    keras.Model(source, y).save(tmp_path / "block.keras")
    before = cleaned(load(tmp_path / "block.keras").model)
    after = fuse_attention(fuse_operators(before, FuseOperators(), None), FuseAttention(), None)
    kinds = operators(after)
    assert [kinds.count(k) for k in ("MultiHeadAttention", "SkipLayerNormalization", "Gelu")] == [1, 2, 1]
    check.same(before, after, within=check.FLOAT32)


def test_runtimes_and_facts_know_what_they_have(tmp_path):
    before = fuse_operators(exported(encoder(attention="masked"), examples(True), "dynamo"), FuseOperators(), None)
    after = fuse_attention(before, FuseAttention(), None)
    fed, target = feeds(before, 2), Target(1, 2)
    (wanted,) = check.oracle(before).run(None, fed)
    for name in ("onnxruntime", "openvino"):
        assert runtime(name).unsupported(after, target) == ()
        (found,) = runtime(name).compile(after, target).run(fed).values()
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    foreign = [n.name for n in after.ir.graph if n.domain == "com.microsoft"]
    assert [s.node for s in runtime("torch").unsupported(after, target)] == [s.node for s in refusals(after)] == foreign
    assert "com.microsoft::MultiHeadAttention" in refusals(after)[0].why
    one, other = facts(before, batch=2), facts(after, batch=2)
    assert (other.macs, other.unknown) == (one.macs, 0)
    after.save(tmp_path / "fused.onnx")
    assert load(tmp_path / "fused.onnx").model.to_bytes() == after.to_bytes()


def test_nothing_comes_after_it_in_a_plan():
    steps = tuple(plan.PlannedStep(n, plan.make_settings(n, {})) for n in ("fuse_attention", "quantize_static"))
    with pytest.raises(Refused, match=r"quantize_static \(quantize\) comes after fuse_attention \(lower\)"):
        plan.Plan(steps)
