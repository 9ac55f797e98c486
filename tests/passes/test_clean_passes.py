"""The clean-up passes: ONNX text before, operators after, the numbers compared too. A second run changes nothing."""

import numpy as np
import pytest

from hasten import check, plan
from hasten.model import Model, all_nodes
from tests.conftest import model_of, operators
from tests.passes.random_graphs import fingerprint

RNG = np.random.default_rng(0)


def after(name: str, before: Model) -> Model:
    """The pass's result, compared with the oracle within what its effect allows; a second run changes nothing."""
    row = plan.row(name)
    made = row.apply(before, row.settings(), None)
    check.legal(made)
    check.same(before, made, within=check.BITS if row.effect is plan.Effect.EQUIVALENT else check.FLOAT32)
    assert [p.name for p in (*made.inputs, *made.outputs)] == [p.name for p in (*before.inputs, *before.outputs)]
    assert fingerprint(row.apply(made, row.settings(), None)) == fingerprint(made)
    return made


def body(name: str, text: str, weights: dict[str, np.ndarray] | None = None, types: str = "(float[N, 2, 1, 4] x) => (float[A, B, C, D] y)"):
    """Operators that are left of nodes from x to y."""
    return operators(after(name, model_of(f"g {types} {{ {text} }}", weights)))


# --- cleanup


def test_cleanup_counts_a_twin_that_stays_as_an_identity():
    """Both are outputs: there are as many nodes as before, and what changed must be told, or the graph is taken for the one that was checked."""
    before = model_of("g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Neg (x) z = Neg (x) }")
    made = after("cleanup", before)
    assert operators(made) == ["Neg", "Identity"]
    assert made.history[-1].changed == 1


def test_cleanup_sees_through_the_order_of_what_commutes_and_into_subgraphs():
    before = model_of(
        """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {
            a = Add (x, z)
            b = Add (z, x)
            c = Mul (a, b)
            d = Mul (b, a)
            e = Sub (x, z)
            f = Sub (z, x)
            g0 = Add (c, d)
            h = Add (e, f)
            top = ReduceMax <keepdims = 0> (x)
            up = Greater (top, half)
            i = If (up) <then_branch = t () => (float[N, 4] p) { p0 = Add (z, x) p = Relu (p0) },
                         else_branch = s () => (float[N, 4] q) { q = Sub (g0, h) }>
            y = Add (i, g0)
        }""",
        {"half": np.array(0.5, np.float32)},
    )
    made = after("cleanup", before)
    assert operators(made) == ["Add", "Mul", "Sub", "Sub", "Add", "Add", "ReduceMax", "Greater", "If", "Add"]
    assert sum(n.op_type == "Add" for n in all_nodes(made.ir.graph)) == 4


def test_cleanup_keeps_every_output_by_its_name():
    before = model_of("g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] w) { y = Relu (x) z = Identity (y) w = Relu (x) }")
    made = after("cleanup", before)
    assert [p.name for p in made.outputs] == ["y", "z", "w"]
    assert sorted(operators(made)) == ["Identity", "Identity", "Relu"]


def test_a_clean_up_leaves_the_model_that_it_was_given():
    """onnx_ir names a Constant's tensor when it lifts it, and all clones share the tensor: the original's digest was another afterwards."""
    before = model_of("g (float[N, 4] x) => (float[N, 4] y) { c = Constant <value = float[1] {2.0}> () y = Mul (x, c) }")
    digest, data = before.digest, before.to_bytes()
    made = after("cleanup", before)
    assert operators(made) == ["Mul"]
    assert (Model(before.ir, before.history).digest, before.to_bytes()) == (digest, data)


@pytest.mark.parametrize("name", ["cleanup", "remove_noops"])
def test_outputs_that_hold_the_same_keep_their_names_and_nodes(name):
    """The second Max becomes an Identity, which another Identity must not be made to read by a second run."""
    before = model_of(
        """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] p, float[N, 4] q, float[N, 4] r) {
            p = Max (x, z)
            q = Max (z, x)
            r = Identity (p)
        }"""
    )
    assert [p.name for p in after(name, before).outputs] == ["p", "q", "r"]


LOCAL = '<domain: "local", opset_import: ["" : 21]>'


