"""device: where a training computes. Tensors move in place, so that whoever holds one holds the moved one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hasten.errors import BadInput

DEVICES = ("auto", "cpu", "cuda")


def device_of(name: str, processes: int) -> torch.device:
    """auto: the GPU where torch sees one and the training is of one process. Raises BadInput for a GPU that is not there, or several processes."""
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise BadInput("--device cuda: torch sees no GPU here; leave --device out, or install a torch that was built for the GPU's driver")
    if name == "cuda" and processes > 1:
        raise BadInput(f"--device cuda trains in one process, and --processes is {processes}; give one of the two")
    return torch.device("cuda" if found and name != "cpu" and processes == 1 else "cpu")


def move(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Move the data of each, gradients aside."""
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def beside(tensor: Tensor, where: Tensor) -> Tensor:
    """The tensor on the other's device; itself where it is there."""
    return tensor.to(where.device)
