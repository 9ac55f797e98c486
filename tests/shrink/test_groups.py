"""Groups of channels: what is coupled, what is frozen and why, and that removal is exactly what zeroing is."""

from random import Random

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hasten import check
from hasten.doors import load
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput
from hasten.model import Model
from hasten.passes.cleanup import Cleanup, cleanup
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.shrink.groups import couple
from hasten.shrink.keep import keep
from hasten.shrink.rules import RULES
from tests.conftest import model_of, operators
from tests.passes.random_graphs import random_graph
from tests.shrink.exact import check_removal, half, removed, zeroed

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def exported(module: nn.Module, *shape: int) -> Model:
    """The module with random statistics, through torch's door, folded as a student's teacher is."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    model = load(module.eval(), example_inputs=torch.randn(*shape)).model
    return fold_constants(model, FoldConstants(), None)


MLP = """mlp (float[N, 8] x) => (float[N, 4] y) {
    h = Gemm <transB = 1> (x, w1, b1)
    a = Relu (h)
    y = Gemm <transB = 1> (a, w2, b2)
}"""


def mlp_weights() -> dict[str, np.ndarray]:
    return {"w1": random(6, 8), "b1": random(6), "w2": random(4, 6), "b2": random(4)}


def test_a_hidden_unit_is_a_row_a_bias_and_a_column():
    coupled = couple(model_of(MLP, mlp_weights()))
    assert [g.describe(3) for g in coupled.groups] == ["channel 3 of w1[0]: w1[0] 3 = b1[0] 3 → w2[1] 3"]
    assert [s.why for s in coupled.frozen] == ["w2[0] stays as wide as it is: it reaches the model's output 'y'"]
    after = removed(coupled, {"w1[0]": np.array([5, 0])})
    weights = after.ir.graph.initializers
    before = coupled.model.ir.graph.initializers
    for name, axis in (("w1", 0), ("b1", 0), ("w2", 1)):
        assert np.array_equal(weights[name].const_value.numpy(), before[name].const_value.numpy().take([0, 5], axis))
    assert before["w1"].const_value.shape == (6, 8), "the model that was given never changes"


@pytest.mark.parametrize("indices", [[], [-1], [6]])
def test_keep_refuses_channels_that_are_not_there(indices):
    coupled = couple(model_of(MLP, mlp_weights()))
    with pytest.raises(BadInput, match=r"w1\[0\].*it has 0 to 5, and one must be left"):
        keep(coupled, {"w1[0]": indices})
    with pytest.raises(BadInput, match=r"no group of channels 'w9'; it has w1\[0\]"):
        keep(coupled, {"w9": [0]})


def test_a_wrong_removal_is_found():
    coupled = couple(model_of(MLP, mlp_weights()))
    with pytest.raises(check.CheckFailed):
        check.same(zeroed(coupled, {"w1[0]": np.array([0, 1])}), removed(coupled, {"w1[0]": np.array([0, 2])}), check.FLOAT32)


def test_concat_flatten_and_pad_count_their_channels_anew():
    """Two layers end to end, zeros on both sides of the channels (a shortcut of option A), then C · H · W."""
    model = model_of(
        """g (float[N, 3, 4, 4] x) => (float[N, 5] y) {
            a = Conv (x, wa)
            b = Conv (x, wb)
            c = Concat <axis = 1> (a, b)
            p = Pad (c, pads)
            r = Conv (x, wr, br)
            s = Add (p, r)
            f = Flatten (s)
            y = MatMul (f, w)
        }""",
        {
            "wa": random(4, 3, 1, 1),
            "wb": random(2, 3, 1, 1),
            "pads": np.array([0, 1, 0, 0, 0, 3, 0, 0]),
            "wr": random(10, 3, 1, 1),
            "br": random(10),
            "w": random(160, 5),
        },
    )
    coupled = couple(model)
    assert {g.name: g.channels for g in coupled.groups} == {"wa[0]": 4, "wb[0]": 2, "wr[0]": 4}
    assert "wr[0] 1 = br[0] 1 → w[0] 16…31" in coupled.group("wa[0]").describe(0)
    after = check_removal(coupled)
    pads = next(n for n in after.ir.graph if n.op_type == "Pad").inputs[1].const_value.numpy()
    assert pads[1] + pads[5] == 2 and after.ir.graph.initializers["w"].shape == [80, 5]


def test_split_slice_and_squeeze_excite():
    model = model_of(
        """g (float[N, 3, 4, 4] x) => (float[N, 5] y) {
            a = Conv (x, wa)
            u, v = Split <axis = 1, num_outputs = 2> (a)
            g = Sigmoid (v)
            m = Mul (u, g)
            q = GlobalAveragePool (m)
            e = Conv (q, w1, b1)
            h = Relu (e)
            z = Conv (h, w2)
            i = HardSigmoid (z)
            o = Mul (m, i)
            p = GlobalMaxPool (o)
            first = Slice (p, start, middle, one)
            second = Slice (p, middle, end, one)
            c = Conv (first, w3)
            d = Conv (second, w4)
            s = Add (c, d)
            y = Flatten (s)
        }""",
        {
            "wa": random(16, 3, 1, 1),
            "w1": random(4, 8, 1, 1),
            "b1": random(4),
            "w2": random(8, 4, 1, 1),
            "start": np.array([0]),
            "middle": np.array([3]),
            "end": np.array([2**62]),
            "one": np.array([1]),
            "w3": random(5, 3, 1, 1),
            "w4": random(5, 5, 1, 1),
        },
    )
    coupled = couple(model)
    assert sorted(g.channels for g in coupled.groups) == [3, 4, 5]
    check_removal(coupled)


def test_depthwise_and_grouped_convolutions_and_transposed_ones():
    model = model_of(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 12, 12] y) {
            a = Conv (x, wa)
            d = Conv <group = 6> (a, wd, bd)
            b = Conv <group = 3> (d, wb, bb)
            t = ConvTranspose <strides = [2, 2]> (b, wt, bt)
            k = ConvTranspose <group = 8> (t, wk)
            y = Conv (k, wy)
        }""",
        {
            "wa": random(6, 3, 1, 1),
            "wd": random(12, 1, 3, 3),
            "bd": random(12),
            "wb": random(9, 4, 1, 1),
            "bb": random(9),
            "wt": random(9, 8, 2, 2),
            "bt": random(8),
            "wk": random(8, 1, 1, 1),
            "wy": random(5, 8, 1, 1),
        },
    )
    coupled = couple(model)
    groups = {g.name: g for g in coupled.groups}
    # The grouped convolution loses the same channel of each of its 3 groups; a channel of `a` makes two of `d`.
    assert groups["wa[0]"].channels == 2 and groups["wb[0]"].channels == 3 and groups["wt[1]"].channels == 8
    after = check_removal(coupled)
    assert [n.attributes.get_int("group", 1) for n in after.ir.graph] == [1, 3, 3, 1, 4, 1]