def test_cleanup_makes_two_calls_of_a_function_one_and_keeps_all_its_outputs():
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] p, float[N, 4] q, float[N, 4] y) {{
            a, p = local.f (x)
            q, b = local.f (x)
            y = Add (a, b)
        }}
        {LOCAL} f (u) => (v, w) {{ v = Relu (u) w = Neg (u) }}"""
    )
    assert operators(after("cleanup", before)) == ["f", "Add"]


def test_an_output_that_two_calls_make_has_an_identity_where_each_call_has_one():
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] p, float[N, 4] q, float[N, 4] r) {{
            a, p = local.f (x)
            q, r = local.f (x)
        }}
        {LOCAL} f (u) => (v, w) {{ v = Relu (u) w = Neg (u) }}"""
    )
    assert operators(after("cleanup", before)) == ["f", "Identity"]


def test_cleanup_counts_what_it_does_in_functions_and_tells_their_parameters_apart():
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] y) {{ y = local.f <one = 0.5, two = 0.25> (x) }}
        {LOCAL} f <one, two> (u) => (w) {{
            a = LeakyRelu <alpha: float = @one> (u)
            b = LeakyRelu <alpha: float = @two> (u)
            c = LeakyRelu <alpha: float = @one> (u)
            d = Identity (c)
            e = Add (a, b)
            w = Add (e, d)
        }}"""
    )
    made = after("cleanup", before)
    (function,) = made.ir.functions.values()
    assert [n.op_type for n in function] == ["LeakyRelu", "LeakyRelu", "Add", "Add"]
    assert made.history[-1].changed == 2


def test_cleanup_keeps_two_calls_of_a_function_that_gives_something_else_each_time():
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] y) {{
            a = local.f (x)
            b = local.f (x)
            y = Sub (a, b)
        }}
        {LOCAL} f (u) => (w) {{ r = RandomNormalLike (u) w = Add (u, r) }}"""
    )
    row = plan.row("cleanup")
    assert operators(row.apply(before, row.settings(), None)) == ["f", "f", "Sub"]


# --- remove_noops


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a = Reshape (x, flat) y = Reshape (a, four)", ["Reshape"]),
        ("a = Flatten (x) y = Reshape (a, back)", []),
        ("a = Squeeze (x, two) y = Unsqueeze (a, two)", []),
        ("a = Unsqueeze (x, two) b = Squeeze (a, two) y = Relu (b)", ["Relu"]),
        ("a = Transpose <perm = [0, 2, 3, 1]> (x) y = Transpose <perm = [0, 3, 1, 2]> (a)", []),
        ("a = Transpose <perm = [0, 2, 3, 1]> (x) y = Transpose <perm = [0, 2, 3, 1]> (a)", ["Transpose"]),
        ("y = Transpose <perm = [0, 1, 2, 3]> (x)", []),
        ("a = Cast <to = 11> (x) y = Cast <to = 1> (a)", []),
        ("a = Cast <to = 10> (x) y = Cast <to = 1> (a)", ["Cast", "Cast"]),
        ("y = Slice (x, zero, end, last)", []),
        ("y = Slice (x, one, end, last)", ["Slice"]),
        ("a = Slice (x, one, end, last) y = Slice (a, zero, one, first)", ["Slice"]),
        ("a = Slice (x, one, end, last) y = Slice (a, one, two, last)", ["Slice"]),
        ("y = Pad (x, none)", []),
        ("y = Expand (x, ones)", []),
        ("y = Tile (x, ones)", []),
        ("y = Concat <axis = 1> (x)", []),
        ("y = Split <axis = 1, num_outputs = 1> (x)", []),
        ("a = ReduceMean (x, two) y = Relu (a)", ["Relu"]),
        ("a = ReduceMean <keepdims = 0> (x, two) y = Unsqueeze (a, two)", []),
        ("y = Sum (x)", []),
        ("a = Neg (x) y = Neg (a)", []),
        ("a = Relu (x) y = Relu (a)", ["Relu"]),
        ("a = Floor (x) y = Ceil (a)", ["Floor"]),
        ("y = Dropout (x)", []),
        ("y = MaxPool <kernel_shape = [1, 1], strides = [1, 1]> (x)", []),
        ("y = MaxPool <kernel_shape = [1, 1], strides = [1, 2]> (x)", ["MaxPool"]),
    ],
)
def test_remove_noops(text, left):
    weights = {
        "flat": np.array([0, -1]), "four": np.array([-1, 2, 2, 2]), "back": np.array([-1, 2, 1, 4]), "zero": np.array([0]), "one": np.array([1]),
        "two": np.array([2]), "first": np.array([1]), "last": np.array([3]), "end": np.array([(1 << 63) - 1]), "none": np.zeros(8, np.int64),
        "ones": np.ones(4, np.int64),
    }  # fmt: skip
    assert [o for o in body("remove_noops", text, weights) if o != "Identity"] == left


