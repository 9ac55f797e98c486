"""The integer reference equals onnxruntime's fused kernels: the number of differing codes is counted, and it is 0."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hasten import plan
from hasten.doors.onnx import load_onnx
from hasten.numerics import format_of
from hasten.plan import Plan, PlannedStep, make_settings
from hasten.runtimes import Target, get, reference
from hasten.task import Task
from tests.conftest import proto_of

STEPS = ("cleanup", "fold_constants", "fold_activations", "fold_batchnorm", "equalize", "quantize_static")


def differing(model, feeds) -> tuple[int, int]:
    """(codes that differ, codes in all) over every QuantizeLinear of a quantized model, reference against onnxruntime as it is deployed."""
    proto = onnx.load_from_string(model.to_bytes())
    names = [n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    zero_types = {n.output[0]: n.input[2] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    types = {i.name: i.data_type for i in proto.graph.initializer}
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, types[zero_types[name]], None))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    deployed = dict(zip(names, session.run(names, feeds), strict=True))
    codes = get("reference").compile(model, Target(1)).codes(feeds)
    assert set(codes) == set(deployed)
    return sum(int(np.sum(codes[n] != deployed[n])) for n in names), sum(codes[n].size for n in names)


def quantized(path, data, **task):
    model = load_onnx(path)
    bound = Task(data, **task).bind(model)
    made, _ = plan.run(Plan(tuple(PlannedStep(s, make_settings(s, {})) for s in STEPS)), model, bound)
    return made, bound.test.samples.take(bound.test.indices[:8])


@pytest.mark.parametrize("name", ["lenet", "resnet20", "mobilenetv2"])
def test_no_code_differs_from_onnxruntime(name, request):
    if name == "lenet":
        made, feeds = quantized(request.getfixturevalue("digits_cnn"), request.getfixturevalue("digits"))
    elif name == "resnet20":
        data = request.getfixturevalue("shared_data")
        made, feeds = quantized(
            data / "models" / "cifar10_resnet20.onnx", data / "cifar10" / "cifar10_test.npz", preprocess="imagenet-torch"
        )
    else:
        data = request.getfixturevalue("shared_data")
        images = data / "imagenet_sample" / "imagenet_sample_even.zip"
        made, feeds = quantized(data / "models" / "mobilenetv2.onnx", images, preprocess="imagenet-torch")
        feeds = {k: v[:2] for k, v in feeds.items()}
    wrong, total = differing(made, feeds)
    assert total > 10_000
    assert wrong == 0
    output = ort.InferenceSession(made.to_bytes()).run(None, feeds)[0]
    np.testing.assert_array_equal(next(iter(get("reference").compile(made, Target(1)).run(feeds).values())), output)


def test_every_pair_of_codes_adds_to_the_same_code():
    rng = np.random.default_rng(0)
    a, b = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    text = """g (uint8[N] a, uint8[N] b) => (uint8[N] y) {
        x = DequantizeLinear (a, sa, za)
        z = DequantizeLinear (b, sb, zb)
        s = Add (x, z)
        y = QuantizeLinear (s, sc, zc)
    }"""
    for _ in range(10):
        scales = dict(zip(("sa", "sb", "sc"), rng.uniform(0.005, 0.1, 3).astype(np.float32), strict=True))
        zeros = dict(zip(("za", "zb", "zc"), rng.integers(0, 256, 3).astype(np.uint8), strict=True))
        proto = proto_of(text, scales | zeros)
        deployed = ort.InferenceSession(proto.SerializeToString()).run(None, {"a": a, "b": b})[0]
        node = next(n for n in ir.from_proto(proto).graph if n.op_type == "Add")
        inputs = [reference.Codes(a, scales["sa"], zeros["za"]), reference.Codes(b, scales["sb"], zeros["zb"])]
        made = reference.INTEGER["Add"](node, inputs, (scales["sc"], zeros["zc"], format_of("uint8")))
        np.testing.assert_array_equal(made.codes, deployed)


def test_a_reference_with_another_rounding_would_be_noticed(digits, digits_cnn, monkeypatch):
    made, feeds = quantized(digits_cnn, digits)
    right = reference.requantize
    monkeypatch.setattr(reference, "requantize", lambda sums, m, z, to: right(sums + 1, m, z, to))
    assert differing(made, feeds)[0] > 0


def test_a_float_model_runs_in_the_oracle(mlp):
    session = get("reference").compile(mlp, Target(1))
    assert session.run({"x": np.zeros((3, 8), np.float32)})["y"].shape == (3, 4)
