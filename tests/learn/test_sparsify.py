"""sparsify: the proximal step is the minimum it claims to be, zeros arise and are counted, gates change nothing at first and go away at the end."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hasten import check
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.errors import BadInput, Refused
from hasten.graph import constant
from hasten.learn import job, loop
from hasten.learn.executor import build
from hasten.learn.sparsify import Sparsify, attention_heads, prepare, proximal, settled, sparsify, with_gates, zeros
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.task import Split, Task, without_data
from tests.conftest import model_of, operators

ACCURACY = next(m for m in METRICS if m.name == "accuracy")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Layers this small only lose by two."""
    monkeypatch.setattr(loop, "cores", lambda: 1)


# --- the proximal step


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_proximal_step_is_the_minimum_it_claims_to_be(axis):
    """Against torch's own minimum of ‖v − w‖² / 2 + t Σ √|g| ‖v_g‖, found by following the gradient from many starts near it."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    w[:, 0] *= 0.1
    w[0] *= 0.1
    threshold = 0.3

    def objective(v: torch.Tensor) -> float:
        groups = v.abs() if axis is None else v.square().sum(1 - axis).sqrt() * (v.numel() / v.shape[axis]) ** 0.5
        return float((v - w).square().sum() / 2 + threshold * groups.sum())

    v = proximal(w, axis, threshold)
    least = objective(v)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(200):
            assert objective(v + scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)) >= least
    assert objective(0.999 * w) > least
    assert (v == 0).any()


def test_a_number_is_moved_by_the_threshold_and_stops_at_zero():
    w = torch.tensor([-2.0, -0.5, 0.0, 0.4, 1.0])
    assert proximal(w, None, 0.5).tolist() == [-1.5, 0.0, 0.0, 0.0, 0.5]
    assert torch.allclose(proximal(w, 0, 0.5), torch.tensor([-1.5, 0.0, 0.0, 0.0, 0.5]))
    assert torch.equal(proximal(torch.zeros(2, 3), 0, 0.5), torch.zeros(2, 3))


# --- where the penalties apply


class Residual(nn.Module):
    """Two residual blocks with batch norm: one that the labels need, one that only adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Four heads over 6 places of width 16, with a shortcut; the mean over the places gives 3 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).reshape(-1, 6, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        return self.head((x + self.o(mixed.transpose(1, 2).reshape(-1, 6, 16))).mean(1))


def exported(module: nn.Module, *shape: int) -> Model:
    from tests.learn.test_binarize import cleaned

    return cleaned(load(module.eval(), example_inputs=torch.zeros(2, *shape)).model)


@pytest.fixture(scope="module")
def residual() -> Model:
    torch.manual_seed(0)
    return exported(Residual(), 1, 12, 12)


@pytest.fixture(scope="module")
def attention() -> Model:
    torch.manual_seed(0)
    return exported(Attention(), 6, 16)


ALL = Sparsify(weights=1e-9, channels=1e-9, norms=1e-9, branches=1e-9, heads=1e-9)


def test_every_kind_finds_its_groups(residual, attention):
    gated, groups = with_gates(residual, ALL)
    kinds = [g.kind for g in groups]
    assert {k: kinds.count(k) for k in set(kinds)} == {"branches": 2, "weights": 4, "channels": 3, "norms": 2}
    check.same(residual, gated, within=check.BITS)
    gated, groups = with_gates(attention, ALL)
    kinds = [g.kind for g in groups]
    assert kinds.count("heads") == kinds.count("branches") == 1
    assert [attention_heads(n) for n in attention.ir.graph if attention_heads(n)] == [4]
    check.same(attention, gated, within=check.BITS)


def test_the_last_layer_keeps_its_outputs(residual):
    _, groups = with_gates(residual, ALL)
    (head,) = [n.name for n in residual.ir.graph if n.op_type == "Gemm"]
    assert head not in [g.where for g in groups if g.kind == "channels"]


def test_a_sum_of_two_paths_is_no_branch():
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = Relu (x)\n b = Sigmoid (x)\n y = Add (a, b) }")
    with pytest.raises(Refused, match=r"nothing that the penalties apply to \(branches\); ask for others of weights, channels"):
        with_gates(model, Sparsify(norms=0.0, branches=1.0))


@pytest.mark.parametrize("settings, said", [
    ({"norms": 0.0}, "sparsify: every penalty is 0; give at least one of weights, channels, norms, branches, heads"),
    ({"heads": -1.0}, "sparsify: heads is -1.0, expected 0 (none) or more"),
    ({"average": 0.9}, "sparsify: an average of weights (average 0.9) has no exact zeros; leave --average out"),
])  # fmt: skip
def test_settings_are_checked(settings, said):
    with pytest.raises(BadInput) as e:
        Sparsify(**settings)
    assert str(e.value) == said


# --- gates at the end


def shut(model: Model, settings: Sparsify, kind: str, number: int, values: list[float]) -> tuple[Model, Model]:
    """(the gated graph with these values in its gate, what settles of it)."""
    gated, groups = with_gates(model, settings)
    executor = build(gated)
    name = [g.name for g in groups if g.kind == kind][number]
    with torch.no_grad():
        executor.weights[name].copy_(torch.tensor(values).reshape(executor.weights[name].shape))
    return Model(executor.into(gated)), settled(model, settings, executor)


