"""plan: the table of techniques, settings as values, order, replay."""

import dataclasses
import json

import numpy as np
import pytest

from hasten import check, plan
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, Refused
from hasten.plan import TECHNIQUES, Phase, Plan, PlannedStep, make_settings
from hasten.task import Task


@pytest.fixture(scope="module")
def bound(digits, digits_cnn):
    return Task(digits, train=digits).bind(load_onnx(digits_cnn))


@pytest.mark.parametrize("row", TECHNIQUES, ids=lambda r: r.name)
def test_no_technique_changes_its_input_and_what_it_makes_is_legal(row, digits_cnn, bound):
    model = load_onnx(digits_cnn)
    before, data = model.digest, model.to_bytes()
    settings = row.settings(
        **({"epochs": 1} if row.learns else {}), **({"student": "narrow:0.5"} if hasattr(row.settings, "student") else {})
    )
    made = row.apply(model, settings, bound)
    assert (model.digest, load_onnx(digits_cnn).digest, model.to_bytes()) == (before, before, data)
    check.legal(made)
    assert made.history[-1].name == row.name
    assert made.history[-1].settings == dataclasses.asdict(settings)
    feeds = check.random_feeds(made, 2)
    (output,) = check.oracle(made).run(None, feeds)
    assert output.shape == (2, 10)


@pytest.mark.parametrize("row", TECHNIQUES, ids=lambda r: r.name)
def test_settings_are_values_that_go_through_json(row):
    settings = row.settings()
    again = make_settings(row.name, json.loads(json.dumps(dataclasses.asdict(settings))))
    assert again == settings
    with pytest.raises(BadInput, match=f"{row.name} has no setting 'colour'"):
        make_settings(row.name, {"colour": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.anything = 1


def step(name: str, **values) -> PlannedStep:
    return PlannedStep(name, make_settings(name, values))


def test_a_plan_out_of_order_is_refused_with_the_reason():
    with pytest.raises(Refused, match=r"cleanup \(clean\) comes after quantize_static \(quantize\)"):
        Plan((step("quantize_static"), step("cleanup")))
    assert [p.name for p in Phase] == ["CLEAN", "SHRINK", "LEARN", "FOLD", "QUANTIZE", "TUNE", "LOWER"]


def test_a_plan_that_ran_replays_without_data_to_the_same_bytes(digits_cnn, bound):
    model = load_onnx(digits_cnn)
    todo = Plan(tuple(step(n) for n in ("cleanup", "fold_batchnorm", "equalize", "quantize_static")), source=model.digest)
    made, done = plan.run(todo, model, bound)
    assert plan.needs_data(todo)
    assert not plan.needs_data(done)
    again, _ = plan.run(Plan.from_json(done.to_json()), load_onnx(digits_cnn), None)
    assert again.to_bytes() == made.to_bytes()


def test_a_plan_for_another_model_or_without_data_is_refused(digits_cnn, mlp):
    model = load_onnx(digits_cnn)
    with pytest.raises(Refused, match="made for a model with digest"):
        plan.run(Plan((), source=mlp.digest), model, None)
    with pytest.raises(Refused, match="needs data to calibrate on"):
        plan.run(Plan((step("quantize_static"),)), model, None)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"hasten_plan": 99}', '{"hasten_plan": 1, "steps": [{}]}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(BadInput):
        Plan.from_json(text)


def test_observations_hold_no_sample(digits_cnn, bound):
    model = load_onnx(digits_cnn)
    row = plan.row("quantize-static")
    seen = row.observe(model, row.settings(), bound)
    numbers = sum(np.size(v) for part in seen.values() if isinstance(part, dict) for v in part.values())
    assert numbers < 28 * 28 * 10
