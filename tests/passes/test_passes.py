"""The passes: ONNX text before and after, and the numbers compared too. A second run changes nothing."""

import numpy as np
import pytest

from hasten import check
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput
from hasten.passes.cleanup import Cleanup, cleanup
from hasten.passes.fold_activations import FoldActivations, fold_activations
from hasten.passes.fold_affine import FoldAffine, fold_affine
from hasten.passes.fold_batchnorm import FoldBatchnorm, fold_batchnorm
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.passes.fuse_operators import FuseOperators, fuse_operators
from hasten.passes.push_transposes import PushTransposes, push_transposes
from hasten.passes.to_float16 import ToFloat16, to_float16
from tests.conftest import model_of, operators

RNG = np.random.default_rng(0)


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "g": RNG.uniform(0.5, 2, channels),
        "b": RNG.standard_normal(channels),
        "m": RNG.standard_normal(channels),
        "v": RNG.uniform(0.5, 2, channels),
    }


def test_cleanup_removes_dead_duplicate_and_identity_nodes():
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = Relu (x)
            b = Relu (x)
            dead = Sigmoid (x)
            c = Identity (a)
            d = Dropout (b)
            y = Add (c, d)
        }"""
    )
    after = cleanup(before, Cleanup(), None)
    assert operators(after) == ["Relu", "Add"]
    check.same(before, after, within=check.BITS)
    assert operators(cleanup(after, Cleanup(), None)) == ["Relu", "Add"]


def test_fold_constants_computes_what_never_changes_and_leaves_generators():
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y, float[1000, 1000] big) {
            s = Add (w, w)
            y = Mul (x, s)
            big = Expand (one, shape)
        }""",
        {"w": np.ones(4), "one": np.ones(1), "shape": np.array([1000, 1000])},
    )
    after = fold_constants(before, FoldConstants(), None)
    assert operators(after) == ["Mul", "Expand"]
    assert len(after.to_bytes()) < 2000
    assert "4000000 bytes" in after.history[-1].skipped[0].why
    check.same(before, after, within=check.FLOAT32)
    with pytest.raises(BadInput, match="size_limit is -1"):
        FoldConstants(-1)


def test_fold_constants_leaves_what_cannot_be_computed_and_does_not_log_it(caplog, monkeypatch):
    from onnxscript.optimizer import _constant_folding as folding

    def broken(*values, **attributes):
        raise ValueError("cannot reshape array")

    monkeypatch.setattr(folding.ReferenceEvaluator, "get_evaluator", lambda *a: broken)
    before = model_of("g (float[N, 4] x) => (float[N, 4] y) { s = Sin (w)\n y = Mul (x, s) }", {"w": np.ones(4)})
    assert operators(fold_constants(before, FoldConstants(), None)) == ["Sin", "Mul"]
    assert not caplog.records
    folding.logger.warning("heard")
    assert [r.message for r in caplog.records] == ["heard"], "the logger is as it was"


def test_fold_activations_merges_relu_and_clip_and_pad():
    before = model_of(
        """g (float[N, 1, 6, 6] x) => (float[N, 1, 6, 6] y) {
            p = Pad (x, pads)
            c = Conv (p, w)
            r = Relu (c)
            q = Relu (r)
            y = Clip (q, low, high)
        }""",
        {
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "w": RNG.standard_normal((1, 1, 3, 3)),
            "low": np.array(0.0, np.float32),
            "high": np.array(6.0, np.float32),
        },
    )
    after = fold_activations(before, FoldActivations(), None)
    assert operators(after) == ["Conv", "Clip"]
    check.same(before, after, within=check.FLOAT32)


