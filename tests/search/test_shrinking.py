"""Pruned candidates: the fastest that keeps the budget is bisected for, each made, refitted and judged; trainings are halved."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import hasten
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.search import candidates, shrinking, training
from hasten.search.candidates import Recipe
from hasten.shrink import prune_channels
from hasten.task import Task
from tests.search.quick import quicken

FACTORS = {"pruned-1.5x": 1.5, "pruned-4x": 4.0, "pruned-30x": 30.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The original, its better graph and three pruned models, in one place; the clock counts weights."""
    quicken(monkeypatch.setattr)
    monkeypatch.setattr(candidates, "RECIPES", tuple(r for r in candidates.RECIPES if r.name in ("original", "graph")))
    pruned = tuple(
        Recipe(f"pruned {s:g}x", (*candidates.CLEAN, ("prune_channels", {"speedup": s, "samples": 64}), *candidates.FOLD))
        for s in (1.5, 4.0, 30.0)
    )
    monkeypatch.setattr(shrinking, "PRUNED", pruned)
    monkeypatch.setattr(training, "TRAINED", ())

    def work(model):
        return sum(np.prod(v.const_value.shape) for v in model.ir.graph.initializers.values())

    def clock(original, models, runtime, target, feeds, rounds=1):
        return [work(m) / work(original) for m in models]

    def time_once(subject, feeds, percentile=50.0):
        timed.append(subject.path.stem)
        seconds = 1e-3 / next((f for name, f in FACTORS.items() if subject.path.stem.startswith(name)), 1.0)
        return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

    timed = []
    monkeypatch.setattr(prune_channels, "ratios_beside", clock)
    monkeypatch.setattr(judge, "time_once", time_once)
    return timed


def run(digits_cnn, digits, out, train=False, **more):
    task = Task(digits, train=digits if train else None)
    return hasten.optimize(digits_cnn, task, out=out, runtimes=("onnxruntime",), threads=1, **{"max_drop": 0.02, **more})


def test_the_fastest_that_keeps_the_budget_is_bisected_for_and_returned(digits_cnn, digits, tmp_path, quick):
    result = run(digits_cnn, digits, tmp_path / "out")
    assert result.best.recipe in ("pruned 1.5x", "pruned 4x")
    reasons = {c.recipe: c.reason for c in result.candidates if c.recipe.startswith("pruned")}
    kept = [name for name in ("pruned 1.5x", "pruned 4x", "pruned 30x") if not reasons.get(name, "-").startswith(("breaks", "-", "prune"))]
    assert result.best.recipe == kept[-1]
    assert set(reasons) == {"pruned 4x", "pruned 1.5x" if kept == ["pruned 1.5x"] else "pruned 30x"}
    assert reasons["pruned 4x" if kept == ["pruned 1.5x"] else "pruned 30x"].startswith(
        ("breaks the budget", "prune-channels: × 30 was asked for")
    )
    made, original = (hasten.Model.load(tmp_path / "out" / name) for name in ("model.onnx", "original.onnx"))
    assert made.weight_bytes < original.weight_bytes / 1.4
    (step,) = (s for s in json.loads((tmp_path / "out" / "plan.json").read_text())["steps"] if s["technique"] == "prune_channels")
    assert step["observation"]["data"] is not None
    assert step["settings"]["threads"] == 1
    best = result.best.recipe.replace(" ", "-")
    assert quick.index(f"{best}-untrained") < quick.index(best)


def test_a_model_without_batch_norm_is_pruned_too(digits, tmp_path):
    """What stands behind the pruning on the road changes nothing in it, and that is no reason to leave it out."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
    with np.load(digits) as arrays:
        x, y = torch.from_numpy(arrays["x_train"]).float().reshape(-1, 784) / 255, torch.from_numpy(arrays["y_train"]).long()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    result = hasten.optimize(
        net,
        Task(digits),
        example_inputs=torch.zeros(2, 1, 28, 28),
        out=tmp_path / "out",
        runtimes=("onnxruntime",),
        threads=1,
        max_drop=0.05,
    )
    assert "pruned 1.5x" in {c.recipe for c in result.candidates}
    assert not any(c.reason == "the technique changed nothing in this model" for c in result.candidates if c.recipe.startswith("pruned"))


def test_nothing_is_pruned_without_data_or_where_the_recipes_leave_it_out(digits_cnn, digits, tmp_path):
    alone = hasten.optimize(digits_cnn, None, out=tmp_path / "a", runtimes=("onnxruntime",), threads=1)
    assert not [c for c in alone.candidates if c.recipe.startswith("pruned")]
    assert not [c for c in run(digits_cnn, digits, tmp_path / "b", recipes=("graph",)).candidates if c.recipe.startswith("pruned")]


def test_what_comes_nearest_is_trained_on_and_the_rest_is_not(digits_cnn, digits, tmp_path, monkeypatch):
    """Two pruned models whose first training is cut short: one of them gets a second, from where it ended."""
    monkeypatch.setattr(shrinking, "PRUNED", ())
    taught = {"epochs": 1, "batch": 64, "rate": 1e-5}
    monkeypatch.setattr(
        training,
        "TRAINED",
        tuple(
            Recipe(
                f"pruned {s:g}x, distilled",
                (
                    *candidates.CLEAN,
                    ("prune_channels", {"speedup": s, "samples": 64, "repair": False}),
                    ("distill", taught),
                    *candidates.FOLD,
                ),
            )
            for s in (4.0, 30.0)
        ),
    )
    result = run(digits_cnn, digits, tmp_path / "out", train=True, max_drop=0.0)
    names = [c.recipe for c in result.candidates if "distilled" in c.recipe]
    assert {"pruned 4x, distilled", "pruned 30x, distilled"} <= set(names)
    rungs = [n for n in names if "rung" in n]
    assert rungs[:1] == ["pruned 4x, distilled, rung 2"]
    assert not any(n.startswith("pruned 30x") for n in rungs)
    trained = [t["recipe"] for t in result.manifest["details"]["training"]]
    assert trained.count("pruned 4x, distilled, rung 2") == 1


def test_a_recipe_measures_where_it_is_told_and_trains_on_from_where_it_ended():
    recipe = Recipe("r", (("cleanup", {}), ("prune_channels", {"speedup": 2.0}), ("distill", {"epochs": 3}), ("fold_batchnorm", {})))
    there = recipe.measured_in("openvino", hasten.runtimes.Target(3, 4))
    assert dict(there.steps)["prune_channels"] == {"speedup": 2.0, "runtime": "openvino", "threads": 3, "batch": 4}
    assert dict(recipe.untrained.steps)["prune_channels"] == {"speedup": 2.0, "repair": False}
    assert [n for n, _ in recipe.longer(2).steps] == ["cleanup", "prune_channels", "distill", "distill", "fold_batchnorm"]
    assert recipe.longer(2).longer(3).name == "r, rung 3"
    assert dataclasses.replace(recipe).training == recipe.steps[:3]


def test_recipes_are_named_by_commas_also_those_that_hold_one():
    text = "graph, distilled narrow 0.5, int8,int8 static,distilled narrow 0.25,nothing"
    assert candidates.named(text) == ("graph", "distilled narrow 0.5, int8", "int8 static", "distilled narrow 0.25", "nothing")
    assert candidates.named("") == ()
