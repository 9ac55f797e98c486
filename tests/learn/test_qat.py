"""qat: what is trained is what is deployed, code by code; gradients by the papers' formulas; bits by layer; it learns."""

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional

from hasten import check, plan
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.graph import finish
from hasten.learn import codes, job
from hasten.learn import qat as technique
from hasten.learn.executor import build
from hasten.learn.qat import ROWS, Qat, formats, prepare, qat
from hasten.numerics import format_of, requantize
from hasten.plan import Plan, PlannedStep, make_settings
from hasten.quantize.quantize_static import QuantizeStatic, quantize_static
from hasten.runtimes import Target, get
from hasten.search.candidates import GRAPH
from hasten.task import Task
from tests.conftest import model_of
from tests.runtimes.test_reference import differing

QUICK = {"epochs": 0, "method": "mse", "samples": 16}


def prepared(path, data, **task):
    """(the float model as it comes to qat, a task whose few training samples need no labels)."""
    model = load_onnx(path)
    bound = Task(data, train=data, **task).bind(model)
    chain = tuple(PlannedStep(name, make_settings(name, dict(values))) for name, values in (*GRAPH, ("equalize", {"samples": 16})))
    few = dataclasses.replace(bound.train, indices=bound.train.indices[:64], labels=None)
    return plan.run(Plan(chain), model, bound)[0], dataclasses.replace(bound, train=few)


@pytest.fixture(scope="module")
def cnn(digits, digits_cnn):
    return prepared(digits_cnn, digits)


@pytest.fixture(scope="module")
def resnet(shared_data):
    return prepared(
        shared_data / "models" / "cifar10_resnet20.onnx", shared_data / "cifar10" / "cifar10_test.npz", preprocess="imagenet-torch"
    )


@pytest.fixture(scope="module")
def mobilenet(shared_data):
    images = shared_data / "imagenet_sample" / "imagenet_sample_even.zip"
    return prepared(shared_data / "models" / "mobilenetv2.onnx", images, preprocess="imagenet-torch")


