"""tune_clusters: every weight keeps its code through the training, in pieces and processes too, zeros stay, and the trained numbers do better."""

import dataclasses

import numpy as np
import pytest
import torch

from hasten import check, plan
from hasten.data.source import Arrays
from hasten.errors import BadInput
from hasten.learn import loop
from hasten.learn.job import spread
from hasten.learn.tune_clusters import Clusters, TuneClusters, prepare, tune_clusters
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.plan import Plan, PlannedStep
from hasten.shrink.cluster_weights import ClusterWeights, cluster_weights
from hasten.shrink.prune_weights import PruneWeights, prune_weights
from hasten.task import Split, without_data
from tests.conftest import mlp_model

ACCURACY = next(m for m in METRICS if m.name == "accuracy")
QUICK = {"batch": 16, "rate": 0.01, "compile": "never"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Layers this small only lose by two."""
    monkeypatch.setattr(loop, "cores", lambda: 1)


@pytest.fixture(scope="module")
def sparse() -> Model:
    return prune_weights(mlp_model(hidden=32, inputs=16), PruneWeights(0.5, first_last=True), None)


def task_of(model: Model, place=None, count: int = 192):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, model.inputs[0].shape[1])).astype(np.float32)
    split = Split(Arrays({"x": x}), x[:, :4].argmax(axis=1), np.arange(count))
    return dataclasses.replace(
        without_data(), train=split, validate=split, calibrate=split, test=split, metric=ACCURACY, output="y", place=place
    )


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {k.removesuffix("_clustered"): v.const_value.numpy() for k, v in model.ir.graph.initializers.items()}


def codes(array: np.ndarray) -> list[frozenset]:
    """Which places share a number."""
    return sorted(map(frozenset, (map(int, np.flatnonzero(array == number)) for number in np.unique(array))), key=min)


def started(model: Model, settings: ClusterWeights) -> Model:
    """The clustering that the training starts from."""
    task = task_of(model)
    return cluster_weights(model, settings, dataclasses.replace(task, calibrate=spread(task.train, settings.samples)))


@pytest.mark.parametrize("settings", [
    {"average": 0.9},
    {"optimizer": "sgd", "clip": 0.5},
    {"weight_decay": 0.1, "accumulate": 2},
    {"hard": 1.0, "soft": 0.0, "exclude": ("",)},
], ids=["average", "sgd", "decay", "labels"])  # fmt: skip
def test_every_weight_keeps_its_code_and_every_zero_stays(sparse, settings):
    bits = {"bits": 3, "bits_bias": 3}
    start = started(sparse, ClusterWeights(**bits))
    made = tune_clusters(sparse, TuneClusters(epochs=2, samples=128, **{**QUICK, **bits, **settings}), task_of(sparse))
    check.legal(made)
    before, after = arrays(start), arrays(made)
    for name in ("w1", "b1", "w2"):
        assert codes(before[name]) == codes(after[name])
        assert len(np.unique(after[name])) <= 8 and not np.array_equal(before[name], after[name])
        assert np.array_equal(after[name] == 0, arrays(sparse)[name] == 0)


def test_the_trained_numbers_are_nearer_to_the_teacher(sparse):
    task = task_of(sparse)
    feeds = task.train.samples.take(task.train.indices)
    made = [tune_clusters(sparse, TuneClusters(epochs=epochs, bits=2, **QUICK), task) for epochs in (0, 20)]
    wanted, *found = (check.oracle(m).run(None, feeds)[0] for m in (sparse, *made))
    away = [float(np.square(y - y.mean(1, keepdims=True) - wanted + wanted.mean(1, keepdims=True)).mean()) for y in found]
    assert away[1] < 0.9 * away[0]


def test_without_a_step_it_is_the_clustering(sparse):
    made = tune_clusters(sparse, TuneClusters(epochs=0, bits=3, **QUICK), task_of(sparse))
    start = started(sparse, ClusterWeights(bits=3))
    assert all(np.array_equal(a, arrays(start)[k]) for k, a in arrays(made).items())


def test_a_weight_gets_the_mean_gradient_of_its_cluster():
    w = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [1.0, 2.0, 2.0]]))
    w.grad = torch.tensor([[1.0, 9.0, 3.0], [2.0, 4.0, 5.0]])
    clusters = Clusters({"w": w})
    clusters.share_gradients()
    assert w.grad.tolist() == [[1.5, 0.0, 4.0], [1.5, 4.0, 4.0]]
    other = torch.tensor([[7.0, 1.0, 8.0], [6.0, 5.0, 4.0]])
    clusters.tie({"w": other})
    assert other.tolist() == [[7.0, 0.0, 8.0], [7.0, 8.0, 8.0]]


def test_what_is_clustered_already_keeps_its_codes_and_wants_another_teacher(sparse):
    clustered = cluster_weights(sparse, ClusterWeights(bits=3), None)
    with pytest.raises(
        BadInput, match="there is nothing left to cluster, so the model would teach itself what it does already; give --teacher"
    ):
        prepare(clustered, TuneClusters(bits=3, **QUICK), task_of(sparse))
    made = tune_clusters(clustered, TuneClusters(epochs=1, bits=3, **QUICK), dataclasses.replace(task_of(sparse), teacher=sparse))
    assert codes(arrays(made)["w1"]) == codes(arrays(clustered)["w1"])
    assert not np.array_equal(arrays(made)["w1"], arrays(clustered)["w1"])


@pytest.mark.parametrize("stopped_after", [5, 11, 20])
def test_a_stopped_training_goes_on_to_the_very_same_weights(stopped_after, sparse, tmp_path, monkeypatch):
    settings = TuneClusters(epochs=2, bits=3, average=0.9, **QUICK)
    whole = tune_clusters(sparse, settings, task_of(sparse, tmp_path / "whole"))
    step = loop._Training._step

    def stopping(self, batch, epoch):
        step(self, batch, epoch)
        if self.done == stopped_after:
            self._save()
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune_clusters(sparse, settings, task_of(sparse, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_step", step)
    resumed = tune_clusters(sparse, settings, task_of(sparse, tmp_path / "parts"))
    assert all(np.array_equal(a, arrays(resumed)[k]) for k, a in arrays(whole).items())


def test_two_processes_keep_the_codes_too(sparse):
    values = {"epochs": 1, "bits": 3, "average": 0.9} | QUICK
    one, two = (tune_clusters(sparse, TuneClusters(processes=n, **values), task_of(sparse)) for n in (1, 2))
    for name in ("w1", "w2"):
        assert codes(arrays(two)[name]) == codes(arrays(one)[name])
        np.testing.assert_allclose(arrays(two)[name], arrays(one)[name], rtol=1e-3, atol=1e-4)


def test_it_stands_behind_clustering_in_a_plan(sparse):
    steps = (
        PlannedStep("prune_weights", plan.make_settings("prune_weights", {"first_last": True})),
        PlannedStep("tune_clusters", TuneClusters(epochs=1, bits=3, **QUICK)),
    )
    made, _ = plan.run(Plan(steps), mlp_model(hidden=32, inputs=16), task_of(sparse))
    assert [s.name for s in made.history] == ["prune_weights", "tune_clusters"]
    assert len(np.unique(arrays(made)["w1"])) == 8


@pytest.mark.parametrize("values, said", [
    ({"epochs": -1}, "tune_clusters: epochs is -1, expected at least 0"),
    ({"bits": 9}, "cluster_weights: bits is 9, expected 1 to 8"),
    ({"bits_bias": 9}, "cluster_weights: bits_bias is 9, expected 1 to 8, or 0 to leave biases alone"),
    ({"sparsity": 0.5}, "tune_clusters: codes stay as they are, so nothing is pruned here; prune before, and leave --sparsity and --pattern out"),
    ({"soft": 0.0}, "tune_clusters: soft and hard are both 0; give at least one of them a weight"),
    ({"soft": -1.0}, "tune_clusters: the weight soft is -1.0, expected 0 (none) or more"),
    ({"temperature": 0.0}, "tune_clusters: temperature is 0.0, expected a number above 0"),
])  # fmt: skip
def test_settings_are_checked(values, said):
    with pytest.raises(BadInput) as e:
        TuneClusters(**values)
    assert str(e.value) == said
