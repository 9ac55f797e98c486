"""fuse_operators: patterns in every order of writing become one operator; near misses stay; what is found is compared with numbers."""

import re

import numpy as np
import onnx
import pytest

from hasten import check, plan
from hasten.passes.fuse_operators import FuseOperators, fuse_operators
from hasten.plan import Plan, PlannedStep
from hasten.runtimes import Target
from hasten.runtimes import get as runtime
from hasten.search.candidates import CLEAN
from hasten.task import Task
from tests.conftest import model_of, operators
from tests.passes.encoders import encoder, examples, exported

RNG = np.random.default_rng(0)
NUMBERS = {
    "one": np.array(1.0), "two": np.array(2.0), "half": np.array([0.5]), "root2": np.array(2**0.5), "over2": np.array([[0.70710677]]),
    "three": np.array(3.0), "six": np.array([6.0]), "sixth": np.array(1 / 6), "zero": np.array(0.0), "top": np.array(6.0),
    "cube": np.array(0.044715), "slope": np.array((2 / np.pi) ** 0.5), "inner": np.array(0.044715 * (2 / np.pi) ** 0.5),
    "third": np.array(1 / 3), "hundredth": np.array(0.01),
}  # fmt: skip
VECTORS = {
    "eps": np.array(1e-5), "g": RNG.uniform(0.5, 2, 6), "b": RNG.standard_normal(6), "g3": RNG.uniform(0.5, 2, (1, 1, 6)), "last": np.array([-1]),
    "third_axis": np.array([2]), "first": np.array([1]), "minus": np.array(-1e-9), "root": np.array(0.5), "inverse": np.array(-0.5),
    "rows": RNG.standard_normal((4, 1)),
}  # fmt: skip

SIZE = "float[N, 4, 6]"

MEAN = "m = ReduceMean (x, last) d = Sub (x, m) q = Pow (d, two) v = ReduceMean (q, last) e = Add (v, eps)"
NORMS = {
    "as torch writes it": f"{MEAN} s = Sqrt (e) n = Div (d, s) h = Mul (n, g) y = Add (h, b)",
    "squares as a product, operands the other way round": """m = ReduceMean (x, third_axis) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, last)
        e = Add (eps, v) s = Sqrt (e) n = Div (d, s) h = Mul (g, n) y = Add (b, h)""",
    "no scale, no bias": f"{MEAN} s = Sqrt (e) y = Div (d, s)",
    "no bias": f"{MEAN} s = Sqrt (e) n = Div (d, s) y = Mul (n, g3)",
    "no scale": f"{MEAN} s = Sqrt (e) n = Div (d, s) y = Add (n, b)",
    "by the reciprocal": f"{MEAN} s = Sqrt (e) r = Reciprocal (s) n = Mul (r, d) h = Mul (n, g) y = Add (h, b)",
    "by one over the root": f"{MEAN} s = Sqrt (e) r = Div (one, s) n = Mul (d, r) h = Mul (n, g) y = Add (h, b)",
    "by powers": f"{MEAN} s = Pow (e, inverse) n = Mul (d, s) h = Mul (n, g) y = Add (h, b)",
    "root as a power": f"{MEAN} s = Pow (e, root) n = Div (d, s) h = Mul (n, g) y = Add (h, b)",
    "the difference twice": """m = ReduceMean (x, last) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, last) e = Add (v, eps)
        s = Sqrt (e) d2 = Sub (x, m) n = Div (d2, s) h = Mul (n, g) y = Add (h, b)""",
    "as TensorFlow writes it": f"""{MEAN} s = Sqrt (e) r = Reciprocal (s) i = Mul (r, g) a = Mul (x, i) c = Mul (m, i)
        k = Sub (b, c) y = Add (a, k)""",
    "as TensorFlow writes it, no bias": f"{MEAN} s = Sqrt (e) r = Reciprocal (s) i = Mul (g, r) a = Mul (i, x) c = Mul (i, m) y = Sub (a, c)",
    "as TensorFlow writes it, no scale": f"""{MEAN} s = Sqrt (e) r = Reciprocal (s) a = Mul (x, r) c = Mul (m, r)
        k = Sub (b, c) y = Add (k, a)""",
}


