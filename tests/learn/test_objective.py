"""objective: the loss of blended samples is that of blended labels."""

import pytest
import torch
from torch.nn import functional

from hasten.learn.batches import Batch
from hasten.learn.objective import TaskLoss


@pytest.mark.parametrize("kind", ["cross entropy", "binary"])
def test_a_blend_is_judged_by_the_blend_of_its_labels(kind):
    torch.manual_seed(0)
    scores = torch.randn(6, 4 if kind == "cross entropy" else 1)
    labels, others = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([1, 1, 0, 0, 0, 1])
    loss = TaskLoss(kind, 0)((scores,), Batch((scores,), labels, (), others, 0.7))
    if kind == "binary":
        expected = functional.binary_cross_entropy_with_logits(scores[:, 0], 0.7 * labels + 0.3 * others)
    else:
        expected = functional.cross_entropy(scores, 0.7 * functional.one_hot(labels, 4) + 0.3 * functional.one_hot(others, 4))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx(TaskLoss(kind, 0)((scores,), Batch((scores,), labels)).item(), rel=1e-3)
