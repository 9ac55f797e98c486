"""The passes in branches, loops' bodies and local functions: the same operators are left there as in the main graph, and the numbers are the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten import check, plan
from hasten.doors.onnx import from_proto
from hasten.model import Model, all_graphs
from tests.conftest import model_of, operators, proto_of
from tests.passes.random_graphs import check_names, fingerprint

RNG = np.random.default_rng(0)
PICTURE, ROWS = "float[N, 4, 6, 6]", "float[N, 4]"
KERNELS = {"w": RNG.standard_normal((5, 4, 3, 3)), "b": RNG.standard_normal(5)}
NORM = {"g": RNG.uniform(0.5, 2, 5), "c": RNG.standard_normal(5), "m": RNG.standard_normal(5), "v": RNG.uniform(0.5, 2, 5)}
MATRICES = {"w": RNG.standard_normal((4, 9)), "b": RNG.standard_normal(9), "v": RNG.standard_normal((9, 5)), "c": RNG.uniform(0.5, 2, 9)}
GELU = {"root": np.array(np.sqrt(2), np.float32), "one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}

CASES = {
    "batch norm behind a convolution": (
        "fold_batchnorm", f"({PICTURE} x) => (float[N, 5, 4, 4] y)", "l = Conv (x, w, b) y = BatchNormalization (l, g, c, m, v)",
        KERNELS | NORM, ["Conv"],
    ),
    "a scale and a bias behind a convolution": (
        "fold_affine", f"({PICTURE} x) => (float[N, 5, 4, 4] y)", "l = Conv (x, w) s = Mul (l, f) y = Add (s, t)",
        KERNELS | {"f": RNG.uniform(0.5, 2, (5, 1, 1)), "t": RNG.standard_normal((5, 1, 1))}, ["Conv"],
    ),
    "a scale behind rows": (
        "fold_affine", f"({ROWS} x) => (float[N, 9] y)", "l = Gemm (x, w, b) y = Div (l, c)", MATRICES, ["Gemm"],
    ),
    "bytes brought to 0 … 1 before a convolution": (
        "fold_scales", f"({PICTURE} x) => (float[N, 5, 4, 4] y)", "s = Div (x, most) y = Conv (s, w, b)",
        KERNELS | {"most": np.array(255, np.float32)}, ["Conv"],
    ),
    "two layers with nothing between them": (
        "merge_linear", f"({ROWS} x) => (float[N, 5] y)", "l = Gemm (x, w, b) y = MatMul (l, v)", MATRICES, ["Gemm"],
    ),
    "a transposition and its inverse": (
        "push_transposes", f"({PICTURE} x) => ({PICTURE} y)",
        "t = Transpose <perm = [0, 2, 3, 1]> (x) u = Add (t, k) r = Relu (u) y = Transpose <perm = [0, 3, 1, 2]> (r)",
        {"k": RNG.standard_normal(4)}, ["Add", "Relu"],
    ),
    "a Gelu in pieces": (
        "fuse_operators", f"({ROWS} x) => ({ROWS} y)", "d = Div (x, root) e = Erf (d) p = Add (e, one) t = Mul (x, p) y = Mul (t, half)",
        GELU, ["Gelu"],
    ),
}  # fmt: skip


def branch(body: onnx.GraphProto, x: onnx.ValueInfoProto) -> onnx.ModelProto:
    """The body as both branches of an If; its weights are the main graph's for one and its own for the other, its input is read from around it."""
    weights = list(body.initializer)
    other = onnx.compose.add_prefix_graph(body, "other_", rename_inputs=False)
    del body.initializer[:]
    for each in (body, other):
        del each.input[:]
    half = numpy_helper.from_array(np.float32(0), "zero")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0, name="mean_node"),
        helper.make_node("Greater", ["mean", "zero"], ["up"], name="up_node"),
        helper.make_node("If", ["up"], ["out"], then_branch=body, else_branch=other, name="if_node"),
    ]
    return around(nodes, x, body.output[0], [*weights, half])


