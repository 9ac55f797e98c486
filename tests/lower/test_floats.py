"""Float models and transformers through the engine: within FLOAT32 of what onnxruntime computes without its optimisations."""

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.backend.test.loader import load_model_tests
from onnx.defs import get_schema

from hasten import check, lower
from hasten.doors.onnx import from_proto
from hasten.errors import BadInput, Unsupported
from hasten.lower import float_ops
from hasten.lower.float_rules import RULES
from hasten.runtimes import Target, get
from tests.conftest import model_of
from tests.lower.floats import FloatNet, random_convolutional, random_transformer

pytestmark = pytest.mark.usefixtures("engine")

LEVELS = ("scalar", "avx2", "avx512vnni")


def agrees(model, feeds, threads=1, batch=4):
    """That the engine gives what the oracle does, every output."""
    session = check.oracle(model)
    want = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    got = get("native").compile(model, Target(threads, batch=batch)).run(feeds)
    assert list(got) == list(want)
    for name, numbers in want.items():
        assert got[name].shape == numbers.shape
        off, size = np.abs(got[name] - numbers).max(), np.abs(numbers).max()
        assert off <= check.FLOAT32.relative * size, f"{name}: off by {off} of {size}"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_random_convolutional_nets(seed):
    agrees(*random_convolutional(seed))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_random_transformers(seed):
    model, feeds = random_transformer(seed)
    agrees(model, feeds)
    assert "Attention" in kinds(model)


CODES = 0.02
"""Mean error where floats are quantized on the way, of the outputs' mean size: a number that rounds the other way is off by a code."""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(12))
def test_sequences_on_codes(seed, level, monkeypatch):
    monkeypatch.setenv("HASTEN_ISA", level)
    net = FloatNet(seed)
    x = net.norm(net.input("x", (int(net.rng.integers(1, 30)), int(net.rng.choice([3, 16, 20, 33, 64])))))
    for _ in range(2):
        x = net.block8(x, str(net.rng.choice(["Gelu", "Relu", "Tanh"])))
    model, feeds = net.model(net.unary(net.linear8(net.codes(x), 7), "Sigmoid")), net.samples(3)
    made = kinds(model)
    assert made.count("Conv") == 5
    assert "DequantizePixels" not in made
    (want,) = check.oracle(model).run(None, feeds)
    (got,) = get("native").compile(model, Target(1, batch=4)).run(feeds).values()
    assert np.abs(got - want).mean() <= CODES * np.abs(want).mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(8))
def test_every_level_of_instructions(level, seed, monkeypatch):
    monkeypatch.setenv("HASTEN_ISA", level)
    agrees(*random_convolutional(seed))
    agrees(*random_transformer(seed))


@pytest.mark.parametrize("threads, batch, samples", [(2, 1, 1), (4, 1, 1), (2, 8, 8), (3, 40, 37)])
def test_threads_and_batches_change_no_number(threads, batch, samples):
    net = FloatNet(5)
    x = net.unary(net.conv(net.input("x", (3, 33, 31)), 40, 3, 1, 1), "Relu")
    x = net.binary("Add", net.conv(net.conv(x, 40, 3, 1, 1), 40, 1), x)
    image = net.model(net.linear(net.flat(net.pool(net.conv(x, 40, 3, 2, 1, group=40))), 17))
    tokens = FloatNet(6)
    sequence = tokens.model(tokens.block(tokens.input("x", (50, 64)), 4))
    for model, feeds in ((image, net.samples(samples)), (sequence, tokens.samples(samples))):
        alone = get("native").compile(model, Target(1, batch=1))
        one_by_one = [next(iter(alone.run({"x": feeds["x"][i : i + 1]}).values())) for i in range(samples)]
        together = next(iter(get("native").compile(model, Target(threads, batch=batch)).run(feeds).values()))
        np.testing.assert_array_equal(np.concatenate(one_by_one), together)


BFLOAT16 = 3e-2
"""Error of an output, of its own scale: numbers of 8 significant bits are off by 2⁻⁹ at most, and twenty layers' errors add up like random ones."""