def shaken(trainee, seed=0):
    """The trainee with every weight and every step somewhere else, as a training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in trainee.executor.weights.items():
            noise = torch.randn(p.shape, generator=generator) * 0.05
            p.add_(noise if name.startswith("step/") else noise * p.abs().mean())
        if trainee.after_step is not None:
            trainee.after_step()
    return trainee


def deployed(model, trainee):
    return finish(model, trainee.deployed(), Qat(), "qat", 1, [])


def trained_codes(trainee, feeds):
    """What the trained module computes at every QuantizeLinear of the deployed graph, with zero points, by the name of its output."""
    rewriter = technique._Rewriter(trainee.start)
    graph, _, _ = rewriter.run()
    found = {v.name: c for v, c in rewriter.coded.items() if v.producer() is not None and v.producer().op_type == "QuantizeLinear"}
    executor = build(graph, more=ROWS, taps=[c.value.name for c in found.values()])
    with torch.no_grad():
        for name, p in executor.weights.items():
            p.copy_(trainee.executor.weights[name])
        values = executor.module(*(torch.from_numpy(feeds[name]) for name in executor.inputs))[-len(found) :]
    return {name: value.numpy() + c.zero for (name, c), value in zip(found.items(), values, strict=True)}


@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet"])
def test_training_and_deployment_agree_in_every_code(name, request):
    model, task = request.getfixturevalue(name)
    trainee = shaken(prepare(model, Qat(**QUICK), task))
    made = deployed(model, trainee)
    check.legal(made)
    feeds = task.test.samples.take(task.test.indices[: 1 if name == "mobilenet" else 4])
    wrong, total = differing(made, feeds)  # the integer reference against onnxruntime's fused kernels
    assert (wrong, total > 10_000) == (0, True)
    mine, reference = trained_codes(trainee, feeds), get("reference").compile(made, Target(1)).codes(feeds)
    assert set(mine) <= set(reference)
    assert sum(x.size for x in mine.values()) > 0.9 * total
    assert sum(int(np.sum(mine[n] != reference[n])) for n in mine) == 0
    output = ort.InferenceSession(made.to_bytes()).run(None, feeds)[0]
    with torch.no_grad():
        np.testing.assert_array_equal(trainee.executor.module(*(torch.from_numpy(v) for v in feeds.values()))[0].numpy(), output)


def test_a_transformer_agrees_too(shared_data):
    model = load_onnx(shared_data / "models" / "stories260k.onnx")
    tokens = np.load(shared_data / "models" / "stories260k_sampled_tokens.npy").astype(np.int64)[:, :32]
    task = Task(tokens, train=tokens).bind(model)
    trainee = shaken(prepare(model, Qat(**QUICK), task))
    feeds = task.test.samples.take(task.test.indices[:4])
    output = ort.InferenceSession(deployed(model, trainee).to_bytes()).run(None, feeds)[0]
    with torch.no_grad():
        mine = trainee.executor.module(*(torch.from_numpy(v) for v in feeds.values()))[0].numpy()
    assert len(trainee.layers) == 36
    # What stands between the products (softmax, norms) is float, and rounded as each runtime does: a code may move where it lies at a half.
    assert np.linalg.norm(mine - output) < 0.01 * np.linalg.norm(output)


def test_a_model_that_ends_in_a_softmax_is_taught_before_it(digits):
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((784, 32)) / 28, "w2": rng.standard_normal((32, 10)) / 5, "b2": np.zeros(10)}
    model = model_of(
        """g (float[N, 1, 28, 28] x) => (float[N, 10] y) {
            f = Flatten (x)
            h = MatMul (f, w1)
            r = Relu (h)
            z = Gemm (r, w2, b2)
            y = Softmax (z)
        }""",
        weights,
    )
    task = Task(digits, train=digits).bind(model)
    trainee = prepare(model, Qat(**QUICK), task)
    assert (trainee.judged, trainee.objective.at, trainee.executor.outputs) == (0, 1, ("y", "z_product"))
    feeds = task.test.samples.take(task.test.indices[:16])
    with torch.no_grad():
        y, z = trainee.executor.module(torch.from_numpy(feeds["x"]))
    torch.testing.assert_close(y, z.softmax(1))
    output = ort.InferenceSession(deployed(model, trainee).to_bytes()).run(None, feeds)[0]
    np.testing.assert_allclose(y.numpy(), output, atol=1e-6)


def test_another_step_in_the_training_would_be_noticed(cnn):
    model, task = cnn
    trainee = shaken(prepare(model, Qat(**QUICK), task))
    made = deployed(model, trainee)
    feeds = task.test.samples.take(task.test.indices[:8])
    with torch.no_grad():
        next(p for n, p in trainee.executor.weights.items() if n.startswith("step/")).add_(1e-3)
    mine, reference = trained_codes(trainee, feeds), get("reference").compile(made, Target(1)).codes(feeds)
    assert sum(int(np.sum(mine[n] != reference[n])) for n in mine) > 0


def test_the_start_is_what_the_static_quantizer_makes(cnn):
    model, task = cnn
    settings = Qat(**QUICK)
    made = deployed(model, prepare(model, settings, task))
    same = dataclasses.replace(task, calibrate=job.spread(task.train, 16))
    start = quantize_static(model, settings.static(), same)
    assert [(n.op_type, [v.name for v in n.inputs]) for n in made.ir.graph] == [
        (n.op_type, [v.name for v in n.inputs]) for n in start.ir.graph
    ]
    for name, value in start.ir.graph.initializers.items():
        a, b = value.const_value.numpy(), made.ir.graph.initializers[name].const_value.numpy()
        assert a.dtype == b.dtype
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=2e-6)
        else:
            assert np.abs(a.astype(np.int64) - b).max() <= 1  # the step was rounded on its way through its logarithm
            assert np.mean(a != b) < 0.05


def test_fewer_bits_are_stored_in_fours_and_run_as_float(cnn):
    model, task = cnn
    trainee = shaken(prepare(model, Qat(**QUICK, weights=4, activations=4), task))
    made = deployed(model, trainee)
    types = {k: str(v.dtype) for k, v in made.ir.graph.initializers.items()}
    weights = [k for k in types if k.endswith(("weight_folded_codes", "weight_codes"))]
    assert [types[k] for k in weights].count("INT4") == 2
    assert [types[k] for k in weights].count("INT8") == 2
    assert "UINT4" in types.values()
    feeds = task.test.samples.take(task.test.indices[:64])
    mine, reference = trained_codes(trainee, feeds), get("reference").compile(made, Target(1)).codes(feeds)
    assert sum(int(np.sum(mine[n] != reference[n])) for n in mine) == 0
    with torch.no_grad():
        mine = trainee.executor.module(torch.from_numpy(feeds["image"]))[0].numpy()
    for session in (ort.InferenceSession(made.to_bytes()), check.oracle(made)):
        # A float sum that lies next to a half may round the other way, which moves a code by one step.
        theirs = session.run(None, feeds)[0]
        assert np.linalg.norm(mine - theirs) < 0.01 * np.linalg.norm(theirs)


def test_a_layer_of_fewer_bits_reads_a_sum_through_a_pair_of_its_own(resnet):
    model, task = resnet
    to = formats(model, Qat(weights=4, activations=4))
    assert {f.name for f in to.weights.values()} == {"int4"}
    assert len(to.weights) == 18
    assert len(to.inputs) == 9  # the first convolution of every block reads the residual stream, which keeps 8 bits
    assert len(to.tensors) == 9  # the second one's input has no other reader
    trainee = prepare(model, Qat(**QUICK, weights=4, activations=4), task)
    made = deployed(model, trainee)
    feeds = task.test.samples.take(task.test.indices[:32])
    theirs = ort.InferenceSession(made.to_bytes()).run(None, feeds)[0]
    with torch.no_grad():
        mine = trainee.executor.module(torch.from_numpy(feeds["input"]))[0].numpy()
    assert np.linalg.norm(mine - theirs) < 0.05 * np.linalg.norm(theirs)


def test_mixed_bits_by_layer_and_what_is_refused(cnn):
    model, _ = cnn
    names = [n.name for n in model.ir.graph if n.op_type in ("Conv", "Gemm")]
    to = formats(model, Qat(mixed=(f"{names[1]}=4/8", f"{names[2]}=3/4")))
    assert {k: f.name for k, f in to.weights.items()} == {names[1]: "int4", names[2]: "int3"}
    assert list(to.inputs) == [names[2]]
    with pytest.raises(BadInput, match=r"mixed names 'conv9', which is no layer that is quantized; there are .*conv2d"):
        formats(model, Qat(mixed=("conv9=4/4",)))
    for values, said in (
        ({"mixed": ("conv1=4",)}, "expected node=weights/activations"),
        ({"weights": 1}, "weights is 1 bits, expected 2 to 8"),
        ({"activations": 6}, "activations is 6 bits, expected 4 or 8"),
        ({"soft": 0.0}, "soft and hard are both 0"),
        ({"precision": "bfloat16"}, "would round the sums"),
        ({"method": "best"}, "method 'best' is unknown"),
        ({"step_rate": 0.0}, "step_rate is 0.0"),
    ):
        with pytest.raises(BadInput, match=said):
            Qat(**values)
    with pytest.raises(Refused, match="needs data to train on"):
        qat(model, Qat(), None)


def test_it_learns_what_few_bits_cost(digits, digits_cnn):
    model = load_onnx(digits_cnn)
    bound = Task(digits, train=digits).bind(model)
    few = dataclasses.replace(bound.train, indices=bound.train.indices[:320], labels=None)  # the float model teaches
    unlabelled = dataclasses.replace(bound, train=few)

    def error(epochs):
        values = {"weights": 2, "activations": 4, "first_last": 4, "batch": 32, "rate": 1e-3, "compile": "never", "method": "mse"}
        steps = (*GRAPH, ("qat", values | {"epochs": epochs}))
        made, _ = plan.run(Plan(tuple(PlannedStep(n, make_settings(n, dict(v))) for n, v in steps)), model, unlabelled)
        assert made.history[-1].name == "qat"
        assert made.history[-1].changed == 4
        feeds = bound.test.samples.take(bound.test.indices)
        a, b = (ort.InferenceSession(m.to_bytes()).run(None, feeds)[0] for m in (model, made))
        return np.linalg.norm(a - b) / np.linalg.norm(a)

    before, after = error(0), error(3)
    assert before > 0.2
    assert after < 0.6 * before


def test_batch_norm_is_folded_and_what_stays_float_is_trained_and_kept(digits):
    rng = np.random.default_rng(0)
    model = model_of(
        """g (float[N, 1, 28, 28] x) => (float[N, 10] y) {
            a = Conv <strides = [4, 4]> (x, w1, b1)
            n = BatchNormalization (a, scale, shift, mean, variance)
            p = PRelu (n, slope)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w2, b2)
        }""",
        {
            "w1": rng.standard_normal((4, 1, 4, 4)) / 4,
            "b1": rng.standard_normal(4),
            "scale": np.ones(4),
            "shift": np.zeros(4),
            "mean": rng.standard_normal(4),
            "variance": np.ones(4) * 2,
            "slope": np.full((4, 1, 1), 0.25),
            "w2": rng.standard_normal((10, 196)) / 14,
            "b2": np.zeros(10),
        },
    )
    task = Task(digits, train=digits).bind(model)
    made = qat(model, Qat(epochs=1, batch=64, compile="never", method="mse", hard=1.0, rate=1e-2), task)
    assert "BatchNormalization" not in {n.op_type for n in made.ir.graph}
    slope = made.ir.graph.initializers["slope"].const_value.numpy()
    assert np.abs(slope - 0.25).max() > 1e-3
    feeds = check.random_feeds(made, 4)
    trainee = prepare(model, Qat(**QUICK), task)
    (y,) = check.oracle(deployed(model, trainee)).run(None, feeds)
    with torch.no_grad():
        np.testing.assert_allclose(trainee.executor.module(torch.from_numpy(feeds["x"]))[0].numpy(), y, atol=0.05 * np.abs(y).max())


# --- the arithmetic


def test_the_gradients_are_those_of_the_papers():
    """LSQ's equation 3 for the step, straight-through for the value; with the factor 1/√(N Q) of section 2.2."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4000, generator=generator) * 12).requires_grad_()
    log = torch.tensor([-1.2], requires_grad=True)
    for lo, hi in ((-8, 7), (0, 15), (-128, 127), (-2, 1)):
        x.grad, log.grad = None, None
        s = codes.step(log, factor=0.125)
        weight = torch.randn(4000, generator=generator)
        (codes.dequantize(codes.quantize(x, s, lo=lo, hi=hi), s) * weight).sum().backward()
        v = (x / s).detach()
        inside = (v > lo) & (v < hi)
        by_step = torch.where(inside, v.round() - v, torch.where(v <= lo, float(lo), float(hi)))
        torch.testing.assert_close(log.grad, 0.125 * s.detach() * (by_step * weight).sum(), rtol=1e-4, atol=1e-4, check_stride=False)
        torch.testing.assert_close(x.grad, torch.where(inside, weight, 0.0), rtol=1e-5, atol=1e-6)
        assert inside.any()
        assert not inside.all()


