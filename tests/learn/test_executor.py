"""The executor: an ONNX graph in torch computes what the oracle does, and what is trained goes back into it."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from hasten import check
from hasten.doors import load
from hasten.doors.onnx import from_proto
from hasten.errors import BadInput, Unsupported
from hasten.learn import executor
from hasten.learn.executor import build, refusals
from hasten.learn.operators import OPERATORS, Op
from hasten.model import Model
from hasten.runtimes import Target, get
from tests.conftest import mlp_model, model_of, proto_of

AGREES = check.Tolerance("AGREES", 1e-5)

FILES = (
    "cifar10_resnet20.onnx", "fastestdet.onnx", "kws_dscnn.onnx", "light_resnet50.onnx", "light_shufflenet.onnx", "mnist_cntk.onnx",
    "mobilenetv2.onnx", "resnet18_vq.onnx.xz", "silero_vad_16k_plain.onnx", "squeezenet1.1.onnx", "stories260k.onnx",
    "ultraface_rfb_320.onnx", "vww_mobilenetv1_025.onnx",
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def agrees(model, made=None, batch=1, within=AGREES, seed=0):
    """The executor's outputs against the oracle's; raises CheckFailed."""
    made = made or build(model)
    feeds = check.random_feeds(model, batch, seed=seed)
    expected = check.oracle(model).run(None, feeds)
    with torch.no_grad():
        found = made.module(*(torch.from_numpy(feeds[name]) for name in made.inputs))
    assert made.outputs == tuple(p.name for p in model.outputs)
    for name, a, b in zip(made.outputs, expected, found, strict=True):
        check._compare(name, a, b.numpy(), within, batch)


@pytest.mark.parametrize("file", FILES)
def test_every_real_model_computes_what_the_oracle_does(shared_data, file):
    model = Model.load(shared_data / "models" / file)
    made = build(model)
    dynamic = any(not isinstance(d, int) for p in model.inputs for d in p.shape[:1])
    for batch in (1, 3) if dynamic else (1,):
        agrees(model, made, batch)


def with_random_weights(model, seed=0):
    """ConstantOfShape weights of the light models become initializers, random ones of a size that keeps the values in range."""
    edited, rng = model.edit(), np.random.default_rng(seed)
    for node in list(edited.graph):
        if node.op_type != "ConstantOfShape":
            continue
        old = node.outputs[0]
        shape = [int(n) for n in ir.convenience.get_const_tensor(node.inputs[0]).numpy()]
        reader, position = next(iter(old.uses()))
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.1
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        if reader.op_type == "BatchNormalization" and position in (1, 4):
            array = rng.uniform(*((0.2, 0.6) if position == 1 else (0.5, 1.5)), shape).astype(np.float32)
        new = ir.Value(name=f"{old.name}_random", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        new.const_value = ir.Tensor(array, name=new.name)
        edited.graph.register_initializer(new)
        ir.convenience.replace_all_uses_with(old, new)
        edited.graph.remove(node, safe=True)
    return Model(edited)


@pytest.mark.parametrize("file", ["light_resnet50.onnx", "light_shufflenet.onnx"])
def test_the_graphs_without_weights_do_so_with_random_ones(shared_data, file):
    model = with_random_weights(Model.load(shared_data / "models" / file))
    made = build(model)
    assert len(made.weights) > 100
    agrees(model, made)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = kind(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (Transformer(), torch.randint(0, 50, (2, 7))),
        (Recurrent(nn.LSTM), torch.randn(2, 5, 6)),
        (Recurrent(nn.GRU), torch.randn(2, 5, 6)),
        (nn.Sequential(nn.Conv1d(3, 8, 3, padding="same"), nn.BatchNorm1d(8), nn.SiLU(), nn.AdaptiveAvgPool1d(1)), torch.randn(2, 3, 16)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8), nn.Upsample(scale_factor=2)), torch.randn(2, 3, 8, 8)),
    ],
    ids=["transformer", "lstm", "gru", "conv1d", "pixels"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_exports_of_torch_compute_and_train_as_the_module_does(module, example, tmp_path):
    module.eval()
    model = load(module, example_inputs=example).model
    made = build(model)
    for batch in (1, 4):
        agrees(model, made, batch)
    numbers = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in made.weights.values())
    assert trained == numbers
    (y,) = made.module(example)
    y.square().mean().backward()
    expected = module(example)
    expected.square().mean().backward()
    ours = torch.cat([p.grad.flatten() for p in made.weights.values()]).sort().values
    theirs = torch.cat([p.grad.flatten() for p in module.parameters()]).sort().values
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_model_that_is_off_is_seen():
    model = mlp_model()
    made = build(model)
    agrees(model, made)
    with torch.no_grad():
        made.weights["w1"].mul_(1.001)
    with pytest.raises(check.CheckFailed):
        agrees(model, made)


def test_unchanged_weights_go_back_as_the_same_model(digits_cnn):
    model = Model.load(digits_cnn)
    made = build(model)
    back = Model(made.into(model), model.history)
    assert back.digest == model.digest
    assert made.buffers, "its batch norm is kept"
    assert set(made.weights) | set(made.buffers) <= set(model.ir.graph.initializers)


def test_trained_weights_go_back_by_name_and_leave_the_model_as_it_is():
    model = mlp_model()
    before = model.digest
    made = build(model)
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    optimizer = torch.optim.SGD(made.weights.values(), 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(made.module(x)[0], y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = Model(made.into(model))
    assert model.digest == before != after.digest
    assert after.structure == model.structure
    agrees(after, made)
    array = after.ir.graph.initializers["w1"].const_value.numpy()
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, made.weights["w1"].detach().numpy())


def test_weights_of_another_model_do_not_go_in():
    made = build(mlp_model())
    with pytest.raises(BadInput, match=r"weight 'w1' of shape \[128, 8\] can't go back: the model has one of shape \[16, 8\]; give"):
        made.into(mlp_model(hidden=16))


BATCH_NORM = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) {
    y = BatchNormalization <momentum = 0.8> (x, s, b, m, v)
}"""