@pytest.mark.parametrize("level", ["scalar", "avx512bf16"])
@pytest.mark.parametrize("seed", range(8))
def test_bfloat16(seed, level, monkeypatch):
    from hasten import _native

    monkeypatch.setenv("HASTEN_ISA", level)
    for model, feeds in (random_convolutional(seed), random_transformer(seed)):
        plan = lower.lower(model, precision="bfloat16")
        session = check.oracle(model)
        (want,) = session.run(None, feeds)
        got = _native.Model.from_bytes(plan.to_bytes(), 1, 4).run_list([feeds[i.name] for i in session.get_inputs()])[0]
        assert np.abs(got - want).max() <= BFLOAT16 * np.abs(want).max()


def test_bfloat16_rounds_to_nearest_ties_to_even_and_odd_runs_stay_float32():
    tie = np.float32(1.00390625)
    worst = np.array([0xFFFFFFFF], np.uint32).view(np.float32)[0]
    numbers = np.array([1.0, tie, 1.01171875, -tie, np.nextafter(tie, np.float32(2)), np.inf, np.nan, worst], np.float32)
    np.testing.assert_array_equal(float_ops.bfloat16(numbers), [0x3F80, 0x3F80, 0x3F82, 0xBF80, 0x3F81, 0x7F80, 0x7FC0, 0x7FC0])
    net = FloatNet(0)
    model = net.model(net.conv(net.conv(net.input("x", (3, 8, 8)), 8, 3), 4, 1))
    assert [type(op).__name__ for op in lower.lower(model, precision="bfloat16").ops] == ["Arrange", "ConvF32", "ConvBF16", "Arrange"]
    with pytest.raises(BadInput, match="there is no precision 'float8'; use one of float32, bfloat16"):
        lower.lower(model, precision="float8")


def kinds(model):
    return [type(op).__name__ for op in lower.lower(model).ops]


def test_what_follows_a_layer_goes_into_its_end():
    net = FloatNet(0)
    x = net.input("x", (8, 6, 6))
    first = net.unary(net.conv(x, 8, 3, 1, 1), "HardSwish")
    second = net.unary(net.binary("Add", net.conv(first, 8, 3, 1, 1), first), "Relu")
    assert kinds(net.model(second)) == ["Arrange", "ConvF32", "ConvF32", "Arrange"]
    net = FloatNet(0)
    y = net.unary(net.linear(net.input("x", (5, 8)), 16), "Gelu")
    (op,) = lower.lower(net.model(y)).ops
    assert isinstance(op, float_ops.ConvF32)
    assert op.end.activation.name == "Gelu"
    assert op.end.bias is not None


def test_a_transformer_is_attention_norms_and_products_alone():
    net = FloatNet(1)
    x = net.block(net.input("x", (6, 16)), 2)
    assert kinds(net.model(x)) == ["ConvF32"] * 3 + ["Attention", "ConvF32", "Norm", "ConvF32", "ConvF32", "Norm"]