# --- simplify_algebra


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a = Add (x, zero) b = Mul (one, a) c = Div (b, one) d = Sub (c, zero) e = Pow (d, one) y = Relu (e)", ["Relu"]),
        ("y = Add (x, wide)", ["Add"]),
        ("y = Sub (zero, x)", ["Neg"]),
        ("a = Add (x, p) b = Sub (a, q) y = Sub (p, b)", ["Sub"]),
        ("a = Mul (x, p) b = Div (a, q) y = Mul (p, b)", ["Mul"]),
        ("a = Div (p, x) y = Div (a, q)", ["Div"]),
        ("a = Mul (x, p) b = Add (a, q) y = Mul (b, p)", ["Mul", "Add"]),
        ("y = Div (x, q)", ["Mul"]),
        ("a = Div (x, q) y = Floor (a)", ["Div", "Floor"]),
        ("a = Div (x, two) y = Floor (a)", ["Mul", "Floor"]),
        ("a = Add (x, magic) y = Sub (a, magic)", ["Add", "Sub"]),
        ("y = Max (x, x)", []),
    ],
)
def test_simplify_algebra(text, left):
    weights = {
        "zero": np.array(0.0), "one": np.ones(1), "wide": np.zeros((1, 1, 3, 1)), "p": RNG.uniform(1, 2, (1, 1, 4)), "q": np.array(3.0),
        "two": np.array(2.0), "magic": np.array(2.0**23),
    }  # fmt: skip
    assert [o for o in body("simplify_algebra", text, weights) if o != "Identity"] == left


def test_simplify_algebra_makes_a_gemm_of_matrices_and_their_bias():
    types = "(float[N, 4] x) => (float[N, 3] y)"
    weights = {"w": RNG.standard_normal((4, 3)), "b": RNG.standard_normal(3)}
    assert body("simplify_algebra", "a = MatMul (x, w) y = Add (b, a)", weights, types) == ["Gemm"]


# --- resolve_shapes

COMPUTED = """g (float[N, S, 8] x) => (float[N, S, 2, 4] y, float[N, S, 8] z, float[N, S, 8] cut) {
    shape = Shape (x)
    n = Gather (shape, zero)
    s = Gather (shape, one)
    n1 = Unsqueeze (n, first)
    s1 = Unsqueeze (s, first)
    target = Concat <axis = 0> (n1, s1, heads)
    y = Reshape (x, target)
    cut = Slice (x, first, s1, second)
    z = Expand (x, shape)
}"""


def test_resolve_shapes_keeps_two_dynamic_axes():
    weights = {"zero": np.array(0), "one": np.array(1), "first": np.array([0]), "second": np.array([1]), "heads": np.array([2, 4])}
    made = after("resolve_shapes", model_of(COMPUTED, weights))
    assert sorted(operators(made)) == ["Expand", "Reshape", "Slice"]
    reshape = next(iter(made.ir.graph))
    assert reshape.inputs[1].const_value.numpy().tolist() == [0, -1, 2, 4]
    assert [o for o in operators(after("remove_noops", made)) if o != "Identity"] == ["Reshape"]


