"""The executor's table, held to the node tests of the onnx package, to finite differences, and to itself."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hasten.learn import recurrent
from hasten.learn.executor import build
from hasten.learn.operators import OPERATORS, Op
from tests.conftest import model_of

ROOT = Path(__file__).resolve().parent.parent.parent

spec = importlib.util.spec_from_file_location("make_operators", ROOT / "tools" / "make_operators.py")
make_operators = importlib.util.module_from_spec(spec)
sys.modules["make_operators"] = make_operators
spec.loader.exec_module(make_operators)


@pytest.fixture(scope="module")
def results():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_operators.outcomes()
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
def test_every_node_test_of_a_claimed_operator_passes_or_has_its_reason(results):
    failed = [f"{r.case}: {r.error}" for r in results if r.error and not make_operators.reason(r.case)]
    assert not failed, "\n".join(failed)
    assert len(results) > 900


@pytest.mark.filterwarnings("ignore")
def test_no_operator_is_claimed_that_no_node_test_shows(results):
    shown = {r.operator for r in results if not r.error}
    assert set(OPERATORS) == shown


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_operators_is_current(results):
    if f"inside onnx {onnx.__version__}:" not in make_operators.PAGE.read_text():
        pytest.skip(f"the page is of another onnx than {onnx.__version__}, with other node tests")
    assert make_operators.PAGE.read_text() == make_operators.page(results), "python tools/make_operators.py"


@pytest.mark.parametrize(
    ("operator", "wrong"),
    [
        ("Add", Op(torch.sub)),
        ("Gemm", Op(lambda a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0: a @ b)),
        ("TopK", Op(lambda x, k, *, outputs, axis=-1, largest=1, sorted=1: torch.topk(x, 1, axis), burnt=(1,), many=True)),
    ],
)
def test_a_wrong_row_fails_its_node_tests(operator, wrong):
    assert all(not r.error or make_operators.reason(r.case) for r in make_operators.outcomes((operator,)))
    found = make_operators.outcomes((operator,), {operator: wrong})
    assert any(r.error and not make_operators.reason(r.case) for r in found)


UNARY = (
    "Abs", "Acos", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSwish", "Identity",
    "LeakyRelu", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh",
)  # fmt: skip
"""At ±0.3 and ±0.7 these are smooth."""

GRADIENTS = {
    **{name: (f"y = {name} (x)", {}) for name in UNARY},
    "Acosh": ("a = Add (x, two)\n y = Acosh (a)", {"two": np.array(2.0)}),
    "Log": ("a = Add (x, two)\n y = Log (a)", {"two": np.array(2.0)}),
    "Sqrt": ("a = Add (x, two)\n y = Sqrt (a)", {"two": np.array(2.0)}),
    "Pow": ("y = Pow (x, two)", {"two": np.array(3.0)}),
    "Add": ("y = Add (x, w)", {"w": (1, 4)}),
    "Sub": ("y = Sub (x, w)", {"w": (1, 4)}),
    "Mul": ("y = Mul (x, w)", {"w": (1, 4)}),
    "Div": ("y = Div (x, w)", {"w": (1, 4)}),
    "Max": ("y = Max (x, w)", {"w": (1, 4)}),
    "Min": ("y = Min (x, w)", {"w": (1, 4)}),
    "Sum": ("y = Sum (x, w, x)", {"w": (1, 4)}),
    "Mean": ("y = Mean (x, w, x)", {"w": (1, 4)}),
    "PRelu": ("y = PRelu (x, w)", {"w": (4,)}),
    "Clip": ("y = Clip (x, a, b)", {"a": np.array(-0.5), "b": np.array(0.5)}),
    "HardSigmoid": ("y = HardSigmoid (x)", {}),
    "ThresholdedRelu": ("y = ThresholdedRelu <alpha = 0.5> (x)", {}),
    "Shrink": ("y = Shrink <lambd = 0.5, bias = 0.1> (x)", {}),
    "Where": ("c = Greater (x, zero)\n y = Where (c, x, w)", {"w": (3, 4), "zero": np.array(0.0)}),
    "Softmax": ("y = Softmax (x)", {}),
    "LogSoftmax": ("y = LogSoftmax (x)", {}),
    "CumSum": ("y = CumSum <reverse = 1> (x, a)", {"a": np.array(1)}),
    **{
        f"Reduce{kind}": (f"y = Reduce{kind} (x, a)", {"a": np.array([1])})
        for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "ReduceLogSum": ("b = Exp (x)\n y = ReduceLogSum (b, a)", {"a": np.array([1])}),
    "Concat": ("y = Concat <axis = 1> (x, w)", {"w": (3, 2)}),
    "Expand": ("y = Expand (w, s)\n z = Add (x, x)", {"w": (1, 4), "s": np.array([3, 4])}),
    "Flatten": ("y = Flatten (x)", {}),
    "Gather": ("y = Gather (w, i)\n z = Add (x, x)", {"w": (5, 4), "i": np.array([4, 0, -1])}),
    "GatherElements": ("y = GatherElements <axis = 1> (x, i)", {"i": np.array([[1, 0], [3, 3], [-1, 2]])}),
    "GatherND": ("y = GatherND (x, i)", {"i": np.array([[0, 1], [2, 3]])}),
    "Pad": ("y = Pad <mode = \"reflect\"> (x, p)", {"p": np.array([1, 1, 1, 1])}),
    "Reshape": ("y = Reshape (x, s)", {"s": np.array([2, -1])}),
    "ScatterElements": ("y = ScatterElements <axis = 1> (x, i, w)", {"i": np.array([[1], [0], [3]]), "w": (3, 1)}),
    "ScatterND": ("y = ScatterND (x, i, w)", {"i": np.array([[0], [2]]), "w": (2, 4)}),
    "Slice": ("y = Slice (x, a, b, c, d)", {"a": np.array([3]), "b": np.array([-9]), "c": np.array([1]), "d": np.array([-2])}),
    "Split": ("y, z = Split <axis = 1, num_outputs = 2> (x)", {}),
    "Squeeze": ("a = Unsqueeze (x, o)\n y = Squeeze (a, o)", {"o": np.array([1])}),
    "Tile": ("y = Tile (x, r)", {"r": np.array([2, 1])}),
    "TopK": ("y, i = TopK (x, k)", {"k": np.array([2])}),
    "Transpose": ("y = Transpose (x)", {}),
    "Trilu": ("y = Trilu (x)", {}),
    "Einsum": ("y = Einsum <equation = \"ij,jk->ik\"> (x, w)", {"w": (4, 2)}),
    "Gemm": ("y = Gemm <transB = 1, alpha = 0.5> (x, w, b)", {"w": (2, 4), "b": (2,)}),
    "MatMul": ("y = MatMul (x, w)", {"w": (4, 2)}),
    "LayerNormalization": ("y = LayerNormalization (x, w, b)", {"w": (4,), "b": (4,)}),
    "LpNormalization": ("y = LpNormalization (x)", {}),
    "DequantizeLinear": ("w = DequantizeLinear (q, s)\n y = MatMul (x, w)", {"q": np.ones((4, 2), np.int8), "s": np.array(0.1)}),
}  # fmt: skip
"""Operator → (graph from x (3, 4) to y, weights: arrays, or shapes of random ones that are trained)."""

IMAGES = {
    "AveragePool": ("y = AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1], strides = [2, 2]> (x)", {}),
    "BatchNormalization": ("y = BatchNormalization (x, w, b, m, v)", {"w": (2,), "b": (2,), "m": np.zeros(2), "v": np.ones(2)}),
    "Conv": ("y = Conv <pads = [1, 0, 0, 1], dilations = [2, 1], group = 2> (x, w, b)", {"w": (4, 1, 2, 2), "b": (4,)}),
    "ConvTranspose": ("y = ConvTranspose <strides = [2, 2], pads = [0, 0, 1, 1]> (x, w, b)", {"w": (2, 3, 2, 2), "b": (3,)}),
    "DepthToSpace": ("a = Concat <axis = 1> (x, x)\n y = DepthToSpace <blocksize = 2> (a)", {}),
    "GlobalAveragePool": ("y = GlobalAveragePool (x)", {}),
    "GlobalMaxPool": ("y = GlobalMaxPool (x)", {}),
    "GroupNormalization": ("y = GroupNormalization <num_groups = 1> (x, w, b)", {"w": (2,), "b": (2,)}),
    "InstanceNormalization": ("y = InstanceNormalization (x, w, b)", {"w": (2,), "b": (2,)}),
    "LRN": ("y = LRN <size = 2> (x)", {}),
    "LpPool": ("y = LpPool <kernel_shape = [2, 2]> (x)", {}),
    "MaxPool": ("y = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1], strides = [2, 2]> (x)", {}),
    "MeanVarianceNormalization": ("y = MeanVarianceNormalization (x)", {}),
    "Resize": ("y = Resize <mode = \"cubic\"> (x, , s)", {"s": np.array([1, 1, 2, 1.5], np.float32)}),
    "SpaceToDepth": ("y = SpaceToDepth <blocksize = 2> (x)", {}),
}  # fmt: skip
"""The same from x (2, 2, 4, 4)."""

SEQUENCES = {
    "GRU": ("y = GRU <hidden_size = 3, linear_before_reset = 1> (x, w, r, b)", {"w": (1, 9, 2), "r": (1, 9, 3), "b": (1, 18)}),
    "LSTM": ("y = LSTM <hidden_size = 3> (x, w, r, b)", {"w": (1, 12, 2), "r": (1, 12, 3), "b": (1, 24)}),
    "RNN": ("y = RNN <hidden_size = 3> (x, w, r, b)", {"w": (1, 3, 2), "r": (1, 3, 3), "b": (1, 6)}),
}
"""The same from x (4, 2, 2)."""

NO_SLOPE = {
    "Cast", "CastLike", "Ceil", "Floor", "Round", "Sign",  # steps, or a type
    "Compress", "Mod", "OneHot", "ReverseSequence", "Unsqueeze", "Det", "GridSample", "Dropout",  # torch's own gradient of one call
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", sorted(name for name, row in OPERATORS.items() if row.gradient and name not in NO_SLOPE))
def test_gradients_are_those_of_finite_differences(operator):
    rng = np.random.default_rng(0)
    table, shape = next((t, s) for t, s in ((GRADIENTS, (3, 4)), (IMAGES, (2, 2, 4, 4)), (SEQUENCES, (4, 2, 2))) if operator in t)
    text, weights = table[operator]
    arrays = {k: w if isinstance(w, np.ndarray) else rng.uniform(0.3, 0.9, w) * rng.choice([-1, 1], w) for k, w in weights.items()}
    trained = [k for k, w in weights.items() if not isinstance(w, np.ndarray)]
    model = model_of(f"g (float[{', '.join(map(str, shape))}] x) => (float y) {{ {text} }}", arrays)
    executor = build(model)
    assert set(executor.weights) == set(trained)
    module = executor.module.double()
    x = rng.permutation(np.linspace(-0.9, 0.9, int(np.prod(shape)))).reshape(shape)
    tensors = (torch.tensor(x, dtype=torch.float64, requires_grad=True), *(executor.weights[k] for k in trained))
    assert torch.autograd.gradcheck(lambda x, *_: module(x), tensors, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_the_fused_kernels_and_the_loop_agree_in_value_and_gradient(operator, gates, direction, monkeypatch):
    rng = np.random.default_rng(0)
    d, hidden, size = (2 if direction == "bidirectional" else 1), 5, 3
    more = ", linear_before_reset = 1" if operator == "GRU" else ""
    weights = {
        "w": rng.standard_normal((d, gates * hidden, size)),
        "r": rng.standard_normal((d, gates * hidden, hidden)),
        "b": rng.standard_normal((d, 2 * gates * hidden)),
    }
    text = f'y = {operator} <hidden_size = {hidden}, direction = "{direction}"{more}> (x, w, r, b'
    x = torch.tensor(rng.standard_normal((6, 2, size)), dtype=torch.float32)

    def gradients(tail, extra):
        executor = build(model_of(f"g (float[6, 2, {size}] x) => (float y) {{ {text}{tail}) }}", weights | extra))
        (y,) = executor.module(x)
        y.square().sum().backward()
        return [y.detach(), *(executor.weights[k].grad for k in "wrb")]

    fused = gradients("", {})
    monkeypatch.setattr(recurrent, "_fused", None)  # the loop must not need it
    looped = gradients(", n", {"n": np.array([6, 6], np.int32)})
    for a, b in zip(fused, looped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