def test_an_image_goes_back_to_planes_whatever_becomes_of_its_axes():
    net = FloatNet(2)
    x = net.conv(net.input("x", (3, 5, 4)), 6, 1)
    detected = net.node("Transpose", [x], (5, 4, 6), perm=(0, 2, 3, 1))
    boxes = net.node("Reshape", [detected, net.ints(0, 40, 3)], (40, 3))
    patches = net.node("Transpose", [net.node("Reshape", [x, net.ints(0, 6, 20)], (6, 20))], (20, 6), perm=(0, 2, 1))
    model = net.model(x, net.unary(boxes, "Sigmoid"), net.linear(patches, 4), detected)
    agrees(model, net.samples(3))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_axes_in_any_order_parts_of_them_and_the_batch_among_them(seed):
    """Transposes and reshapes that move nothing, those that must, single places and splits; then a product that reads what came of it."""
    net = FloatNet(seed)
    rng = net.rng
    sizes = tuple(int(n) for n in rng.choice([1, 2, 3, 4, 6], rng.integers(1, 5)))
    if len(sizes) > 3:
        x = net.node("Reshape", [net.input("x", (int(np.prod(sizes)),)), net.ints(0, *sizes)], sizes)
    else:
        x = net.input("x", sizes)
    for _ in range(rng.integers(1, 6)):
        shape = net.shapes[x]
        match rng.integers(0, 5):
            case 0 | 1:
                perm = [int(p) for p in rng.permutation(len(shape))]
                x = net.node("Transpose", [x], tuple(shape[p] for p in perm), perm=[0, *(p + 1 for p in perm)])
            case 2:
                total, new = int(np.prod(shape)), []
                while total > 1 and len(new) < 3:
                    new.append(int(rng.choice([d for d in range(1, total + 1) if total % d == 0])))
                    total //= new[-1]
                new.append(total)
                x = net.node("Reshape", [x, net.ints(0, *new)], tuple(new))
            case 3 if len(shape) > 1:
                axis = int(rng.integers(0, len(shape)))
                index = net.constant(np.int64(rng.integers(-shape[axis], shape[axis])))
                x = net.node("Gather", [x, index], (*shape[:axis], *shape[axis + 1 :]), axis=axis + 1)
            case _ if len(shape) <= 3:
                x = net.unary(x, "Tanh")
    if rng.random() < 0.5 and len(net.shapes[x]) in (1, 2):
        x = net.linear(x, 5)
    agrees(net.model(x), net.samples(int(rng.choice([1, 3]))))


def test_attention_that_counts_samples_by_the_second_axis():
    """As torch's MultiheadAttention is exported: positions first, one projection of queries, keys and values, then rows of both axes."""
    text = """m (float[N, 6, 8] x) => (float[N, 6, 8] y) {
        t = Transpose <perm = [1, 0, 2]> (x)
        p = MatMul (t, w)
        r = Reshape (p, s)
        q = Transpose <perm = [3, 1, 2, 0, 4]> (r)
        z = Squeeze (q, three)
        a = Gather <axis = 0> (z, zero)
        b = Gather <axis = 0> (z, one)
        c = Gather <axis = 0> (z, two)
        ab = Mul (a, b)
        abc = Add (ab, c)
        rows = Reshape (abc, flat)
        g = Gemm (rows, v, bias)
        back = Reshape (g, deep)
        h = Tanh (back)
        y = Transpose <perm = [1, 0, 2]> (h)
    }"""
    rng = np.random.default_rng(0)
    whole = {"s": [1, 6, -1, 3, 8], "three": [3], "flat": [-1, 8], "deep": [6, -1, 8]}
    weights = {name: np.array(n, np.int64) for name, n in (*whole.items(), ("zero", 0), ("one", 1), ("two", 2))}
    weights |= {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"w": (8, 24), "v": (8, 8), "bias": (8,)}.items()}
    agrees(model_of(text, weights), {"x": rng.standard_normal((3, 6, 8)).astype(np.float32)})


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_over_any_axis(axis):
    net = FloatNet(axis)
    x = net.conv(net.input("x", (3, 5, 4)), 6, 1)
    agrees(net.model(net.node("Softmax", [x], (6, 5, 4), axis=axis)), net.samples(2))


