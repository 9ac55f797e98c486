"""batches: every sample once an epoch, the same order whenever asked, shares that make up the whole batch."""

import numpy as np
import pytest
import torch

from hasten.data.source import Arrays
from hasten.errors import BadInput
from hasten.learn import batches as module
from hasten.learn.augment import parse
from hasten.learn.batches import Batches
from hasten.task import Split


def split(count: int = 23, shape: tuple[int, ...] = (1, 4, 4)) -> Split:
    x = np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)) * np.ones((1, *shape), np.float32)
    indices = np.arange(count)[::-1].copy()
    return Split(Arrays({"x": x}), indices.astype(np.int64), indices)


def numbers(batches, epoch=0, start=0) -> list[list[int]]:
    return [b.labels.tolist() for b in batches.epoch(epoch, start)]


def test_an_epoch_has_each_sample_once_with_its_own_label():
    made = Batches(split(), ("x",), 5, seed=1)
    assert made.steps == 4
    for batch in made.epoch(0):
        assert batch.feeds[0][:, 0, 0, 0].tolist() == batch.labels.tolist()
    seen = [label for batch in numbers(made) for label in batch]
    assert len(set(seen)) == len(seen) == 20
    assert numbers(made) == numbers(made)
    assert numbers(made, epoch=1) != numbers(made)
    assert numbers(made, start=2) == numbers(made)[2:]


def test_lazy_samples_and_workers_give_the_same_batches(monkeypatch):
    changes = (parse("shift:1"),)
    kept = [b.feeds[0] for b in Batches(split(), ("x",), 5, changes=changes).epoch(3)]
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    for workers in (0, 3):
        lazy = [b.feeds[0] for b in Batches(split(), ("x",), 5, changes=changes, workers=workers).epoch(3)]
        assert len(lazy) == 4
        assert all(torch.equal(a, b) for a, b in zip(kept, lazy, strict=True))


def test_the_shares_of_the_processes_are_the_batch():
    whole = numbers(Batches(split(), ("x",), 6))
    shares = [numbers(Batches(split(), ("x",), 6, share=(rank, 2))) for rank in range(2)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert sorted(one + other) == sorted(batch)
        assert len(one) == len(other) == 3


def test_too_few_samples_and_augmentation_of_no_pictures_are_refused():
    with pytest.raises(BadInput, match="has 23 samples, fewer than one batch of 64; give more data or a smaller --batch"):
        Batches(split(), ("x",), 64)
    with pytest.raises(BadInput, match=r"augmentation is for pictures .* inputs are x \[16\]; leave --augment out"):
        Batches(split(shape=(16,)), ("x",), 4, changes=(parse("flip"),))


def test_the_teacher_is_asked_about_the_very_samples():
    made = Batches(
        split(), ("x",), 5, changes=(parse("shift:1"),), teach=lambda positions, feeds: (feeds[0] * 2, torch.from_numpy(positions))
    )
    for batch in made.epoch(0):
        assert torch.equal(batch.taught[0], batch.feeds[0] * 2)
        assert (22 - batch.taught[1]).tolist() == batch.labels.tolist()


def test_blends_are_what_their_labels_say():
    """x is the label itself, so share * label + (1 - share) * other is the blend; the teacher sees the blend."""
    made = Batches(split(), ("x",), 5, changes=(parse("mixup:1"),), teach=lambda positions, feeds: feeds, seed=3)
    shares = set()
    for batch in made.epoch(0):
        expected = batch.share * batch.labels + (1 - batch.share) * batch.others
        assert torch.allclose(batch.feeds[0][:, 0, 1, 1], expected.float())
        assert torch.equal(batch.taught[0], batch.feeds[0])
        assert sorted(batch.others.tolist()) == sorted(batch.labels.tolist()) != batch.others.tolist()
        shares.add(batch.share)
        for piece in module.pieces(batch, 2):
            assert torch.allclose(piece.feeds[0][:, 0, 1, 1], (piece.share * piece.labels + (1 - piece.share) * piece.others).float())
    assert len(shares) == 4 and all(0 < s < 1 for s in shares)
    assert [b.share for b in made.epoch(0, 2)] == [b.share for b in made.epoch(0)][2:]
    assert torch.equal(next(made.epoch(1)).feeds[0], next(made.epoch(1)).feeds[0])


def test_blends_of_vectors_yes_of_whole_numbers_no():
    assert len(list(Batches(split(shape=(16,)), ("x",), 5, changes=(parse("mixup"),)).epoch(0))) == 4
    codes = Split(Arrays({"x": np.zeros((9, 4), np.int64)}), np.arange(9), np.arange(9))
    with pytest.raises(BadInput, match=r"mixup blends samples, and the input x is of whole numbers \(int64\); leave it out"):
        Batches(codes, ("x",), 4, changes=(parse("mixup"),))
