"""batches: the training samples in seeded random order, as tensors. The order of an epoch depends on seed and number alone, so any step can be
gone back to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import BadInput
from hasten.learn.augment import Change, Mixed, Mixup
from hasten.learn.device import beside
from hasten.task import Split

IN_MEMORY = 2 << 30
"""Samples of at most so many bytes are made ready once and kept; others are made ready batch by batch, `workers` of them ahead."""

PIECE = 512
"""Samples made ready at a time."""

Teach = Callable[[NDArray[np.intp], tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(positions in the split, feeds) → what a teacher says of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Feeds in the order of the model's inputs; labels (N, ...) or None; what a teacher says of these very samples, empty without one. Blended
    samples have two labels, and the first one's share in the loss."""

    feeds: tuple[Tensor, ...]
    labels: Tensor | None
    taught: tuple[Tensor, ...] = ()
    others: Tensor | None = None
    share: float = 1.0


class Batches:
    """A split as batches of `size`. In every epoch each sample comes once, those of an incomplete last batch aside."""

    def __init__(
        self,
        split: Split,
        inputs: tuple[str, ...],
        size: int,
        *,
        changes: tuple[Change | Mixup, ...] = (),
        teach: Teach | None = None,
        workers: int = 0,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
    ) -> None:
        """`share`: (rank, processes); each process takes every `processes`-th sample of a batch. `device`: where the batches are made.

        Raises BadInput where there are fewer samples than one batch needs, or where an augmentation meets something else than pictures, mixup
        whole numbers.
        """
        self._split, self._inputs, self.size, self._teach, self._workers = split, inputs, size, teach, workers
        self._changes = tuple(c for c in changes if not isinstance(c, Mixup))
        self._mixup = next((c for c in changes if isinstance(c, Mixup)), None)
        self._seed, (self._rank, self._processes) = seed, share
        self._device = device or torch.device("cpu")
        if len(split) < size:
            raise BadInput(
                f"the training data has {len(split)} samples, fewer than one batch of {size}; give more data or a smaller --batch"
            )
        first = split.samples.take(split.indices[:1])
        if self._changes and not any(first[name].ndim == 4 for name in inputs):
            shapes = ", ".join(f"{name} {list(first[name].shape[1:])}" for name in inputs)
            raise BadInput(f"augmentation is for pictures (channels, height, width), the model's inputs are {shapes}; leave --augment out")
        if self._mixup and (whole := [name for name in inputs if first[name].dtype.kind != "f"]):
            raise BadInput(f"mixup blends samples, and the input {whole[0]} is of whole numbers ({first[whole[0]].dtype}); leave it out")
        self._kept = self._all() if len(split) * sum(v.nbytes for v in first.values()) <= IN_MEMORY else None
        self._labels = None if split.labels is None else torch.from_numpy(np.ascontiguousarray(split.labels)).to(self._device)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._split) // self.size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on, the same ones whenever they are asked for."""
        order = np.random.default_rng((self._seed, number)).permutation(len(self._split))
        positions = [order[s * self.size : (s + 1) * self.size][self._rank :: self._processes] for s in range(start, self.steps)]
        if self._workers == 0:
            for step, chosen in enumerate(positions, start):
                yield self._batch(chosen, number, step)
            return
        with ThreadPoolExecutor(self._workers) as pool:
            ahead = [pool.submit(self._batch, chosen, number, start + i) for i, chosen in enumerate(positions[: 2 * self._workers])]
            for i in range(len(positions)):
                batch = ahead.pop(0).result()
                if (following := i + 2 * self._workers) < len(positions):
                    ahead.append(pool.submit(self._batch, positions[following], number, start + following))
                yield batch

    def _batch(self, positions: NDArray[np.intp], epoch: int, step: int) -> Batch:
        at = torch.from_numpy(positions).to(self._device)
        if self._kept is not None:
            feeds = tuple(tensor[at] for tensor in self._kept)
        else:
            taken = self._split.samples.take(self._split.indices[positions])
            feeds = tuple(torch.from_numpy(np.ascontiguousarray(taken[name])).to(self._device) for name in self._inputs)
        labels = None if self._labels is None else self._labels[at]
        mixed: Mixed | None = None
        if self._changes or self._mixup:
            draw = int(np.random.SeedSequence((self._seed, epoch, step, self._rank)).generate_state(1)[0])
            generator = torch.Generator().manual_seed(draw)
            feeds = tuple(_changed(x, self._changes, generator) if x.ndim == 4 else x for x in feeds)
            if self._mixup:
                mixed = self._mixup.draw(len(positions), generator)
                feeds = tuple(mixed(x) for x in feeds)
        taught = self._teach(positions, feeds) if self._teach is not None else ()
        if mixed is None or labels is None:
            return Batch(feeds, labels, taught)
        return Batch(feeds, labels, taught, labels[beside(mixed.partner, labels)], mixed.share)

    def _all(self) -> tuple[Tensor, ...]:
        parts = [self._split.samples.take(self._split.indices[i : i + PIECE]) for i in range(0, len(self._split), PIECE)]
        return tuple(torch.from_numpy(np.concatenate([p[name] for p in parts])).to(self._device) for name in self._inputs)


def _changed(x: Tensor, changes: tuple[Change, ...], generator: torch.Generator) -> Tensor:
    for change in changes:
        x = change(x, generator)
    return x


def pieces(batch: Batch, count: int) -> list[Batch]:
    """The batch in so many parts of the same size (the last may be smaller)."""
    if count == 1:
        return [batch]
    size = -(-len(batch.feeds[0]) // count)

    def part(x: Tensor, i: int) -> Tensor:
        return x[i * size : (i + 1) * size]

    return [
        Batch(
            tuple(part(x, i) for x in batch.feeds),
            None if batch.labels is None else part(batch.labels, i),
            tuple(part(x, i) for x in batch.taught),
            None if batch.others is None else part(batch.others, i),
            batch.share,
        )
        for i in range(count)
        if i * size < len(batch.feeds[0])
    ]
