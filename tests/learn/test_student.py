"""student: what narrow and shallow leave out, that the rest is the teacher's, and what they refuse; distillation with a student of its own."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from hasten import check
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.facts import facts
from hasten.learn.distill import Distill, distill
from hasten.learn.student import Student, make
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.shrink.groups import couple
from hasten.task import Split, without_data
from tests.conftest import mlp_model, model_of, operators
from tests.test_cli import hasten

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def weights(model: Model) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in model.ir.graph.initializers.items()}


@pytest.mark.parametrize(
    "text", ["", "narrow", "narrow:", "narrow:0", "narrow:1", "narrow:1.5", "narrow:half", "thin:0.5", "shallow:-1", "narrow:nan"]
)
def test_a_recipe_that_is_not_understood(text):
    with pytest.raises(BadInput, match=r"is not understood; expected narrow:SHARE .* shallow:SHARE .* such as narrow:0.5"):
        Student(text)
    with pytest.raises(BadInput, match="is not understood"):
        make(mlp_model(), text)


def test_narrow_keeps_the_strongest_units_and_their_weights():
    teacher = mlp_model(hidden=12)
    edited = teacher.edit()
    strong = [1, 4, 5, 9, 10, 11]
    for name, axis in (("w1", 0), ("w2", 1)):
        array = edited.graph.initializers[name].const_value.numpy().copy()
        np.moveaxis(array, axis, 0)[strong] *= 10
        edited.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    teacher = Model(edited)
    student = make(teacher, "narrow:0.5")
    for name, axis in (("w1", 0), ("b1", 0), ("w2", 1)):
        assert np.array_equal(weights(student)[name], weights(teacher)[name].take(strong, axis)), name
    step = student.history[-1]
    assert (step.name, step.settings, step.changed) == ("student", {"recipe": "narrow:0.5"}, 1)
    assert "w2[0] stays as wide as it is: it reaches the model's output 'y'" in step.skipped[0].why
    check.legal(student)


@pytest.mark.parametrize(
    "hidden, share, kept",
    [(12, 0.5, 6), (128, 0.5, 64), (100, 0.5, 48), (100, 0.3, 32), (24, 0.5, 12), (3, 0.1, 1), (5, 0.5, 3), (100, 0.99, 96)],
)
def test_how_many_channels_stay(hidden, share, kept):
    assert weights(make(mlp_model(hidden=hidden), f"narrow:{share}"))["b1"].shape == (kept,)


def test_a_model_that_can_not_be_narrowed_or_made_shallower_is_refused():
    model = model_of("g (float[N, 8] x) => (float[N, 4] y) { y = Gemm <transB = 1> (x, w) }", {"w": random(4, 8)})
    with pytest.raises(
        Refused, match=r"no channels .* can be left out \(w\[0\] stays .* reaches the model's output 'y'\); try shallow:0.5"
    ):
        make(model, "narrow:0.5")
    with pytest.raises(Refused, match=r"only residual blocks, or hidden layers, .* and it has none; try narrow:0.5"):
        make(model, "shallow:0.5")
    with pytest.raises(Refused, match="1 of them are too few for this share"):
        make(chain(3), "shallow:0.4")


def chain(layers: int) -> Model:
    """layers hidden layers of 8 units: the first from 4, the last to 3."""
    lines = ["h0 = Gemm <transB = 1> (x, w0)", "a0 = Relu (h0)"]
    made = {"w0": random(8, 4), "out": random(3, 8)}
    for i in range(1, layers - 1):
        lines += [f"h{i} = Gemm <transB = 1> (a{i - 1}, w{i}, b{i})", f"a{i} = Relu (h{i})"]
        made |= {f"w{i}": random(8, 8), f"b{i}": random(8)}
    lines.append(f"y = Gemm <transB = 1> (a{layers - 2}, out)")
    return model_of("g (float[N, 4] x) => (float[N, 3] y) {\n" + "\n".join(lines) + "\n}", made)


def test_shallow_leaves_out_hidden_layers_that_map_a_shape_to_itself():
    teacher = chain(6)
    student = make(teacher, "shallow:0.5")
    assert operators(student) == ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert {"w2", "w4"}.isdisjoint(weights(student)) and {"w0", "w1", "w3", "out"} <= set(weights(student))
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    w, value = weights(teacher), x
    for i in (0, 1, 3):
        value = np.maximum(value @ w[f"w{i}"].T + w.get(f"b{i}", 0), 0)
    assert np.allclose(check.oracle(student).run(None, {"x": x})[0], value @ w["out"].T, atol=1e-4)


def residual(blocks: int) -> Model:
    lines, made = ["v0 = Conv (x, stem)"], {"stem": random(6, 3, 1, 1), "out": random(2, 6)}
    for i in range(blocks):
        lines += [f"a{i} = Conv (v{i}, p{i})", f"r{i} = Relu (a{i})", f"c{i} = Conv (r{i}, q{i})", f"v{i + 1} = Add (c{i}, v{i})"]
        made |= {f"p{i}": random(4, 6, 1, 1), f"q{i}": random(6, 4, 1, 1)}
    lines += [f"pool = GlobalAveragePool (v{blocks})", "flat = Flatten (pool)", "y = Gemm <transB = 1> (flat, out)"]
    return model_of("g (float[N, 3, 4, 4] x) => (float[N, 2] y) {\n" + "\n".join(lines) + "\n}", made)


def test_shallow_leaves_out_every_second_block_and_equals_the_teacher_with_branches_of_zero():
    teacher = residual(4)
    student = make(teacher, "shallow:0.5")
    assert [n.name for n in student.ir.graph if n.op_type == "Add"] == ["Add_0", "Add_2"] or operators(student).count("Add") == 2
    assert {"p1", "p3", "q1", "q3"}.isdisjoint(weights(student))
    edited = teacher.edit()
    for name in ("q1", "q3"):
        edited.graph.initializers[name].const_value = ir.Tensor(np.zeros((6, 4, 1, 1), np.float32), name=name)
    check.same(Model(edited), student, check.FLOAT32)
    with pytest.raises(check.CheckFailed):
        check.same(teacher, student, check.FLOAT32)
    assert [s.why for s in student.history[-1].skipped] == ["kept: others of its kind are left out"] * 2


@pytest.mark.parametrize("blocks, share, left", [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 2), (5, 0.2, 4), (7, 0.6, 3)])
def test_how_many_blocks_stay(blocks, share, left):
    """Of a half that is not whole, the smaller part goes; a single block goes where half of it is meant to."""
    assert operators(make(residual(blocks), f"shallow:{share}")).count("Add") == left


def test_blocks_next_to_each_other_can_all_go():
    student = make(residual(3), "shallow:0.9")
    assert operators(student) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    check.legal(student)


def test_a_transformer_loses_whole_layers():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x):
            y = self.norms[0](x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return x + self.down(torch.relu(self.up(self.norms[1](x))))

    torch.manual_seed(0)
    module = nn.Sequential(Layer(), Layer(), nn.Linear(8, 3)).eval()
    teacher = load(module, example_inputs=torch.randn(2, 5, 8)).model
    assert operators(make(teacher, "shallow:0.5")).count("Softmax") == 1
    student = make(teacher, "shallow:0.5")
    kept = nn.Sequential(module[0], module[2])
    x = torch.randn(3, 5, 8)
    found = check.oracle(student).run(None, {student.inputs[0].name: x.numpy()})[0]
    assert np.allclose(found, kept(x).detach().numpy(), atol=1e-4)


MODELS = {
    "cifar10_resnet20": (0.3, 0.7),
    "fastestdet": (0.5, 0.9),
    "kws_dscnn": (0.4, 0.7),
    "light_resnet50": (0.3, 0.7),
    "light_shufflenet": (0.6, 0.7),
    "mnist_cntk": (0.4, None),
    "mobilenetv2": (0.3, 0.8),
    "resnet18_vq": (0.3, 0.8),
    "squeezenet1.1": (0.4, None),
    "stories260k": (0.5, 0.7),
    "ultraface_rfb_320": (0.4, 0.85),
    "vww_mobilenetv1_025": (0.4, 0.8),
}
"""The largest share of the teacher's MACs that narrow:0.5 and shallow:0.5 leave; None: refused."""