@pytest.mark.parametrize(
    ("node", "weights", "shape"),
    [
        ("Conv", RNG.standard_normal((4, 3, 3, 3)), "N, 3, 8, 8"),
        ("Conv <group = 2>", RNG.standard_normal((4, 2, 1, 1)), "N, 4, 8, 8"),
        ("ConvTranspose <group = 2>", RNG.standard_normal((4, 2, 2, 2)), "N, 4, 5, 5"),
    ],
)
def test_batch_norm_folds_into_convolutions(node, weights, shape):
    before = model_of(
        f"""g (float[{shape}] x) => (float[N, 4, A, B] y) {{
            c = {node} (x, w)
            n = BatchNormalization <epsilon = 0.01> (c, g, b, m, v)
            y = Relu (n)
        }}""",
        {"w": weights, **norm(4)},
    )
    after = fold_batchnorm(before, FoldBatchnorm(), None)
    assert operators(after) == [node.split()[0], "Relu"]
    check.same(before, after, within=check.FLOAT32)


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_norm_folds_into_gemm_with_beta_and_matmul(trans):
    w = RNG.standard_normal((4, 3) if trans else (3, 4))
    gemm = model_of(
        f"""g (float[N, 3] x) => (float[N, 4] y) {{
            c = Gemm <transB = {trans}, beta = 0.5> (x, w, c0)
            y = BatchNormalization (c, g, b, m, v)
        }}""",
        {"w": w, "c0": RNG.standard_normal(4), **norm(4)},
    )
    after = fold_batchnorm(gemm, FoldBatchnorm(), None)
    assert operators(after) == ["Gemm"]
    assert [p.name for p in after.outputs] == ["y"]
    check.same(gemm, after, within=check.FLOAT32)
    matmul = model_of(
        """g (float[N, 3] x) => (float[N, 4] y) {
            c = MatMul (x, w)
            y = BatchNormalization (c, g, b, m, v)
        }""",
        {"w": RNG.standard_normal((3, 4)), **norm(4)},
    )
    after = fold_batchnorm(matmul, FoldBatchnorm(), None)
    assert operators(after) == ["Gemm"]
    check.same(matmul, after, within=check.FLOAT32)


def test_batch_norm_that_cannot_be_folded_is_skipped_with_the_reason():
    before = model_of(
        """g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
            first = BatchNormalization (x, g, b, m, v)
            c = Conv (first, w)
            n = BatchNormalization (c, g, b, m, v)
            y = Add (n, c)
        }""",
        {"w": RNG.standard_normal((4, 4, 1, 1)), **norm(4)},
    )
    after = fold_batchnorm(before, FoldBatchnorm(), None)
    assert [s.why for s in after.history[-1].skipped] == [
        "it stands first: there are no weights before it",
        "the Conv output has other readers",
    ]
    assert operators(after) == operators(before)


