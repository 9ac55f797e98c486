"""drop_idle: what is planted is found, with its evidence, and goes; what is at work stays; findings replay from a plan."""

import dataclasses
import json
import logging
import random
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import check, plan
from hasten.data.source import Arrays
from hasten.doors.onnx import from_proto, load_onnx
from hasten.errors import BadInput, Refused
from hasten.model import Model
from hasten.plan import Plan, PlannedStep
from hasten.shrink.drop_idle import DropIdle, drop_idle, findings_of, observe
from hasten.shrink.idle import (
    BRANCH,
    CONDITION,
    DEAD,
    HEAD,
    NEGLIGIBLE,
    NEVER_ACTS,
    SATURATED,
    VALUE,
    Finding,
    Removed,
)
from hasten.task import Split, Task, without_data
from tests.conftest import model_of, operators
from tests.passes.encoders import HEADS, TOKENS, WIDTH, encoder, exported
from tests.passes.random_graphs import agree, random_graph

RNG = np.random.default_rng(0)
SAMPLES = 600


def found_on(model: Model, x: np.ndarray) -> tuple[list[Finding], Model]:
    """(the findings, the model without them). 120 of 600 samples calibrate."""
    task = Task(x).bind(model)
    seen = observe(model, DropIdle(), task)
    return findings_of(seen), drop_idle(model, DropIdle(), task)


def check_same(before: Model, after: Model, x: np.ndarray, within=check.FLOAT32) -> None:
    check.legal(after)
    for count in (1, 3):
        check.same(before, after, within, feeds=[{before.inputs[0].name: x[:count]}])


def gemms(activation: str, hidden: int = 8, bias: dict[int, float] | None = None, scale: float = 1.0) -> Model:
    """x (N, 6) → Gemm → activation → Gemm → y (N, 3); the hidden units of `bias` get one so large that their input does not count."""
    b = RNG.standard_normal(hidden)
    for unit, value in (bias or {}).items():
        b[unit] = value
    weights = {
        "w1": RNG.standard_normal((hidden, 6)) * scale,
        "b1": b,
        "w2": RNG.standard_normal((3, hidden)),
        "b2": RNG.standard_normal(3),
    }
    return model_of(
        f"""g (float[N, 6] x) => (float[N, 3] y) {{
            h = Gemm <transB = 1> (x, w1, b1)
            a = {activation} (h)
            y = Gemm <transB = 1> (a, w2, b2)
        }}""",
        weights,
    )


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return RNG.standard_normal((SAMPLES, 6)).astype(np.float32)


def channels(findings: list[Finding], kind: str) -> set[int]:
    return {f.remedy.channel for f in findings if f.kind == kind and isinstance(f.remedy, Removed)}


# --- channels


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 7), min_size=1, max_size=6))
def test_dead_channels_are_found_and_removed_and_no_other(dead):
    rows = np.random.default_rng(1).standard_normal((SAMPLES, 6)).astype(np.float32)
    model = gemms("Relu", bias=dict.fromkeys(range(8), 9.0) | dict.fromkeys(dead, -99.0))
    findings, made = found_on(model, rows)
    assert channels(findings, DEAD) == dead
    assert all(f.samples == 120 and f.low == f.high == f.error == 0 and f.macs == 9 for f in findings if f.kind == DEAD)
    assert made.ir.graph.initializers["w1"].shape == (8 - len(dead), 6)
    check_same(model, made, rows)


def test_a_saturated_channel_goes_into_the_bias(rows):
    model = gemms("Sigmoid", bias={2: 60.0, 5: -60.0})
    findings, made = found_on(model, rows)
    assert channels(findings, SATURATED) == {2, 5}
    (two,) = (f for f in findings if f.remedy.channel == 2)
    assert "is always 1 behind Sigmoid" in two.says and two.low == two.high == 1.0
    assert made.ir.graph.initializers["w2"].shape == (3, 6)
    check_same(model, made, rows)


@pytest.mark.parametrize("product", ["MatMul (a, w2)", "Gemm <beta = 0.5> (a, w2, b2)", "Gemm (a, w2)"])
def test_the_bias_comes_wherever_the_layer_has_a_place_for_it(product, rows):
    weights = {
        "w1": RNG.standard_normal((6, 8)),
        "b1": np.r_[50.0, RNG.standard_normal(7)],
        "w2": RNG.standard_normal((8, 3)),
        "b2": np.ones(3),
    }
    model = model_of(
        f"""g (float[N, 6] x) => (float[N, 3] y) {{
            h = Gemm (x, w1, b1)
            a = Tanh (h)
            y = {product}
        }}""",
        weights,
    )
    findings, made = found_on(model, rows)
    assert channels(findings, SATURATED) == {0}
    check_same(model, made, rows)


