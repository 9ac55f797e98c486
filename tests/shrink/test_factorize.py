"""factorize: every form is exact where the rank is whole, data makes the output's error least, time decides, and a plan that ran replays."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import check, plan
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.plan import Plan, PlannedStep
from hasten.shrink import factorize as module
from hasten.shrink.factorize import AFTER, BEFORE, PRODUCT, SPATIAL, Factorize, factorize, observe
from hasten.task import Task, without_data
from tests.conftest import model_of, operators

RNG = np.random.default_rng(0)
SIZE = Factorize(time=False, smallest=0)
"""By size alone: nothing is timed."""


def conv(weight, attributes="", bias=True, size=9) -> object:
    """x (N, in, size, size) → Conv → y."""
    out, channels = weight.shape[:2]
    text = f"""m (float[N, {channels}, {size}, {size}] x) => (float[N, {out}, h, w] y) {{
        y = Conv <{attributes or "group = 1"}> (x, w{", b" if bias else ""}) }}"""
    return model_of(text, {"w": weight, **({"b": RNG.standard_normal(out)} if bias else {})})


def dense(weight, op="Gemm") -> object:
    """x (N, in) → Gemm, MatMul, or MatMul and Add → y."""
    inputs, out = weight.shape
    body = {
        "Gemm": "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
        "transB": "y = Gemm <transB = 1> (x, w, b)",
        "MatMul": "y = MatMul (x, w)",
        "Add": "a = MatMul (x, w) y = Add (b, a)",
    }[op]
    return model_of(
        f"m (float[N, {inputs}] x) => (float[N, {out}] y) {{ {body} }}",
        {"w": weight.T if op == "transB" else weight, **({"b": RNG.standard_normal(out)} if op != "MatMul" else {})},
    )


def whole(model, form, task=None):
    """The model with every layer in that form at full rank, which is its own function."""
    edited = model.edit()
    layers, _ = module._layers(edited, SIZE)
    for layer, moment in module._with_moments(model.edit(), layers, SIZE, task):
        rank = len(module._basis(layer, form, moment)[0])
        module._replace(edited.graph, layer, module._factors(layer, form, rank, moment))
    return module.finish(model, edited, SIZE, "factorize", len(layers), [])


def task_of(x):
    return Task(x.astype(np.float32))


def correlated(count, shape, rank=4, seed=1):
    """Inputs that vary along few directions, with a mean, and a little noise."""
    rng = np.random.default_rng(seed)
    size = math.prod(shape)
    mixed = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, size)) + rng.standard_normal(size)
    return (mixed + 0.05 * rng.standard_normal((count, size))).reshape(count, *shape).astype(np.float32)


def picture_like(count, channels, size, seed=1):
    """Channels that are mixed of two, each smooth, and a little noise."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((count, 2, size + 2, size + 2))
    z = sum(z[:, :, i : i + size, j : j + size] for i in range(3) for j in range(3)) / 3
    x = np.einsum("ck,nkhw->nchw", rng.standard_normal((channels, 2)), z) + 1
    return (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32)


def error(before, after, x) -> float:
    """Relative error of the outputs."""
    (a,), (b,) = (check.oracle(m).run(None, {"x": x}) for m in (before, after))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_convolution_in_every_form_is_the_same_at_full_rank(data):
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides, dilations = (data.draw(st.tuples(st.integers(1, 3), st.integers(1, 2))) for _ in range(2))
    pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4) | st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if isinstance(pads, str):
        dilations = (1, 1)  # onnxruntime takes no dilation with SAME
    padding = f'auto_pad = "{pads}"' if isinstance(pads, str) else f"pads = {list(pads)}"
    weight = np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal((5, 3, *kernel))
    model = conv(weight, f"strides = {list(strides)}, dilations = {list(dilations)}, {padding}", bias=data.draw(st.booleans()), size=12)
    forms = module._layers(model.edit(), SIZE)[0][0].forms
    assert (SPATIAL in forms) == (min(kernel) > 1)
    for form in forms:
        made = whole(model, form)
        check.legal(made)
        check.same(model, made, within=check.FLOAT32)
        assert operators(made) == ["Conv", "Conv"]


@pytest.mark.parametrize("op", ["Gemm", "transB", "MatMul", "Add"])
def test_a_product_is_the_same_at_full_rank_with_and_without_data(op):
    model = dense(RNG.standard_normal((12, 7)), op)
    for task in (None, task_of(correlated(40, (12,))).bind(model)):
        made = whole(model, PRODUCT, task)
        check.legal(made)
        check.same(model, made, within=check.FLOAT32)


