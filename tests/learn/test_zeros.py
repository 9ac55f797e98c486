"""zeros: those that are meant hold through every training, down into the shipped file; gradual pruning reaches exactly what was asked for."""

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
import torch

from hasten import check
from hasten.data.source import Arrays
from hasten.errors import BadInput, Refused
from hasten.graph import constant
from hasten.history import Step
from hasten.learn import loop
from hasten.learn.binarize import Binarize
from hasten.learn.distill import Distill, distill
from hasten.learn.loop import Loop
from hasten.learn.qat import Qat, qat
from hasten.learn.records import RECORDS
from hasten.learn.sparsify import Sparsify, sparsify
from hasten.learn.train import Train, prepare, train
from hasten.learn.zeros import Goal, goal_of, meant
from hasten.measure.record import Records
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.passes.fold_batchnorm import FoldBatchnorm, fold_batchnorm
from hasten.quantize.equalize import Equalize, equalize
from hasten.quantize.quantize_static import QuantizeStatic, quantize_static
from hasten.shrink.masks import pattern_of
from hasten.shrink.prune_weights import PruneWeights, prune_weights
from hasten.task import Split, without_data
from tests.conftest import mlp_model, model_of

ACCURACY = next(m for m in METRICS if m.name == "accuracy")
QUICK = {"batch": 16, "rate": 0.01, "compile": "never"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Layers this small only lose by two."""
    monkeypatch.setattr(loop, "cores", lambda: 1)


@pytest.fixture(scope="module")
def net() -> Model:
    """Convolutions with batch norm, a depthwise one between them, two layers behind: pictures (N, 4, 6, 6) → 3 scores."""
    rng = np.random.default_rng(0)
    normal = {
        name: rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5 * 1.5
        for name, shape in {"w1": (8, 4, 3, 3), "dw": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (16, 8), "w4": (3, 16)}.items()
    }
    norms = {f"{name}{i}": np.full(8, value) for i in (1, 2) for name, value in (("s", 1.1), ("h", 0.1), ("m", 0.05), ("v", 0.9))}
    return model_of(
        """g (float[N, 4, 6, 6] x) => (float[N, 3] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b = BatchNormalization (a, s1, h1, m1, v1)
            c = Relu (b)
            d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, dw)
            e = Relu (d)
            f = Conv (e, w2)
            h = BatchNormalization (f, s2, h2, m2, v2)
            i = Relu (h)
            j = GlobalAveragePool (i)
            k = Flatten (j)
            l = Gemm <transB = 1> (k, w3, b3)
            m = Relu (l)
            y = Gemm <transB = 1> (m, w4, b4)
        }""",
        normal | norms | {"b3": np.zeros(16), "b4": np.zeros(3)},
    )


LAYERS = ("w1", "w2", "w3", "w4")


def task_of(model: Model, place=None, count: int = 96):
    """Pictures whose brightest channel is their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    x = rng.standard_normal((count, 4, 6, 6)).astype(np.float32)
    x[np.arange(count), labels] += 1.5
    split = Split(Arrays({model.inputs[0].name: x}), labels, np.arange(count))
    return dataclasses.replace(
        without_data(), train=split, validate=split, calibrate=split, test=split, metric=ACCURACY, output=model.outputs[0].name, place=place
    )


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in model.ir.graph.initializers.items()}


def zero(model: Model, names=LAYERS) -> dict[str, np.ndarray]:
    """Where the layers' weights are zero, by the name of the initializer they began as; in a quantized model, where the codes are."""
    found = {}
    for node in model.ir.graph:
        if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 1:
            value = node.inputs[1]
            maker = value.producer()
            codes = constant(maker.inputs[0]) if maker is not None and maker.op_type == "DequantizeLinear" else constant(value)
            key = (maker.inputs[0].name if maker is not None and maker.op_type == "DequantizeLinear" else value.name).split("_")[0]
            if key in names:
                found[key] = np.asarray(codes).astype(np.float32) == 0
    assert set(found) == set(names)
    return found


def same(a, b) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a)


def pruned(model: Model, **settings) -> Model:
    return prune_weights(model, PruneWeights(first_last=True, **settings), None)


PATTERNS = {"unstructured": {"sparsity": 0.7}, "2:4": {"pattern": "2:4"}}


# --- zeros hold


