"""Guards: what is tested, beside numbers worked out by hand; and in a search: a fast candidate that loses a class is not returned."""

import json

import numpy as np
import pytest

import hasten
import hasten.check
from hasten import metrics
from hasten.errors import BadInput
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.measure.statistics import tango
from hasten.search import finals
from hasten.search.budget import Budget
from hasten.search.guard import Guard, broken_guard, check_guards, guarded, parse_guard
from hasten.task import Task
from tests.conftest import mlp_model, model_of
from tests.search.quick import quicken


def test_guards_are_read():
    assert [parse_guard(t) for t in ("recall:1", "recall:all", " Recall:12 ", "none")] == [Guard(1), Guard(None), Guard(12), None]
    assert Budget(guards=("recall:2", "recall:2", Guard(3), "none")).guards == (Guard(2), Guard(3))


@pytest.mark.parametrize("text", ["", "recall", "recall:", "recall:-1", "recall:one", "precision:1", "recall:1.5", "recall:²"])
def test_a_guard_that_makes_no_sense(text):
    with pytest.raises(BadInput, match="is not understood; expected recall:CLASS"):
        Budget(guards=(text,))


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_drop_that_makes_no_sense(drop):
    with pytest.raises(BadInput, match=r"guard_drop is .*expected a share"):
        Budget(guard_drop=drop)


def scores(classes: list[int], count: int = 3) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes]


LABELS = np.array([0] * 4 + [1] * 4 + [2] * 2)
BEFORE = scores([0, 0, 0, 1, 1, 1, 1, 1, 2, 0])
AFTER = scores([0, 0, 0, 0, 1, 1, 0, 2, 2, 2])


def test_recall_of_each_class_on_its_own_samples():
    found = guarded([Guard(None)], BEFORE, AFTER, LABELS)
    assert [(g.label, g.before, g.after, g.samples) for g in found] == [(0, 0.75, 1.0, 4), (1, 1.0, 0.5, 4), (2, 0.5, 1.0, 2)]
    assert found[1].drop == 0.5
    # The one-sided 95 % Tango bound of 0 gained, 2 lost of 4.
    assert found[1].worst == pytest.approx(-tango(0, 2, 4, 0.90)[0])
    assert [g.label for g in guarded([Guard(1), Guard(7)], BEFORE, AFTER, LABELS)] == [1]
    assert guarded([], BEFORE, AFTER, LABELS) == ()


def test_the_estimate_counts_and_with_strict_the_bound_too():
    found = guarded([Guard(None)], BEFORE, AFTER, LABELS)
    why = broken_guard(found, 0.0, None, "test")
    assert why == "breaks the guard: recall of class 1 on test: 1.0000 → 0.5000 on 4 samples, a drop of 0 is allowed"
    assert broken_guard(found, 0.5, None, "test") == ""
    same = guarded([Guard(0)], BEFORE, BEFORE, LABELS)
    assert broken_guard(same, 0.0, None, "test") == ""
    why = broken_guard(same, 0.0, 0.01, "test")
    assert why.startswith("--strict: the guard is not proven: recall of class 0 on test")
    assert "more samples of the class would decide" in why
    many = guarded([Guard(0)], *[scores([0] * 400)] * 2, np.zeros(400, int))
    assert many[0].worst == pytest.approx(-tango(0, 0, 400, 0.90)[0]) and many[0].worst < 0.01
    assert broken_guard(many, 0.0, 0.01, "test") == ""
    alone = guarded([Guard(0)], *[scores([0])] * 2, np.zeros(1, int))
    assert "nothing is proven" in broken_guard(alone, 0.0, 0.01, "test")


def test_what_a_bound_must_keep():
    assert Budget(guards=("recall:1",)).guard_margin is None
    assert Budget(guards=("recall:1",), strict=True, max_drop=0.02).guard_margin == 0.02
    assert Budget(guards=("recall:1",), strict=True, max_drop=0.02, guard_drop=0.05).guard_margin == 0.05


def test_binary_scores_and_one_hot_labels():
    one = np.array([[0.9], [0.8], [0.1]], np.float32)
    found = guarded([Guard(1)], one, np.array([[0.9], [0.2], [0.1]], np.float32), np.array([1, 1, 0]))
    assert (found[0].before, found[0].after) == (1.0, 0.5)
    assert guarded([Guard(1)], BEFORE, AFTER, scores(LABELS.tolist()))[0].after == 0.5


X = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
MLP = mlp_model(outputs=3)


def bound(labels=None, metric="accuracy", model=MLP):
    return Task((X, labels) if labels is not None else X, metric=metric).bind(model)


def test_guards_that_can_not_be_judged():
    labels = np.arange(600) % 3
    check_guards((Guard(2), Guard(None)), bound(labels))
    check_guards((Guard(1),), bound(scores(labels.tolist())))
    check_guards((), None)
    with pytest.raises(BadInput, match="--guard recall:7: the test data has no class 7; it has 0, 1, 2"):
        check_guards((Guard(7),), bound(labels))
    for task in (None, bound()):
        with pytest.raises(BadInput, match="a guard on recall needs labels, and none came"):
            check_guards((Guard(1),), task)
    with pytest.raises(BadInput, match="a guard on recall needs classes, and mse has none"):
        check_guards((Guard(1),), bound(X[:, :3], "mse"))
    with pytest.raises(BadInput, match=r"one class number a sample, the labels are float32 of shape \(.*, 3\)"):
        check_guards((Guard(1),), bound(X[:, :3], lambda outputs, values: 1.0))


