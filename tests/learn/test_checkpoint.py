"""checkpoint: there and back, whole or not at all."""

import pytest
import torch

from hasten.errors import BadInput
from hasten.learn import checkpoint


def test_there_and_back(tmp_path):
    file = tmp_path / "a.safetensors"
    tensors = {
        "now/layers.0/weight": torch.randn(3, 4),
        "optimizer/step/b": torch.tensor(3.0),
        "half": torch.ones(2, 3, dtype=torch.bfloat16).mT,
    }
    checkpoint.write(file, tensors, {"done": 3, "losses": [0.5], "best": None})
    again, state = checkpoint.read(file)
    assert state == {"done": 3, "losses": [0.5], "best": None}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], tensors[k]) for k in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_not_ours_is_refused(tmp_path, content):
    file = tmp_path / "b.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"b.safetensors is not a checkpoint that can be read .* remove it to start afresh"):
        checkpoint.read(file)
    assert file.read_bytes() == content