@pytest.mark.parametrize("name", MODELS)
def test_students_of_real_models(name, shared_data):
    path = shared_data / "models" / f"{name}.onnx"
    teacher = load_onnx(path if path.exists() else path.with_suffix(".onnx.xz"))
    axes = {d for p in teacher.inputs for d in p.shape[1:] if isinstance(d, str)}
    sizes = dict.fromkeys(axes, 8)
    for recipe, most in zip(("narrow:0.5", "shallow:0.5"), MODELS[name], strict=True):
        if most is None:
            with pytest.raises(Refused, match="it has none"):
                make(teacher, recipe)
            continue
        student = make(teacher, recipe)
        check.legal(student)
        feeds = check.random_feeds(teacher, 2, sizes)
        expected, found = (check.oracle(m).run(None, feeds) for m in (teacher, student))
        assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
        assert facts(student, sizes).macs <= most * facts(teacher, sizes).macs, recipe


def test_a_recurrent_model_with_states_outside(shared_data):
    teacher = load_onnx(shared_data / "models" / "silero_vad_16k_plain.onnx")
    student = make(teacher, "narrow:0.5")
    assert facts(student).weight_bytes < 0.6 * facts(teacher).weight_bytes
    assert any("LSTM" in s.why and "meets values whose size is fixed" in s.why for s in student.history[-1].skipped)
    check.oracle(student).run(None, check.random_feeds(teacher))


def test_a_student_can_have_a_student():
    """The second one is made of the first, whose shapes are inferred again."""
    student = make(make(mlp_model(hidden=64), "narrow:0.5"), "narrow:0.5")
    assert weights(student)["b1"].shape == (16,)
    assert [s.name for s in student.history].count("student") == 2