def fused(text: str, source: str = SIZE, result: str = SIZE):
    before = model_of(f"g ({source} x) => ({result} y) {{ {text} }}", {**NUMBERS, **VECTORS})
    after = fuse_operators(before, FuseOperators(), None)
    check.legal(after)
    check.same(before, after, within=check.FLOAT32)
    again = fuse_operators(after, FuseOperators(), None)
    assert operators(again) == operators(after) and again.history[-1].changed == 0
    return before, after


@pytest.mark.parametrize("text", NORMS.values(), ids=NORMS)
def test_a_layer_norm_in_pieces_becomes_one(text):
    _, after = fused(text)
    assert operators(after) == ["LayerNormalization"]
    (node,) = after.ir.graph
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert node.attributes.get_int("axis") == -1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (NORMS["as torch writes it"].replace("last", "first"), r"computed over axes \[1\], here only the last is meant"),
        (NORMS["as torch writes it"].replace("(q, last)", "(q, first)"), r"computed over axes \[1\]"),
        (NORMS["as torch writes it"].replace("eps", "minus"), "ε is -1e-09, which must be positive"),
        (
            NORMS["as torch writes it"].replace("h = Mul (n, g) y = Add (h, b)", "y = Add (n, m)"),
            "m, computed on the way, has other readers",
        ),
        (
            NORMS["as torch writes it"].replace("h = Mul (n, g) y = Add (h, b)", "y = Mul (n, s)"),
            "s, computed on the way, has other readers",
        ),
    ],
)
def test_a_norm_that_is_none_stays_and_says_why(text, why):
    before, after = fused(text)
    assert operators(after) == operators(before)
    (skip,) = after.history[-1].skipped
    assert skip.why.startswith("LayerNormalization: ")
    assert re.search(why, skip.why)


@pytest.mark.parametrize(
    "text",
    [
        f"{MEAN} s = Sqrt (e) n = Div (x, s) h = Mul (n, g) y = Add (h, b)",
        f"{MEAN.replace('e = Add (v, eps)', '')} s = Sqrt (v) n = Div (d, s) h = Mul (n, g) y = Add (h, b)",
        f"{MEAN} s = Sqrt (e) n = Div (s, d) h = Mul (n, g) y = Add (h, b)",
        NORMS["as torch writes it"].replace("Pow (d, two)", "Pow (d, three)"),
        NORMS["as torch writes it"].replace("m = ReduceMean (x, last)", "m = ReduceMax (x, last)"),
        NORMS["as TensorFlow writes it"].replace("Sub (b, c)", "Sub (c, b)"),
        NORMS["as TensorFlow writes it"].replace("Mul (m, i)", "Mul (m, r)"),
    ],
)
def test_what_only_looks_like_a_norm_stays(text):
    before, after = fused(text)
    assert operators(after) == operators(before)


def test_a_scale_per_row_is_no_scale_of_the_norm():
    _, after = fused(f"{MEAN} s = Sqrt (e) n = Div (d, s) h = Mul (n, rows) y = Add (h, b)")
    assert operators(after) == ["LayerNormalization", "Mul", "Add"]


SQUARES = "q = Pow (x, two) v = ReduceMean (q, last) e = Add (v, eps) s = Sqrt (e)"
SPELLED = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
RMS_NORMS = {
    "as torch writes it": f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, g)",
    "as the older exporter writes it": f"{SQUARES} r = Div (one, s) n = Mul (x, r) y = Mul (g, n)",
    "squares as a product": f"{SQUARES.replace('Pow (x, two)', 'Mul (x, x)')} n = Div (x, s) y = Mul (n, g)",
    "another name of the axis": f"{SQUARES.replace('(q, last)', '(q, third_axis)')} r = Reciprocal (s) n = Mul (x, r) y = Mul (g, n)",
    "a power": "q = Mul (x, x) v = ReduceMean (q, last) e = Add (eps, v) r = Pow (e, inverse) n = Mul (r, x) y = Mul (n, g)",
    "root as a power": "q = Mul (x, x) v = ReduceMean (q, last) e = Add (eps, v) r = Pow (e, root) n = Div (x, r) y = Mul (n, g)",
    "scale first": f"{SQUARES} n = Mul (x, g) y = Div (n, s)",
    "scale first, by the reciprocal": f"{SQUARES} r = Reciprocal (s) n = Mul (g, x) y = Mul (r, n)",
    "scale of the reciprocal": f"{SQUARES} r = Reciprocal (s) n = Mul (r, g) y = Mul (x, n)",
    "scale over the root": f"{SQUARES} n = Div (g, s) y = Mul (x, n)",
    "scale of three axes": f"{SQUARES} n = Div (x, s) y = Mul (n, g3)",
    "two scales": f"{SQUARES} n = Div (x, s) h = Mul (n, g) y = Div (h, g3)",
    "scale and a number": f"{SQUARES} n = Div (x, s) h = Mul (n, g) y = Mul (h, half)",
    "a number for a scale": f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, half)",
}


