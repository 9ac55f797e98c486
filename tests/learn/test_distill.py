"""distill: the formulas of the losses against their definitions, and students that learn from teachers."""

import dataclasses

import numpy as np
import pytest
import torch

from hasten import check
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.errors import BadInput, Refused
from hasten.learn import distill as it
from hasten.learn import teacher as asking
from hasten.learn.distill import Distill, distill
from hasten.learn.records import RECORDS
from hasten.learn.train import Train, train
from hasten.measure.record import Records
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.task import BoundTask, Split, Task, without_data


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
    assert torch.allclose(found, (z - v) / 6, atol=1e-3)


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


# --- from the task to the taught student


def pictures(*widths, seed=0, classes=4) -> Model:
    """A CNN of 1×8×8 pictures with these channels, random weights."""
    torch.manual_seed(seed)
    layers, before = [], 1
    for width in widths:
        layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.ReLU()]
        before = width
    head = [torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4 * before, classes)]
    return load(torch.nn.Sequential(*layers, *head).eval(), example_inputs=torch.zeros(2, 1, 8, 8)).model


def corners(model: Model, place, count=96, **changes) -> BoundTask:
    """Noise with a bright corner; the class is which one."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
    for image, corner in zip(x, y, strict=True):
        row, column = divmod(int(corner), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.5
    split = Split(Arrays({model.inputs[0].name: x}), y, np.arange(count))
    accuracy = next(m for m in METRICS if m.name == "accuracy")
    given = {"train": split, "validate": split, "test": split, "metric": accuracy, "output": model.outputs[0].name, "place": place}
    return dataclasses.replace(without_data(), **(given | changes))


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Model:
    """A teacher that knows the corners."""
    model = pictures(16, 16, seed=1)
    return train(model, Train(epochs=15, batch=16, rate=5e-3), corners(model, tmp_path_factory.mktemp("teacher")))


def right(model: Model, task: BoundTask) -> float:
    feeds = next(iter(task.test.batches(len(task.test))))
    return task.metric.value(check.oracle(model).run(None, feeds)[0], task.test.labels)


def lines(place) -> list[float]:
    return [r.values["loss"] for r in Records(place / RECORDS) if r.kind == "epoch"]


@pytest.mark.parametrize("losses", [
    {},
    {"soft": 0.0, "hard": 0.0, "scores": 1.0},
    {"feature": 1.0},
    {"attention": 10.0},
    {"gradient": 1.0},
    {"relation": 1.0},
], ids=lambda d: ", ".join(d) or "soft")  # fmt: skip
def test_a_student_without_labels_learns_from_its_teacher(losses, taught, tmp_path):
    model = pictures(6, 6)
    task = corners(model, tmp_path, teacher=taught)
    unlabelled = dataclasses.replace(task, train=dataclasses.replace(task.train, labels=None))
    settings = Distill(**({"epochs": 25, "batch": 16, "rate": 1e-2, "hard": 0.0} | losses))
    made = distill(model, settings, unlabelled)
    assert lines(tmp_path)[-1] < 0.6 * lines(tmp_path)[0]
    assert right(made, task) > right(model, task) + 0.3
    assert made.structure == model.structure
    assert made.history[-1].settings["temperature"] == 4.0


def test_answers_that_are_kept_are_those_of_each_batch(taught, tmp_path, monkeypatch):
    model, settings = pictures(6, 6), Distill(epochs=2, batch=16, feature=0.5)
    kept = distill(model, settings, corners(model, tmp_path / "a", teacher=taught))
    monkeypatch.setattr(asking, "KEPT", 0)
    asked = distill(model, settings, corners(model, tmp_path / "b", teacher=taught))
    assert lines(tmp_path / "a") == pytest.approx(lines(tmp_path / "b"), rel=1e-5)
    check.same(kept, asked, within=check.FLOAT32)


def test_where_nothing_is_to_be_learned_the_teacher_is_not_asked_about_all(taught, tmp_path, monkeypatch):
    asked = []
    ask = asking.Teacher._ask
    monkeypatch.setattr(asking.Teacher, "_ask", lambda self, feeds: asked.append(len(feeds[0])) or ask(self, feeds))
    distill(pictures(6, 6), Distill(epochs=0, batch=16), corners(pictures(6, 6), tmp_path, teacher=taught))
    assert sum(asked) == 2


def test_two_processes_learn_from_the_teacher_as_one(taught, tmp_path):
    model = pictures(6, 6)
    for name, processes in (("one", 1), ("two", 2)):
        distill(model, Distill(epochs=2, batch=16, processes=processes), corners(model, tmp_path / name, teacher=taught))
    assert lines(tmp_path / "one") == pytest.approx(lines(tmp_path / "two"), abs=1e-5)


def test_other_classes_are_mapped(taught, tmp_path):
    """A student of two classes, which are the teacher's 3 and 0."""
    model = pictures(6, 6, classes=2)
    task = corners(model, tmp_path, teacher=taught)
    chosen = np.isin(task.train.labels, (0, 3))
    labels = (task.train.labels[chosen] == 0).astype(np.int64)
    split = Split(task.train.samples, labels, np.flatnonzero(chosen))
    task = dataclasses.replace(task, train=dataclasses.replace(split, labels=None), validate=split, test=split)
    settings = Distill(epochs=25, batch=16, rate=1e-2, hard=0.0, class_map=("0=3", "1=0"))
    assert right(distill(model, settings, task), task) > 0.9
    with pytest.raises(
        BadInput, match=r"the student gives scores \[2\], the teacher \[4\]; say which classes are the same with --class-map 0=3"
    ):
        distill(model, dataclasses.replace(settings, class_map=()), dataclasses.replace(task, place=tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_what_cannot_teach_is_refused(taught, tmp_path):
    model = pictures(6, 6)
    with pytest.raises(Refused, match=r"distill needs a teacher, and none came; give --teacher, or --student narrow:0.5"):
        distill(model, Distill(batch=16), corners(model, tmp_path / "t"))
    with pytest.raises(BadInput, match=r"the class map names the teacher's class 4; it has 4 \(0 to 3\)"):
        distill(model, Distill(batch=16, class_map=("0=4",)), corners(model, tmp_path / "t", teacher=taught))
    torch.manual_seed(0)
    flat = load(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(49, 4)).eval(), example_inputs=torch.zeros(2, 1, 7, 7)).model
    with pytest.raises(BadInput, match="distill: the teacher does not take the student's samples: "):
        distill(model, Distill(batch=16), corners(model, tmp_path / "t", teacher=flat))
    with pytest.raises(BadInput, match=r"the student has no value 'nowhere'"):
        distill(model, Distill(batch=16, feature=1.0, pairs=("nowhere=there",)), corners(model, tmp_path / "t", teacher=taught))
    assert not (tmp_path / "t").exists()


def test_a_narrow_student_of_the_digits_net_learns_from_it(digits, digits_cnn, tmp_path):
    model = Model.load(digits_cnn)
    task = dataclasses.replace(Task(digits, train=digits).bind(model), place=tmp_path)
    made = distill(model, Distill(student="narrow:0.5", epochs=6, batch=32, rate=3e-3), task)
    assert made.weight_bytes < 0.35 * model.weight_bytes
    assert right(made, task) > 0.95