def test_float16_keeps_inputs_outputs_and_what_does_not_fit():
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] h) {
            h = MatMul (x, w)
            z = Mul (h, large)
            y = Relu (h)
        }""",
        {"w": RNG.standard_normal((4, 4)), "large": np.array(1e6, np.float32)},
    )
    after = to_float16(before, ToFloat16(), None)
    assert {p.dtype for p in (*after.inputs, *after.outputs)} == {"float32"}
    assert "beyond 65504" in after.history[-1].skipped[0].why
    check.same(before, after, within=check.FLOAT16)
    check.legal(after)


def test_every_real_model_goes_through_every_pass(shared_data):
    passes = (
        (cleanup, Cleanup()),
        (fold_constants, FoldConstants()),
        (fold_activations, FoldActivations()),
        (fuse_operators, FuseOperators()),
        (fold_batchnorm, FoldBatchnorm()),
    )
    for name in (
        "cifar10_resnet20",
        "kws_dscnn",
        "silero_vad_16k_plain",
        "stories260k",
        "ultraface_rfb_320",
        "light_shufflenet",
        "mnist_cntk",
    ):
        model = original = load_onnx(shared_data / "models" / f"{name}.onnx")
        for apply, settings in passes:
            model = apply(model, settings, None)
            check.legal(model)
            assert operators(apply(model, settings, None)) == operators(model), f"{name}: {apply.__name__} changes its own result"
        check.same(original, model, within=check.FLOAT32)
        assert len(model.to_bytes()) < len(original.to_bytes()) * 1.2 + 4000


CHANNELS_LAST = """g (float[N, 6, 6, 3] x) => (float[N, 5] y, float[N, 4, 4, 8] z) {
    a = Transpose <perm = [0, 3, 1, 2]> (x)
    b = Conv (a, w)
    c = Transpose <perm = [0, 2, 3, 1]> (b)
    d = Add (c, bias)
    e = Relu (d)
    f = Transpose <perm = [0, 3, 1, 2]> (e)
    g = Conv <pads = [1, 1, 1, 1]> (f, v)
    h = Transpose <perm = [0, 2, 3, 1]> (g)
    mean = ReduceMean <keepdims = 1> (h, spatial)
    gate = Sigmoid (mean)
    gated = Mul (h, gate)
    z = Add (e, gated)
    both = Concat <axis = -1> (z, e)
    padded = Pad (both, pads)
    first, second = Split <axis = 3, num_outputs = 2> (padded)
    sum = Sub (first, second)
    flat = Reshape (sum, shape)
    y = MatMul (flat, m)
}"""


def test_push_transposes_leaves_one_at_the_input_and_one_per_output_that_needs_it():
    before = model_of(
        CHANNELS_LAST,
        {
            "w": RNG.standard_normal((8, 3, 3, 3)),
            "v": RNG.standard_normal((8, 8, 3, 3)),
            "bias": RNG.standard_normal(8),
            "spatial": np.array([1, 2]),
            "pads": np.array([0, 1, 0, 0, 0, 0, 2, 0]),
            "shape": np.array([-1, 5 * 6 * 8]),
            "m": RNG.standard_normal((5 * 6 * 8, 5)) / 15,
        },
    )
    after = push_transposes(before, PushTransposes(), None)
    assert operators(after).count("Transpose") == 2
    assert after.history[-1].changed > 0
    check.same(before, after, within=check.FLOAT32)
    again = push_transposes(after, PushTransposes(), None)
    assert again.history[-1].changed == 0
    assert operators(again) == operators(after)


def test_push_transposes_keeps_a_graph_it_can_not_improve():
    before = model_of(
        """g (float[N, 4, 6] x) => (float[N, 6, 4] y) {
            a = Transpose <perm = [0, 2, 1]> (x)
            y = Relu (a)
        }"""
    )
    after = push_transposes(before, PushTransposes(), None)
    assert operators(after) == ["Transpose", "Relu"]
    assert after.history[-1].changed == 0


@pytest.mark.parametrize("text", ["Add (l, c)", "Add (c, l)", "Sub (l, c)", "Sub (c, l)", "Mul (l, c)", "Div (l, c)"])
@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_fold_affine_moves_the_constant_into_the_weights(layer, text):
    image = layer.startswith("Conv")
    shape = {"Conv": (6, 4, 3, 3), "ConvTranspose": (4, 3, 3, 3), "Gemm": (6, 4), "MatMul": (4, 6)}[layer]
    attributes = {"ConvTranspose": "<group = 2>", "Gemm": "<transB = 1, beta = 0.5>"}.get(layer, "")
    inputs = "x, w" if layer == "MatMul" else "x, w, b"
    source, result = ("float[N, 4, 5, 5] x", "float[N, 6, H, W] y") if image else ("float[N, 4] x", "float[N, 6] y")
    weights = {"w": RNG.standard_normal(shape), "c": RNG.uniform(0.5, 2, (6, 1, 1) if image else 6)}
    if layer != "MatMul":
        weights["b"] = RNG.standard_normal(6)
    before = model_of(f"g ({source}) => ({result}) {{ l = {layer} {attributes} ({inputs}) y = {text} }}", weights)
    after = fold_affine(before, FoldAffine(), None)
    assert operators(after) == ["Gemm" if layer == "MatMul" else layer]
    check.same(before, after, within=check.FLOAT32)


def test_fold_affine_leaves_what_is_not_per_channel_and_says_why():
    before = model_of(
        """g (float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y, float[N, 6, 3, 3] z) {
            l = Conv (x, w)
            y = Add (l, plane)
            k = Conv (x, w)
            z = Div (c, k)
        }""",
        {"w": RNG.standard_normal((6, 4, 3, 3)), "plane": RNG.standard_normal((3, 3)), "c": np.ones((6, 1, 1))},
    )
    after = fold_affine(before, FoldAffine(), None)
    assert operators(after) == operators(before)
    assert [s.why for s in after.history[-1].skipped] == ["its constant is not one number per channel"]


def test_cleanup_merges_equal_weights_but_no_float_vectors():
    """Before training scales are ones like running variances, and biases are zeros like running means: merged they would train as one."""
    ones, zeros = np.ones(4), np.zeros(4)
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = Gemm <transB = 1> (x, w1, c1)
            b = BatchNormalization (a, g, c2, m, v)
            c = Reshape (b, s1)
            d = Gemm <transB = 1> (c, w2, c3)
            y = Reshape (d, s2)
        }""",
        {
            "w1": np.eye(4), "w2": np.eye(4), "c1": zeros, "c2": zeros, "c3": zeros, "m": zeros, "g": ones, "v": ones,
            "s1": np.array([-1, 4]), "s2": np.array([-1, 4]),
        },
    )  # fmt: skip
    after = cleanup(before, Cleanup(), None)
    assert sorted(after.ir.graph.initializers) == ["c1", "c2", "c3", "g", "m", "s1", "v", "w1"]
    check.same(before, after, within=check.BITS)
    assert cleanup(after, Cleanup(), None).ir.graph.initializers.keys() == after.ir.graph.initializers.keys()