def convs(pads: str, activation: str, bias: dict[int, float], group: int = 1) -> Model:
    """x (N, 2, 8, 8) → Conv → activation → MaxPool → Conv → mean → Gemm."""
    b = np.full(6, 0.3)
    for channel, value in bias.items():
        b[channel] = value
    weights = {
        "w1": RNG.standard_normal((6, 2, 3, 3)), "b1": b, "w2": RNG.standard_normal((4, 6 // group, 3, 3)), "b2": RNG.standard_normal(4),
        "w3": RNG.standard_normal((3, 4)),
    }  # fmt: skip
    return model_of(
        f"""g (float[N, 2, 8, 8] x) => (float[N, 3] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            a = {activation} (c)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
            d = Conv <pads = {pads}, group = {group}> (p, w2, b2)
            m = GlobalAveragePool (d)
            f = Flatten (m)
            y = Gemm <transB = 1> (f, w3)
        }}""",
        weights,
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return RNG.standard_normal((SAMPLES, 2, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("pads", ["[0, 0, 0, 0]", "[1, 1, 1, 1]"])
def test_dead_channels_of_a_convolution(pads, pictures):
    model = convs(pads, "Relu", {1: -99.0, 4: -99.0})
    findings, made = found_on(model, pictures)
    assert channels(findings, DEAD) == {1, 4}
    assert made.ir.graph.initializers["w2"].shape == (4, 4, 3, 3)
    check_same(model, made, pictures)


def test_a_constant_channel_goes_where_no_zeros_are_padded_beside_it(pictures):
    model = convs("[0, 0, 0, 0]", "Sigmoid", {1: 99.0})
    findings, made = found_on(model, pictures)
    assert channels(findings, SATURATED) == {1}
    check_same(model, made, pictures)
    findings, _ = found_on(convs("[1, 1, 1, 1]", "Sigmoid", {1: 99.0}), pictures)
    assert not channels(findings, SATURATED)


def test_channels_of_a_grouped_convolution_go_together_or_not_at_all(pictures):
    """Position 1 of both groups are the channels 1 and 4: only both together are a channel."""
    for dead, gone in (({1: -99.0}, 0), ({1: -99.0, 4: -99.0}, 1)):
        model = convs("[0, 0, 0, 0]", "Relu", dead, group=2)
        findings, made = found_on(model, pictures)
        assert len([f for f in findings if f.kind == DEAD]) == gone
        check_same(model, made, pictures)


def test_a_channel_without_a_part_in_its_readers_is_negligible(rows):
    model = gemms("Sigmoid")
    array = model.ir.graph.initializers["w2"].const_value.numpy().copy()
    array[:, 3] = 1e-6
    proto = model.edit()
    proto.graph.initializers["w2"].const_value = ir.Tensor(array, name="w2")
    changed = Model(proto, model.history)
    findings, made = found_on(changed, rows)
    assert channels(findings, NEGLIGIBLE) == {3} and 0 < findings[0].error < 1e-3
    check_same(changed, made, rows, check.Tolerance("NEGLIGIBLE", 2e-3))


def test_what_also_goes_elsewhere_stays_and_is_named(rows):
    """The sum with what is at work keeps the dead channel of the first layer: both layers would have to lose it."""
    weights = {
        "w1": RNG.standard_normal((8, 6)), "b1": np.r_[-99.0, np.full(7, 9.0)], "v": RNG.standard_normal((8, 6)), "w2": RNG.standard_normal((3, 8)),
        "w3": RNG.standard_normal((3, 8)),
    }  # fmt: skip
    model = model_of(
        """g (float[N, 6] x) => (float[N, 3] y) {
            h = Gemm <transB = 1> (x, w1, b1)
            a = Relu (h)
            o = Gemm <transB = 1> (x, v)
            s = Add (a, o)
            one = Gemm <transB = 1> (a, w2)
            two = Gemm <transB = 1> (s, w3)
            y = Add (one, two)
        }""",
        weights,
    )
    task = Task(rows).bind(model)
    seen = observe(model, DropIdle(), task)
    assert not seen["findings"]
    assert [why for _, why in seen["left"]] == [
        "1 of its 8 inputs is idle (0) and stays: elsewhere the same channels are not idle, or can't go"
    ]


def test_a_pixel_that_is_always_dark_is_reported_and_stays(rows):
    dark = rows.copy()
    dark[:, 4] = 0
    task = Task(dark).bind(model := gemms("Tanh"))
    seen = observe(model, DropIdle(), task)
    assert not seen["findings"] and seen["left"][0][1] == "1 of its 6 inputs is idle (4) and stays: they are the model's own input"


@pytest.mark.parametrize("head", range(0, HEADS, 3))
def test_an_attention_head_that_gives_nothing_goes(head):
    import torch

    torch.set_num_threads(1)
    module = encoder()
    width = WIDTH // HEADS
    with torch.no_grad():
        for parameter in (module.layers[0].v.weight, module.layers[0].v.bias):
            parameter[head * width : (head + 1) * width] = 0
    x = RNG.standard_normal((SAMPLES, TOKENS, WIDTH)).astype(np.float32)
    model = exported(module, (torch.zeros(2, TOKENS, WIDTH),), "dynamo")
    findings, made = found_on(model, x)
    assert [f.kind for f in findings] == [HEAD] and f"channel {head} of" in findings[0].says
    assert "always 0" in findings[0].says and findings[0].macs > 3 * TOKENS * WIDTH * width
    check_same(model, made, x)


# --- values


def test_activations_that_never_act_become_nothing(rows):
    model = model_of(
        """g (float[N, 6] x) => (float[N, 6] y) {
            e = Exp (x)
            a = Relu (e)
            b = LeakyRelu (a)
            c = Clip (b, low, high)
            d = Sub (c, high)
            f = Relu (d)
            y = Add (f, c)
        }""",
        {"low": np.array(-1.0, np.float32), "high": np.array(1e4, np.float32)},
    )
    findings, made = found_on(model, rows)
    acting = [f for f in findings if f.kind == NEVER_ACTS]
    assert [f.says.split(" ")[0] for f in acting] == ["Relu", "LeakyRelu", "Clip"]
    assert all(0 < f.low < f.high < 1e4 for f in acting)
    assert not {"Clip", "LeakyRelu"} & set(operators(made))
    check_same(model, made, rows)


def test_a_clip_that_guards_a_division_stays(rows):
    model = model_of(
        """g (float[N, 6] x) => (float[N, 6] y) {
            a = Abs (x)
            s = ReduceSum <keepdims = 0> (a, axis)
            c = Clip (s, low)
            u = Unsqueeze (c, axis)
            y = Div (x, u)
        }""",
        {"low": np.array(1e-9, np.float32), "axis": np.array([1])},
    )
    seen = observe(model, DropIdle(), Task(rows).bind(model))
    assert not seen["findings"]
    assert seen["left"][0][1].startswith("Clip never acts: its input is from") and "it guards the Div behind it" in seen["left"][0][1]


BODIES = {
    "added": ("s = Add (x, c)", 6),
    "beside": ("s = Concat <axis = 1> (x, c)", 12),
    "multiplied": ("t = Mul (c, x)\n s = Add (t, x)", 6),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_branch_that_never_changes_becomes_a_constant(body, rows):
    """Sign of something positive times w: 6 numbers that the data never changes."""
    text, width = BODIES[body]
    model = model_of(
        f"""g (float[N, 6] x) => (float[N, 3] y) {{
            q = Mul (x, x)
            e = Add (q, one)
            g = Sign (e)
            m = MatMul (g, w)
            c = Tanh (m)
            {text}
            y = Gemm (s, v)
        }}""",
        {"one": np.ones(6), "w": RNG.standard_normal((6, 6)) / 6, "v": RNG.standard_normal((width, 3))},
    )
    findings, made = found_on(model, rows)
    (constant,) = (f for f in findings if f.kind == VALUE)
    assert constant.remedy.value == "c" and constant.macs == 36 and "always the same, 6 numbers" in constant.says
    assert not {"Sign", "MatMul", "Tanh"} & set(operators(made))
    check_same(model, made, rows)
    refused = observe(model, DropIdle(size_limit=8), Task(rows).bind(model))
    assert "c is always the same, and would take 24 bytes in the file, 8 are allowed" in refused["left"][0][1]


def residual(size: float) -> Model:
    return model_of(
        """g (float[N, 6] x) => (float[N, 3] y) {
            h = Gemm (x, w1)
            a = Tanh (h)
            b = MatMul (a, w2)
            s = Add (b, x)
            y = Gemm (s, v)
        }""",
        {"w1": RNG.standard_normal((6, 6)), "w2": RNG.standard_normal((6, 6)) * size, "v": RNG.standard_normal((6, 3))},
    )


@pytest.mark.parametrize("size, effect", [(0.0, False), (1e-5, False), (0.1, True)])
def test_a_residual_branch_without_effect_goes(size, effect, rows):
    model = residual(size)
    findings, made = found_on(model, rows)
    assert [f.kind for f in findings] == ([] if effect else [BRANCH])
    assert operators(made) == (operators(model) if effect else ["Gemm"])
    check_same(model, made, rows, check.Tolerance("NEGLIGIBLE", 1e-3))


def test_a_condition_that_always_comes_out_alike_is_decided(rows):
    model = model_of(
        """g (float[N, 6] x) => (float[N, 6] y) {
            m = ReduceMax <keepdims = 0> (x)
            c = Less (m, high)
            y = If (c) <
                then_branch = one () => (float[N, 6] p) { p = Mul (x, two) },
                else_branch = other () => (float[N, 6] q) { q = Exp (x) }
            >
        }""",
        {"high": np.array(1e6, np.float32), "two": np.array(2.0, np.float32)},
    )
    findings, made = found_on(model, rows)
    assert [f.kind for f in findings] == [CONDITION]
    decided = plan.row("fold_branches").apply(made, plan.make_settings("fold_branches", {}), None)
    assert operators(decided) == ["Mul"]
    check_same(model, decided, rows)


def test_what_depends_on_shapes_alone_is_no_value_that_never_changes(rows):
    """The batch is 4 while it is looked at; in the file it stays what comes."""
    model = model_of(
        """g (float[N, 6] x) => (float[n, 2] y) {
            s = Shape <start = 0, end = 1> (x)
            t = Concat <axis = 0> (s, three)
            u = Concat <axis = 0> (t, two)
            r = Reshape (x, u)
            y = ReduceSum <keepdims = 0> (r, axis)
        }""",
        {"two": np.array([2]), "three": np.array([3]), "axis": np.array([1])},
    )
    findings, _ = found_on(model, rows)
    assert not findings


# --- random graphs, healthy models, plans, bad input


def test_without_tolerances_random_graphs_give_the_same_on_what_was_looked_at():
    """On the samples that were seen, in other batches too; what is found there is right by definition."""
    kinds: Counter[str] = Counter()
    logging.disable(logging.WARNING)
    for number in range(60):
        model = from_proto(random_graph(random.Random(f"idle:{number}")))
        first = {p.shape[0] if p.shape and isinstance(p.shape[0], int) else None for p in model.inputs}
        if len(first) > 1 or not all(p.shape for p in model.inputs):
            continue  # inputs without one axis of samples
        (fixed,) = first
        parts = [check.random_feeds(model, fixed or 4, seed=seed) for seed in range(4)]
        x = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        split = Split(Arrays(x), None, np.arange(4 * (fixed or 4)))
        feeds = [next(iter(split.batches(size))) for size in ((fixed,) if fixed else (4, 1, 3))]
        oracle = check.oracle(model)
        expected = [oracle.run(None, f) for f in feeds]
        task = dataclasses.replace(without_data(), calibrate=split)
        exact = DropIdle(tolerance=0.0, negligible=0.0)
        seen = observe(model, exact, task)
        made = drop_idle(model, exact, dataclasses.replace(task, observation=seen))
        check.legal(made)
        kinds.update(f.kind for f in findings_of(seen))
        for feed, wanted in zip(feeds, expected, strict=True):
            for port, a, b in zip(model.outputs, wanted, check.oracle(made).run(None, feed), strict=True):
                agree(f"graph {number}: output {port.name}", np.asarray(a), np.asarray(b), check.FLOAT32)
    logging.disable(logging.NOTSET)
    assert kinds[VALUE] and kinds[NEVER_ACTS]


def test_on_the_digits_only_what_is_truly_there(digits, digits_cnn):
    """Every finding is checked against the values themselves, on all calibration samples."""
    from hasten.calibrate import tensors
    from hasten.single import prepared

    row = plan.row("drop_idle")
    model = load_onnx(digits_cnn)
    task = Task(digits).bind(model)
    model = prepared(row, model, task)
    findings = findings_of(observe(model, DropIdle(), task))
    hidden = next(n for n in model.ir.graph if n.op_type == "Relu" and n.outputs[0].uses()[0].node.op_type == "Gemm").outputs[0].name
    seen = np.concatenate([x for _, x, _ in tensors(model.edit(), [hidden], 512, task)])
    assert {f.kind for f in findings} == {DEAD}
    assert channels(findings, DEAD) == set(np.flatnonzero((seen == 0).all(0)).tolist())
    made = drop_idle(model, DropIdle(), task)
    calibrated = next(iter(task.calibrate.batches(64)))
    check.same(model, made, check.FLOAT32, feeds=[calibrated])


def test_a_plan_replays_without_data_to_the_same_bytes(pictures):
    model = convs("[0, 0, 0, 0]", "Sigmoid", {1: 99.0, 2: 99.0})
    todo = Plan((PlannedStep("drop_idle", DropIdle()),), source=model.digest)
    assert plan.needs_data(todo)
    made, done = plan.run(todo, model, Task(pictures).bind(model))
    again, _ = plan.run(Plan.from_json(done.to_json()), model, None)
    assert again.to_bytes() == made.to_bytes()
    assert made.history[-1].changed == 2
    with pytest.raises(Refused, match="drop-idle needs data"):
        plan.run(todo, model, None)
    with pytest.raises(Refused, match="drop-idle needs data to see what never changes, and none came"):
        drop_idle(model, DropIdle(), None)


def test_findings_go_through_json_and_a_broken_one_is_refused(pictures):
    model = convs("[0, 0, 0, 0]", "Sigmoid", {1: 99.0})
    seen = observe(model, DropIdle(), Task(pictures).bind(model))
    assert findings_of(json.loads(json.dumps(seen))) == findings_of(seen)
    with pytest.raises(Refused, match="the plan's findings can't be read"):
        findings_of({"findings": [{"kind": DEAD}]})


def test_a_finding_of_another_model_is_skipped_and_named(pictures):
    one, other = convs("[0, 0, 0, 0]", "Relu", {1: -99.0}), convs("[0, 0, 0, 0]", "Relu", {1: -99.0}, group=2)
    task = Task(pictures).bind(one)
    seen = observe(one, DropIdle(), task)
    made = drop_idle(other, DropIdle(), dataclasses.replace(task, observation=seen))
    assert made.history[-1].changed == 0
    assert "coupled to other channels than when it was found" in made.history[-1].skipped[0].why


def test_few_samples_are_said_to_be_thin_evidence(rows):
    model = gemms("Relu", bias={1: -99.0})
    seen = observe(model, DropIdle(), Task(rows[:50]).bind(model))
    assert seen["samples"] == 10
    assert "10 samples were seen, and what never changed in so few can be otherwise in up to 30% of all samples" in seen["left"][0][1]
    assert findings_of(seen)[0].otherwise == pytest.approx(0.3)


@pytest.mark.parametrize("name, value, says", [
    ("samples", 0, "samples is 0, expected at least 1"),
    ("tolerance", -1.0, "tolerance is -1, expected a share"),
    ("negligible", 1.0, "negligible is 1, expected a share"),
    ("size_limit", -1, "size_limit is -1, expected a number of bytes"),
])  # fmt: skip
def test_settings_that_make_no_sense(name, value, says):
    with pytest.raises(BadInput, match=says):
        DropIdle(**{name: value})


@pytest.mark.parametrize("name", ["cifar10_resnet20", "vww_mobilenetv1_025"])
def test_real_networks_give_the_same_on_what_was_looked_at(name, shared_data):
    """Random pictures leave more channels dead than real ones do: residual blocks and depthwise convolutions lose theirs in every place at once."""
    model = plan.run(Plan(tuple(PlannedStep(n, plan.make_settings(n, {})) for n in ("cleanup", "fold_constants"))),
                     load_onnx(shared_data / "models" / f"{name}.onnx"), None)[0]  # fmt: skip
    x = np.random.default_rng(3).random((100, *model.inputs[0].shape[1:])).astype(np.float32)
    task = Task(x).bind(model)
    exact = DropIdle(tolerance=0.0, negligible=0.0)
    seen = observe(model, exact, task)
    made = drop_idle(model, exact, dataclasses.replace(task, observation=seen))
    assert made.history[-1].changed == len(seen["findings"]) > 10
    check.legal(made)
    check.same(model, made, check.FLOAT32, feeds=[next(iter(task.calibrate.batches(20)))])