def test_one_dimension_and_three():
    for sizes, pads in ((("l",), [1, 0]), (("l", "m", "k"), [1, 0, 1, 0, 1, 1])):
        rank = len(sizes)
        kernel = [2, 3, 2][:rank]
        shape = ", ".join(["8"] * rank)
        model = model_of(
            f"m (float[N, 3, {shape}] x) => (float[N, 5, {', '.join(sizes)}] y) {{ y = Conv <pads = {pads}> (x, w) }}",
            {"w": RNG.standard_normal((5, 3, *kernel))},
        )
        for form in (AFTER, BEFORE):
            for task in (None, task_of(correlated(20, (3, *[8] * rank))).bind(model)):
                check.same(model, whole(model, form, task), within=check.FLOAT32)


def test_a_weight_of_low_rank_loses_nothing_and_half_the_work():
    weight = RNG.standard_normal((64, 8)) @ RNG.standard_normal((8, 96)) / 8
    model = dense(weight.T, "transB")
    made = factorize(model, SIZE, None)
    check.same(model, made, within=check.FLOAT32)
    first, second = (made.ir.graph.initializers[f"w_{end}"].const_value.shape for end in ("first", "second"))
    rank = first[1]
    assert tuple(first) == (96, rank) and tuple(second) == (rank, 64) and rank % 8 == 0
    assert rank * (96 + 64) <= 0.5 * 96 * 64 < (rank + 8) * (96 + 64)


def test_the_rank_follows_the_energy():
    left, _ = np.linalg.qr(RNG.standard_normal((64, 64)))
    right, _ = np.linalg.qr(RNG.standard_normal((64, 64)))
    model = dense(left @ np.diag(0.5 ** np.arange(64)) @ right)
    seen = observe(model, dataclasses.replace(SIZE, energy=1 - 0.25**3 - 1e-4), None)
    ((how),) = seen["layers"].values()
    assert (how["form"], how["rank"]) == (PRODUCT, 3)
    assert how["lost"] == pytest.approx(0.25**3, rel=1e-2)
    flat = observe(dense(left), dataclasses.replace(SIZE, energy=0.9), None)
    assert flat["layers"] == {} and "takes more multiply-accumulates than the layer itself" in next(iter(flat["left"].values()))


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Add"])
def test_data_makes_the_products_error_smaller(op):
    model, x = dense(RNG.standard_normal((48, 32)), op), correlated(300, (48,))
    plain, aware = factorize(model, SIZE, None), factorize(model, SIZE, task_of(x).bind(model))
    fresh = x[::3]
    assert error(model, aware, fresh) < 0.25 * error(model, plain, fresh)
    assert len(operators(aware)) == len(operators(model)) + 1