@pytest.mark.parametrize("text", RMS_NORMS.values(), ids=RMS_NORMS)
def test_an_rms_norm_is_spelled_as_runtimes_know_it(text):
    _, after = fused(text)
    assert operators(after) == SPELLED
    power, _, addition, _, division, product = after.ir.graph
    assert (power.inputs[0].name, division.inputs[0].name) == ("x", "x")
    assert addition.inputs[1].const_value.numpy() == np.float32(1e-5)
    assert product.inputs[1].shape == (6,)


def test_an_rms_norm_without_a_scale_is_given_none():
    _, after = fused(f"{SQUARES} r = Reciprocal (s) y = Mul (x, r)")
    assert operators(after) == SPELLED[:-1]


@pytest.mark.parametrize("end", ["n = Div (x, s) y = Mul (n, g)", "n = Div (x, s) y = Mul (g, n)", "y = Div (x, s)"])
def test_an_rms_norm_that_is_spelled_so_stays(end):
    before, after = fused(f"{SQUARES} {end}")
    assert after.history[-1].changed == 0 and after.history[-1].skipped == ()
    assert operators(after) == operators(before)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (RMS_NORMS["as torch writes it"].replace("last", "first"), r"computed over axes \[1\], here only the last is meant"),
        (RMS_NORMS["as torch writes it"].replace("eps", "minus"), "ε is -1e-09, which must be positive"),
        (f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) y = Add (n, r)", "r, computed on the way, has other readers"),
        (f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) y = Add (n, v)", "v, computed on the way, has other readers"),
    ],
)
def test_an_rms_norm_that_is_none_stays_and_says_why(text, why):
    before, after = fused(text)
    assert operators(after) == operators(before)
    (skip,) = after.history[-1].skipped
    assert skip.why.startswith("RMSNormalization: ")
    assert re.search(why, skip.why)


@pytest.mark.parametrize(
    "text",
    [
        f"{SQUARES.replace('Pow (x, two)', 'Pow (x, three)')} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, g)",
        f"{SQUARES.replace('Add (v, eps)', 'Add (v, v)')} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, g)",
        f"{SQUARES.replace('ReduceMean', 'ReduceMax')} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, g)",
        f"z = Relu (x) {SQUARES.replace('(x, two)', '(z, two)')} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, g)",
        f"{SQUARES} r = Reciprocal (s) n = Mul (x, x) y = Mul (n, r)",
        f"{SQUARES} n = Mul (x, s) y = Mul (n, g)",
        f"{SQUARES} y = Div (s, x)",
    ],
)
def test_what_only_looks_like_an_rms_norm_stays(text):
    before, after = fused(text)
    assert operators(after) == operators(before)


def test_a_scale_per_row_is_no_scale_of_the_rms_norm():
    _, after = fused(f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) y = Mul (n, rows)")
    assert operators(after) == SPELLED


def test_the_scale_is_left_where_what_it_scales_has_other_readers():
    _, after = fused(f"{SQUARES} r = Reciprocal (s) n = Mul (x, r) h = Mul (n, g) y = Add (h, n)")
    assert operators(after) == [*SPELLED, "Add"]


