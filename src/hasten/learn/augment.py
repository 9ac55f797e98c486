"""augment: random changes of pictures that keep their meaning. AUGMENTATIONS is the whole list; `file.py:function` is the user's own.

Each takes pictures (N, C, H, W), on any device, and a generator of the CPU, and gives pictures of the same shape; every picture of a batch gets
its own draw. Mixup is another matter: it changes samples of any kind, and their labels with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hasten import pyfile
from hasten.errors import BadInput
from hasten.learn.device import beside

Change = Callable[[Tensor, torch.Generator], Tensor]


def shift(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """Moved by up to `by` pixels in each direction; the edge is repeated."""
    return _moved(x, int(by), generator, lambda at, size: at.clamp(0, size - 1))


def crop(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """Padded by `by` pixels on every side, mirrored, and cut out again at random (He et al., arXiv 1512.03385, pads with zeros)."""
    return _moved(x, int(by), generator, lambda at, size: (size - 1) - ((size - 1) - at.abs()).abs())


def flip(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mirrored left to right with probability `share`."""
    mirrored = beside(torch.rand(len(x), generator=generator) < share, x)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def rotate(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """Turned by up to `by` degrees about the centre, bilinear; the edge is repeated."""
    angle = (torch.rand(len(x), generator=generator) * 2 - 1) * math.radians(by)
    return _warped(x, beside(angle.cos(), x), beside(angle.sin(), x))


def zoom(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """Enlarged or shrunk by up to the share `by`, bilinear; the edge is repeated."""
    factor = 1 + (torch.rand(len(x), generator=generator) * 2 - 1) * by
    factor = beside(factor, x)
    return _warped(x, factor, torch.zeros_like(factor))


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], float]] = {
    "shift": (shift, 2),
    "crop": (crop, 4),
    "flip": (flip, 0.5),
    "rotate": (rotate, 10),
    "zoom": (zoom, 0.1),
}
"""Name → (function, the amount where none is given)."""


@dataclasses.dataclass(frozen=True)
class Named:
    """An augmentation of the table, with its amount."""

    name: str
    amount: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return AUGMENTATIONS[self.name][0](x, self.amount, generator)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Sample i of a batch is share * i + (1 - share) * partner[i], and so is its loss."""

    share: float
    partner: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.mul(self.share).add_(x[beside(self.partner, x)], alpha=1 - self.share)


@dataclasses.dataclass(frozen=True)
class Mixup:
    """Each sample is blended with another one of its batch, in a share drawn from Beta(amount, amount) for each batch (Zhang et al.,
    arXiv 1710.09412). Blends are more samples than the data has: with a teacher that says something of every blend, a student learns its function
    and not its training data (Beyer et al., arXiv 2106.05237)."""

    amount: float

    def draw(self, count: int, generator: torch.Generator) -> Mixed:
        seed = int(torch.randint(2**31, (), generator=generator))
        return Mixed(float(np.random.default_rng(seed).beta(self.amount, self.amount)), torch.randperm(count, generator=generator))


AMOUNTS = {**{name: amount for name, (_, amount) in AUGMENTATIONS.items()}, "mixup": 0.2}


def parse(text: str) -> Change | Mixup:
    """`shift:2`, `flip`, `mixup`, or `file.py:function`, a function of pictures (N, C, H, W) and a torch.Generator. Raises BadInput."""
    if pyfile.is_reference(text):
        function: Change = pyfile.load_object(text)
        return function
    name, _, amount = text.partition(":")
    if name not in AMOUNTS:
        raise BadInput(
            f"there is no augmentation {name!r}; use some of {', '.join(AMOUNTS)} (with an amount: shift:2), or file.py:function"
        )
    try:
        number = float(amount) if amount else float(AMOUNTS[name])
    except ValueError as e:
        raise BadInput(f"augmentation {text!r}: {amount!r} is no number; expected {name}:{AMOUNTS[name]:g}, say") from e
    if number <= 0 or (name == "flip" and number > 1) or (name == "zoom" and number >= 1):
        raise BadInput(f"augmentation {text!r}: the amount must be above 0{', and a share up to 1' if name in ('flip', 'zoom') else ''}")
    return Mixup(number) if name == "mixup" else Named(name, number)


def _moved(x: Tensor, by: int, generator: torch.Generator, border: Callable[[Tensor, int], Tensor]) -> Tensor:
    """x[n, :, y + dy, x + dx] with the indices outside brought inside by `border`."""
    count, channels, height, width = x.shape
    offsets = torch.randint(-by, by + 1, (2, count, 1), generator=generator)
    rows = border(torch.arange(height) + offsets[0], height)
    columns = border(torch.arange(width) + offsets[1], width)
    at = beside((rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, height * width), x)
    return x.reshape(count, channels, -1).gather(2, at.expand(-1, channels, -1)).reshape(x.shape)


def _warped(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotation and scale about the centre, in pixels: a non-square picture is not sheared."""
    height, width = x.shape[2:]
    zero = torch.zeros_like(cosine)
    top = torch.stack([cosine, -sine * height / width, zero], 1)
    below = torch.stack([sine * width / height, cosine, zero], 1)
    grid = functional.affine_grid(torch.stack([top, below], 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)
