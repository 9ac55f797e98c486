"""Model: frozen, with its history in the file, the same bytes for the same model."""

import json

import numpy as np
import pytest

from hasten.errors import BadInput
from hasten.model import HISTORY_KEY, Model, Skip, Step, read_history
from hasten.passes.cleanup import Cleanup, cleanup
from tests.conftest import mlp_model, proto_of


def test_a_saved_model_loads_as_the_same_model_with_its_history(tmp_path):
    model = cleanup(mlp_model(), Cleanup(), None)
    model.save(tmp_path / "a.onnx")
    again = Model.load(tmp_path / "a.onnx")
    assert again.digest == model.digest
    assert again.history == model.history
    assert again.to_bytes() == model.to_bytes() == (tmp_path / "a.onnx").read_bytes()


def test_the_digest_sees_a_weight_and_the_history_and_the_structure_sees_neither():
    one, other = mlp_model(seed=0), mlp_model(seed=1)
    assert one.digest != other.digest
    assert one.structure == other.structure
    stepped = one.then(one.edit(), Step("x", {}, 0, (Skip("n", "why"),)))
    assert stepped.digest != one.digest
    assert stepped.structure == one.structure


def test_weights_cannot_be_written_into():
    model = mlp_model()
    array = model.ir.graph.initializers["w1"].const_value.numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1.0


def test_large_weights_go_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.model.EXTERNAL_ABOVE", 100)
    model = mlp_model()
    model.save(tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").stat().st_size >= 4 * 8 * 128
    again = Model.load(tmp_path / "big.onnx")
    np.testing.assert_array_equal(
        again.ir.graph.initializers["w1"].const_value.numpy(), model.ir.graph.initializers["w1"].const_value.numpy()
    )


def test_a_broken_history_is_refused():
    import onnx_ir as ir

    proto = proto_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto.metadata_props.add(key=HISTORY_KEY, value=json.dumps([{"name": 1}]))
    with pytest.raises(BadInput, match="not a hasten history"):
        read_history(ir.from_proto(proto))