def test_what_is_not_understood_or_mixed_is_frozen_with_the_reason():
    model = model_of(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = Gemm <transB = 1> (x, w1)
            n = Softmax (a)
            b = Gemm <transB = 1> (n, w2)
            d = Det (square)
            e = Mul (b, d)
            f = Add (e, x)
            y = MatMul (f, w3)
        }""",
        {"w1": random(6, 4), "w2": random(4, 6), "w3": random(4, 3), "square": random(2, 2)},
    )
    coupled = couple(model)
    assert coupled.groups == ()
    reasons = [s.why for s in coupled.frozen]
    assert any("w1[0]" in r and "normalises over these channels" in r for r in reasons)
    assert any("w2[0]" in r and "it meets values whose size is fixed" in r for r in reasons)
    assert any("square[0]" in r and "Det has no rule for channels" in r for r in reasons)
    assert any("w3[1]" in r and "reaches the model's output 'y'" in r for r in reasons)


def test_a_subgraph_freezes_what_it_reads():
    model = model_of(
        """g (float[N, 4] x, bool c) => (float[N, 3] y) {
            a = MatMul (x, w1)
            b = If (c) <then_branch = t () => (float[N, 5] u) { u = Relu (a) }, else_branch = e () => (float[N, 5] v) { v = Neg (a) }>
            y = MatMul (b, w2)
        }""",
        {"w1": random(4, 5), "w2": random(5, 3)},
    )
    coupled = couple(model)
    assert coupled.groups == () and "If has no rule" in coupled.frozen[0].why


def test_vectors_that_are_equal_tie_no_channels_and_shared_matrices_do():
    model = model_of(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul (x, w1)
            p = Mul (a, ones)
            b = MatMul (p, w2)
            q = Mul (b, ones)
            c = MatMul (q, w2)
            y = MatMul (c, w3)
        }""",
        {"w1": random(4, 6), "w2": random(6, 6), "w3": random(6, 3), "ones": np.ones(6)},
    )
    assert [g.channels for g in couple(model).groups] == [6]
    two = model_of(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul (x, w1)
            p = Mul (a, ones)
            b = MatMul (p, w2)
            q = Mul (b, ones)
            y = MatMul (q, w3)
        }""",
        {"w1": random(4, 6), "w2": random(6, 6), "w3": random(6, 3), "ones": np.ones(6)},
    )
    coupled = couple(two)
    assert [g.name for g in coupled.groups] == ["w1[1]", "w2[1]"]
    check_removal(coupled)


def test_recurrent_layers_lose_units_in_every_gate():
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        model = model_of(
            f"""g (float[5, N, 3] x) => (float[5, N, 2] y) {{
                a = MatMul (x, win)
                h, last = {kind} <hidden_size = 6, direction = "bidirectional"> (a, w, r, b)
                t = Transpose <perm = [0, 2, 1, 3]> (h)
                f = Reshape (t, shape)
                y = MatMul (f, wout)
            }}""",
            {
                "win": random(3, 4),
                "w": random(2, gates * 6, 4),
                "r": random(2, gates * 6, 6),
                "b": random(2, 2 * gates * 6),
                "shape": np.array([5, -1, 12]),
                "wout": random(12, 2),
            },
        )
        coupled = couple(model)
        assert sorted(g.channels for g in coupled.groups) == [4, 6]
        after = check_removal(coupled)
        assert next(n for n in after.ir.graph if n.op_type == kind).attributes.get_int("hidden_size") == 3


def test_einsum_gather_resize_and_depth_to_space():
    model = model_of(
        """g (int64[N, 6] ids) => (float[N, 3, 12, 8] y) {
            e = Gather (table, ids)
            q = Einsum <equation = "nsd,dhk->nhsk"> (e, w)
            r = Resize <mode = "nearest"> (q, , scales)
            c = Conv (r, wc)
            d = DepthToSpace <blocksize = 2, mode = "CRD"> (c)
            s = SpaceToDepth <blocksize = 2> (d)
            y = Conv (s, wy)
        }""",
        {
            "table": random(10, 4),
            "w": random(4, 6, 4),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "wc": random(8, 6, 1, 1),
            "wy": random(3, 8, 1, 1),
        },
    )
    coupled = couple(model)
    assert {g.name: g.channels for g in coupled.groups} == {"table[1]": 4, "w[1]": 6, "wc[0]": 2}
    check_removal(coupled)


def test_quantized_weights_lose_their_scales_too():
    model = model_of(
        """g (float[N, 4] x) => (float[N, 3] y) {
            w = DequantizeLinear <axis = 0> (codes, scales, zeros)
            b = DequantizeLinear <axis = 0> (bias, scales)
            a = Gemm <transB = 1> (x, w, b)
            q = QuantizeLinear (a, step)
            d = DequantizeLinear (q, step)
            y = MatMul (d, w2)
        }""",
        {
            "codes": RNG.integers(-127, 127, (6, 4)).astype(np.int8),
            "scales": RNG.uniform(0.01, 0.1, 6),
            "zeros": np.zeros(6, np.int8),
            "bias": RNG.integers(-100, 100, 6).astype(np.int32),
            "step": np.array(0.05, np.float32),
            "w2": random(6, 3),
        },
    )
    coupled = couple(model)
    assert [g.channels for g in coupled.groups] == [6] and len(coupled.groups[0].members) == 6
    check_removal(coupled)


def test_normalisation_over_channels_says_that_it_is_not_exact():
    model = model_of(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul (x, w1)
            n = LayerNormalization (a, s, b)
            y = MatMul (n, w2)
        }""",
        {"w1": random(4, 6), "s": random(6), "b": random(6), "w2": random(6, 3)},
    )
    coupled = couple(model)
    assert "its mean and variance then run over fewer channels" in coupled.groups[0].inexact
    after = removed(coupled, half(coupled, inexact=True))
    check.legal(after)
    with pytest.raises(check.CheckFailed):
        check.same(zeroed(coupled, half(coupled, inexact=True)), after, check.FLOAT32)


