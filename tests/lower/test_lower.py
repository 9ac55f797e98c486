"""What lower/ makes of a graph, seen through the engine: every number must be onnxruntime's."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hasten import lower
from hasten.errors import BadInput, Unsupported
from hasten.lower import ops
from hasten.runtimes import Target, get
from tests.lower.quantized import Net, random_net

pytestmark = pytest.mark.usefixtures("engine")

FIXED = 0.05
"""Mean error of fixed point, of the outputs' mean size: a code that rounds the other way in one layer moves a few in the next."""


def in_onnxruntime(model, feeds):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def in_engine(model, feeds, threads=1, batch=4):
    return next(iter(get("native").compile(model, Target(threads, batch=batch)).run(feeds).values()))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_random_nets_give_onnxruntimes_numbers(seed):
    model, feeds = random_net(seed)
    assert lower.unsupported(model) == ()
    np.testing.assert_array_equal(in_engine(model, feeds), in_onnxruntime(model, feeds))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_fixed_point_is_the_same_at_every_level_and_near_the_float_arithmetic(seed):
    from hasten import _native

    model, feeds = random_net(seed)
    assume(not lower.unsupported(model, "fixed"))
    data = lower.lower(model, "fixed").to_bytes()
    found = []
    for level in ("scalar", "avx2", "avx512vnni"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HASTEN_ISA", level)
            found.append(_native.Model.from_bytes(data, 1, 4).run_list([feeds["x"]])[0])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    exact = in_engine(model, feeds)
    assert np.abs(found[0] - exact).mean() <= FIXED * np.abs(exact).mean()


@pytest.mark.parametrize("threads, batch, samples", [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 8, 8), (2, 8, 8), (3, 40, 37), (2, 40, 1)])
def test_threads_and_batches_change_no_number(threads, batch, samples):
    net = Net(5, 3, 33, 31)
    x = net.conv(net.first, 40, 3, 1, 1, bounds="relu")
    x = net.conv(x, 40, 3, 2, 1, group=40)
    x = net.add(net.conv(x, 40, 1), x)
    model, feeds = net.model(net.gemm(net.flat(net.pool(x)), 17, last=True)), net.samples(samples)
    np.testing.assert_array_equal(in_engine(model, feeds, threads, batch), in_onnxruntime(model, feeds))


def plan_of(net, *outputs):
    return lower.lower(net.model(*outputs))


def test_the_later_of_two_layers_takes_the_sum_in():
    net = Net(0, 8, 6, 6)
    first = net.conv(net.first, 8, 3, 1, 1)
    plan = plan_of(net, net.add(net.conv(first, 8, 3, 1, 1), net.conv(first, 8, 1)))
    assert [type(op).__name__ for op in plan.ops] == ["Quantize", "Conv", "Conv", "Conv", "Dequantize"]
    assert [op.add is not None for op in plan.ops if isinstance(op, ops.Conv)] == [False, False, True]
    assert plan.ops[3].weights.shape == (8, 8, 1, 1)
    assert plan.ops[3].add.second


def test_a_layer_that_is_read_twice_keeps_its_codes():
    net = Net(0, 8, 6, 6)
    first = net.conv(net.first, 8, 3, 1, 1)
    plan = plan_of(net, net.add(first, first))
    assert [type(op).__name__ for op in plan.ops] == ["Quantize", "Conv", "Add", "Dequantize"]


def test_slices_are_views_and_padding_is_a_halo():
    net = Net(0, 16, 8, 8)
    x = net.conv(net.first, 16, 3, 1, 1)
    plan = plan_of(net, net.add(net.conv(x, 32, 3, 2, 1), net.shortcut(x, 32)))
    maps = [op for op in plan.ops if isinstance(op, ops.Map)]
    assert [m.constant >= 0 for m in maps] == [True, True, False]
    assert maps[2].x.stride == (2, 2)
    assert plan.ops[1].x.root.halo == (1, 1, 1, 1)


def test_rows_that_lie_together_are_one_segment():
    net = Net(0, 16, 4, 4)
    plan = plan_of(net, net.gemm(net.flat(net.first), 10, last=True))
    offsets, weights = plan.ops[1].segments()
    assert offsets.tolist() == [0]
    assert weights.shape == (10, 1, 256)


def test_few_channels_are_read_row_by_row():
    net = Net(0, 3, 9, 9)
    plan = plan_of(net, net.conv(net.first, 16, 3))
    offsets, weights = plan.ops[1].segments()
    assert plan.ops[1].x.pixel == 4
    assert offsets.tolist() == [0, 36, 72]
    assert weights.shape == (16, 3, 12)
    assert not weights[:, :, 3::4].any()