@pytest.mark.parametrize("seed", range(20))
def test_transposed_convolutions_and_resized_images(seed):
    net = FloatNet(seed)
    rng = net.rng
    c, h, w = (int(n) for n in rng.integers(1, 7, 3))
    x = net.conv(net.input("x", (3, h, w)), c, 1)
    kernel, stride, out = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(1, 20))
    pad = [int(n) for n in rng.integers(0, min(kernel, 3), 4)]
    extra = [int(n) for n in rng.integers(0, stride, 2)]
    sizes = [(n - 1) * stride + kernel - a - b + e for n, a, b, e in zip((h, w), pad[:2], pad[2:], extra, strict=True)]
    if min(sizes) < 1:
        pad, sizes = [0] * 4, [(n - 1) * stride + kernel + e for n, e in zip((h, w), extra, strict=True)]
    how = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pad, "output_padding": extra}
    y = net.node("ConvTranspose", [x, net.floats(c, out, kernel, kernel), net.floats(out)], (out, *sizes), **how)
    y = net.unary(net.binary("Add", y, net.conv(y, out, 1)), "Relu")
    times = int(rng.integers(1, 4))
    where = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if rng.random() < 0.5 else {}
    scales = net.constant(np.array([1, 1, times, times], np.float32))
    larger = net.node("Resize", [x, "", scales], (c, h * times, w * times), mode="nearest", **where)
    agrees(net.model(y, larger), net.samples(2))


def test_rows_of_the_last_axis_of_an_image():
    """A block of ConvNeXt (arXiv 2201.03545): channels last for a norm and two products, scaled, then an image again."""
    net = FloatNet(8)
    x = net.conv(net.input("x", (3, 6, 5)), 8, 1)
    y = net.node("Transpose", [net.conv(x, 8, 5, 1, 2, group=8)], (6, 5, 8), perm=(0, 2, 3, 1))
    y = net.linear(net.unary(net.linear(net.norm(y), 24), "Gelu"), 8)
    y = net.node("Mul", [y, net.floats(8)], (6, 5, 8))
    y = net.binary("Add", net.node("Transpose", [y], (8, 6, 5), perm=(0, 3, 1, 2)), x)
    model = net.model(y)
    agrees(model, net.samples(3))
    assert "Move" not in kinds(model)


def test_a_flattened_image_meets_vectors_numbers_and_itself():
    net = FloatNet(9)
    x = net.conv(net.input("x", (3, 4, 5)), 6, 1)
    flat = net.flat(x)
    doubled = net.node("Add", [flat, net.flat(net.unary(x, "Tanh"))], (120,))
    scaled = net.node("Mul", [doubled, net.constant(np.float32(0.5))], (120,))
    y = net.node("Add", [net.unary(scaled, "Abs"), net.floats(120)], (120,))
    agrees(net.model(y, net.linear(doubled, 7), net.node("ReduceSum", [y, net.ints(1)], (1,), keepdims=1)), net.samples(3))


def test_an_image_that_is_turned_and_padded():
    """One reader wants its numbers to lie together, the other a halo around them."""
    net = FloatNet(10)
    x = net.conv(net.input("x", (3, 6, 5)), 8, 1)
    turned = net.node("Transpose", [x], (6, 5, 8), perm=(0, 2, 3, 1))
    padded = net.conv(x, 4, 3, 1, 1)
    agrees(net.model(net.linear(turned, 7), padded), net.samples(2))


def test_a_sum_of_codes_behind_a_layer_that_ends_in_floats():
    """The layer's bias is a float and its codes are added to others: the sum is an op of its own, for the layer's end is taken."""
    net = FloatNet(11)
    x = net.codes(net.input("x", (5, 16)))
    y = net.codes(net.node("Add", [net.codes(net.linear8(x, 16)), x], (5, 16)))
    model, feeds = net.model(y), net.samples(3)
    (want,) = check.oracle(model).run(None, feeds)
    (got,) = get("native").compile(model, Target(1, batch=4)).run(feeds).values()
    assert np.abs(got - want).mean() <= CODES * np.abs(want).mean()


