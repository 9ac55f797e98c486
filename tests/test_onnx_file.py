"""onnx_file: the pieces of a file are what protobuf writes of the whole."""

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hasten.doors.onnx import load_onnx
from hasten.onnx_file import pieces
from tests.conftest import mlp_model, proto_of
from tests.passes.random_graphs import random_graph

BRANCHES = """g (float[N] x, bool c) => (float[N] y) {
    y = If (c) <then_branch = t () => (float[N] a) { a = Relu (x) }, else_branch = e () => (float[N] b) { b = Add (x, w) }>
}"""


@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_are_the_whole(seed):
    model = ir.from_proto(random_graph(random.Random(seed)))
    assert b"".join(pieces(model.clone())) == ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("model", [mlp_model().ir, ir.from_proto(proto_of(BRANCHES, {"w": np.ones(1, np.float32)}))])
def test_so_they_are_with_a_history_and_with_subgraphs(model):
    model.metadata_props["key"] = "value"
    assert b"".join(pieces(model.clone())) == ir.to_proto(model).SerializeToString(deterministic=True)


def test_weights_from_a_file_of_their_own_come_inside(tmp_path):
    """So a model can be written to another folder than the one that its weights lie in."""
    (tmp_path / "there").mkdir()
    model = mlp_model()
    onnx.save(onnx.load_from_string(model.to_bytes()), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    load_onnx(tmp_path / "a.onnx").save(tmp_path / "there" / "b.onnx")
    proto = onnx.load(tmp_path / "there" / "b.onnx", load_external_data=False)
    assert not any(w.external_data for w in proto.graph.initializer)
    moved = load_onnx(tmp_path / "there" / "b.onnx").ir.graph.initializers["w1"].const_value
    np.testing.assert_array_equal(moved.numpy(), model.ir.graph.initializers["w1"].const_value.numpy())
