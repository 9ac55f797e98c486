"""Fewer inputs and outputs by choice, and without what they alone needed."""

import numpy as np
import pytest

from hasten import check, cli
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput
from hasten.ports import with_ports
from tests.conftest import model_of, operators


@pytest.fixture
def model():
    return model_of(
        """g (float[N, 4] x, float[N, 4] z, float[N, 4] mask) => (float[N, 3] y, float[N, 4] h, float[N, 4] other) {
            h = Relu (x)
            y = MatMul (h, w)
            other = Tanh (z)
        }""",
        {"w": np.ones((4, 3))},
    )


def test_what_the_outputs_that_stay_do_not_need_goes(model):
    made = with_ports(model, ["h", "y"])
    assert [p.name for p in made.outputs] == ["y", "h"]
    assert [p.name for p in made.inputs] == ["x", "z", "mask"], "inputs go by choice alone"
    assert sorted(operators(made)) == ["MatMul", "Relu"]
    assert [p.name for p in with_ports(model, ["y"], drop_unused_inputs=True).inputs] == ["x"]
    assert [p.name for p in with_ports(model, drop_unused_inputs=True).inputs] == ["x", "z"]
    assert [p.name for p in model.outputs] == ["y", "h", "other"], "the model that was given never changes"
    x = np.ones((2, 4), np.float32)
    whole = check.oracle(model).run(["y"], {"x": x, "z": x, "mask": x})[0]
    assert np.array_equal(whole, check.oracle(with_ports(model, ["y"], True)).run(["y"], {"x": x})[0])


def test_nothing_to_leave_out_is_the_same_model(model):
    assert with_ports(model) is model
    assert with_ports(model, ["y", "h", "other"]) is model


def test_an_unknown_output_is_refused(model):
    with pytest.raises(BadInput, match="no output 'logits'; it has y, h, other"):
        with_ports(model, ["logits"])


def test_the_verb_keeps_the_outputs_that_are_named(model, tmp_path, capsys):
    model.save(tmp_path / "model.onnx")
    arguments = ["--outputs", "h", "--drop-unused-inputs", "--no-timing", "-o", str(tmp_path / "made.onnx")]
    with pytest.raises(SystemExit) as left:
        cli.main(["simplify", str(tmp_path / "model.onnx"), *arguments])
    assert left.value.code == 0
    assert "1 nodes of 3" in capsys.readouterr().out
    made = load_onnx(tmp_path / "made.onnx")
    assert ([p.name for p in made.inputs], [p.name for p in made.outputs]) == (["x"], ["h"])