@pytest.mark.parametrize("pattern", PATTERNS)
def test_zeros_hold_from_the_pruning_to_the_file_that_is_shipped(net, pattern):
    sparse = pruned(net, **PATTERNS[pattern])
    task, where = task_of(net), zero(sparse)
    assert all(0.4 < w.mean() < 0.8 for w in where.values())
    trained = train(sparse, Train(epochs=2, average=0.9, clip=0.5, **QUICK), task)
    assert same(zero(trained), where)
    assert not np.array_equal(arrays(trained)["w1"], arrays(sparse)["w1"])
    assert any(
        s.why.startswith(f"{sum(int(w.sum()) for w in where.values())} of 528 weights were zero before and stayed so")
        for s in trained.history[-1].skipped
    )
    taught = distill(trained, Distill(epochs=1, optimizer="sgd", **QUICK), dataclasses.replace(task, teacher=net))
    assert same(zero(taught), where)
    folded = equalize(fold_batchnorm(taught, FoldBatchnorm(), None), Equalize(samples=32), task)
    assert same(zero(folded), where)
    feeds = task.test.samples.take(task.test.indices[:8])
    static = quantize_static(folded, QuantizeStatic(method="minmax", samples=32, activations="uint8"), task)
    for coded in (static, qat(folded, Qat(epochs=1, batch=16, rate=1e-3, method="minmax", samples=32, compile="never"), task)):
        check.legal(coded)
        found = zero(coded)
        assert all(np.all(found[k][where[k]]) for k in LAYERS), "every zero has the code 0"
        assert sum(int(found[k].sum() - where[k].sum()) for k in LAYERS) < 15, "besides, only what rounds to it"
        (y,) = ort.InferenceSession(coded.to_bytes(), providers=["CPUExecutionProvider"]).run(None, feeds)
        assert np.isfinite(y).all()


def test_four_bits_hold_them_too(net):
    sparse = pruned(fold_batchnorm(net, FoldBatchnorm(), None), sparsity=0.7)
    where = zero(sparse)
    made = qat(sparse, Qat(epochs=1, weights=4, first_last=8, method="mse", samples=32, **QUICK), task_of(net))
    found = zero(made)
    assert all(np.all(found[k][where[k]]) for k in LAYERS)
    assert made.history[-1].skipped[-1].why.count("%") == len(LAYERS) + 1


def test_a_layer_that_stays_float_beside_the_codes_holds_them_too(net):
    sparse = pruned(fold_batchnorm(net, FoldBatchnorm(), None), sparsity=0.7)
    left = next(n.name for n in net.ir.graph if n.op_type == "Gemm")
    made = qat(sparse, Qat(epochs=1, method="mse", samples=32, exclude=(left,), **QUICK), task_of(net))
    assert same(zero(made, ("w3",)), zero(sparse, ("w3",)))
    assert not np.array_equal(arrays(made)["w3"], arrays(sparse)["w3"])


def test_what_the_history_does_not_mean_may_grow(net):
    """The same zeros without a step that made them: weights like any others."""
    sparse = pruned(net, sparsity=0.7)
    unsaid = Model(sparse.ir)
    assert not same(zero(train(unsaid, Train(epochs=1, **QUICK), task_of(net))), zero(sparse))


@pytest.mark.parametrize("step, expected", [
    (Step("prune_weights", {}, 1), True),
    (Step("sparsify", {"norms": 0.2, "sparsity": 0.0, "pattern": "unstructured"}, 1), True),
    (Step("train", {"sparsity": 0.5, "pattern": "unstructured"}, 1), True),
    (Step("distill", {"sparsity": 0.0, "pattern": "2:4"}, 1), True),
    (Step("train", {"sparsity": 0.0, "pattern": "unstructured"}, 1), False),
    (Step("fold_batchnorm", {}, 1), False),
])  # fmt: skip
def test_which_steps_mean_their_zeros(step, expected):
    assert meant([Step("cleanup", {}, 1), step, Step("cleanup", {}, 1)]) is expected


def test_what_sparsify_switches_off_stays_off(net):
    task = task_of(net)
    made = sparsify(net, Sparsify(epochs=3, norms=0.0, weights=0.3, batch=16, rate=0.05, compile="never"), task)
    where = zero(made)
    assert any(w.any() for w in where.values())
    again = train(made, Train(epochs=1, **QUICK), task)
    assert all(np.all(zero(again)[k][where[k]]) for k in LAYERS)


def test_sparsify_holds_what_was_pruned_before(net):
    sparse = pruned(net, pattern="2:4")
    made = sparsify(sparse, Sparsify(epochs=1, norms=0.0, weights=1e-6, **QUICK), task_of(net))
    assert all(np.all(zero(made)[k][zero(sparse)[k]]) for k in LAYERS)