def norm_model():
    return model_of(BATCH_NORM, {"s": np.ones(2), "b": np.zeros(2), "m": np.array([0.5, -1.0]), "v": np.array([1.0, 2.0])})


def test_batch_norm_follows_the_mode_and_its_statistics_go_back():
    model = norm_model()
    made = build(model)
    assert set(made.weights) == {"s", "b"}
    assert set(made.buffers) == {"m", "v"}
    x = torch.randn(4, 2, 3, 3) * 3 + 1
    agrees(model, made, 4)
    twin = nn.BatchNorm2d(2, momentum=0.2)
    twin.running_mean, twin.running_var = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(made.module.train()(x)[0], twin.train()(x))
    torch.testing.assert_close(made.buffers["m"], twin.running_mean)
    torch.testing.assert_close(made.buffers["v"], twin.running_var)
    made.module.eval()
    after = Model(made.into(model))
    assert after.structure == model.structure
    assert after.digest != model.digest
    agrees(after, made, 3)


def test_statistics_that_cleanup_merged_are_each_node_s_own_again():
    text = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) {
        a = BatchNormalization (x, s, b, m, v)
        r = Relu (a)
        y = BatchNormalization (r, s2, b, m, v)
    }"""
    model = model_of(text, {"s": np.full(2, 2.0), "s2": np.full(2, 3.0), "b": np.zeros(2), "m": np.zeros(2), "v": np.ones(2)})
    made = build(model)
    assert len(made.buffers) == 4
    assert Model(made.into(model)).digest == model.digest, "they are still equal"
    x = torch.randn(4, 2, 3, 3)
    made.module.train()(x)
    norms = [nn.BatchNorm2d(2), nn.BatchNorm2d(2)]
    torch.nn.init.constant_(norms[0].weight, 2.0)
    norms[1](torch.relu(norms[0](x)))
    means = [b for name, b in made.buffers.items() if name.startswith("m")]
    for norm, mean in zip(norms, means, strict=True):
        torch.testing.assert_close(mean, norm.running_mean)
    made.module.eval()
    after = Model(made.into(model))
    check.legal(after)
    assert len(after.ir.graph.initializers) == 7
    agrees(after, made, 3)
    with pytest.raises(BadInput, match=r"statistics of node 'BatchNormalization_2' can't go back: the model has no such node"):
        made.into(
            model_of(text.replace("r = Relu (a)", "r = Relu (a)\n q = Relu (r)"), {k: np.zeros(2) for k in ("s", "s2", "b", "m", "v")})
        )


def test_dropout_drops_in_train_mode_only():
    model = model_of("g (float[N, 1000] x) => (float[N, 1000] y) { y = Dropout (x, r) }", {"r": np.array(0.25)})
    made = build(model)
    x = torch.ones(2, 1000)
    assert torch.equal(made.module(x)[0], x)
    (y,) = made.module.train()(x)
    assert set(y.unique().tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert 0.15 < (y == 0).float().mean() < 0.35


def test_an_unknown_operator_is_refused_before_anything_runs(monkeypatch):
    model = model_of("g (float[N, 2, 2] x) => (float[N] y) { y = Det (x) }")
    assert refusals(model) == ()
    monkeypatch.setattr(executor, "OPERATORS", {k: v for k, v in OPERATORS.items() if k != "Det"})
    with pytest.raises(
        Unsupported, match=r"node 'Det_0' \(ai.onnx::Det, opset 21\): the torch executor has no such operator; docs/operators"
    ):
        build(model)
    (skip,) = refusals(model)
    assert skip.node == "Det_0"
    assert "opset 21" in skip.why
    (skip,) = get("torch").unsupported(model, Target(1))
    assert skip.node == "Det_0"


def test_an_unknown_attribute_and_a_subgraph_are_refused():
    model = model_of("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(Unsupported, match=r"Elu, opset 21.*does not know its attribute 'alpha'; it knows none"):
        build(model_of("g (float[N] x) => (float[N] y) { y = Elu <alpha = 2.0> (x) }"), more={"Elu": Op(lambda x: x)})
    loop = """g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = a () => (float[N] t) { t = Relu (x) }, else_branch = b () => (float[N] e) { e = Neg (x) }>
    }"""
    with pytest.raises(Unsupported, match=r"If, opset 21\): the torch executor runs no subgraphs"):
        build(model_of(loop))
    assert refusals(model) == ()


def test_more_replaces_a_row_and_adds_one():
    model = mlp_model()
    made = build(model, more={"Relu": Op(torch.tanh)})
    x = torch.randn(3, 8)
    expected = torch.tanh(x @ made.weights["w1"].T + made.weights["b1"]) @ made.weights["w2"].T + made.weights["b2"]
    torch.testing.assert_close(made.module(x)[0], expected)


def function_model():
    proto = proto_of("g (float[N, 4] x) => (float[N, 4] y) { y = hasten.Twice (x, w) }", {"w": np.arange(4.0)})
    proto.opset_import.add(domain="hasten", version=1)
    import onnx

    function = onnx.parser.parse_function(
        '<opset_import: ["" : 21], domain: "hasten"> Twice (a, b) => (c) { d = Add (a, a)\n c = Mul (d, b) }'
    )
    proto.functions.append(function)
    return from_proto(proto)


def test_a_local_function_is_inlined_unless_a_row_has_it():
    model = function_model()
    made = build(model)
    assert set(made.weights) == {"w"}
    agrees(model, made)
    own = build(model, more={"hasten::Twice": Op(lambda a, b: a - b)})
    x = torch.randn(2, 4)
    torch.testing.assert_close(own.module(x)[0], x - own.weights["w"])
    assert model.ir.functions, "the model is left as it is"


def test_taps_come_after_the_outputs():
    model = mlp_model()
    made = build(model, taps=("a", "h"))
    y, a, h = made.module(torch.randn(5, 8))
    assert made.outputs == ("y", "a", "h")
    assert torch.equal(a, torch.relu(h))
    assert y.shape == (5, 4)
    with pytest.raises(BadInput, match="there is no inner value 'z' to tap"):
        build(model, taps=("z",))


def test_a_gradient_goes_to_float_weights_alone():
    model = model_of(
        """g (int64[N, 3] i) => (float[N, 3, 4] y) {
            e = Gather (table, i)
            c = Clip (e, low, high)
            q = DequantizeLinear <axis = 0> (codes, scales)
            p = MatMul (c, q)
            s = Mul (p, half)
            y = Add (s, bias)
        }""",
        {
            "table": np.random.default_rng(0).standard_normal((7, 4)),
            "low": np.array(-1.0),
            "high": np.array(1.0),
            "codes": np.ones((4, 4), np.int8),
            "scales": np.full(4, 0.1),
            "half": np.array(0.5),
            "bias": np.zeros(4),
        },
    )
    made = build(model)
    assert set(made.weights) == {"table", "bias"}
    agrees(model, made, 2)


CHAIN = """g (float[N, C, 4] x) => (float[N, K] y, float[A, B, D] z) {
    s = Shape (x)
    n = Gather <axis = 0> (s, zero)
    m = Gather <axis = 0> (s, minus)
    c = Slice (s, one, two)
    q = Squeeze (c, first)
    k = Mul (q, m)
    n1 = Unsqueeze (n, first)
    k1 = Unsqueeze (k, first)
    to = Concat <axis = 0> (n1, k1)
    y = Reshape (x, to)
    ones = ConstantOfShape <value = int64[1] {1}> (three)
    e = Equal (ones, s)
    w = Where (e, s, s)
    z = Expand (x, w)
}"""


def chain_model():
    numbers = {"zero": 0, "minus": -1, "one": [1], "two": [2], "first": [0], "three": [3]}
    return model_of(CHAIN, {k: np.array(v, np.int64) for k, v in numbers.items()})


def test_arithmetic_on_shapes_stays_in_python_and_compiles_as_one_graph():
    model = chain_model()
    made = build(model)
    tensors = [n for n in made.module.graph.nodes if n.op == "call_function" and "tensor_of" in str(n.target)]
    assert tensors == [], "no shape becomes a tensor"
    torch._dynamo.reset()
    compiled = torch.compile(made.module, fullgraph=True, dynamic=True, backend="eager")
    for n, c in ((2, 3), (5, 7)):
        x = torch.randn(n, c, 4)
        y, z = compiled(x)
        assert y.shape == (n, 4 * c)
        assert torch.equal(z, x)
    feeds = check.random_feeds(model, 2)
    for a, b in zip(check.oracle(model).run(None, feeds), made.module(torch.from_numpy(feeds["x"])), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_a_shape_that_an_operator_needs_as_a_tensor_becomes_one():
    model = model_of(
        "g (float[N, 3] x) => (int64[2] s, float[N, 3] y) { s = Shape (x)\n f = Cast <to = 1> (s)\n m = ReduceMax (f)\n y = Div (x, m) }"
    )
    agrees(model, batch=5)


def test_a_transformer_s_chains_compile_as_one_graph(shared_data):
    model = Model.load(shared_data / "models" / "stories260k.onnx")
    made = build(model)
    torch._dynamo.reset()
    compiled = torch.compile(made.module, fullgraph=True, backend="eager")
    tokens = torch.randint(0, 512, (2, 9))
    torch.testing.assert_close(compiled(tokens)[0], made.module(tokens)[0])


def test_names_with_dots_and_slashes_stay_the_weights_names():
    model = model_of("g (float[N, 2] x) => (float[N, 2] y) { y = Mul (x, w) }", {"w": np.array([1.0, 2.0])})
    edited = model.edit()
    value = edited.graph.initializers["w"]
    edited.graph.initializers.pop("w")
    value.name = "/a.b/0:w"
    edited.graph.register_initializer(value)
    made = build(Model(edited))
    assert set(made.weights) == {"/a.b/0:w"}
    assert made.weights["/a.b/0:w"] is next(made.module.parameters())


@pytest.mark.parametrize("name", ["self", "torch", "class", "training", "forward", "1", "a.b"])
def test_any_name_can_be_an_input_an_output_or_a_weight(name):
    model = model_of("g (float[N, 2] x) => (float[N, 2] y) { h = Mul (x, w)\n y = Relu (h) }", {"w": np.array([1.0, -2.0])})
    for place in ("x", "h", "w"):
        edited = model.edit()
        value = next(v for v in (*edited.graph.inputs, *edited.graph.initializers.values(), edited.graph[0].outputs[0]) if v.name == place)
        if place == "w":
            edited.graph.initializers.pop("w")
        value.name = name
        if place == "w":
            edited.graph.register_initializer(value)
        agrees(Model(edited), batch=2)


def test_a_constant_that_one_operator_needs_as_a_tensor_is_burnt_into_another():
    model = model_of(
        "g (float[N, 2] x) => (float[N, 2] y) { a = Add (x, two)\n b = Clip (a, , two)\n y = Clip (b, low, two) }",
        {"two": np.array(2.0), "low": np.array(-1.0)},
    )
    made = build(model)
    clips = [n for n in made.module.graph.nodes if "clip" in str(n.target)]
    assert [c.args[1:] for c in clips] == [(None, 2.0), (-1.0, 2.0)]
    agrees(model, made, 3)


@pytest.mark.parametrize("kind", ["per tensor", "per channel", "blocked int4"])
def test_qdq_computes_in_float_what_the_oracle_does(kind):
    rng = np.random.default_rng(0)
    text = """g (float[N, 8] x) => (float[N, 4] y) {{
        qx = QuantizeLinear (x, sx, zx)
        dx = DequantizeLinear (qx, sx, zx)
        w = DequantizeLinear {attributes} (codes, sw{zero})
        y = MatMul (dx, w)
    }}"""
    weights = {"sx": np.array(0.03), "zx": np.array(128, np.uint8), "codes": rng.integers(-8, 8, (8, 4)).astype(np.int8)}
    if kind == "per tensor":
        model = model_of(text.format(attributes="", zero=", zw"), weights | {"sw": np.array(0.1), "zw": np.array(3, np.int8)})
    elif kind == "per channel":
        model = model_of(text.format(attributes="<axis = 1>", zero=""), weights | {"sw": rng.uniform(0.1, 0.2, 4)})
    else:
        import ml_dtypes

        weights["codes"] = weights["codes"].astype(ml_dtypes.int4)
        model = model_of(text.format(attributes="<axis = 0, block_size = 4>", zero=""), weights | {"sw": rng.uniform(0.1, 0.2, (2, 4))})
    agrees(model, batch=3)


def test_executors_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(mlp_model()).weights = {}


def test_the_command_line_loads_no_torch():
    code = "import sys, hasten, hasten.cli, hasten.search.optimize, hasten.runtimes.torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore")
def test_what_exporters_write_around_constants_is_burnt_in():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6()).eval()
    made = build(load(module, example_inputs=torch.randn(2, 3, 8, 8)).model)
    called = [str(n.target) for n in made.module.graph.nodes if n.op == "call_function"]
    assert [c for c in called if "cast" in c or "expand" in c or "shape" in c] == []
    clip = next(n for n in made.module.graph.nodes if "clip" in str(n.target))
    assert clip.args[1:] == (0.0, 6.0)
    conv = next(n for n in made.module.graph.nodes if "conv" in str(n.target))
    assert conv.args[2] is None, "the exporter's bias of zeros"
    assert set(made.weights) == {"0.weight", "1.weight", "1.bias"}