def test_tensors_that_live_at_once_do_not_overlap():
    net = Net(3, 8, 12, 12)
    x = net.first
    for _ in range(4):
        x = net.add(net.conv(x, 8, 3, 1, 1), x)
    plan = plan_of(net, x)
    plan.to_bytes()
    from hasten.lower.arena import lives

    spans = [(t.offset, t.offset + t.bytes, *when) for t, when in lives(plan.ops).items()]
    for i, (a, b, first, last) in enumerate(spans):
        for c, d, begin, end in spans[i + 1 :]:
            assert b <= c or d <= a or last < begin or end < first
    assert max(b for _, b, _, _ in spans) < sum(b - a for a, b, _, _ in spans)


def refusal(model, mode="float"):
    skips = lower.unsupported(model, mode)
    with pytest.raises(Unsupported, match="native: "):
        lower.lower(model, mode)
    return {s.node: s.why for s in skips}


def test_what_it_cannot_take_is_said_node_by_node(digits_cnn):
    from hasten.doors import load

    why = refusal(load(digits_cnn).model, "fixed")
    assert any("it computes in float: only what stands between DequantizeLinear and QuantizeLinear is lowered" in w for w in why.values())
    net = Net(0, 4, 6, 6)
    x = net.quantized(net.node("Softmax", [net.first], (4, 6, 6), axis=1))
    assert "no Softmax on 8-bit codes" in next(iter(refusal(net.model(x), "fixed").values()))
    net = Net(0, 4, 6, 6)
    y = net.conv(net.first, 4)
    net.nodes = [n for n in net.nodes if n.output[0] not in (y, net.nodes[-2].output[0])]
    assert "an image of floats can't be an output" in next(iter(refusal(net.model(net.nodes[-1].output[0]), "fixed").values()))


def test_floats_between_codes_and_codes_between_floats():
    """A softmax among quantized layers, a convolution whose result stays float, with what follows it in its end."""
    net = Net(0, 4, 6, 6)
    x = net.quantized(net.node("Softmax", [net.conv(net.first, 4)], (4, 4, 4), axis=1), 1 / 255, 0)
    y = net.conv(x, 8)
    net.nodes = [n for n in net.nodes if n.output[0] not in (y, net.nodes[-2].output[0])]
    z = net.node("Sigmoid", [net.node("Mul", [net.nodes[-1].output[0], net.constant(np.float32(3))], (8, 2, 2))], (8, 2, 2))
    model, feeds = net.model(z), net.samples(3)
    names = [type(op).__name__ for op in lower.lower(model).ops]
    assert names == ["Quantize", "Conv", "DequantizePixels", "Softmax", "QuantizePixels", "Conv", "Elementwise", "Arrange"]
    np.testing.assert_allclose(in_engine(model, feeds), in_onnxruntime(model, feeds), atol=0.02)


def test_a_fixed_batch_above_one_is_refused():
    net = Net(0, 4, 6, 6)
    net.input = (3, 4, 6, 6)
    assert "fixed batch 3" in next(iter(refusal(net.model(net.conv(net.first, 4))).values()))


@pytest.mark.parametrize("mode", ["float", "fixed"])
@pytest.mark.parametrize("scale", [0.0, -0.01])
def test_a_scale_that_is_not_positive_is_refused(scale, mode):
    net = Net(0, 4, 6, 6)
    x = net.quantized(net.node("Relu", [net.conv(net.first, 4)], (4, 4, 4)), scale, 0)
    why = refusal(net.model(x), mode)
    assert any("a scale is a positive number" in w for w in why.values())


def test_another_requantization_is_refused():
    net = Net(0, 4, 6, 6)
    with pytest.raises(BadInput, match="there is no requantization 'double'; use one of float, fixed"):
        lower.lower(net.model(net.conv(net.first, 4)), "double")


def test_real_models_agree_in_every_number(shared_data, digits_cnn, digits):
    from tests.runtimes.test_reference import quantized

    cases = [
        (digits_cnn, digits, {}),
        (shared_data / "models" / "cifar10_resnet20.onnx", shared_data / "cifar10" / "cifar10_test.npz", {"preprocess": "imagenet-torch"}),
        (
            shared_data / "models" / "mobilenetv2.onnx",
            shared_data / "imagenet_sample" / "imagenet_sample_even.zip",
            {"preprocess": "imagenet-torch"},
        ),
    ]
    for path, data, more in cases:
        model, feeds = quantized(path, data, **more)
        feeds = {k: v[:4] for k, v in feeds.items()}
        assert lower.unsupported(model) == (), path
        np.testing.assert_array_equal(in_engine(model, feeds, 2), in_onnxruntime(model, feeds))