def test_resolve_shapes_decides_conditions_on_known_sizes_and_fold_branches_takes_the_branch():
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y) {
            shape = Shape (x)
            size = Gather (shape, one)
            four = Equal (size, wanted)
            p = Relu (x)
            i = If (four) <then_branch = t () => (float[N, 4] r) { p0 = Neg (p) r = Sigmoid (p0) },
                           else_branch = e () => (float[N, 4] q) { q = Tanh (p) }>
            y = Add (i, p)
        }""",
        {"one": np.array(1), "wanted": np.array(4)},
    )
    made = after("resolve_shapes", before)
    assert operators(made) == ["Relu", "If", "Add"]
    assert operators(after("fold_branches", made)) == ["Relu", "Neg", "Sigmoid", "Add"]


# --- fold_constants


def test_fold_constants_takes_a_branch_by_a_size_that_only_an_identity_behind_tells():
    before = model_of(
        """g (float[1, 4] x) => (float[1, 1, 4] y) {
            carried, each = Loop (turns, yes, x) <body = turn (int64 i, bool c, float[1, 4] s)
                => (bool c2, float[1, 4] s2, float[1, 4] s3) { c2 = Identity (c) s2 = Tanh (s) s3 = Neg (s) }>
            shape = Shape (each)
            size = Gather (shape, first)
            three = Equal (size, wanted)
            i = If (three) <then_branch = t () => (float[1, 1, 4] r) { r = Relu (each) },
                            else_branch = e () => (float[1, 1, 4] q) { q = Identity (each) }>
            y = Sigmoid (i)
        }""",
        {"turns": np.array(1), "yes": np.array(True), "first": np.array(0), "wanted": np.array(3)},
    )
    assert operators(after("fold_constants", before)) == ["Loop", "Sigmoid"]


# --- fold_branches


def test_fold_branches_keeps_names_apart_and_outer_values_captured():
    before = model_of(
        """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
            a = Relu (x)
            y = If (yes) <then_branch = t () => (float[N, 4] r) { b = Neg (a) r = Add (b, x) },
                          else_branch = e () => (float[N, 4] r) { b = Abs (a) r = Sub (b, x) }>
            z = If (no) <then_branch = t2 () => (float[N, 4] r) { b = Neg (y) r = Add (b, x) },
                         else_branch = e2 () => (float[N, 4] r) { b = Abs (y) r = Identity (b) }>
        }""",
        {"yes": np.array(True), "no": np.array(False)},
    )
    assert operators(after("fold_branches", before)) == ["Relu", "Neg", "Add", "Abs"]


@pytest.mark.parametrize(
    ("mask", "left"), [(np.ones((1, 4), bool), ["Relu"]), (np.zeros(4, bool), ["Sigmoid"]), (np.array([True, False] * 2), None)]
)
def test_fold_branches_where(mask, left):
    types = "(float[N, 4] x) => (float[N, 4] y)"
    found = body("fold_branches", "a = Relu (x) b = Sigmoid (x) y = Where (mask, a, b)", {"mask": mask}, types)
    assert found == (left or ["Relu", "Sigmoid", "Where"])


# --- merge_siblings


def test_merge_siblings_queries_keys_values():
    weights = {f"w{i}": RNG.standard_normal((8, 4)) for i in range(3)} | {f"b{i}": RNG.standard_normal(4) for i in range(3)}
    text = "\n".join(f"m{i} = MatMul (x, w{i}) {o} = Add (m{i}, b{i})" for i, o in enumerate(("q", "k", "v")))
    made = after(
        "merge_siblings", model_of(f"g (float[N, S, 8] x) => (float[N, S, 4] q, float[N, S, 4] k, float[N, S, 4] v) {{ {text} }}", weights)
    )
    assert operators(made) == ["MatMul", "Add", "Split"]
    assert made.history[-1].changed == 2


def test_merge_siblings_convolutions_of_different_width_and_says_why_not():
    weights = {
        "w": RNG.standard_normal((2, 3, 3, 3)), "v": RNG.standard_normal((4, 3, 3, 3)),
        "b": RNG.standard_normal(4), "u": RNG.standard_normal((4, 3, 1, 1)),
    }  # fmt: skip
    before = model_of(
        """g (float[N, 3, 6, 6] x) => (float[N, 2, 4, 4] p, float[N, 4, 4, 4] q, float[N, 4, 6, 6] r) {
            p = Conv (x, w)
            q = Conv (x, v, b)
            r = Conv (x, u)
        }""",
        weights,
    )
    made = after("merge_siblings", before)
    assert sorted(operators(made)) == ["Conv", "Conv", "Split"]
    assert [s.why for s in made.history[-1].skipped] == ["no other layer on its input has its attributes and its weights' shape"]


@pytest.mark.parametrize("first", ["Flatten <axis = 2> (r)", "Reshape (r, rows)"])
def test_a_softmax_along_the_last_axis_needs_no_matrix(first):
    """What the conversion of an old Softmax leaves behind."""
    weights = {"rows": np.array([10, 3]), "whole": np.array([2, 5, 3])}
    text = f"r = Relu (x) f = {first} s = Softmax <axis = -1> (f) y = Reshape (s, whole)"
    assert body("remove_noops", text, weights, "(float[2, 5, 3] x) => (float[2, 5, 3] y)") == ["Relu", "Softmax"]


@pytest.mark.parametrize("rows", [[5, 6], [2, 15]])
def test_a_softmax_of_other_rows_keeps_its_reshapings(rows):
    weights = {"rows": np.array(rows), "whole": np.array([2, 5, 3])}
    text = "f = Reshape (x, rows) s = Softmax <axis = -1> (f) y = Reshape (s, whole)"
    left = body("remove_noops", text, weights, "(float[2, 5, 3] x) => (float[2, 5, 3] y)")
    assert left == ["Reshape", "Softmax", "Reshape"]


@pytest.mark.parametrize(
    "pool, padded, folds",
    [
        ("<kernel_shape = [3, 3], strides = [2, 2]>", [1, 1, 1, 1], True),
        ("<kernel_shape = [3, 3], pads = [1, 0, 1, 0], count_include_pad = 1>", [1, 2, 0, 1], True),
        ("<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>", [1, 1, 1, 1], False),
        ("<kernel_shape = [2, 2]>", [2, 0, 0, 0], False),
        ("<kernel_shape = [3, 3], ceil_mode = 1>", [1, 1, 1, 1], False),
    ],
)
def test_a_mean_over_windows_takes_the_border_of_zeros(pool, padded, folds):
    top, left, bottom, right = padded
    weights = {"pads": np.array([0, 0, top, left, 0, 0, bottom, right])}
    text = f"p = Pad (x, pads) y = AveragePool {pool} (p)"
    found = body("fold_activations", text, weights, "(float[N, 2, 7, 7] x) => (float[N, 2, H, W] y)")
    assert found == (["AveragePool"] if folds else ["Pad", "AveragePool"])


@pytest.mark.parametrize(
    "text, left",
    [
        ("a = Relu (u) w = Clip (a, low, high)", ["Clip"]),
        ("a = Clip (u, low, high) w = Relu (a)", ["Clip"]),
        ("a = Clip (u, , high) b = Clip (a, low) w = Relu (b)", ["Clip"]),
        ("a = Relu (u) b = Clip (a, low) w = Relu (b)", ["Relu"]),
        ("a = Clip (u, high, low) w = Relu (a)", ["Clip"]),
        ("a = Relu (u) b = Clip (a, low, high) w = Add (a, b)", ["Relu", "Clip", "Add"]),
    ],
)
def test_clips_in_a_row_are_one_in_a_function_too_whose_types_are_unknown(text, left):
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] y) {{ y = local.f (x) }}
        {LOCAL} f (u) => (w) {{
            low = Constant <value = float {{-0.5}}> ()
            high = Constant <value = float {{0.75}}> ()
            {text}
        }}"""
    )
    (function,) = after("fold_activations", before).ir.functions.values()
    assert [n.op_type for n in function if n.op_type != "Constant"] == left