def test_a_narrow_student_of_a_pruned_teacher_holds_the_zeros_that_it_has(net):
    sparse = pruned(net, sparsity=0.6)
    made = distill(sparse, Distill(epochs=1, student="narrow:0.5", **QUICK), task_of(net))
    assert "weights were zero before and stayed so" in made.history[-1].skipped[-1].why
    start = distill(sparse, Distill(epochs=0, student="narrow:0.5", **QUICK), task_of(net))
    assert same(zero(made), zero(start))
    assert any(w.any() for w in zero(start).values())


# --- gradual pruning


def exact(model: Model, share: float) -> bool:
    return all(int(w.sum()) == round(share * w.size) for w in zero(model).values())


@pytest.mark.parametrize("settings", [
    Train(epochs=4, sparsity=0.8, **QUICK),
    Train(epochs=4, sparsity=0.8, average=0.9, **QUICK),
    Train(epochs=1, sparsity=0.8, warm_up=0.9, **QUICK),
    Train(epochs=0, sparsity=0.8, **QUICK),
    Distill(epochs=3, sparsity=0.8, optimizer="sgd", **QUICK),
], ids=["train", "average", "late", "no step", "distill"])  # fmt: skip
def test_exactly_the_sparsity_is_reached(settings, net, tmp_path):
    technique = train if isinstance(settings, Train) else distill
    made = technique(net, settings, dataclasses.replace(task_of(net, tmp_path), teacher=net))
    assert exact(made, 0.8)
    notes = [s.why for s in made.history[-1].skipped]
    assert "it is depthwise: its 9 weights a channel are few, and each counts" in notes
    assert notes[-1].startswith("421 of 528 weights reached zero (79.7%)")
    assert not np.any(arrays(made)["dw"] == 0)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1x4"])
def test_patterns_are_reached_too(pattern, net):
    made = train(net, Train(epochs=3, pattern=pattern, sparsity=0.5 if "x" in pattern else 0.0, **QUICK), task_of(net))
    w = arrays(made)
    groups = {"w1": np.moveaxis(w["w1"], 1, -1), "w2": np.moveaxis(w["w2"], 1, -1), "w3": w["w3"], "w4": w["w4"]}
    for matrix in groups.values():
        kept = (matrix.reshape(-1, 4) != 0).sum(1)
        if "x" in pattern:
            assert set(kept) == {0, 4} and np.mean(kept == 0) == pytest.approx(0.5, abs=0.5 / len(kept))
        else:
            assert np.all(kept == int(pattern[0]))
    assert meant(made.history)


def test_qat_prunes_on_the_way(net):
    folded = fold_batchnorm(net, FoldBatchnorm(), None)
    made = qat(folded, Qat(epochs=2, pattern="2:4", method="minmax", samples=32, batch=16, rate=1e-3, compile="never"), task_of(net))
    codes = zero(made)
    assert all(np.all(np.moveaxis(codes[k], 1, -1).reshape(-1, 4).sum(1) >= 2) for k in ("w1", "w2"))
    assert all(np.all(codes[k].reshape(-1, 4).sum(1) >= 2) for k in ("w3", "w4"))
    (note,) = [s.why for s in made.history[-1].skipped if "reached zero" in s.why]
    assert note.startswith("264 of 528 weights reached zero (50.0%): ") and "float/" not in note


def test_a_small_last_layer_stays_dense():
    model = mlp_model(hidden=32, inputs=64)
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    split = Split(Arrays({"x": x}), np.arange(32) % 4, np.arange(32))
    task = dataclasses.replace(without_data(), train=split, validate=split, metric=ACCURACY, output="y")
    made = train(model, Train(epochs=2, sparsity=0.5, **QUICK), task)
    assert {n: int((a == 0).sum()) for n, a in arrays(made).items() if a.ndim > 1} == {"w1": 1024, "w2": 64}
    model = mlp_model(hidden=32, inputs=128)
    split = Split(Arrays({"x": np.tile(x, 2)}), split.labels, split.indices)
    made = train(model, Train(epochs=2, sparsity=0.5, **QUICK), dataclasses.replace(task, train=split, validate=split))
    assert {n: int((a == 0).sum()) for n, a in arrays(made).items() if a.ndim > 1} == {"w1": 2048, "w2": 0}
    assert made.history[-1].skipped[0].why == "it is the last layer and has only 3.0% of the weights"