def loop(body: onnx.GraphProto, x: onnx.ValueInfoProto) -> onnx.ModelProto:
    """The body run twice, what it gives carried on by a sum."""
    weights = list(body.initializer)
    del body.initializer[:]
    del body.input[:]
    given = body.output[0]
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in given.type.tensor_type.shape.dim]
    body.input.extend(
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
    )
    body.node.append(helper.make_node("Identity", ["go"], ["on"], name="on_node"))
    body.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    twice = numpy_helper.from_array(np.int64(2), "twice")
    node = helper.make_node("Loop", ["twice", ""], ["out"], body=body, name="loop_node")
    return around([node], x, helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, *dims]), [*weights, twice])


def function(body: onnx.GraphProto, x: onnx.ValueInfoProto) -> onnx.ModelProto:
    """The body as a function that is called; its weights are made by Constant nodes."""
    constants = [helper.make_node("Constant", [], [w.name], value=w, name=f"{w.name}_node") for w in body.initializer]
    made = helper.make_function("local", "f", ["x"], ["y"], [*constants, *body.node], [helper.make_opsetid("", 21)])
    proto = around([helper.make_node("f", ["x"], ["out"], domain="local", name="call")], x, body.output[0], [])
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(made)
    return proto


def around(nodes, x: onnx.ValueInfoProto, output: onnx.ValueInfoProto, weights) -> onnx.ModelProto:
    """A main graph of these nodes, which make `out`, and a value w_bias, a name that a pass would like to give inside."""
    out = onnx.ValueInfoProto()
    out.CopyFrom(output)
    out.name = "out"
    taken = onnx.ValueInfoProto()
    taken.CopyFrom(x)
    taken.name = "w_bias"
    nodes = [*nodes, helper.make_node("Sigmoid", ["x"], ["w_bias"], name="w_folded")]
    graph = helper.make_graph(nodes, "main", [x], [out, taken], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


PLACES = {f.__name__: f for f in (branch, loop, function)}


def bodies(model: Model) -> list[list[str]]:
    """Operators of the bodies, without what the places put round the case."""
    return [
        [n.op_type for n in graph if n.op_type not in ("Constant", "Identity")]
        for graph in all_graphs(model.ir)
        if graph is not model.ir.graph
    ]


def applied(name: str, before: Model) -> Model:
    """The pass's result: legal, the same numbers, the same again."""
    row = plan.row(name)
    made = row.apply(before, row.settings(), None)
    check.legal(made)
    check_names(made)
    onnx.checker.check_model(made.to_bytes(), full_check=True)
    check.same(before, made, within=check.FLOAT32)
    assert fingerprint(row.apply(made, row.settings(), None)) == fingerprint(made)
    return made


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_a_body_is_treated_like_the_main_graph(case, place):
    name, types, text, weights, left = CASES[case]
    proto = proto_of(f"g {types} {{ {text} }}", weights)
    assert operators(applied(name, from_proto(proto))) == left
    x = onnx.ValueInfoProto()
    x.CopyFrom(proto.graph.input[0])
    before = from_proto(PLACES[place](proto.graph, x))
    made = applied(name, before)
    assert bodies(made) == [left] * (2 if place == "branch" else 1)
    assert made.history[-1].changed > 0
    check.legal(plan.row("cleanup").apply(made, plan.row("cleanup").settings(), None))


def test_a_new_name_is_none_that_a_graph_around_or_inside_has():
    """ONNX forbids a value inside to have the name of one outside. Both graphs would like to call a bias w_bias, and each has such a value in the
    other's way."""
    text = "If (up) <then_branch = t () => (float[N, 9] p) { %s p = Relu (%s) }, else_branch = s () => (float[N, 9] q) { q = Neg (l) }>"
    inner, outer = "k = Gemm (x, w, b) w_bias_1 = Mul (k, c)", "l = Gemm (x, w, b) w_bias = Mul (l, c)"
    before = model_of(
        f"""g ({ROWS} x, bool up) => (float[N, 9] y) {{
            {outer}
            d = Relu (w_bias)
            i = {text % (inner, "w_bias_1")}
            y = Add (d, i)
        }}""".replace("q = Neg (l)", "q = Neg (d)"),
        {n: MATRICES[n] for n in "wbc"},
    )
    made = applied("fold_affine", before)
    assert made.history[-1].changed == 2
    for place in (made.ir.graph, *bodies_of(made)):
        assert [n.op_type for n in place].count("Gemm") == (1 if place.name != "s" else 0)


def bodies_of(model: Model):
    return [graph for graph in all_graphs(model.ir) if graph is not model.ir.graph]


def test_a_pattern_across_two_graphs_is_left_and_said():
    before = model_of(
        f"""g ({ROWS} x, bool up) => ({ROWS} y) {{
            d = Div (x, root)
            e = Erf (d)
            p = Add (e, one)
            y = If (up) <then_branch = t () => ({ROWS} a) {{ t = Mul (x, p) a = Mul (t, half) }},
                         else_branch = s () => ({ROWS} b) {{ b = Neg (x) }}>
        }}""",
        GELU,
    )
    assert operators(applied("fuse_operators", before)) == operators(before)


def test_a_transposition_is_not_pushed_into_a_loop():
    before = model_of(
        """g (float[3, 4] x) => (float[3, 4] y) {
            twice = Constant <value = int64 {2}> ()
            t = Transpose <perm = [1, 0]> (x)
            y = Loop (twice, , x) <body = b (int64 i, bool go, float[3, 4] s) => (bool on, float[3, 4] r) {
                on = Identity (go)
                u = Relu (t)
                back = Transpose <perm = [1, 0]> (u)
                r = Add (s, back)
            }>
        }"""
    )
    made = applied("push_transposes", before)
    assert made.history[-1].changed == 0
    assert operators(made).count("Transpose") == 1


def test_a_loop_that_carries_nothing_keeps_the_place_of_its_condition():
    """An empty last input is dropped as one that is not used, but a Loop has two."""
    proto = proto_of(f"g ({ROWS} x) => ({ROWS} y) {{ a = Identity (x) y = Neg (a) }}")
    x = onnx.ValueInfoProto()
    x.CopyFrom(proto.graph.input[0])
    made = applied("cleanup", from_proto(loop(proto.graph, x)))
    assert [len(n.inputs) for n in made.ir.graph if n.op_type == "Loop"] == [2]


def test_nodes_of_a_branch_are_put_in_the_order_of_least_peak():
    """As written three wide values live at once; each summed up before the next one is made, one does."""
    wide = "a = MatMul (x, s) b = Mul (a, two) c = Mul (a, three) d = ReduceSum <keepdims = 0> (b) e = ReduceSum <keepdims = 0> (c) p = Add (d, e)"
    before = model_of(
        f"""g (float[N, 1] x, bool up) => (float y) {{
            y = If (up) <then_branch = t () => (float p) {{ {wide} }}, else_branch = z () => (float q) {{ q = ReduceSum <keepdims = 0> (x) }}>
        }}""",
        {"s": np.ones((1, 64)), "two": np.array(2.0), "three": np.array(3.0)},
    )
    made = applied("order_nodes", before)
    assert [n.op_type for n in bodies_of(made)[0]] == ["MatMul", "Mul", "ReduceSum", "Mul", "ReduceSum", "Add"]
    assert made.history[-1].changed > 0


@pytest.mark.parametrize("operator, text", [
    ("a parameter of a function decides", "l = Gemm <alpha: float = @k> (x, w, b) y = Mul (l, two)"),
    ("so does it for a norm", "l = Gemm (x, w, b) y = BatchNormalization <epsilon: float = @k> (l, two, b, b, two)"),
])  # fmt: skip
def test_what_a_parameter_of_a_function_decides_is_left(operator, text):
    numbers = "w = Constant <value = float[2, 2] {1, 2, 3, 4}> () b = Constant <value = float[2] {1, 2}> ()"
    more = "two = Constant <value = float[2] {2, 2}> ()"
    before = model_of(
        f"""g (float[N, 2] x) => (float[N, 2] y) {{ y = local.f <k = 0.5> (x) }}
        <domain: "local", opset_import: ["" : 21]> f <k> (x) => (y) {{ {numbers} {more} {text} }}"""
    )
    for name in ("fold_affine", "fold_batchnorm", "fold_scales", "merge_linear"):
        assert applied(name, before).history[-1].changed == 0