class Block(nn.Module):
    """ResNet's, with a shortcut of its own at the first, and a DenseNet-like Concat at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(
            nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        )
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16))
        self.two = nn.Sequential(nn.Conv2d(16, 10, 1), nn.GroupNorm(2, 10), nn.PReLU(10), nn.Conv2d(10, 16, 3, padding=1, groups=2))
        self.dense = nn.Conv2d(16, 6, 3, padding=1)
        self.head = nn.Linear(22 * 4 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.one(x) + self.short(x))
        x = x + self.two(x)
        x = torch.cat([x, self.dense(x)], 1)
        return self.head(x.flatten(1))


class Mobile(nn.Module):
    """MobileNetV3's block with squeeze and excitation, and a gated unit of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid())
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.depth(self.expand(x))
        x = self.project(x * self.squeeze(x))
        a, b = x.mean((2, 3)).chunk(2, 1)
        return self.head(a * torch.sigmoid(b))


class Transformer(nn.Module):
    """Embedding, attention of heads, a gated feed-forward layer; no norm, so that its width too is exact."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 24), nn.Parameter(torch.randn(1, 6, 24))
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)
        self.norms = nn.ModuleList([nn.LayerNorm(24) if norm else nn.Identity() for _ in range(2)])
        self.head = nn.Linear(24, 5)

    def forward(self, ids):
        x = self.embed(ids) + self.place
        n, s, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(n, s, 3, 4, 6).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, s, 24))
        x = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return self.head(x[:, 0])


def test_a_residual_network_from_torch():
    coupled = couple(exported(Block(), 2, 3, 8, 8))
    # 16: stream and both that end in it; the group norm and its grouped convolution take 10 apart in 2 · 5, so both groups' fifth goes as one.
    assert sorted(g.channels for g in coupled.groups) == [6, 8, 8, 12]
    check_removal(coupled)


def test_squeeze_and_excitation_and_halves_from_torch():
    coupled = couple(exported(Mobile(), 2, 3, 6, 6))
    assert sorted(g.channels for g in coupled.groups) == [4, 4, 16]
    check_removal(coupled)


def exported_text(module: nn.Module) -> Model:
    return fold_constants(load(module.eval(), example_inputs=torch.randint(0, 20, (2, 6))).model, FoldConstants(), None)


def test_a_transformer_from_torch_loses_width_units_and_whole_heads():
    torch.manual_seed(0)
    coupled = couple(exported_text(Transformer()))
    assert sorted(g.channels for g in coupled.groups) == [4, 24, 40]
    feeds = [{p.name: RNG.integers(0, 20, (n, 6)) for p in coupled.model.inputs} for n in (1, 3)]
    check_removal(coupled, feeds=feeds)


def test_attention_from_torch_loses_heads():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x):
            q, k, v = (p(x).unflatten(-1, (4, 3)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2))

    coupled = couple(exported(Attention(), 2, 5, 12))
    assert [g.channels for g in coupled.groups] == [4]
    assert "q.bias[0] 0…2" in str(coupled.groups[0])
    check_removal(coupled)


def test_multihead_attention_module_and_layer_norm_from_torch():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.inner(x))

    coupled = couple(exported(Layer(), 2, 5, 16))
    assert 24 in [g.channels for g in coupled.groups if not g.inexact]
    check_removal(coupled)


@st.composite
def networks(draw):
    """Random small CNNs: convolutions of every grouping, norms, joins and parts, between an input and a linear end."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    lines, weights, values = [], {}, [("x", 4)]

    def add(operator: str, inputs: list[str], channels: int, attributes: str = "", **made: np.ndarray) -> None:
        name = f"v{len(lines)}"
        names = {k: f"{name}_{k}" for k in made}
        weights.update({names[k]: v for k, v in made.items()})
        lines.append(f"{name} = {operator} {attributes} ({', '.join([*inputs, *names.values()])})")
        values.append((name, channels))

    for kind in draw(
        st.lists(st.sampled_from("conv conv depthwise grouped norm relu add concat gate pool split".split()), min_size=2, max_size=9)
    ):
        source, c = values[draw(st.integers(max(0, len(values) - 3), len(values) - 1))]
        if kind == "conv":
            out = draw(st.sampled_from([4, 6, 8]))
            add("Conv", [source], out, "<pads = [1, 1, 1, 1]>", w=rng.standard_normal((out, c, 3, 3)), b=rng.standard_normal(out))
        elif kind == "depthwise":
            times = draw(st.sampled_from([1, 2]))
            add("Conv", [source], c * times, f"<group = {c}>", w=rng.standard_normal((c * times, 1, 1, 1)))
        elif kind == "grouped" and c % 2 == 0:
            add("Conv", [source], 6, "<group = 2>", w=rng.standard_normal((6, c // 2, 1, 1)))
        elif kind == "norm":
            s, b, m = (rng.standard_normal(c) for _ in range(3))
            add("BatchNormalization", [source], c, s=s, b=b, m=m, v=rng.uniform(0.5, 2, c))
        elif kind == "relu":
            add("Relu", [source], c)
        elif kind == "add":
            other = draw(st.sampled_from([n for n, k in values if k == c]))
            add("Add", [source, other], c)
        elif kind == "gate":
            add("GlobalAveragePool", [source], c)
            add("Mul", [source, values.pop()[0]], c)
        elif kind == "concat":
            other, k = draw(st.sampled_from(values))
            add("Concat", [source, other], c + k, "<axis = 1>")
        elif kind == "pool":
            add("MaxPool", [source], c, "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>")
        elif kind == "split" and c % 2 == 0:
            lines.append(f"v{len(lines)}, rest{len(lines)} = Split <axis = 1, num_outputs = 2> ({source})")
            values.append((f"v{len(lines) - 1}", c // 2))
    source, c = values[-1]
    weights["w"] = rng.standard_normal((c * 25, 3))
    body = "\n".join([*lines, f"flat = Flatten ({source})", "y = MatMul (flat, w)"])
    return f"g (float[N, 4, 5, 5] x) => (float[N, 3] y) {{\n{body}\n}}", weights


@settings(max_examples=60, deadline=None)
@given(networks())
def test_removal_is_exact_on_random_networks(network):
    text, weights = network
    coupled = couple(model_of(text, weights))
    check_removal(coupled)


@st.composite
def sequences(draw):
    """Random networks over (N, 4, width): linear layers, heads, parts, pads, turns and joins, with a linear end over all."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    lines: list[str] = []
    weights: dict[str, np.ndarray] = {}
    values = [("x", 6)]

    def add(operator: str, inputs: list[str], width: int | None, attributes: str = "", **made: np.ndarray) -> str:
        """One more node; a value of (N, 4, width) where the width is given."""
        name = f"v{len(lines)}"
        names = {k: f"{name}_{k}" for k in made}
        weights.update({names[k]: v for k, v in made.items()})
        lines.append(f"{name} = {operator} {attributes} ({', '.join([*inputs, *names.values()])})")
        if width is not None:
            values.append((name, width))
        return name

    kinds = "linear linear linear bias add gate concat slice split pad heads fused turned tile reverse".split()
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=8)):
        source, d = values[draw(st.integers(max(0, len(values) - 3), len(values) - 1))]
        if kind == "linear":
            out = draw(st.sampled_from([4, 6, 8, 12]))
            add("MatMul", [source], out, w=rng.standard_normal((d, out)))
        elif kind == "bias":
            add("Add", [source], d, b=rng.standard_normal(d))
        elif kind == "add":
            add("Add", [source, draw(st.sampled_from([n for n, k in values if k == d]))], d)
        elif kind == "gate":
            mean = add("ReduceMean", [source], None, "<keepdims = 1>", axes=np.array([1]))
            add("Mul", [source, add("Tanh", [mean], None)], d)
        elif kind == "concat":
            other, k = draw(st.sampled_from(values))
            add("Concat", [source, other], d + k, "<axis = -1>")
        elif kind == "slice" and d > 3:
            start, end = draw(st.sampled_from([(0, 2), (1, d), (-3, 2**62), (1, -1)]))
            width = len(range(*slice(start, end).indices(d)))
            add("Slice", [source], width, starts=np.array([start]), ends=np.array([end]), axes=np.array([-1]))
        elif kind == "split" and d % 2 == 0:
            lines.append(f"v{len(lines)}, u{len(lines)} = Split <axis = 2, num_outputs = 2> ({source})")
            one, other = f"v{len(lines) - 1}", f"u{len(lines) - 1}"
            add("Mul", [one, other], d // 2) if draw(st.booleans()) else values.append((other, d // 2))
        elif kind == "pad":
            before, behind = draw(st.sampled_from([(0, 1), (2, 0), (1, 2)]))
            add("Pad", [source], d + before + behind, pads=np.array([0, 0, before, 0, 0, behind]))
        elif kind in ("heads", "fused") and d % 2 == 0:
            heads, width = 2, d // 2
            if kind == "fused":
                whole = add("MatMul", [source], None, w=rng.standard_normal((d, 3 * d)))
                parted = add("Reshape", [whole], None, shape=np.array([0, 4, 3, heads, width]))
                turned = add("Transpose", [parted], None, "<perm = [2, 0, 3, 1, 4]>")
                parts = [add("Gather", [turned], None, "<axis = 0>", i=np.array(i)) for i in range(3)]
            else:
                parts = []
                for _ in range(3):
                    part = add("MatMul", [source], None, w=rng.standard_normal((d, d)))
                    part = add("Reshape", [part], None, shape=np.array([-1, 4, heads, width]))
                    parts.append(add("Transpose", [part], None, "<perm = [0, 2, 1, 3]>"))
            keys = add("Transpose", [parts[1]], None, "<perm = [0, 1, 3, 2]>")
            scores = add("Sigmoid", [add("MatMul", [parts[0], keys], None)], None)
            mixed = add("Transpose", [add("MatMul", [scores, parts[2]], None)], None, "<perm = [0, 2, 1, 3]>")
            add("Reshape", [mixed], d, shape=np.array([0, 0, d]))
        elif kind == "turned":
            out = draw(st.sampled_from([4, 6]))
            turned = add("Conv", [add("Transpose", [source], None, "<perm = [0, 2, 1]>")], None, w=rng.standard_normal((out, d, 1)))
            add("Transpose", [turned], out, "<perm = [0, 2, 1]>")
        elif kind == "tile" and d < 9:
            add("Tile", [source], 2 * d, times=np.array([1, 1, 2]))
        elif kind == "reverse":
            add("Gather", [source], d, "<axis = 2>", i=np.arange(d)[::-1])
    source, d = values[-1]
    flat = add("Reshape", [source], None, shape=np.array([-1, 4 * d]))
    lines.append(f"y = MatMul ({flat}, w)")
    weights["w"] = rng.standard_normal((4 * d, 3))
    body = "\n".join(lines)
    return f"g (float[N, 4, 6] x) => (float[N, 3] y) {{\n{body}\n}}", weights


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_removal_is_exact_on_random_sequences(network):
    text, weights = network
    check_removal(couple(model_of(text, weights)))


def test_removal_is_exact_on_random_graphs(tmp_path):
    """Of any operators, subgraphs and shared values; about one in ten has channels that may go. 7,000 of them were tried once."""
    pruned, seed = 0, 0
    while pruned < 30:
        onnx.save(random_graph(Random(seed)), tmp_path / "random.onnx")
        coupled, seed = couple(load_onnx(tmp_path / "random.onnx")), seed + 1
        if half(coupled):
            check_removal(coupled, seed)
            pruned += 1


MODELS = (
    "cifar10_resnet20", "fastestdet", "kws_dscnn", "mnist_cntk", "mobilenetv2", "silero_vad_16k_plain", "squeezenet1.1", "stories260k",
    "ultraface_rfb_320", "vww_mobilenetv1_025",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_removal_is_exact_on_real_models(name, shared_data):
    model = fold_constants(load_onnx(shared_data / "models" / f"{name}.onnx"), FoldConstants(), None)
    after = check_removal(couple(model))
    assert after.weight_bytes < 0.81 * model.weight_bytes


def test_groups_of_grouped_query_attention(shared_data):
    """8 heads of queries, 4 of keys: a head of keys goes with its two of queries; the shapes are computed while running."""
    model = fold_constants(load_onnx(shared_data / "models" / "stories260k.onnx"), FoldConstants(), None)
    heads = [g for g in couple(model).groups if g.channels == 4]
    assert len(heads) == 5
    assert sorted(m.positions.shape[1] for m in heads[0].members) == [8, 8, 16, 16]


def test_a_cleanup_that_shares_equal_vectors_changes_no_group(shared_data):
    model = load_onnx(shared_data / "models" / "cifar10_resnet20.onnx")
    assert [g.channels for g in couple(cleanup(model, Cleanup(), None)).groups] == [g.channels for g in couple(model).groups]


def test_every_operator_of_the_table_is_one_of_onnx():
    for name in RULES:
        assert onnx.defs.has(name, max_inclusive_version=21), name


def test_operators_stay(shared_data):
    model = load_onnx(shared_data / "models" / "vww_mobilenetv1_025.onnx")
    coupled = couple(model)
    assert operators(removed(coupled, half(coupled))) == operators(model)