@pytest.mark.parametrize("name", ["push_transposes", "remove_noops"])
def test_an_output_keeps_the_shape_that_the_graph_promises(name):
    """Of what a Loop carries from turn to turn onnx infers no shape."""
    before = model_of(
        """g (float[2, 3] x) => (float[2, 3] y) {
            a = Loop (turns, , x) <body = turn (int64 i, bool go, float[2, 3] s) => (bool on, float[2, 3] t) { on = Identity (go) t = Tanh (s) }>
            b = Transpose <perm = [1, 0]> (a)
            y = Transpose <perm = [1, 0]> (b)
        }""",
        {"turns": np.array(2)},
    )
    made = after(name, before)
    assert operators(made) == ["Loop"]
    assert made.outputs == before.outputs


@pytest.mark.parametrize("name", ["fold_branches", "fold_constants"])
def test_the_weights_of_a_branch_that_is_taken_in_a_function_become_constants(name):
    before = model_of(
        f"""g (float[N, 4] x) => (float[N, 4] y) {{ y = local.f (x) }}
        {LOCAL} f (u) => (w) {{
            yes = Constant <value = bool {{1}}> ()
            w = If (yes) <then_branch = t () => (float[N, 4] p) <float[4] bias = {{1, 2, 3, 4}}> {{ p = Add (u, bias) }},
                          else_branch = s () => (float[N, 4] q) {{ q = Neg (u) }}>
        }}"""
    )
    (function,) = after(name, before).ir.functions.values()
    assert [n.op_type for n in function if n.op_type not in ("Constant", "Identity")] == ["Add"]
