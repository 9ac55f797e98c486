"""augment: each change keeps the shape, moves what it says, and follows its generator."""

import pytest
import torch

from hasten.errors import BadInput
from hasten.learn.augment import AUGMENTATIONS, parse


def draw(text: str, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return parse(text)(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_seed_gives_the_same_pictures_and_another_one_others(name):
    x = torch.rand(16, 3, 12, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(name, x), draw(name, x))
    assert not torch.equal(draw(name, x), draw(name, x, seed=1))
    assert draw(name, x).shape == x.shape
    assert torch.isfinite(draw(name, x)).all()


def test_shift_moves_every_picture_by_its_own_whole_number_of_pixels():
    x = torch.arange(7 * 5, dtype=torch.float32).reshape(1, 1, 7, 5).repeat(64, 1, 1, 1)
    moved = draw("shift:2", x)
    rows, columns = torch.arange(7), torch.arange(5)
    offsets = set()
    for picture in moved[:, 0]:
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(picture, x[0, 0][(rows + dy).clamp(0, 6)][:, (columns + dx).clamp(0, 4)])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 12


def test_crop_mirrors_at_the_edge():
    x = torch.tensor([[[[1.0, 2, 3, 4]]]]).repeat(200, 1, 1, 1)
    found = {tuple(row.tolist()) for row in draw("crop:2", x.expand(-1, -1, 4, -1))[:, 0, 0]}
    assert found == {(3.0, 2, 1, 2), (2.0, 1, 2, 3), (1.0, 2, 3, 4), (2.0, 3, 4, 3), (3.0, 4, 3, 2)}


def test_flip_mirrors_about_its_share():
    x = torch.arange(4.0).reshape(1, 1, 1, 4).repeat(1000, 1, 1, 1)
    mirrored = (draw("flip:0.25", x)[:, 0, 0, 0] == 3).float().mean()
    assert 0.2 < mirrored < 0.3


def test_a_rotation_turns_about_the_centre_and_does_not_shear():
    """A vertical bar of a picture twice as wide as high, turned by 90 degrees, becomes a horizontal bar of the same length."""
    x = torch.zeros(1, 1, 21, 41)
    x[:, :, 5:16, 20] = 1
    from hasten.learn.augment import _warped

    turned = _warped(x, torch.tensor([0.0]), torch.tensor([1.0]))
    expected = torch.zeros_like(x)
    expected[:, :, 10, 15:26] = 1
    assert torch.allclose(turned, expected, atol=1e-4)


@pytest.mark.parametrize("text, said", [
    ("blur", "there is no augmentation 'blur'; use some of shift, crop, flip, rotate, zoom, mixup"),
    ("shift:far", "augmentation 'shift:far': 'far' is no number; expected shift:2, say"),
    ("shift:0", "augmentation 'shift:0': the amount must be above 0"),
    ("mixup:much", "augmentation 'mixup:much': 'much' is no number; expected mixup:0.2, say"),
    ("flip:2", "augmentation 'flip:2': the amount must be above 0, and a share up to 1"),
])  # fmt: skip
def test_what_is_not_understood_is_refused(text, said):
    with pytest.raises(BadInput) as e:
        parse(text)
    assert str(e.value).startswith(said)


def test_a_function_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text("def darker(x, generator):\n    return x * 0.5\n")
    assert torch.equal(draw(f"{tmp_path / 'mine.py'}:darker", torch.ones(2, 1, 3, 3)), torch.full((2, 1, 3, 3), 0.5))
