"""train and the loop under it: it learns, goes on exactly where it was stopped, and says what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from hasten import check, plan
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.errors import BadInput, Diverged, OutOfResources, Refused
from hasten.learn import loop
from hasten.learn import train as technique
from hasten.learn.loop import Trainee
from hasten.learn.records import RECORDS, time_to
from hasten.learn.train import Train, prepare, train
from hasten.measure.record import Records
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.task import Split, Task, without_data

ACCURACY = next(m for m in METRICS if m.name == "accuracy")


@pytest.fixture(scope="module")
def untrained() -> Model:
    """An MLP 784-32-10 of torch's random weights, as a graph."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    return load(layers.eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model


@pytest.fixture(scope="module")
def task(untrained, digits):
    return Task(digits, train=digits).bind(untrained)


def toy(count=48, classes=3, seed=0):
    """Separable points (N, 4) and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (rng.standard_normal((count, 4)) + 3 * np.eye(classes, 4)[labels]).astype(np.float32), labels


def toy_model(norm=False, last=None) -> Model:
    torch.manual_seed(1)
    layers = [
        torch.nn.Linear(4, 8),
        *([torch.nn.BatchNorm1d(8)] if norm else []),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
        *([last] if last else []),
    ]
    return load(torch.nn.Sequential(*layers).eval(), example_inputs=torch.zeros(2, 4)).model


def toy_task(model, place=None, **changes):
    x, y = toy()
    samples = Arrays({model.inputs[0].name: x})
    split = Split(samples, y, np.arange(len(y)))
    given = {"train": split, "validate": split, "test": split, "metric": ACCURACY, "output": model.outputs[0].name, "place": place}
    return dataclasses.replace(without_data(), **(given | changes))


def losses(place: Path) -> list[float]:
    return [r.values["loss"] for r in Records(place / RECORDS) if r.kind == "epoch"]


def weights(model: Model) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in model.ir.graph.initializers.items()}


def same_weights(one: Model, other: Model, within: float = 0.0) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(np.allclose(a[k], b[k], rtol=0, atol=within) for k in a)


def test_a_graph_learns_real_digits_and_stays_the_same_graph(untrained, task, tmp_path):
    before = untrained.to_bytes()
    made = train(untrained, Train(epochs=4, batch=32, rate=3e-3), dataclasses.replace(task, place=tmp_path))
    assert untrained.to_bytes() == before
    assert made.structure == untrained.structure
    check.legal(made)
    split = task.test
    (outputs,) = check.oracle(made).run(None, next(iter(split.batches(len(split)))))
    assert ACCURACY.value(outputs, split.labels) > 0.9
    records = Records(tmp_path / RECORDS)
    assert [r.values["epoch"] for r in records if r.kind == "epoch"] == [1, 2, 3, 4]
    (whole,) = (r for r in records if r.kind == "training")
    assert whole.values["peak_memory"] > 1e7
    assert whole.values["seconds"] == pytest.approx(sum(r.values["seconds"] for r in records if r.kind == "epoch"))
    assert time_to(records, 0.8) <= whole.values["seconds"]
    assert time_to(records, 1.1) is None


def test_what_judges_is_never_trained_on(untrained, digits):
    bound = Task(digits, train=digits).bind(untrained)
    assert not set(bound.train.indices) & set(bound.validate.indices)
    assert np.array_equal(bound.train.labels, np.load(digits)["y_train"][bound.train.indices])
    assert "neither validate nor test" in bound.notes[-1]
    with np.load(digits) as arrays:
        own = {"x": arrays["x_train"][:100]}, arrays["y_train"][:100]
    assert len(Task(digits, train=own).bind(untrained).train) == 100
    assert Task(digits).bind(untrained).train is None


@pytest.mark.parametrize("settings", [
    Train(epochs=3, batch=8, seed=3),
    Train(epochs=3, batch=8, optimizer="sgd", rate=0.05, average=0.9),
    Train(epochs=3, batch=8, augment=("mixup:1",)),
])  # fmt: skip
@pytest.mark.parametrize("stopped_after", [1, 6, 7, 11])
def test_a_stopped_training_goes_on_to_the_very_same_weights(settings, stopped_after, tmp_path, monkeypatch):
    model = toy_model(norm=True)
    whole = train(model, settings, toy_task(model, tmp_path / "whole"))
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    done = [0]

    def stop(what, step, total):
        done[0] += what.startswith("training")
        if done[0] == stopped_after + 1:
            raise KeyboardInterrupt

    class Stopping(loop.voice().__class__):
        step = staticmethod(stop)

    from hasten.voice import speaking

    with speaking(Stopping()), pytest.raises(KeyboardInterrupt):
        train(model, settings, toy_task(model, tmp_path / "parts"))
    again = train(model, settings, toy_task(model, tmp_path / "parts"))
    assert same_weights(again, whole)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-12)


def test_kill_9_loses_nothing_that_was_finished(untrained, digits, tmp_path):
    source, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    untrained.save(source)
    command = [
        sys.executable,
        "-m",
        "hasten",
        "train",
        str(source),
        str(out),
        "--train-data",
        str(digits),
        "--epochs",
        "40",
        "--batch",
        "32",
    ]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "b.onnx.training" / RECORDS
    while killed.poll() is None and not (records.exists() and len(records.read_bytes().splitlines()) >= 3):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not out.exists()
    first = records.read_text().splitlines()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resumed at step" in done.stdout
    assert out.exists()
    assert records.read_text().splitlines()[0] == first
    assert not (records.parent / loop.CHECKPOINT).exists()


def test_batch_norm_sees_the_whole_batch_in_all_processes(tmp_path):
    model = toy_model(norm=True)
    made = [train(model, Train(epochs=4, batch=16, processes=n), toy_task(model, tmp_path / str(n))) for n in (1, 2)]
    one, two = (weights(m) for m in made)
    free = [k for k in one if k != "0.bias"]  # batch norm takes that bias back: its gradient is rounding alone, of which Adam makes steps
    assert len(free) == len(one) - 1
    assert all(np.allclose(one[k], two[k], rtol=0, atol=1e-4) for k in free if "running_mean" not in k)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-5)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_two_processes_go_on_from_a_checkpoint_with_the_same_weights(average, tmp_path, monkeypatch):
    model, settings = toy_model(norm=True), Train(epochs=6, batch=16, rate=0.01, processes=2, average=average)
    whole = train(model, settings, toy_task(model, tmp_path / "whole"))
    end_epoch = loop._Training._end_epoch

    def stopping(self, epoch):
        end_epoch(self, epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(model, settings, toy_task(model, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_end_epoch", end_epoch)
    again = train(model, settings, toy_task(model, tmp_path / "parts"))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert same_weights(again, whole, within=1e-6)


def test_a_training_that_time_cut_replays_to_the_same_weights(tmp_path):
    from hasten import plan

    model = toy_model()
    begun = plan.Plan((plan.PlannedStep("train", Train(epochs=200, batch=8, seconds=0.05)),), source=model.digest)
    made, done = plan.run(begun, model, toy_task(model, tmp_path / "cut"))
    (ran,) = done.steps
    assert ran.settings.seconds == 0
    assert ran.settings.cuts
    assert len(losses(next((tmp_path / "cut").iterdir()))) < 200
    again, _ = plan.run(plan.Plan.from_json(done.to_json()), model, toy_task(model, tmp_path / "again"))
    assert again.digest == made.digest
    with pytest.raises(BadInput, match="train: the cut 'soon' is not understood; expected step:steps, such as 12:480"):
        Train(cuts=("soon",))


def test_what_is_dropped_does_not_depend_on_an_interruption(tmp_path, monkeypatch):
    from hasten.graph import finish, take_place

    plain = toy_model()
    edited = plain.edit()
    tanh = next(n for n in edited.graph if n.op_type == "Tanh")
    ratio, on = (add_constant(edited.graph, v) for v in (np.float32(0.5), np.bool_(True)))
    dropout = ir.node("Dropout", [tanh.outputs[0], ratio, on], name="dropout")
    dropout.outputs[0].name, dropout.outputs[0].type, dropout.outputs[0].shape = "dropped", tanh.outputs[0].type, tanh.outputs[0].shape
    edited.graph.insert_after(tanh, dropout)
    take_place(tanh.outputs[0], dropout.outputs[0])
    dropout.replace_input_with(0, tanh.outputs[0])
    model, settings = finish(plain, edited, Train(), "dropout", 1, []), Train(epochs=4, batch=16)
    whole = train(model, settings, toy_task(model, tmp_path / "whole"))
    assert not same_weights(whole, train(plain, settings, toy_task(plain, tmp_path / "plain")))
    end_epoch = loop._Training._end_epoch

    def stopping(self, epoch):
        end_epoch(self, epoch)
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Training, "_end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(model, settings, toy_task(model, tmp_path / "parts"))
    monkeypatch.setattr(loop._Training, "_end_epoch", end_epoch)
    torch.manual_seed(99)
    assert same_weights(train(model, settings, toy_task(model, tmp_path / "parts")), whole)


def add_constant(graph, value):
    from hasten.graph import add_weight

    return add_weight(graph, "constant", np.asarray(value))


def test_what_wants_labels_is_refused_without_them(tmp_path):
    model = toy_model()
    task = toy_task(model, tmp_path / "t")
    unjudged = dataclasses.replace(task, validate=dataclasses.replace(task.validate, labels=None))
    for more in ({"patience": 2}, {"until": 0.9}):
        with pytest.raises(BadInput, match="--patience and --until want labels to judge by, and there are none; leave them out"):
            train(model, Train(batch=16, **more), unjudged)
    assert not (tmp_path / "t").exists()


def test_pieces_and_processes_take_the_same_steps_as_one_whole(tmp_path):
    model = toy_model()
    made = {}
    for name, settings in (
        ("one", Train(epochs=4, batch=16)),
        ("pieces", Train(epochs=4, batch=16, accumulate=4)),
        ("processes", Train(epochs=4, batch=16, processes=2)),
    ):
        made[name] = train(model, settings, toy_task(model, tmp_path / name))
    for name in ("pieces", "processes"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        assert same_weights(made[name], made["one"], within=1e-5)
    assert not same_weights(made["one"], model)


def test_a_process_that_dies_is_said(tmp_path, monkeypatch):
    model = toy_model()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'hasten.learn.parallel' in ' '.join(sys.orig_argv): sys.exit('no room')\n"
    )
    with pytest.raises(OutOfResources, match=r"process 2 of the training ended early: .*no room; use fewer --processes"):
        train(model, Train(epochs=1, batch=8, processes=2), toy_task(model, tmp_path / "t"))
    monkeypatch.delenv("PYTHONPATH")
    train(model, Train(epochs=1, batch=8, processes=2), toy_task(model, tmp_path / "t"))


def test_a_loss_that_is_no_number_stops_with_step_and_layer_and_keeps_the_checkpoint(tmp_path):
    model = toy_model()
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of \d+ \(epoch \d+\); .*The last good checkpoint is kept"):
        train(model, Train(epochs=60, batch=8, rate=1e30, optimizer="sgd", clip=0, warm_up=0.9), toy_task(model, tmp_path))
    assert (tmp_path / loop.CHECKPOINT).exists()


def test_the_node_that_gives_the_first_nan_is_named(tmp_path):
    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model = load(layers.eval(), example_inputs=torch.zeros(2, 4)).model
    x, y = toy()
    samples = Split(Arrays({model.inputs[0].name: np.clip(x, -1, 1) * np.float32(3e38)}), y, np.arange(len(y)))
    first = model.ir.graph.node(0).name
    with pytest.raises(Diverged, match=f"comes from node '{first}'"):
        train(model, Train(epochs=1, batch=8), toy_task(model, tmp_path, train=samples))


def test_out_of_memory_takes_smaller_pieces_and_says_so(tmp_path, monkeypatch):
    model = toy_model()
    whole = train(model, Train(epochs=2, batch=16), toy_task(model, tmp_path / "a"))
    said = []

    def hungry(model, settings, task) -> Trainee:
        made = prepare(model, settings, task)

        def objective(outputs, batch):
            if len(batch.feeds[0]) > most:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return made.objective(outputs, batch)

        return dataclasses.replace(made, objective=objective)

    monkeypatch.setattr(technique, "prepare", hungry)
    from hasten.voice import Told, speaking

    most = 4
    with speaking(Told(said.append)):
        divided = train(model, Train(epochs=2, batch=16), toy_task(model, tmp_path / "b"))
    assert "out of memory: each batch of 16 is now computed in 4 pieces, which gives the same step" in said
    assert same_weights(divided, whole, within=1e-5)
    most = 0
    with pytest.raises(OutOfResources, match="out of memory with 16 pieces of a batch of 16; use a smaller --batch"):
        train(model, Train(epochs=2, batch=16), toy_task(model, tmp_path / "c"))


def test_batch_norm_is_trained_with_its_statistics(tmp_path):
    model = toy_model(norm=True)
    made = train(model, Train(epochs=3, batch=8), toy_task(model, tmp_path))
    moved = [k for k, v in weights(made).items() if not np.array_equal(v, weights(model)[k])]
    assert any("running_mean" in k for k in moved)
    assert any("running_var" in k for k in moved)
    folded, _ = plan.run(plan.Plan((plan.PlannedStep("fold_batchnorm", plan.make_settings("fold_batchnorm", {})),)), made, None)
    assert "BatchNormalization" not in {n.op_type for n in folded.ir.graph}
    check.same(made, folded, within=check.FLOAT32)


def test_a_final_softmax_is_trained_through_its_logits(tmp_path):
    plain, final = toy_model(), toy_model(last=torch.nn.Softmax(-1))
    a = train(plain, Train(epochs=2, batch=16), toy_task(plain, tmp_path / "a"))
    b = train(final, Train(epochs=2, batch=16), toy_task(final, tmp_path / "b"))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    assert same_weights(a, b, within=1e-5) or len(weights(a)) == len(weights(b))


def test_it_stops_when_the_value_is_reached_or_does_not_rise(tmp_path):
    model = toy_model()
    train(model, Train(epochs=50, batch=16, rate=0.02, until=0.9), toy_task(model, tmp_path / "a"))
    assert 1 <= len(losses(tmp_path / "a")) < 50
    x, y = toy()
    noise = Split(Arrays({model.inputs[0].name: x}), np.roll(y, 7), np.arange(len(y)))
    train(model, Train(epochs=50, batch=16, rate=1e-9, patience=2), toy_task(model, tmp_path / "b", validate=noise))
    assert len(losses(tmp_path / "b")) <= 50


@pytest.mark.parametrize("precision, compile_", [("bfloat16", "never"), ("float32", "always")])
def test_other_precisions_and_compiled_steps_learn_too(precision, compile_, tmp_path):
    model = toy_model()
    train(model, Train(epochs=10, batch=16, rate=0.02, precision=precision, compile=compile_), toy_task(model, tmp_path))
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]


@pytest.mark.parametrize("change, error, said", [
    ({"train": None}, Refused, "train needs data to train on, and none came; give --train-data"),
    ({"labels": None}, BadInput, "the training data has no labels; give some"),
    ({"labels": 0.5}, BadInput, r"the training labels have shape \[48, 2\], 2 numbers a sample; the output of shape \['batch', 3\] wants 3"),
    ({"labels": 1}, BadInput, "the training labels run from 1 to 3, the model has 3 classes .0 to 2."),
])  # fmt: skip
def test_bad_data_is_refused_and_nothing_is_written(change, error, said, tmp_path):
    model = toy_model()
    task = toy_task(model, tmp_path / "t")
    if "labels" in change:
        shifted = None if change["labels"] is None else task.train.labels + change["labels"]
        if change["labels"] == 0.5:  # values, and one too few
            shifted, task = np.stack([shifted, shifted], 1), dataclasses.replace(task, metric=next(m for m in METRICS if m.name == "mse"))
        change = {"train": dataclasses.replace(task.train, labels=shifted)}
    with pytest.raises(error, match=said):
        train(model, Train(batch=8), dataclasses.replace(task, **change))
    assert not (tmp_path / "t").exists()


def test_a_fixed_batch_is_refused():
    model = toy_model()
    fixed = load(model, shapes={model.inputs[0].shape[0]: 1}).model
    with pytest.raises(
        BadInput, match="has a fixed batch of 1, and training needs batches of any size; export the model with a dynamic batch axis"
    ):
        train(fixed, Train(batch=8), toy_task(fixed))


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    model = toy_model()
    train(model, Train(epochs=1, batch=8), toy_task(model, tmp_path))
    with pytest.raises(BadInput, match=r"holds the checkpoint of another training .* remove that folder to start afresh"):
        train(model, Train(epochs=2, batch=8), toy_task(model, tmp_path))


def test_the_command_line_trains_and_says_before_and_after(untrained, digits, tmp_path):
    source = tmp_path / "a.onnx"
    untrained.save(source)
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "hasten", "train", str(source), "-o", str(tmp_path / "b.onnx"), "--train-data", str(digits)]
    done = subprocess.run([*command, "--epochs", "2", "--rate", "3e-3"], capture_output=True, text=True, check=True, env=environment)
    assert "accuracy on 600 test samples: 0." in done.stdout
    assert "b.onnx: train trained 4 weights" in done.stdout
    assert json.loads((tmp_path / "b.onnx.training" / RECORDS).read_text().splitlines()[-1])["kind"] == "training"
    bad = subprocess.run([*command[:-2], "--train-data", "nowhere"], capture_output=True, text=True, check=False, env=environment)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1


def test_fewer_samples_than_a_batch_make_one_batch(tmp_path):
    model, said = toy_model(), []
    from hasten.voice import Told, speaking

    with speaking(Told(said.append)):
        train(model, Train(epochs=2, batch=65, accumulate=5), toy_task(model, tmp_path))
    assert "training: 48 samples are fewer than a batch of 65; a batch has 45" in said
    assert len(losses(tmp_path)) == 2
