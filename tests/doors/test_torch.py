"""The torch door: what comes out computes what the module computes, and the module is left as it is."""

import numpy as np
import pytest
import torch
from torch import nn

from hasten import check
from hasten.doors import load, parse_example_input
from hasten.errors import BadInput, Unsupported
from hasten.runtimes import Target, get
from tests.conftest import operators


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, image):
        return self.head(self.drop(torch.relu(self.norm(self.conv(image))).mean((2, 3))))


def test_a_module_in_train_mode_is_exported_in_eval_mode_and_left_as_it_is(tmp_path):
    torch.manual_seed(0)
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loaded = load(net, example_inputs=np.random.rand(1, 3, 8, 8).astype(np.float32), workdir=tmp_path)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert "BatchNormalization" in operators(loaded.model)
    assert "Dropout" not in operators(loaded.model)
    assert loaded.model.inputs[0].shape == ("batch", 3, 8, 8)
    x = np.random.default_rng(0).random((7, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(check.oracle(loaded.model).run(None, {"image": x})[0], expected, atol=1e-5)
    own = get("torch").compile(loaded.origin.path, Target(1)).run({"image": x})
    np.testing.assert_allclose(own["output"], expected, atol=1e-5)


class Many(nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "both": (a * b, a)}


def test_several_inputs_by_name_and_outputs_that_are_inputs():
    examples = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)}
    model = load(Many(), example_inputs=examples).model
    assert [p.name for p in model.inputs] == ["a", "b"]
    x = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    found = check.oracle(model).run(None, {"a": x, "b": 2 * x})
    assert sorted(float(f.sum()) for f in found) == pytest.approx(sorted(float(f.sum()) for f in (3 * x, 2 * x * x, x)))


class Names(nn.Module):
    def forward(self, output):
        return torch.relu(output)


def test_an_output_never_has_the_name_of_an_inner_value(tmp_path):
    model = load(Names(), example_inputs=np.ones((2, 3), np.float32)).model
    model.save(tmp_path / "m.onnx")
    assert [p.name for p in model.outputs] != [p.name for p in model.inputs]
    assert load(tmp_path / "m.onnx").model.digest == model.digest


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_unsupported_in_one_line():
    with pytest.raises(Unsupported, match=r"torch can't export the module: .*data-dependent") as caught:
        load(Branch(), example_inputs=np.ones((2, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_a_module_needs_example_inputs():
    with pytest.raises(BadInput, match="--example-input 1x3x224x224"):
        load(Net())
    (image, ids) = parse_example_input("1x3x8x8,2x5:int64")
    assert image.shape == (1, 3, 8, 8)
    assert ids.dtype == np.int64
    with pytest.raises(BadInput, match="not understood"):
        parse_example_input("1xbig")


def test_a_file_with_a_function_an_exported_program_and_a_checkpoint(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 2)\n")
    assert operators(load(f"{tmp_path}/net.py:make", example_inputs=parse_example_input("1x4")).model)[-1] == "Gemm"
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.ones(3, 4),)), tmp_path / "p.pt2")
    assert load(tmp_path / "p.pt2").model.inputs[0].shape[1] == 4
    with pytest.raises(BadInput, match="a checkpoint has weights and no graph"):
        load("weights.pth")
    (tmp_path / "bad.pt2").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="can't be read as a torch ExportedProgram"):
        load(tmp_path / "bad.pt2")


def test_an_lstm_and_token_ids_keep_their_results():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm, self.head = nn.Embedding(11, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, ids):
            return self.head(self.lstm(self.table(ids))[0][:, -1])

    model = load(Text(), example_inputs=torch.arange(10).reshape(2, 5)).model
    assert model.inputs[0].dtype == "int64"
    assert model.outputs[0].shape == ("batch", 2)


def test_chunk_and_split_become_plain_splits():
    """torch writes a sequence that it takes apart again, under a type that no runtime loads."""

    class Halves(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, 1)
            c, _, d = x.split([1, 3, 4], -1)
            return a * torch.sigmoid(b), c + d, x.split(3, 1)[2]

    model = load(Halves(), example_inputs=np.ones((2, 8), np.float32)).model
    assert operators(model).count("Split") == 3 and "SplitToSequence" not in operators(model)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    for found, expected in zip(check.oracle(model).run(None, {"x": x}), Halves()(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
