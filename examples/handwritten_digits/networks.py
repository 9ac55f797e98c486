"""The two networks in PyTorch, untrained: `networks.py:student` and `networks.py:teacher` are what hasten opens."""

import itertools

import torch
from torch import nn


def layers(*widths: int) -> nn.Sequential:
    """784 → … → 10 with ReLU between the layers."""
    torch.manual_seed(0)
    made: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        made += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def student() -> nn.Sequential:
    return layers(784, 128, 10)


def teacher() -> nn.Sequential:
    return layers(784, 512, 256, 128, 10)
