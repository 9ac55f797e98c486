"""distill: the formulas of the losses, against their definitions, and their gradients."""

import pytest
import torch

from hasten.errors import BadInput
from hasten.learn import distill as it
from hasten.learn.distill import Distill


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_is_the_cross_entropy_with_the_softened_teacher_up_to_its_entropy():
    z, v, temperature = rand(5, 7), rand(5, 7, seed=1), 3.0
    p = torch.softmax(v / temperature, -1)
    expected = temperature**2 * (p * (p.log() - torch.log_softmax(z / temperature, -1))).sum(-1).mean()
    assert it.soft(z, v, temperature).item() == pytest.approx(expected.item())
    assert it.soft(v, v, temperature).item() == pytest.approx(0, abs=1e-12)


def test_softs_gradient_keeps_its_size_at_high_temperature():
    """For large T it goes to (z − v) / C for scores of mean 0 (Hinton et al., section 2.1)."""
    z, v = rand(1, 6), rand(1, 6, seed=1)
    z, v = z - z.mean(), v - v.mean()
    z.requires_grad_()
    (found,) = torch.autograd.grad(it.soft(z, v, 1e4), z)
    assert torch.allclose(found, (z - v) / 6, rtol=1e-3)


def test_one_score_is_two_classes():
    z, v = rand(5, 1), rand(5, 1, seed=1)
    both = [torch.cat([x, torch.zeros_like(x)], 1) for x in (z, v)]
    assert it.soft(z, v, 2.0).item() == pytest.approx(it.soft(*both, 2.0).item())


def test_attention_sees_where_and_not_how_much():
    h = rand(2, 3, 4, 4)
    assert it.attention(h, 5 * h).item() == pytest.approx(0, abs=1e-10)
    assert it.attention(h, h.flip(-1)).item() > 0.1
    assert it.attention(h, torch.nn.functional.interpolate(h, scale_factor=2)).item() < 0.05


def test_relation_does_not_see_scale_or_rotation():
    h = rand(6, 4)
    turn, _ = torch.linalg.qr(rand(4, 4, seed=2))
    assert it.relation(h, 3 * h @ turn).item() == pytest.approx(0, abs=1e-10)
    assert it.relation(h, rand(6, 4, seed=3)).item() > 0.01


def test_feature_is_zero_where_the_adapter_maps_one_to_the_other():
    h, adapter = rand(2, 3, 4, 4).float(), rand(5, 3, seed=1).float()
    g = torch.einsum("nchw,dc->ndhw", h, adapter)
    assert it.feature(h, g, adapter).item() == pytest.approx(0, abs=1e-10)
    assert it.feature(h[:, :, 0, 0], g[:, :, 0, 0], adapter).item() == pytest.approx(0, abs=1e-10)
    assert it.feature(h, g, adapter * 0).item() == pytest.approx(1)


def test_gradient_compares_the_slope_of_the_teachers_class():
    x = rand(4, 3).requires_grad_()
    weights = rand(2, 3, seed=1).requires_grad_()
    z, v = x @ weights.T, torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]], dtype=torch.float64)
    same = weights[v.argmax(1)].detach()
    assert it.gradient(z, v, x, 2 * same).item() == pytest.approx(0, abs=1e-6)
    loss = it.gradient(z, v, x, same.flip(0))
    assert loss.item() > 0.1
    (slope,) = torch.autograd.grad(loss, weights)
    assert slope.abs().max() > 0


@pytest.mark.parametrize("values, said", [
    ({"temperature": 0}, "distill: temperature is 0, expected a number above 0"),
    ({"soft": -1}, "distill: the weight soft is -1, expected 0 .none. or more"),
    ({"soft": 0, "hard": 0}, "distill: every weight is 0; give at least one of soft, hard"),
    ({"pairs": ("a",)}, "distill: the pair 'a' is not understood; expected student's value=teacher's value"),
    ({"class_map": ("a=1",)}, "distill: the class map 'a=1' is not understood"),
    ({"gradient": 1.0, "compile": "always"}, "distill: torch.compile has no second derivative"),
    ({"batch": 10, "processes": 3}, "distill: batch 10 can't be divided into 1 pieces in each of 3 processes; use a multiple of 3"),
    ({"rate": 0}, "distill: rate is 0, expected a number above 0"),
])  # fmt: skip
def test_senseless_settings_are_refused(values, said):
    with pytest.raises(BadInput, match=said):
        Distill(**values)