CUBE = "x2 = Mul (x, x) x3 = Mul (x2, x) c = Mul (cube, x3) i = Add (x, c) u = Mul (slope, i) t = Tanh (u) a = Add (one, t)"
ACTIVATIONS = {
    "Gelu, torch": ("u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (x, a) y = Mul (h, half)", ["Gelu"], "none"),
    "Gelu, half first": ("u = Mul (over2, x) t = Erf (u) a = Add (one, t) h = Mul (half, x) y = Mul (a, h)", ["Gelu"], "none"),
    "Gelu, half last": ("u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (a, x) y = Div (h, two)", ["Gelu"], "none"),
    "Gelu, half inside": ("u = Div (x, root2) t = Erf (u) k = Mul (t, half) a = Add (half, k) y = Mul (x, a)", ["Gelu"], "none"),
    "Gelu of a sum": (
        "p = Add (x, b) u = Div (p, root2) t = Erf (u) a = Add (t, one) h = Mul (p, a) y = Mul (h, half)", ["Add", "Gelu"], "none",
    ),
    "Gelu of a scaled value": (
        "p = Mul (x, six) u = Div (p, root2) t = Erf (u) a = Add (t, one) h = Mul (p, a) y = Mul (h, half)", ["Mul", "Gelu"], "none",
    ),
    "Gelu with tanh": (f"{CUBE} h = Mul (x, a) y = Mul (half, h)", ["Gelu"], "tanh"),
    "Gelu with tanh, a power": (
        "x3 = Pow (x, three) c = Mul (x3, inner) s = Mul (x, slope) u = Add (s, c) t = Tanh (u) a = Add (t, one) h = Mul (x, half) y = Mul (a, h)",
        ["Gelu"], "tanh",
    ),
    "HardSwish": ("p = Add (x, three) t = Clip (p, zero, top) h = Mul (x, t) y = Div (h, six)", ["HardSwish"], None),
    "HardSwish, a sixth": ("p = Add (three, x) t = Clip (p, zero, top) h = Mul (t, sixth) y = Mul (h, x)", ["HardSwish"], None),
    "HardSwish of a HardSigmoid": ("t = HardSigmoid <alpha = 0.16666667> (x) y = Mul (t, x)", ["HardSwish"], None),
    "HardSigmoid": ("p = Add (x, three) t = Clip (p, zero, top) y = Div (t, six)", ["HardSigmoid"], None),
    "HardSigmoid of another slope": ("s = Mul (x, third) p = Add (s, half) y = Clip (p, zero, one)", ["HardSigmoid"], None),
    "Softplus": ("e = Exp (x) p = Add (one, e) y = Log (p)", ["Softplus"], None),
    "Mish": ("s = Softplus (x) t = Tanh (s) y = Mul (t, x)", ["Mish"], None),
    "Mish in pieces": ("e = Exp (x) p = Add (e, one) s = Log (p) t = Tanh (s) y = Mul (x, t)", ["Mish"], None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "approximate"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_in_pieces_becomes_one(text, expected, approximate):
    _, after = fused(text)
    assert operators(after) == expected
    if approximate is not None:
        assert list(after.ir.graph)[-1].attributes.get_string("approximate") == approximate


@pytest.mark.parametrize(
    "text",
    [
        "u = Div (x, two) t = Erf (u) a = Add (t, one) h = Mul (x, a) y = Mul (h, half)",  # not √2
        "u = Div (x, root2) t = Erf (u) a = Add (t, two) h = Mul (x, a) y = Mul (h, half)",
        "u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (x, a) y = Mul (h, third)",
        "u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (x, t) k = Mul (h, a) y = Mul (k, half)",
        f"{CUBE.replace('cube', 'hundredth')} h = Mul (x, a) y = Mul (half, h)",
        "p = Add (x, three) t = Clip (p, zero, top) h = Mul (x, t) y = Div (h, three)",
        "p = Add (x, three) t = Clip (p, one, top) h = Mul (x, t) y = Div (h, six)",
        "t = Clip (x, zero, top) y = Div (t, six)",
        "e = Exp (x) p = Add (two, e) y = Log (p)",
        "s = Sigmoid (x) y = Mul (x, s)",  # SiLU: opset 21 has no operator for it
    ],
)
def test_what_only_looks_like_an_activation_stays(text):
    before, after = fused(text)
    assert operators(after) == operators(before)


def test_an_activation_whose_insides_are_read_stays_and_says_so():
    before = model_of(
        f"g ({SIZE} x) => ({SIZE} y, {SIZE} t) {{ u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (x, a) y = Mul (h, half) }}",
        NUMBERS,
    )
    after = fuse_operators(before, FuseOperators(), None)
    assert operators(after) == operators(before)
    assert [s.why for s in after.history[-1].skipped] == ["Gelu: t, computed on the way, has other readers"]


def test_another_type_or_a_constant_that_widens_the_result_stays_and_says_so():
    text = "u = Div (x, root2) t = Erf (u) a = Add (t, one) h = Mul (x, a) y = Mul (h, half)"
    half = {k: v.astype(np.float16) for k, v in NUMBERS.items()}
    before = model_of("g (float16[N, 6] x) => (float16[N, 6] y) { p = Add (x, three) t = Clip (p, zero, top) y = Div (t, six) }", half)
    after = fuse_operators(before, FuseOperators(), None)
    assert [s.why for s in after.history[-1].skipped] == ["HardSigmoid: its values are float16, not float32"]
    before = model_of(
        f"g (float[6] x) => (float[1, 6] y) {{ {text.replace('half', 'one_half')} }}", {**NUMBERS, "one_half": np.array([[0.5]])}
    )
    after = fuse_operators(before, FuseOperators(), None)
    assert "another shape" in after.history[-1].skipped[0].why
    assert operators(after) == operators(before)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("exporter", ["opset 14", "opset 17", "dynamo"])
def test_both_exporters_of_torch_end_in_the_same_operators(exporter, gelu):
    before = exported(encoder(gelu), examples(), exporter)
    after = fuse_operators(before, FuseOperators(), None)
    kinds = operators(after)
    assert (kinds.count("LayerNormalization"), kinds.count("Gelu")) == (4, 2)
    assert not {"Erf", "Tanh", "Sqrt", "Pow"} & set(kinds)
    assert after.history[-1].skipped == ()
    check.same(before, after, within=check.FLOAT32)


@pytest.mark.parametrize(("norm", "exporter"), [("rms", "dynamo"), ("by hand", "dynamo"), ("by hand", "opset 14"), ("by hand", "opset 17")])
def test_rms_norms_of_torch_are_one_operator_in_onnxruntime_and_openvino(norm, exporter, tmp_path):
    import onnxruntime
    import openvino

    before = exported(encoder(norm=norm), examples(), exporter)
    after = fuse_operators(before, FuseOperators(), None)
    assert after.history[-1].skipped == ()
    check.same(before, after, within=check.FLOAT32)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(after.to_bytes(), options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert [n.op_type for n in optimized.graph.node].count("SimplifiedLayerNormalization") == 4
    compiled = openvino.Core().compile_model(openvino.Core().read_model(after.to_bytes()), "CPU")
    assert [n.get_rt_info()["layerType"] for n in compiled.get_runtime_model().get_ops()].count("RMS") == 4


@pytest.fixture(scope="module")
def small_encoder():
    """The encoder as opset 14 knows it: norms and Gelu in pieces."""
    return exported(encoder(), examples(), "opset 14")


def test_a_fused_encoder_goes_on_through_the_house(small_encoder, tmp_path):
    import torch

    from hasten.learn.executor import build

    graph = Plan(tuple(PlannedStep(n, plan.make_settings(n, s)) for n, s in CLEAN))
    model, _ = plan.run(graph, small_encoder, None)
    assert operators(model).count("LayerNormalization") == 4
    feeds = {"x0": RNG.standard_normal((16, 8, 32)).astype(np.float32)}
    wanted = check.oracle(small_encoder).run(None, feeds)[0]
    assert runtime("openvino").unsupported(model, Target(1)) == ()
    found = next(iter(runtime("openvino").compile(model, Target(1, 16)).run(feeds).values()))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(build(model).module(torch.from_numpy(feeds["x0"]))[0].numpy(), wanted, atol=1e-4)
    np.savez(tmp_path / "data.npz", x0=feeds["x0"])
    bound = Task(tmp_path / "data.npz").bind(model)
    codes = plan.row("quantize_static").settings()
    quantized, _ = plan.run(Plan((PlannedStep("quantize_static", codes),)), model, bound)
    assert quantized.history[-1].changed > 0
    row = plan.row("prune_channels")
    narrow, _ = plan.run(Plan((PlannedStep("prune_channels", row.settings(keep_macs=0.7, repair=False)),)), model, bound)
    assert sum(v.const_value.size for v in narrow.ir.graph.initializers.values()) < sum(
        v.const_value.size for v in model.ir.graph.initializers.values()
    )
    check.legal(narrow)