@pytest.mark.parametrize("scope", ["global", "adaptive"])
def test_one_threshold_for_all_layers_prunes_small_ends_too(scope, net):
    """The share is that of all weights together; with `adaptive` no layer goes whole."""
    made = train(net, Train(epochs=3, sparsity=0.9, scope=scope, **QUICK), task_of(net))
    found = zero(made)
    assert sum(int(w.sum()) for w in found.values()) == round(0.9 * sum(w.size for w in found.values()))
    assert len({round(float(w.mean()), 2) for w in found.values()}) > 1
    assert scope == "global" or not any(w.all() for w in found.values())
    model = mlp_model(hidden=32, inputs=128)
    x = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    split = Split(Arrays({"x": x}), np.arange(32) % 4, np.arange(32))
    task = dataclasses.replace(without_data(), train=split, validate=split, metric=ACCURACY, output="y")
    last = arrays(train(model, Train(epochs=2, sparsity=0.9, scope=scope, **QUICK), task))["w2"]
    assert 0 < np.sum(last == 0) < last.size + (scope == "global")


def test_held_zeros_count_and_stay_when_more_are_asked_for(net):
    sparse = pruned(net, sparsity=0.5)
    made = train(sparse, Train(epochs=3, sparsity=0.8, **QUICK), task_of(net))
    assert exact(made, 0.8)
    assert all(np.all(zero(made)[k][zero(sparse)[k]]) for k in LAYERS)
    fewer = train(sparse, Train(epochs=2, sparsity=0.2, **QUICK), task_of(net))
    assert same(zero(fewer), zero(sparse))


