"""binarize: which layers and activations, the estimators' gradients, and that the file computes what was trained, to the sign."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from hasten import check, numerics, plan
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.errors import BadInput, Refused
from hasten.learn import binarize as technique
from hasten.learn import job, loop
from hasten.learn.binarize import Binarize, binarize, codes_of, packed, prepare, scale_of, sign, step, with_latent_weights
from hasten.learn.loop import predict
from hasten.learn.train import Train, train
from hasten.metrics import METRICS
from hasten.model import Model
from hasten.own_operators import SIGNS, is_packed
from hasten.runtimes import Target, get
from hasten.task import Split, Task, without_data
from tests.conftest import model_of, operators

ACCURACY = next(m for m in METRICS if m.name == "accuracy")
RNG = np.random.default_rng(0)
ALL = {"first": "weights", "last": "binary", "compile": "never"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Layers this small only lose by two."""
    monkeypatch.setattr(loop, "cores", lambda: 1)


# --- gradients


def test_the_sign_s_gradient_passes_within_one_and_stops_beyond():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    for function, low, slope in ((sign, -1, 1.0), (step, 0, 0.5)):
        y = function(x)
        assert y.tolist() == [low, low, low, 1, 1, 1, 1]
        (gradient,) = torch.autograd.grad(y, x, torch.arange(1.0, 8.0))
        assert gradient.tolist() == [0, 2 * slope, 3 * slope, 4 * slope, 5 * slope, 6 * slope, 0]


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_codes_and_scales_are_those_of_numerics(kind):
    w = np.random.default_rng(1).standard_normal((6, 37)).astype(np.float32)
    w[0, :3] = 0.0, -0.0, 1e-30
    codes, scale = (numerics.binary if kind == "binary" else numerics.ternary)(w)
    assert np.array_equal(codes_of(torch.from_numpy(w), kind).numpy(), codes)
    np.testing.assert_allclose(scale_of(torch.from_numpy(w), kind).numpy(), scale, rtol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_the_weights_gradient_is_that_of_the_codes_and_of_the_scale(kind):
    """y = α c · x: ∂y/∂w = α x (straight through) + (c · x) ∂α/∂w, and ∂α/∂w is checked by finite differences."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 9, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: scale_of(v, kind), (w,))
    y = technique.latent_gemm(x, w, kind=kind, scaled=1, transB=1)
    (found,) = torch.autograd.grad(y.sum(), w)
    codes, alpha = codes_of(w, kind).detach(), scale_of(w, kind)
    (by_alpha,) = torch.autograd.grad((alpha * (x @ codes.T).sum(0)).sum(), w)
    torch.testing.assert_close(found, alpha.detach()[:, None] * x.sum(0) + by_alpha)


# --- which layers


def norm(name: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{name}g": RNG.uniform(0.5, 2, channels),
        f"{name}b": RNG.standard_normal(channels),
        f"{name}m": RNG.standard_normal(channels),
        f"{name}v": RNG.uniform(0.5, 2, channels),
    }


def chain() -> Model:
    """Conv → norm → Relu → MaxPool → Conv → norm → Relu → (Conv → norm → Add) → Relu → depthwise Conv → mean → Gemm."""
    weights = {
        "w1": RNG.standard_normal((8, 3, 3, 3)), "w2": RNG.standard_normal((8, 8, 3, 3)), "w3": RNG.standard_normal((8, 8, 3, 3)),
        "w4": RNG.standard_normal((8, 1, 3, 3)), "w5": RNG.standard_normal((8, 5)), "c5": RNG.standard_normal(5),
        **norm("n1", 8), **norm("n2", 8), **norm("n3", 8),
    }  # fmt: skip
    return model_of(
        """chain (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b1 = BatchNormalization (a1, n1g, n1b, n1m, n1v)
            r1 = Relu (b1)
            p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
            a2 = Conv <pads = [1, 1, 1, 1]> (p1, w2)
            b2 = BatchNormalization (a2, n2g, n2b, n2m, n2v)
            r2 = Relu (b2)
            a3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
            b3 = BatchNormalization (a3, n3g, n3b, n3m, n3v)
            s3 = Add (b3, r2)
            r3 = Relu (s3)
            a4 = Conv <pads = [1, 1, 1, 1], group = 8> (r3, w4)
            r4 = Relu (a4)
            m = GlobalAveragePool (r4)
            f = Flatten (m)
            y = Gemm (f, w5, c5)
        }""",
        weights,
    )


def test_signs_take_the_place_of_activations_and_what_stays_real_is_said():
    model = chain()
    before = model.digest
    latent, skipped = with_latent_weights(model, Binarize())
    assert model.digest == before
    assert operators(latent) == [
        "Conv", "BatchNormalization", "Sign", "MaxPool", "LatentConv", "BatchNormalization", "Relu", "Sign", "LatentConv", "BatchNormalization",
        "Add", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    nodes = {n.outputs[0].name: n for n in latent.ir.graph}
    assert nodes["a3"].inputs[0].producer().inputs[0].name == "b2", "the sign reads what Relu reads: of what Relu gives, every sign is 1"
    assert nodes["s3"].inputs[1].name == "r2"
    said = {s.node: s.why for s in skipped}
    assert sorted(said.values()) == [
        "it is depthwise: 9 signs for each channel say too little",
        "the first layer stays real (asked for by `first`)",
        "the last layer stays real (asked for by `last`)",
    ]


def test_a_mean_of_relus_has_no_sign_worth_reading():
    _, skipped = with_latent_weights(chain(), Binarize(last="binary"))
    assert "what it reads is never negative: the sign of it says nothing" in [s.why for s in skipped]
    latent, _ = with_latent_weights(chain(), Binarize(last="weights"))
    assert operators(latent)[-1] == "LatentGemm"


def test_weights_alone_leave_the_activations():
    latent, _ = with_latent_weights(chain(), Binarize(activations="real", weights="ternary"))
    assert "Sign" not in operators(latent)
    assert operators(latent).count("LatentConv") == 2


def test_layers_are_kept_by_name_and_an_unknown_name_is_refused():
    model = chain()
    names = [n.name for n in model.ir.graph if n.op_type == "Conv"]
    latent, skipped = with_latent_weights(model, Binarize(keep=(names[1],)))
    assert operators(latent).count("LatentConv") == 1
    assert (names[1], "asked for by `keep`") in [(s.node, s.why) for s in skipped]
    with pytest.raises(BadInput, match="there is no layer 'nothing' to keep; there are "):
        with_latent_weights(model, Binarize(keep=("nothing",)))
    with pytest.raises(Refused, match=r"no layer can be binarized .*asked for by `keep`"):
        with_latent_weights(model, Binarize(keep=tuple(names[:3])))


@pytest.mark.parametrize("settings, said", [
    ({"weights": "half"}, "binarize: weights 'half' is unknown; use one of binary, ternary"),
    ({"first": "none"}, "binarize: first 'none' is unknown; use one of real, weights, binary"),
    ({"temperature": 0.0}, "binarize: temperature is 0.0, expected a number above 0"),
    ({"soft": 0.0, "hard": 0.0}, "binarize: the weights soft 0.0 and hard 0.0 must be 0 or more, and one of them above 0"),
])  # fmt: skip
def test_settings_are_checked(settings, said):
    with pytest.raises(BadInput) as e:
        Binarize(**settings)
    assert str(e.value) == said


# --- what is trained is what is shipped


def net() -> Model:
    """Convolution, pool, norm, clipping, twice; then two products: (N, 1, 12, 12) → (N, 4)."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Hardtanh(), nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.MaxPool2d(2),
        nn.BatchNorm2d(8), nn.Hardtanh(), nn.Flatten(), nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    return cleaned(load(layers.eval(), example_inputs=torch.zeros(2, 1, 12, 12)).model)


def cleaned(model: Model) -> Model:
    """As on the road: an exporter's helper nodes read the weights too."""
    steps = tuple(plan.PlannedStep(r.name, r.settings()) for r in plan.TECHNIQUES if r.phase is plan.Phase.CLEAN)
    return plan.run(plan.Plan(steps), model, None)[0]


def blobs(count: int = 160, labelled: bool = True):
    """Bright quarters of noisy pictures, and which one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 1, 12, 12)).astype(np.float32)
    for i, k in enumerate(labels):
        x[i, 0, 6 * (k // 2) : 6 * (k // 2) + 6, 6 * (k % 2) : 6 * (k % 2) + 6] += 4
    split = Split(Arrays({"input": x}), labels if labelled else None, np.arange(count))
    return split, dataclasses.replace(without_data(), train=split, validate=split if labelled else None, metric=ACCURACY)


@pytest.fixture(scope="module")
def bound():
    split, task = blobs()
    model = net()
    split = dataclasses.replace(split, samples=Arrays({model.inputs[0].name: split.samples.take(split.indices)["input"]}))
    return dataclasses.replace(task, train=split, validate=split, output=model.outputs[0].name)


def tapped(model: Model) -> Model:
    """The model with every sign as one more output."""
    edited = model.edit()
    for node in edited.graph:
        if node.op_type in SIGNS:
            edited.graph.outputs.append(node.outputs[0])
    return Model(edited)


@pytest.mark.parametrize("settings", [
    Binarize(epochs=4, batch=32, rate=1e-2, **ALL),
    Binarize(epochs=2, batch=32, rate=1e-2, weights="ternary", activations="step", scaled=False, **ALL),
    Binarize(epochs=2, batch=32, rate=1e-2, weights="ternary", **{**ALL, "first": "real", "last": "real"}),
    Binarize(epochs=2, batch=32, rate=1e-2, **{**ALL, "first": "binary"}),
], ids=["binary", "ternary steps", "ternary, real ends", "binary first"])  # fmt: skip
def test_the_packed_file_computes_what_was_trained_to_the_sign(settings, bound, tmp_path):
    model = net()
    trainee, trained = job.run("binarize", prepare, model, settings, bound)
    made = packed(model, settings, trainee.executor)
    check.legal(made)
    latent, _ = with_latent_weights(model, settings)
    names = [n.outputs[0].name for n in latent.ir.graph if n.op_type in SIGNS]
    (feeds,) = bound.train.batches(len(bound.train))
    expected = technique.build(Model(trainee.executor.into(latent)), more=technique.ROWS, taps=tuple(names)).module(
        torch.from_numpy(next(iter(feeds.values())))
    )
    found = check.oracle(tapped(made)).run([made.outputs[0].name, *names], feeds)
    assert len(names) >= 2
    for name, a, b in zip(names, expected[1:], found[1:], strict=True):
        assert np.array_equal(a.detach().numpy(), b), f"signs of {name} differ"
    np.testing.assert_allclose(expected[0].detach().numpy(), found[0], rtol=1e-4, atol=1e-5)
    assert np.array_equal(expected[0].detach().numpy().argmax(1), found[0].argmax(1))
    np.testing.assert_allclose(predict(trainee, bound.train), found[0], rtol=1e-4, atol=1e-5)
    if settings.epochs == 4:
        assert trained.value is not None and trained.value > 0.9
    made.save(tmp_path / "m.onnx")
    again = Model.load(tmp_path / "m.onnx")
    again.save(tmp_path / "again.onnx")
    assert Model.load(tmp_path / "again.onnx").digest == again.digest
    check.same(made, again, within=check.BITS)
    assert again.history[-1].name == "binarize"
    count = sum(n.inputs[1].const_value.nbytes for n in made.ir.graph if is_packed(n))
    assert made.history[-1].changed in range(1, 8 * count + 1)


def test_another_bit_in_the_file_is_seen(bound):
    """The comparison above can fail: one flipped weight changes the outputs."""
    model, settings = net(), Binarize(epochs=0, batch=32, **ALL)
    trainee, _ = job.run("binarize", prepare, model, settings, bound)
    made = packed(model, settings, trainee.executor)
    edited = made.edit()
    value = next(n for n in edited.graph if n.op_type == "BinaryGemm").inputs[1]
    array = value.const_value.numpy().copy()
    array[0, 0] ^= 1
    value.const_value = ir.Tensor(array, name=value.name)
    (feeds,) = bound.train.batches(len(bound.train))
    one, other = (check.oracle(m).run(None, feeds)[0] for m in (made, Model(edited)))
    assert not np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_latent_weights_start_from_the_float_ones_and_stay_within_one(bound):
    model, settings = net(), Binarize(epochs=1, batch=32, rate=0.5, **ALL)
    trainee = prepare(model, settings, bound)
    floats = {k: v.const_value.numpy() for k, v in model.ir.graph.initializers.items() if v.const_value is not None}
    assert all(np.array_equal(p.detach().numpy(), floats[k]) for k, p in trainee.executor.weights.items())
    trainee, _ = job.run("binarize", prepare, model, settings, bound)
    matrices = [p for p in trainee.executor.weights.values() if p.ndim > 1]
    assert max(float(p.detach().abs().max()) for p in matrices) == 1.0


def test_without_labels_the_float_model_teaches(bound):
    model = train(net(), Train(epochs=4, batch=16, rate=1e-2, compile="never"), bound)
    task = dataclasses.replace(bound, train=dataclasses.replace(bound.train, labels=None), validate=None)
    settings = Binarize(epochs=4, batch=16, rate=1e-2, soft=0.0, **ALL)
    trainee, _ = job.run("binarize", prepare, model, settings, task)
    (feeds,) = bound.train.batches(len(bound.train))
    teacher = check.oracle(model).run(None, feeds)[0].argmax(1)
    assert len(set(teacher)) == 4
    assert (predict(trainee, bound.train).argmax(1) == teacher).mean() > 0.9


def test_a_sign_of_pixels_that_have_none_is_refused(digits):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    model = cleaned(load(layers.eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model)
    with pytest.raises(BadInput, match=r"is never negative \(0 to 1\), so its sign says nothing; centre it .*--first weights"):
        binarize(model, Binarize(first="binary", last="binary"), Task(digits, train=digits).bind(model))
    with pytest.raises(Refused, match="binarize needs data to train on, and none came; give --train-data"):
        binarize(model, Binarize(last="binary"), None)


def test_digits_with_one_bit_a_weight(digits):
    """An MLP 784-128-128-10 of bits: it learns, its layers take 1/32 of the bytes, and every runtime agrees with the oracle."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128, bias=False), nn.BatchNorm1d(128), nn.Hardtanh(), nn.Linear(128, 128, bias=False),
        nn.BatchNorm1d(128), nn.Hardtanh(), nn.Linear(128, 10, bias=False), nn.BatchNorm1d(10),
    )  # fmt: skip
    model = load(layers.eval(), example_inputs=torch.zeros(2, 1, 28, 28)).model
    task = Task(digits, train=digits).bind(model)
    made = binarize(model, Binarize(epochs=6, batch=32, rate=5e-3, soft=0.0, hard=1.0, **ALL), task)
    layer_bytes = sum(n.inputs[1].const_value.nbytes for n in made.ir.graph if is_packed(n))
    assert layer_bytes * 32 == 4 * (784 * 128 + 128 * 128 + 128 * 10)
    assert len(made.to_bytes()) < len(model.to_bytes()) / 10
    (feeds,) = task.test.batches(len(task.test))
    outputs = {
        r: next(iter(get(r).compile(made, Target(1, batch=len(task.test))).run(feeds).values()))
        for r in ("onnxruntime", "openvino", "reference")
        if not get(r).unsupported(made, Target(1))
    }
    assert (outputs["reference"].argmax(1) == task.test.labels).mean() > 0.85
    for name, found in outputs.items():
        assert (found.argmax(1) == outputs["reference"].argmax(1)).mean() > 0.99, name