@pytest.mark.parametrize("axis", [0, 1])
def test_stored_codes_have_scales_along_their_own_axis(axis):
    """Of a transposed convolution the outputs are the second; where the sums have no one scale, floats are multiplied."""
    net = FloatNet(axis)
    for op, shape, x, out in (
        ("ConvTranspose", (3, 5, 2, 2), net.input("x", (3, 4, 4)), (5, 8, 8)),
        ("MatMul", (6, 6), net.codes(net.input("z", (6,))), (6,)),
    ):
        codes = net.constant(net.rng.integers(-127, 128, shape).astype(np.int8))
        scales = net.constant(net.rng.uniform(0.01, 0.1, shape[axis]).astype(np.float32))
        zeros = net.constant(np.zeros(shape[axis], np.int8))
        w = net.node("DequantizeLinear", [codes, scales, zeros], shape, axis=axis)
        net.shapes[op] = out
        more = {"strides": [2, 2]} if op == "ConvTranspose" else {}
        net.nodes.append(onnx.helper.make_node(op, [x, w], [op], **more))
    agrees(net.model("ConvTranspose", "MatMul"), net.samples(2))


def test_powers_splits_and_stored_tokens():
    net = FloatNet(7)
    x = net.input("x", (5, 12))
    for exponent in (2, 0.5, 3, -0.5, 1):
        x = net.unary(net.node("Pow", [net.unary(net.unary(x, "Tanh"), "Exp"), net.constant(np.float32(exponent))], (5, 12)), "Reciprocal")
    net.nodes.append(onnx.helper.make_node("Split", [x, net.ints(4, 8)], ["left", "right"], axis=2))
    net.shapes |= {"left": (5, 4), "right": (5, 8)}
    token = net.node(
        "Expand", [net.floats(1, 1, 4), net.node("Concat", [net.node("Shape", [x], (), end=1), net.ints(1, 4)], (), axis=0)], (1, 4)
    )
    y = net.node("Concat", [token, "left"], (6, 4), axis=1)
    agrees(net.model(y, net.linear("right", 3)), net.samples(3))


def test_batch_norm_pad_slices_and_softmax():
    net = FloatNet(3)
    x = net.input("x", (6, 7, 5))
    stored = [net.floats(6), net.floats(6), net.floats(6), net.constant(np.abs(net.rng.standard_normal(6)).astype(np.float32))]
    x = net.node("BatchNormalization", [net.node("Relu", [x], (6, 7, 5)), *stored], (6, 7, 5))
    x = net.node("Pad", [x, net.ints(0, 1, 0, 2, 0, 1, 3, 0), net.constant(np.float32(0.5))], (8, 10, 7))
    x = net.node("Slice", [x, net.ints(1, 0), net.ints(7, 10), net.ints(1, 2), net.ints(1, 3)], (6, 4, 7))
    agrees(net.model(net.node("Softmax", [x], (6, 4, 7), axis=1)), net.samples(3))


def test_one_relu_reads_and_writes_the_callers_memory():
    model = model_of("m (float[N, 16] x) => (float[N, 16] y) { y = Relu (x) }")
    (op,) = lower.lower(model).ops
    assert (op.x.port, op.y.port) == ((1, 0), (2, 0))
    x = np.array([[np.nan, -1, 0, 2, np.inf, -np.inf, *[3] * 10]], np.float32)
    np.testing.assert_array_equal(get("native").compile(model, Target(1)).run({"x": x})["y"], np.maximum(x, 0))


def test_numbers_that_name_no_row_are_an_error_and_negative_ones_count_from_the_end():
    net = FloatNet(4)
    model = net.model(net.node("Gather", [net.floats(10, 4), net.input("ids", (3,), whole=10)], (3, 4)))
    session = get("native").compile(model, Target(1))
    agrees(model, {"ids": np.array([[-10, -1, 9]])})
    for wrong in (10, -11, 2**40):
        with pytest.raises(ValueError, match=f"input 'ids' has the number {wrong}, the table behind it has 10 rows"):
            session.run({"ids": np.array([[0, wrong, 0]])})