def test_a_weight_that_the_loss_wants_comes_back_while_the_schedule_runs():
    """A weight that starts near zero, is masked first, and that the labels need."""
    model = model_of(
        "g (float[N, 4] x) => (float[N, 2] y) { y = Gemm <transB = 1> (x, w) }", {"w": np.array([[0.001, 0.05, 0.05, 0.05], [0.05] * 4])}
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    x = rng.standard_normal((256, 4)).astype(np.float32)
    x[:, 0] = 2.0 - 4 * labels
    split = Split(Arrays({"x": x}), labels, np.arange(256))
    task = dataclasses.replace(without_data(), train=split, validate=split, metric=ACCURACY, output="y")
    made = arrays(train(model, Train(epochs=15, batch=32, rate=0.05, warm_up=0.0, sparsity=0.75, compile="never"), task))["w"]
    assert made[0, 0] > 0.1 and (made != 0).sum() == 2


def test_the_schedule_is_the_papers():
    goal = Goal(pattern_of("train", "unstructured"), 0.9, 0.1)
    assert goal.span(1000) == (100, 600)
    assert [goal.at(t, 1000) for t in (0, 100, 600, 1000)] == [0.0, 0.0, 0.9, 0.9]
    assert goal.at(350, 1000) == pytest.approx(0.9 * (1 - 0.5**3))
    assert [t for t in range(1000) if goal.renews(t, 1000)][:3] == [110, 120, 130]
    for warm_up in (0.0, 0.05, 0.5, 0.99):
        for steps in range(1, 40):
            begin, end = dataclasses.replace(goal, warm_up=warm_up).span(steps)
            assert 0 <= begin < end <= steps


def test_no_epoch_before_the_final_sparsity_is_kept_or_stops(net, tmp_path):
    """The metric is best at the start (until is reached at once, and nothing gets better), and still it goes on to the end of the schedule."""
    task = task_of(net, tmp_path)
    done = train(net, Train(epochs=10, sparsity=0.95, until=0.0, patience=1, **QUICK), task)
    assert exact(done, 0.95)
    epochs = [r for r in Records(tmp_path / RECORDS) if r.kind == "epoch"]
    assert len(epochs) == 6
    (whole,) = [r for r in Records(tmp_path / RECORDS) if r.kind == "training"]
    assert whole.values["epoch"] == 6


def test_a_training_that_is_cut_short_is_as_sparse(net, monkeypatch):
    cut = loop._Training._fit_into
    monkeypatch.setattr(loop._Training, "_fit_into", lambda self, seconds, a_step: cut(self, 0.0, a_step))
    made = train(net, Train(epochs=50, sparsity=0.8, seconds=1000.0, average=0.9, **QUICK), task_of(net))
    assert exact(made, 0.8)


# --- the same bits


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stopped_after", [3, 9, 14, 20])
def test_a_stopped_pruning_goes_on_to_the_very_same_weights(stopped_after, average, net, tmp_path, monkeypatch):
    """Before, in and behind the rise of the sparsity (steps 1 to 14 of 24)."""
    settings = Train(epochs=4, sparsity=0.8, average=average, **QUICK)
    whole = train(net, settings, task_of(net, tmp_path / "whole"))
    step = loop._Training._step

    def stopping(self, batch, epoch):
        step(self, batch, epoch)
        if self.done == stopped_after:
            self._save()
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(net, settings, task_of(net, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_step", step)
    resumed = train(net, settings, task_of(net, tmp_path / "parts"))
    assert all(np.array_equal(a, arrays(resumed)[k]) for k, a in arrays(whole).items())


def test_zeros_that_hold_and_weights_of_zero_that_do_not_survive_a_stop(tmp_path, monkeypatch):
    """A layer that starts at zero is not masked by a checkpoint."""
    model = model_of(
        "g (float[N, 4, 6, 6] x) => (float[N, 3] y) { a = GlobalAveragePool (x) b = Flatten (a) y = MatMul (b, w) }",
        {"w": np.zeros((4, 3))},
    )
    settings = Train(epochs=4, sparsity=0.25, **QUICK)
    whole = train(model, settings, task_of(model, tmp_path / "whole"))
    end_epoch = loop._Training._end_epoch

    def stopping(self, epoch):
        end_epoch(self, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(model, settings, task_of(model, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_end_epoch", end_epoch)
    resumed = train(model, settings, task_of(model, tmp_path / "parts"))
    assert np.array_equal(arrays(whole)["w"], arrays(resumed)["w"])
    assert (arrays(whole)["w"] == 0).sum() == 3


def test_two_processes_go_on_with_a_stopped_pruning_to_the_same_bits(net, tmp_path, monkeypatch):
    """Stopped while the sparsity rises, some zeros being held from the start; at the end they have the zeros that one process has."""
    start = pruned(net, sparsity=0.3)
    values = {"epochs": 3, "sparsity": 0.6, "optimizer": "sgd", "average": 0.9} | QUICK
    whole = train(start, Train(processes=2, **values), task_of(start, tmp_path / "whole"))
    end_epoch = loop._Training._end_epoch

    def stopping(self, epoch):
        end_epoch(self, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(start, Train(processes=2, **values), task_of(start, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_end_epoch", end_epoch)
    resumed = train(start, Train(processes=2, **values), task_of(start, tmp_path / "parts"))
    assert all(np.array_equal(a, arrays(resumed)[k]) for k, a in arrays(whole).items())
    assert all(np.all(zero(whole)[k][zero(start)[k]]) for k in LAYERS)
    assert same(zero(whole), zero(train(start, Train(**values), task_of(start))))


# --- gradients, settings


def test_gradients_of_zeros_do_not_count_when_they_are_clipped(net):
    trainee = prepare(pruned(net, sparsity=0.6), Train(**QUICK), task_of(net))
    for p in trainee.executor.weights.values():
        p.grad = torch.ones_like(p)
    trainee.zeros.mask_gradients()
    for name in LAYERS:
        p = trainee.executor.weights[name]
        assert torch.equal(p.grad == 0, p == 0)
    assert torch.all(trainee.executor.weights["dw"].grad == 1)


@pytest.mark.parametrize("kind, values, said", [
    (Train, {"sparsity": 1.5}, "train: sparsity is 1.5, expected the share of zeros, above 0 and below 1"),
    (Distill, {"sparsity": 0.9, "pattern": "2:4"}, "distill: pattern 2:4 has a sparsity of 0.5, and sparsity 0.9 was given; leave it out"),
    (Train, {"pattern": "4x1"}, "train: pattern 4x1 was given and no sparsity; give --sparsity, the share of zeros"),
    (Train, {"scope": "all"}, "train: scope 'all' is unknown; use one of layer, global, adaptive"),
    (Train, {"scope": "global"}, "train: scope global was given and no sparsity; leave it out, or give --sparsity without N:M"),
    (Train, {"scope": "adaptive", "pattern": "2:4"},
     "train: scope adaptive was given and pattern 2:4, which gives every layer the same sparsity; leave it out, or give --sparsity without N:M"),
    (Binarize, {"sparsity": 0.5}, "binarize: a weight of one bit has no zero, so there is no sparsity; leave it out (--weights ternary has zeros)"),
])  # fmt: skip
def test_settings_are_checked(kind, values, said):
    with pytest.raises(BadInput) as e:
        kind(**values)
    assert str(e.value) == said


def test_no_goal_without_a_sparsity():
    assert goal_of("train", Loop()) is None
    assert goal_of("train", Loop(pattern="1:4")).share == 0.75


def test_where_nothing_fits_it_is_refused(net):
    with pytest.raises(
        Refused,
        match=r"train: there is nothing to prune to a sparsity of 0.5 \(\w+: blocks of 1x5 need inputs in multiples of 5, and it has 4; ",
    ):
        train(net, Train(sparsity=0.5, pattern="1x5", **QUICK), task_of(net))