def test_a_gate_goes_into_the_batch_norm_before_it(residual):
    before, after = shut(residual, Sparsify(norms=0.0, branches=1.0), "branches", 0, [0.3])
    assert operators(after) == operators(residual)
    check.same(before, after, within=check.FLOAT32)
    with pytest.raises(check.CheckFailed):
        check.same(residual, after, within=check.FLOAT32)


def test_a_branch_of_gate_zero_is_left_out(residual):
    before, after = shut(residual, Sparsify(norms=0.0, branches=1.0), "branches", 1, [0.0])
    assert operators(after).count("Conv") == 2
    assert operators(after).count("BatchNormalization") == 1
    check.same(before, after, within=check.FLOAT32)
    why = after.history[-1].skipped[0].why
    second = [n.name for n in residual.ir.graph if n.op_type == "Add"][1]
    assert why == f"1 of 2 residual branches reached zero: {second} 1 of 1"


def test_head_gates_go_into_the_projection_behind_them(attention):
    before, after = shut(attention, Sparsify(norms=0.0, heads=1.0), "heads", 0, [1.0, 0.0, 0.5, 0.0])
    assert operators(after) == operators(attention)
    check.same(before, after, within=check.FLOAT32)
    assert after.history[-1].skipped[0].why.startswith("2 of 4 attention heads reached zero")
    weights = [constant(n.inputs[1]) for n in after.ir.graph if n.op_type == "MatMul" and constant(n.inputs[1]) is not None]
    assert any(np.all(w[4:8] == 0) and np.all(w[12:] == 0) and not np.any(np.all(w[:4] == 0, 1)) for w in weights)


# --- trained


def blobs(model: Model, count: int = 192):
    """Bright quarters of noisy pictures, and which one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 1, 12, 12)).astype(np.float32) * 0.3
    for i, k in enumerate(labels):
        x[i, 0, 3 * k : 3 * k + 3] += k + 1
    split = Split(Arrays({model.inputs[0].name: x}), labels, np.arange(count))
    return dataclasses.replace(without_data(), train=split, validate=split, metric=ACCURACY, output=model.outputs[0].name)


def test_zeros_arise_under_a_penalty_and_not_without_one(residual):
    task = blobs(residual)
    loose = Sparsify(epochs=6, batch=32, rate=5e-2, norms=1e-12, branches=1e-12, compile="never")
    tight = dataclasses.replace(loose, norms=3.0, branches=3.0)
    counts = {}
    for settings in (loose, tight):
        trainee, trained = job.run("sparsify", prepare, residual, settings, task)
        assert trained.epoch == 6, "the last epoch is kept"
        _, groups = with_gates(residual, settings)
        counts[settings.norms] = sum(zeros(trainee.executor.weights[g.name].detach().numpy(), g.axis)[0] for g in groups)
        made = settled(residual, settings, trainee.executor)
        check.legal(made)
        found = {s.why.split(" reached")[0].split(" of ")[0] for s in made.history[-1].skipped if "reached zero" in s.why}
        assert (found == {"0"}) == (settings is loose)
    assert counts[1e-12] == 0
    assert counts[3.0] > 2


def test_a_channel_that_the_labels_do_not_need_is_switched_off_and_the_one_they_need_stays():
    """Two hidden units, of which the second sees noise alone: group lasso leaves the first."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    x = np.stack([labels * 4.0 - 2, rng.standard_normal(256)], 1).astype(np.float32)
    model = model_of(
        """g (float[N, 2] x) => (float[N, 2] y) {
            h = Gemm <transB = 1> (x, w, b)
            r = Tanh (h)
            y = Gemm <transB = 1> (r, v, c)
        }""",
        {"w": np.array([[1.0, 0.0], [0.0, 0.2]]), "b": np.zeros(2), "v": np.array([[-1.0, 0.1], [1.0, 0.1]]), "c": np.zeros(2)},
    )
    split = Split(Arrays({"x": x}), labels, np.arange(256))
    task = dataclasses.replace(without_data(), train=split, validate=split, metric=ACCURACY, output="y")
    made = sparsify(model, Sparsify(epochs=15, batch=32, rate=5e-2, optimizer="sgd", norms=0.0, channels=0.1, compile="never"), task)
    w = next(n for n in made.ir.graph if n.op_type == "Gemm").inputs[1].const_value.numpy()
    assert np.all(w[1] == 0)
    assert abs(w[0, 0]) > 0.05
    assert made.history[-1].skipped[0].why.startswith("1 of 2 output channels reached zero")
    (y,) = check.oracle(made).run(None, {"x": x})
    assert (y.argmax(1) == labels).mean() == 1.0


def test_without_data_it_is_refused(residual):
    with pytest.raises(Refused, match="sparsify needs data to train on, and none came; give --train-data"):
        sparsify(residual, Sparsify(), None)


def test_digits_lose_channels_and_keep_their_accuracy(digits, digits_cnn):
    from hasten.doors.onnx import load_onnx
    from hasten.measure.before_after import before_after

    model = load_onnx(digits_cnn)
    task = Task(digits, train=digits).bind(model)
    made = sparsify(model, Sparsify(epochs=4, batch=64, rate=1e-2, norms=3.0, compile="never"), task)
    (note,) = [s.why for s in made.history[-1].skipped if "batch norm" in s.why]
    zero, total = (int(x) for x in note.split(" channels")[0].split(" of "))
    assert 0 < zero < total
    before, after, _ = before_after(model, made, task)
    assert after > before - 0.05