@pytest.mark.parametrize(
    "text, why",
    [
        ("(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { a = Sin (x)\n y = Add (a, z) }", "no Sin"),
        ("(float[N, 4, 4] x, float[N, 4, 4] z) => (float[N, 4, 4] y) { y = MatMul (x, z) }", "both its operands are computed"),
        ("(float[N, 4, 4] x) => (float[4, N, 4] y) { y = Transpose <perm = [1, 0, 2]> (x) }", "counts its samples by another axis"),
        ("(float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y) { y = Softmax <axis = 0> (x) }", "along the batch"),
        ('(float[N, 4, 6, 6] x) => (float[N, 4, 9, 9] y) { y = Resize <mode = "linear"> (x, , r) }', "by its nearest pixels"),
        ("(float[N, 4] x, int64[N, 4] i) => (float[N, 4] y) { y = Neg (i) }", "computes on int64"),
        ("(float[N, 4, 3, 2, 2] x) => (float[N, 4, 3, 2, 2] y) { y = Relu (x) }", "vectors, sequences and images"),
        ("(float[3, 4] x) => (float[3, 4] y) { y = Relu (x) }", "fixed batch 3"),
    ],
)
def test_what_it_can_not_take_is_said(text, why):
    with pytest.raises(Unsupported, match=why):
        lower.lower(model_of(f"m {text}", {"r": np.array([1, 1, 1.5, 1.5], np.float32)} if "Resize" in text else None))


def node_tests():
    """ONNX's own tests of the operators that there is a rule for, what is stored in a model made a constant."""
    with warnings.catch_warnings(action="ignore"):  # the package's own, of casts that overflow
        cases = load_model_tests(kind="node")
    for case in cases:
        graph = case.model.graph
        if len(graph.node) == 1 and graph.node[0].op_type in RULES and graph.node[0].domain == "":
            yield case


STORED = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "Gather": (0,),
}
"""Inputs that models store; every input of whole numbers or of a scalar is one, too."""


@pytest.fixture(scope="module")
def node_results():
    """(operator, test, None or why it was refused) of each that the engine was asked for."""
    found = []
    for case in node_tests():
        for inputs, outputs in case.data_sets or ():
            model = with_constants(case.model, inputs)
            if model is None or any(np.asarray(o).dtype != np.float32 for o in outputs):
                continue
            feeds = {
                i.name: np.asarray(a)
                for i, a in zip(case.model.graph.input, inputs, strict=False)
                if i.name in {v.name for v in model.ir.graph.inputs}
            }
            if lower.unsupported(model):
                found.append((case.model.graph.node[0].op_type, case.name, lower.unsupported(model)[0].why))
                continue
            got = get("native").compile(model, Target(1, batch=len(next(iter(feeds.values()))))).run(feeds)
            for one, expected in zip(got.values(), outputs, strict=False):
                assert np.abs(one - expected).max() <= check.FLOAT32.relative * max(1e-6, np.abs(expected).max()), case.name
            found.append((case.model.graph.node[0].op_type, case.name, None))
    return found


def with_constants(proto, inputs):
    """The test's model with stored weights and a free batch; None where nothing is left to feed, or the input is no float32."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph, op = made.graph, made.graph.node[0].op_type
    names = list(graph.node[0].input)
    for i, (port, array) in enumerate(zip(list(graph.input), inputs, strict=False)):
        array = np.asarray(array)
        at = names.index(port.name) if port.name in names else i
        if at in STORED.get(op, ()) or (at > 0 and (array.dtype == np.int64 or array.ndim == 0)):
            graph.initializer.append(onnx.numpy_helper.from_array(array, port.name))
            graph.input.remove(port)
        elif array.dtype != np.float32 or array.ndim == 0 or array.size == 0:
            return None
    moved = [a.ints[0] for a in graph.node[0].attribute if a.name == "perm"] or [1 if op == "Transpose" else 0]
    if not graph.input or get_schema(op).deprecated or moved[0] != 0:
        return None
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.shape.dim:
            port.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:], graph.output[1:]
    try:
        return from_proto(made)
    except Exception:  # noqa: BLE001  (a test of what the house's opset does not have)
        return None


def test_onnx_s_own_node_tests(node_results):
    """Those that are taken give the expected numbers; of each operator some are taken."""
    taken = [op for op, _, why in node_results if why is None]
    assert len(taken) >= 140
    assert {op for op, _, _ in node_results} == set(taken)