def test_the_fused_gradient_is_that_of_its_parts():
    generator = torch.Generator().manual_seed(1)
    sums = torch.randint(-500, 500, (3, 5, 4, 4), generator=generator).float()
    b, m = torch.randn(1, 5, 1, 1, generator=generator).round() * 50, torch.rand(1, 5, 1, 1, generator=generator) * 0.1
    weight = torch.randn(3, 5, 4, 4, generator=generator)
    leaves = [[t.clone().requires_grad_() for t in (sums, b, m)] for _ in range(2)]
    fused = codes.requantize([leaves[0][0]], leaves[0][1], leaves[0][2], lo=0, hi=15)
    clipped = functional.hardtanh((leaves[1][0] + leaves[1][1]) * leaves[1][2], 0, 15)
    plain = clipped + (clipped.round() - clipped).detach()
    assert torch.equal(fused, plain)
    for y in (fused, plain):
        (y * weight).sum().backward()
    for one, other in zip(*leaves, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("group", [1, 2])
def test_sums_beyond_float32_are_exact_in_pieces(group):
    rng = np.random.default_rng(0)
    x = rng.integers(200, 256, (2, 128 * group, 5, 5)).astype(np.float32)
    w = rng.integers(100, 128, (4, 128, 3, 3)).astype(np.float32)
    b = rng.integers(-(2**20), 2**20, 4).astype(np.float32)
    m = (rng.random(4) * 1e-5).astype(np.float32)
    one = torch.ones(1)
    found = codes.conv_codes(
        *map(torch.from_numpy, (x, w, b)), one, torch.from_numpy(m), one, lo=0, hi=255, largest=255 * 128, group=group
    ).numpy()
    exact = functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(w).double(), torch.from_numpy(b).double(), groups=group
    ).numpy()
    assert exact.max() > codes.EXACT
    assert (exact == np.rint(exact)).all()
    np.testing.assert_array_equal(found, requantize(exact.astype(np.int32), m.reshape(1, -1, 1, 1), 0, format_of("uint8")))
    naive = functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), groups=group).double().numpy()
    assert (naive != exact - b.reshape(1, -1, 1, 1)).any()


def test_a_bias_is_a_whole_number_that_float32_and_int32_hold():
    b = torch.tensor([0.5, 3.4e4, -1e12, 1e12, 2.5e-3])
    found = codes.bias(b, torch.tensor([1e-3]), torch.full((5,), 1.0)).double()
    assert (found == found.round()).all()
    assert (found.abs() < 2**31).all()
    np.testing.assert_allclose(found[[0, 1]].numpy(), [500, 3.4e7], rtol=1e-7)


def test_a_step_behind_a_clip_stays_within_its_bound(mobilenet):
    model, task = mobilenet
    trainee = prepare(model, Qat(**QUICK), task)
    bounded = [s for s in trainee.steps if s.most < np.inf]
    assert len(bounded) == 35
    with torch.no_grad():
        for s in bounded:
            trainee.executor.weights[s.name].add_(5.0)
        trainee.after_step()
        for s in bounded:
            assert 0.999 * s.most < torch.exp(trainee.executor.weights[s.name]).item() <= s.most


def test_static_settings_are_checked_where_qat_is(cnn):
    assert Qat(exclude=("a",)).static() == QuantizeStatic(exclude=("a",), smooth=0.0)
