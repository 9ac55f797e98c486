"""device: where a training computes. Tensors move in place, so that whoever holds one holds the moved one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hasten.errors import BadInput
from hasten.voice import voice

DEVICES = ("cpu", "cuda")


def device_of(name: str, processes: int) -> torch.device:
    """Raises BadInput for a GPU that is not there, and for several processes on it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch sees no GPU here; leave --device out, or install a torch that was built for the GPU's driver")
    if name == "cuda" and processes > 1:
        raise BadInput(f"--device cuda trains in one process, and --processes is {processes}; give one of the two")
    if name == "cpu" and torch.cuda.is_available():
        voice().detail("training: torch sees a GPU here; --device cuda trains on it")
    return torch.device(name)


def move(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Move the data of each, gradients aside."""
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def beside(tensor: Tensor, where: Tensor) -> Tensor:
    """The tensor on the other's device; itself where it is there."""
    return tensor.to(where.device)
