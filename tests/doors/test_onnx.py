"""The ONNX door: what it lets in is right, and what it refuses it refuses with the reason."""

import gzip

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hasten import check
from hasten.doors import load
from hasten.doors.onnx import from_proto, load_onnx
from hasten.errors import BadInput, Unsupported
from hasten.model import OPSET
from tests.conftest import mlp_model, model_of, proto_of


def test_every_real_model_loads_and_agrees_with_its_file(shared_data):
    for path in sorted((shared_data / "models").glob("*.onnx")):
        model = load_onnx(path)
        check.legal(model)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        original = ort.InferenceSession(str(path), options)
        feeds = check.random_feeds(model, 1)
        for a, b in zip(original.run(None, feeds), check.oracle(model).run(None, feeds), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-6, float(np.abs(a).max())), err_msg=path.name)


def test_the_older_opsets_are_lifted_and_initializers_leave_the_inputs(shared_data):
    model = load_onnx(shared_data / "models" / "mnist_cntk.onnx")
    assert model.ir.opset_imports[""] == OPSET
    assert [p.name for p in model.inputs] == ["Input3"]


def test_a_compressed_file_is_unpacked(tmp_path):
    model = mlp_model()
    (tmp_path / "m.onnx.gz").write_bytes(gzip.compress(model.to_bytes()))
    assert load_onnx(tmp_path / "m.onnx.gz").digest == model.digest
    (tmp_path / "bad.onnx.gz").write_bytes(gzip.compress(model.to_bytes())[:50])
    with pytest.raises(BadInput, match="can't be unpacked"):
        load_onnx(tmp_path / "bad.onnx.gz")


def test_dynamic_axes_are_fixed_by_name():
    model = load(model_of("g (float[N, seq] x) => (float[N, seq] y) { y = Relu (x) }"), shapes={"seq": 5}).model
    assert model.inputs[0].shape == ("N", 5)
    assert model.outputs[0].shape == ("N", 5)
    with pytest.raises(BadInput, match="no dynamic axis 'time'; it has N"):
        load(model, shapes={"time": 5})


def refuse(tmp_path, data: bytes, error: type[Exception], text: str):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(error, match=text):
        load_onnx(path)