@pytest.mark.parametrize("form", [AFTER, BEFORE, SPATIAL])
def test_data_makes_every_forms_error_smaller(form, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((16, 8, 3, 3))  # its own: how much data helps depends on it
    model = conv(weight, "pads = [1, 1, 1, 1], strides = [2, 1]", size=8)
    monkeypatch.setattr(module.Layer, "forms", (form,))
    x = picture_like(200, 8, 8)
    plain, aware = factorize(model, SIZE, None), factorize(model, SIZE, task_of(x).bind(model))
    before, after = error(model, plain, x[::3]), error(model, aware, x[::3])
    assert after < 0.5 * before


def test_the_mean_of_every_output_is_kept():
    model, x = conv(RNG.standard_normal((16, 8, 3, 3)), size=6), correlated(100, (8, 6, 6))
    task = dataclasses.replace(task_of(x).bind(model))
    made = factorize(model, dataclasses.replace(SIZE, keep_macs=0.1), task)
    seen = np.concatenate([f["x"] for f in task.calibrate.batches(8)])
    (a,), (b,) = (check.oracle(m).run(None, {"x": seen}) for m in (model, made))
    drift = np.abs((a - b).mean(axis=(0, 2, 3))).max()
    assert drift < 1e-4 * np.abs(a).max() < 1e-2 * np.abs(a - b).max()


def test_patches_are_what_the_convolution_reads():
    model = conv(RNG.standard_normal((5, 3, 3, 2)), "strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1]", bias=False)
    (layer,), _ = module._layers(model.edit(), SIZE)
    x = RNG.standard_normal((4, 3, 9, 9)).astype(np.float32)
    (y,) = check.oracle(model).run(None, {"x": x})
    made = module._rows(layer, x, 10**6, RNG) @ layer.weight.T
    np.testing.assert_allclose(made, np.moveaxis(y, 1, -1).reshape(-1, 5), rtol=1e-4, atol=1e-4)
    assert len(module._rows(layer, x, 7, RNG)) == 7


def test_a_layer_of_too_large_patches_is_factorized_without_data_and_it_is_said(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 40)
    model, x = dense(RNG.standard_normal((48, 32))), correlated(50, (48,))
    made = factorize(model, SIZE, task_of(x).bind(model))
    assert "48 numbers, more than 40: factorized without data" in made.history[-1].skipped[0].why
    check.same(made, factorize(model, SIZE, None), within=check.BITS)


# --- what is refused


def test_what_is_left_alone_says_why():
    weights = {"depth": (8, 1, 3, 3), "shared": (8, 8, 1, 1), "tiny": (4, 8, 1, 1), "large": (40, 4, 1, 1), "back": (8, 40, 1, 1)}
    model = model_of(
        """m (float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 8, 6, 6] z) {
            [a] a = Conv <pads = [1, 1, 1, 1], group = 8> (x, depth)
            [b] b = Conv (a, shared)
            [c] c = Conv (b, shared)
            [d] d = Conv (c, tiny)
            [y] y = MatMul (d, d)
            [e] e = Conv (d, large)
            [z] z = Conv (e, back)
        }""",
        {name: RNG.standard_normal(shape) for name, shape in weights.items()},
    )
    made = factorize(model, dataclasses.replace(SIZE, smallest=33, exclude=("z",)), None)
    whys = {s.node: s.why for s in made.history[-1].skipped}
    expected = {
        "a": "grouped", "b": "shared with another", "c": "shared with another", "d": "its 32 weights are fewer than 33",
        "y": "two activations", "z": "excluded",
    }  # fmt: skip
    assert whys.keys() == expected.keys()
    assert all(expected[name] in why for name, why in whys.items()), whys
    assert made.history[-1].changed == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"keep_macs": 0.0}, "keep_macs is 0.0, expected a share above 0"),
        ({"keep_macs": 1.5}, "keep_macs is 1.5"),
        ({"energy": 2.0}, "energy is 2.0"),
        ({"samples": 0}, "samples is 0, expected at least 1"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_settings_that_can_not_be_are_refused(values, says):
    with pytest.raises(BadInput, match=says):
        Factorize(**values)


def test_a_budget_without_room_for_one_rank():
    made = factorize(dense(RNG.standard_normal((8, 8))), dataclasses.replace(SIZE, keep_macs=0.1), None)
    assert made.history[-1].changed == 0
    assert "every rank takes more multiply-accumulates than 0.1 of the layer" in made.history[-1].skipped[0].why


# --- time


def planned(speeds):
    """A judge whose factors are so many times faster, one number for each shape that is timed."""
    timed = []

    def duel_round(subjects, feeds, turn):
        if turn == 0:
            timed.append(feeds["x"].shape)
        speed = speeds[min(len(timed), len(speeds)) - 1]
        return {name: Timing(1.0 if name == "layer" else 1 / speed, {}, 0.0, 0) for name in subjects}

    return duel_round, timed


def three(size=8):
    """Three convolutions, two of them of one shape."""
    w = {f"w{i}": RNG.standard_normal((16, 16, 3, 3)) for i in range(3)}
    return model_of(
        f"""m (float[N, 16, {size}, {size}] x) => (float[N, 16, h, w] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            b = Conv <pads = [1, 1, 1, 1]> (a, w1)
            y = Conv <strides = [2, 2]> (b, w2)
        }}""",
        w,
    )


def test_each_shape_is_timed_once_and_what_is_slower_is_left_with_the_ratio(monkeypatch):
    model = three()
    duel, timed = planned([0.8, 0.9, 0.7, 2.0])
    monkeypatch.setattr(judge, "duel_round", duel)
    made = factorize(model, Factorize(smallest=0, batch=3), None)
    names = [n.name for n in model.ir.graph]
    skipped = {s.node: s.why for s in made.history[-1].skipped}
    assert set(skipped) == set(names[:2])
    assert "0.80 times the layer's speed" in skipped[names[0]] and "0.70" in skipped[names[0]]
    assert timed == [(3, 16, 8, 8)] * 4
    assert made.history[-1].changed == 1


def test_the_form_of_least_error_that_is_faster_is_taken(monkeypatch):
    duel, _ = planned([0.9, 1.5])
    monkeypatch.setattr(judge, "duel_round", duel)
    seen = observe(conv(RNG.standard_normal((16, 16, 3, 3))), Factorize(smallest=0), None)
    (how,) = seen["layers"].values()
    assert how["speed"] == 1.5
    by_error = observe(conv(RNG.standard_normal((16, 16, 3, 3))), SIZE, None)["layers"]
    assert next(iter(by_error.values()))["speed"] is None


def test_noise_is_not_speed(monkeypatch):
    speeds = iter([1.3, 0.9, 1.2, 0.95] * 3)
    monkeypatch.setattr(judge, "duel_round", lambda s, f, t: {n: Timing(1.0 if n == "layer" else 1 / next(speeds), {}, 0.0, 0) for n in s})
    assert observe(dense(RNG.standard_normal((64, 64))), Factorize(smallest=0), None)["layers"] == {}


def test_what_can_not_be_timed_is_left_alone_and_said(monkeypatch):
    monkeypatch.setattr(judge, "duel_round", lambda s, f, t: dict.fromkeys(s, Failure("out of memory")))
    seen = observe(dense(RNG.standard_normal((64, 64))), Factorize(smallest=0), None)
    assert next(iter(seen["left"].values())) == "it could not be timed: out of memory"
    text = "m (float[N, seq, 64] x) => (float[N, seq, 64] y) { y = MatMul (x, w) }"
    seen = observe(model_of(text, {"w": RNG.standard_normal((64, 64))}), Factorize(smallest=0), None)
    assert "its input's shape is not known" in next(iter(seen["left"].values()))


def test_a_shape_that_only_samples_tell(monkeypatch):
    duel, timed = planned([2.0])
    monkeypatch.setattr(judge, "duel_round", duel)
    text = "m (float[N, seq, 64] x) => (float[N, seq, 64] y) { y = MatMul (x, w) }"
    model = model_of(text, {"w": RNG.standard_normal((64, 64))})
    seen = observe(model, Factorize(smallest=0, batch=2), task_of(correlated(20, (5, 64))).bind(model))
    assert len(seen["layers"]) == 1 and timed == [(2, 5, 64)]


def test_a_real_clock_times_both_sides(monkeypatch):
    for name in ("ROUND_SECONDS", "CALLS_SECONDS"):
        monkeypatch.setattr(judge, name, 0.001)
    monkeypatch.setattr(module, "ROUNDS", 2)
    seen = observe(dense(RNG.standard_normal((64, 64))), Factorize(smallest=0, threads=1), None)
    assert len(seen["layers"]) + len(seen["left"]) == 1
    assert all("as measured" in why for why in seen["left"].values())


# --- plans


def test_a_plan_that_ran_replays_without_data_where_none_made_it(digits_cnn):
    model = load_onnx(digits_cnn)
    made, done = plan.run(Plan((PlannedStep("factorize", SIZE),), source=model.digest), model, None)
    again, _ = plan.run(Plan.from_json(done.to_json()), load_onnx(digits_cnn), None)
    assert again.to_bytes() == made.to_bytes()
    check.legal(made)
    assert made.history[-1].changed >= 3


def test_a_plan_that_data_made_wants_the_same_data(digits_cnn, digits):
    model = load_onnx(digits_cnn)
    bound = Task(digits).bind(model)
    made, done = plan.run(Plan((PlannedStep("factorize", dataclasses.replace(SIZE, samples=16)),), source=model.digest), model, bound)
    assert len(done.to_json()) < 4000
    again, _ = plan.run(Plan.from_json(done.to_json()), load_onnx(digits_cnn), bound)
    assert again.to_bytes() == made.to_bytes()
    with pytest.raises(Refused, match=r"made with calibration samples .* and none came; give the same --data"):
        plan.run(done, model, None)
    with pytest.raises(Refused, match="others came"):
        plan.run(done, model, Task(digits, seed=1).bind(model))


def test_a_plan_of_another_model_is_refused(digits_cnn):
    model = load_onnx(digits_cnn)
    task = dataclasses.replace(without_data(), observation={"layers": {"nowhere": {"form": PRODUCT, "rank": 8}}, "left": {}, "data": None})
    with pytest.raises(Refused, match="factorizes 'nowhere', which this model has not"):
        factorize(model, SIZE, task)


def test_moments_of_many_layers_do_not_depend_on_how_many_are_held_at_a_time(digits_cnn, digits, monkeypatch):
    model = load_onnx(digits_cnn)
    bound = Task(digits).bind(model)
    few = dataclasses.replace(SIZE, samples=16)
    made = factorize(model, few, bound)
    monkeypatch.setattr(module, "MOMENTS_BYTES", 1)
    assert factorize(model, few, bound).digest == made.digest