# --- in a search


@pytest.fixture
def quick(monkeypatch):
    for name in ("ROUNDS", "ROUND_SECONDS", "CALLS_SECONDS", "PAIRS"):
        monkeypatch.setattr(judge, name, getattr(judge, name))
    monkeypatch.setattr(finals, "MORE_PAIRS", finals.MORE_PAIRS)
    quicken()

    def time_once(subject, feeds, percentile=50.0):
        seconds = 1e-3 / {"int8-static": 3.0, "int8-dynamic": 2.0}.get(subject.path.stem, 1.0)
        return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)


@pytest.fixture
def lossy(monkeypatch):
    """Static int8 that says class 2 for half of what was class 1, in every session; else as the original."""
    real = judge.predict

    def predict(subject, split, output, batch):
        found = real(subject, split, output, batch).copy()
        if subject.path.stem == "int8-static":
            ones = np.flatnonzero(found.argmax(1) == 1)
            found[ones[::2], 2] = found.max() + 1
        return found

    monkeypatch.setattr(judge, "predict", predict)


def search(tmp_path, **more):
    x = np.concatenate([X] * 3)
    labels = metrics.classes_of(hasten.check.oracle(MLP).run(None, {"x": x})[0])
    settings = {"runtimes": ("onnxruntime",), "threads": 1, "max_drop": 0.9, "recipes": ("int8 static", "graph"), **more}
    return hasten.optimize(MLP, Task((x, labels)), out=tmp_path / "out", **settings), labels


def test_without_a_guard_the_fast_one_wins_and_with_it_not(tmp_path, quick, lossy):
    result, _ = search(tmp_path)
    assert result.best.recipe == "int8 static"
    guarded_result, _ = search(tmp_path, guards=("recall:1",), force=True)
    assert guarded_result.best.recipe != "int8 static"
    lost = next(c for c in guarded_result.candidates if c.recipe == "int8 static")
    assert lost.reason.startswith("breaks the guard: recall of class 1 on validate: 1.0000 → ")
    # The recalls are in the manifest, on the same predictions, and the guard in the budget.
    assert guarded_result.manifest["budget"]["guards"] == [{"label": 1}]
    assert lost.accuracy["guards"][0]["label"] == 1
    assert json.loads(json.dumps(guarded_result.manifest))["state"] == "finished"
    other, _ = search(tmp_path, guards=("recall:0",), force=True)
    assert other.best.recipe == "int8 static"
    allowed, _ = search(tmp_path, guards=("recall:1",), guard_drop=0.6, force=True)
    assert allowed.best.recipe == "int8 static"


def test_a_guard_that_breaks_on_test_alone(tmp_path, quick, monkeypatch):
    """Seen only in the last look: the next one is taken."""
    real = judge.predict
    splits = []

    def predict(subject, split, output, batch):
        found = real(subject, split, output, batch).copy()
        splits.append(len(split))
        if subject.path.stem == "int8-static" and len(split) != splits[0]:  # the first is the original's on validate
            ones = np.flatnonzero(found.argmax(1) == 1)
            found[ones[:3], 2] = found.max() + 1
        return found

    monkeypatch.setattr(judge, "predict", predict)
    result, _ = search(tmp_path, guards=("recall:all",))
    lost = next(c for c in result.candidates if c.recipe == "int8 static")
    assert lost.reason.startswith("breaks the guard: recall of class 1 on test")
    assert result.best.recipe != "int8 static"


def test_strict_and_too_few_samples_return_the_original(tmp_path, quick):
    result, _ = search(tmp_path, guards=("recall:all",), strict=True, max_drop=0.001)
    assert not result.better
    assert any("--strict" in c.reason for c in result.candidates)


def test_medical_guards_every_class_and_says_so(tmp_path, quick, lossy):
    lines = []
    result, labels = search(tmp_path, purpose="medical", max_drop=0.2, say=lines.append)
    assert any(line.startswith("for medical") and "guards recall:all" in line and "strict yes" in line for line in lines)
    assert result.manifest["budget"]["purpose"] == "medical"
    assert result.manifest["budget"]["strict"] is True
    assert result.best.recipe != "int8 static"
    if result.best.test:
        assert {g["label"] for g in result.best.test["guards"]} == set(labels.tolist())
    free, _ = search(tmp_path, purpose="medical", guards=("none",), strict=False, force=True)
    assert free.best.recipe == "int8 static"


def test_a_regression_has_no_classes_to_guard(tmp_path):
    model = model_of("m (float[N, 8] x) => (float[N, 3] y) { y = MatMul (x, w) }", {"w": np.ones((8, 3))})
    with pytest.raises(BadInput, match="needs classes, and mse has none"):
        hasten.optimize(model, Task((X, X[:, :3]), metric="mse"), out=tmp_path / "out", guards=("recall:all",))
    assert not (tmp_path / "out").exists()