def test_making_a_student_needs_no_torch():
    text = "import sys; from hasten.learn import student; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)


# --- distillation


def task_of(model: Model, labels: bool = True, **more):
    x = RNG.standard_normal((64, 8)).astype(np.float32)
    y = check.oracle(mlp_model(hidden=12)).run(None, {"x": x})[0].argmax(1)
    split = Split(Arrays({"x": x}), y if labels else None, np.arange(64))
    metric = next(m for m in METRICS if m.name == "accuracy")
    return dataclasses.replace(without_data(), train=split, validate=split, test=split, metric=metric, output=model.outputs[0].name, **more)


def test_distill_makes_its_student_and_teaches_it():
    teacher = mlp_model(hidden=12)
    task = task_of(teacher)
    untrained = make(teacher, "narrow:0.5")
    taught = distill(teacher, Distill(student="narrow:0.5", epochs=20, batch=16, rate=0.02), task)
    assert weights(taught)["b1"].shape == (6,)
    assert [s.name for s in taught.history][-2:] == ["student", "distill"]

    def distance(model: Model) -> float:
        x = task.train.samples.take(np.arange(64))
        return float(np.square(check.oracle(model).run(None, x)[0] - check.oracle(teacher).run(None, x)[0]).mean())

    assert distance(taught) < 0.5 * distance(untrained)


def test_without_labels_the_teacher_alone_teaches():
    teacher = mlp_model(hidden=12)
    made = distill(teacher, Distill(student="narrow:0.5", epochs=1, batch=16), task_of(teacher, labels=False))
    assert made.history[-1].skipped[-1].why == "the training data has no labels: the teacher alone taught"
    with pytest.raises(BadInput, match="the labels have the only weight, and the training data has none"):
        distill(teacher, Distill(student="narrow:0.5", soft=0, hard=1, epochs=1, batch=16), task_of(teacher, labels=False))


def test_who_teaches_whom_is_said_once():
    teacher = mlp_model(hidden=12)
    with pytest.raises(Refused, match=r"distill needs a teacher, and none came; give --teacher, or --student narrow:0\.5"):
        distill(teacher, Distill(epochs=1), task_of(teacher))
    with pytest.raises(BadInput, match=r"--student makes the student of the model, .* and a teacher came too; give one"):
        distill(teacher, Distill(student="narrow:0.5", epochs=1), task_of(teacher, teacher=teacher))
    with pytest.raises(BadInput, match="student 'thin' is not understood"):
        Distill(student="thin")


@pytest.fixture
def files(tmp_path):
    """A teacher, a student and their data, as files."""
    teacher, student = mlp_model(hidden=12), mlp_model(seed=1, hidden=6)
    teacher.save(tmp_path / "teacher.onnx")
    student.save(tmp_path / "student.onnx")
    x = RNG.standard_normal((80, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=check.oracle(teacher).run(None, {"x": x})[0].argmax(1))
    np.savez(tmp_path / "unlabelled.npz", x=x)
    return tmp_path


def test_the_verb_with_a_student_and_with_a_teacher(files):
    out = files / "out.onnx"
    said = hasten(
        "distill",
        files / "teacher.onnx",
        out,
        "--student",
        "narrow:0.5",
        "--train-data",
        files / "data.npz",
        "--epochs",
        1,
        "--batch",
        16,
        "-q",
    )
    assert said.code == 0, said.err
    assert "of the teacher" in said.out and "of the student" in said.out and "w2[0] stays as wide as it is" in said.out
    made = Model.load(out)
    assert weights(made)["b1"].shape == (6,) and [s.name for s in made.history][-2:] == ["student", "distill"]
    both = files / "both.onnx"
    arguments = ("--teacher", files / "teacher.onnx", "--train-data", files / "unlabelled.npz", "--epochs", 1, "--batch", 16, "-q")
    said = hasten("distill", files / "student.onnx", both, *arguments)
    assert said.code == 0 and "the teacher alone taught" in said.out, said.err
    assert Model.load(both).history[-1].settings["student"] == ""


@pytest.mark.parametrize("given, came", [((), "neither came"), (("--student", "narrow:0.5", "--teacher", "x.onnx"), "both came")])
def test_the_verb_wants_one_of_both(files, given, came):
    said = hasten("distill", files / "teacher.onnx", files / "out.onnx", *given, "--train-data", files / "data.npz")
    assert said.code == 2
    assert "distill needs --teacher MODEL to learn from, or --student narrow:0.5" in said.err and f"{came}: give one" in said.err
    assert not (files / "out.onnx").exists()


def test_groups_of_a_student_are_those_of_its_teacher_but_narrower(digits_cnn):
    teacher = load_onnx(digits_cnn)
    before, after = ([g.channels for g in couple(m).groups] for m in (teacher, make(teacher, "narrow:0.5")))
    assert after == [n // 2 for n in before] and len(before) == 3