def test_files_that_are_no_model_are_refused(tmp_path):
    whole = mlp_model().to_bytes()
    refuse(tmp_path, b"", BadInput, "is empty")
    refuse(tmp_path, whole[: len(whole) // 2], BadInput, "cut off")
    refuse(tmp_path, b"\x00\x01 not a model at all" * 10, BadInput, "can't be read as ONNX|not an ONNX model")
    with pytest.raises(BadInput, match="does not exist"):
        load_onnx(tmp_path / "missing.onnx")
    with pytest.raises(BadInput, match="is a folder"):
        load_onnx(tmp_path)


def test_unknown_operators_are_refused_by_node_and_name(tmp_path):
    proto = proto_of("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    proto.graph.node[0].op_type, proto.graph.node[0].name = "Frobnicate", "n7"
    refuse(tmp_path, proto.SerializeToString(), Unsupported, r"node 'n7' \(ai.onnx::Frobnicate\): ONNX has no such operator")
    proto.graph.node[0].domain = "acme"
    refuse(tmp_path, proto.SerializeToString(), Unsupported, r"node 'n7' \(acme::Frobnicate\): the operator's domain is unknown")


def test_an_opset_too_old_is_refused(tmp_path):
    proto = proto_of("g (float[N] x) => (float[N] y) { y = Relu (x) }", opset=6)
    refuse(tmp_path, proto.SerializeToString(), Unsupported, "opset 6, hasten reads opset 7")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_weights_are_refused_by_name(tmp_path, value):
    proto = proto_of("g (float[N, 2] x) => (float[N, 2] y) { y = Mul (x, scale) }", {"scale": np.array([1.0, value])})
    refuse(tmp_path, proto.SerializeToString(), BadInput, "weight 'scale' holds 1 values that are NaN or infinite")


def test_weights_that_do_not_fit_their_shape_are_refused(tmp_path):
    proto = proto_of("g (float[N, 2] x) => (float[N, 2] y) { y = Mul (x, scale) }", {"scale": np.ones(2)})
    proto.graph.initializer[0].dims[0] = 3
    refuse(tmp_path, proto.SerializeToString(), BadInput, "does not fit shape|can't be read")


def test_training_mode_is_refused(tmp_path):
    proto = proto_of(
        "g (float[N, 2] x) => (float[N, 2] y) { y = Dropout (x, ratio, mode) }",
        {"ratio": np.array(0.5, np.float32), "mode": np.array(True)},
    )
    refuse(tmp_path, proto.SerializeToString(), Unsupported, "training mode")


def external(location: str, dims: int = 4, length: int | None = None) -> onnx.ModelProto:
    proto = proto_of("g (float[N, 4] x) => (float[N, 4] y) { y = Mul (x, w) }", {"w": np.ones(4)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[0] = dims
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), *((("length", str(length)),) if length is not None else ())):
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data_is_read_from_below_the_folder_alone(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "outside.bin").write_bytes(b"\0" * 16)
    good = tmp_path / "inside" / "m.onnx"
    good.write_bytes(external("w.bin").SerializeToString())
    assert load_onnx(good).ir.graph.initializers["w"].const_value.numpy().tolist() == [0, 1, 2, 3]
    for location in ("../outside.bin", str(tmp_path / "outside.bin")):
        good.write_bytes(external(location).SerializeToString())
        with pytest.raises(BadInput, match="points outside of the model's folder"):
            load_onnx(good)
    (tmp_path / "inside" / "link.bin").symlink_to(tmp_path / "outside.bin")
    good.write_bytes(external("link.bin").SerializeToString())
    with pytest.raises(BadInput, match="points outside"):
        load_onnx(good)
    good.write_bytes(external("w.bin", dims=1 << 40).SerializeToString())
    with pytest.raises(BadInput, match="cut off"):
        load_onnx(good)
    good.write_bytes(external("gone.bin").SerializeToString())
    with pytest.raises(BadInput, match="does not exist beside the model"):
        load_onnx(good)


def test_files_above_two_gigabytes_go_in_and_out(tmp_path):
    rows = (2 << 30) // 4096 + 7
    proto = proto_of("g (int64[N] i) => (float[N, 1024] y) { y = Gather (w, i) }", {"w": np.ones((1, 1024))})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[0] = rows
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:  # sparse but for its last row
        file.truncate(rows * 4096)
        file.seek((rows - 1) * 4096)
        file.write(np.arange(1024, dtype=np.float32).tobytes())
    model = load_onnx(tmp_path / "big.onnx")
    assert model.weight_bytes > 2 << 30
    (tmp_path / "out").mkdir()
    model.save(tmp_path / "out" / "copy.onnx")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"copy.onnx", "copy.onnx.data"}
    session = ort.InferenceSession(str(tmp_path / "out" / "copy.onnx"))
    last, first = session.run(None, {"i": np.array([rows - 1, 0])})[0]
    assert last.tolist() == list(range(1024))
    assert not first.any()


def test_a_proto_in_memory_is_left_as_it_is():
    proto = proto_of("g (float[N] x) => (float[N] y) { y = Relu (x) }", opset=13)
    before = proto.SerializeToString()
    from_proto(proto)
    assert proto.SerializeToString() == before


def test_nothing_of_the_exporter_s_folders_stays_in_the_model():
    proto = proto_of("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    proto.graph.node[0].doc_string = "File /home/someone/secret.py"
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/someone/secret.py")
    assert b"someone" not in from_proto(proto).to_bytes()


def test_what_is_no_model_is_refused():
    with pytest.raises(BadInput, match="a model of type int is not understood"):
        load(7)
