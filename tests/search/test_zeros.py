"""Zeros in a search: timed where floats did best, trained only where that runtime gains by them, and the reason says it with sizes."""

import pytest

import hasten
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.search import candidates, shrinking, training
from hasten.search.candidates import Recipe
from hasten.task import Task
from tests.search.quick import quicken

NAME = "distilled zeros 0.9"


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """The original, its better graph and the zeros; each takes 1 ms, or what `FACTORS` says for the beginning of its file's name."""
    quicken(monkeypatch.setattr)
    monkeypatch.setattr(candidates, "RECIPES", tuple(r for r in candidates.RECIPES if r.name in ("original", "graph")))
    (zeros,) = (r for r in candidates.TRAINED if r.name == NAME)
    quick = tuple((n, s | {"epochs": 2, "batch": 32, "rate": 3e-3} if n == "distill" else s) for n, s in zeros.steps)
    monkeypatch.setattr(training, "TRAINED", (Recipe(NAME, quick),))
    monkeypatch.setattr(shrinking, "PRUNED", ())
    factors, seen = {}, []

    def time_once(subject, feeds, percentile=50.0):
        seen.append(subject.path.stem)
        seconds = 1e-3 / next((f for name, f in factors.items() if subject.path.stem.startswith(name)), 1.0)
        return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)
    return factors, seen


def run(digits_cnn, digits, out, **more):
    task = Task(digits, train=digits)
    return hasten.optimize(digits_cnn, task, out=out, **{"runtimes": ("onnxruntime",), "threads": 1, "max_drop": 0.2, **more})


def zeros(result):
    return [c for c in result.candidates if c.recipe.startswith(NAME)]


def test_what_gains_nothing_is_not_trained_and_the_reason_says_what_it_would_bring(digits_cnn, digits, tmp_path, timed, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda *a: pytest.fail("it was trained"))
    result = run(digits_cnn, digits, tmp_path / "out")
    (found,) = zeros(result)
    assert found.reason.startswith("not trained: 90 % unstructured zeros: no runtime here gains (onnxruntime × 1.00); raw ")
    assert " × smaller), entropy-coded " in found.reason
    assert found.reason.endswith(" × smaller); channels go instead")
    assert timed[1].count("pruned") == 2


def test_what_gains_is_trained_like_any_other(digits_cnn, digits, tmp_path, timed):
    timed[0].update({"pruned": 2.0, "distilled-zeros": 2.0})
    result = run(digits_cnn, digits, tmp_path / "out")
    assert result.best.recipe == NAME
    made = hasten.Model.load(tmp_path / "out" / "model.onnx")
    assert [step.name for step in made.history if step.name in ("prune_weights", "distill")] == ["prune_weights", "distill"]
    weights = [v.const_value.numpy() for v in made.ir.graph.initializers.values() if v.const_value.size > 10_000]
    assert weights
    assert all(0.899 < (w == 0).mean() < 0.901 for w in weights)


def test_for_size_nothing_is_timed_for_the_file_is_as_large_as_before(digits_cnn, digits, tmp_path, timed):
    (found,) = zeros(run(digits_cnn, digits, tmp_path / "out", objective="size"))
    assert found.reason.startswith("not trained: 90 % unstructured zeros: raw ")
    assert found.reason.endswith("the objective counts the raw ONNX file; channels go instead")
    assert "pruned" not in timed[1]


def test_it_is_looked_at_only_where_training_is_permitted(digits_cnn, digits, tmp_path, timed):
    assert zeros(run(digits_cnn, digits, tmp_path / "out", training=False)) == []
    assert "pruned" not in timed[1]
