"""Where a training computes: what a GPU that is not there gets, and that tensors move in place. Seen on a GPU: docs/learning.md."""

import pytest
import torch

from hasten.errors import BadInput
from hasten.learn.device import device_of, move


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_tensors_move_in_place_so_that_whoever_holds_one_holds_the_moved_one():
    module = torch.nn.Linear(2, 1)
    held = module.weight
    move(module.parameters(), torch.device("cuda"))
    assert held is module.weight
    assert held.device.type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="torch sees no GPU"):
        device_of("cuda", 1)


def test_several_processes_on_one_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BadInput, match="--processes is 2"):
        device_of("cuda", 2)
