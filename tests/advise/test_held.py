"""held: whether the advice was right, judged on outcomes; and a search that writes it down before it looks."""

import dataclasses

import pytest

from hasten.advise.held import judge_advice
from hasten.advise.rules import advise
from hasten.measure.judge import Timing
from hasten.measure.statistics import Interval
from hasten.runtimes import Target
from hasten.search.candidates import RECIPES, TRAINED, Candidate
from hasten.search.result import Outcome
from tests.advise.test_rules import CNN

LINE = advise(CNN)[0]


def outcome(recipe, runtime, precision="float32", speed=1.0, ratio=None, reason=""):
    candidate = Candidate(next(r for r in RECIPES if r.name == recipe), runtime, Target(2, 1, precision))
    timing = Timing(1e-3 / speed, {}, 0.1, 1) if speed else None
    return Outcome(candidate, reason, timing, speed, ratio=Interval(ratio, ratio, ratio) if ratio else None)


ORIGINAL = outcome("original", "onnxruntime")


@pytest.mark.parametrize(
    ("advised", "winner", "held", "why"),
    [
        (outcome("int8 static", "openvino", "bfloat16", 3.0), None, True, "was advised and chosen"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0), outcome("int8 static", "openvino", speed=3.2), True, "1.07 × the time of"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0), outcome("int8 static", "onnxruntime", speed=3.6), False, "takes 1.20 × the time of"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0, 3.5), outcome("graph", "openvino", speed=3.6, ratio=3.6), True, "1.03 × the time"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0, reason="breaks the budget on validate"), ORIGINAL, False, "lost: breaks the budget"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0, 3.5, "breaks the guard"), outcome("graph", "openvino", speed=3.6, ratio=3.6), False,
         "lost: breaks the guard"),
        (outcome("int8 static", "openvino", "bfloat16", 3.0, reason="not among the finalists"), outcome("graph", "openvino", speed=3.1), True,
         "1.03 × the time"),
        (outcome("int8 static", "openvino", "bfloat16", 0.0, reason="crashed"), ORIGINAL, False, "not timed: crashed"),
        (outcome("graph", "openvino"), outcome("graph", "openvino"), False, "not among the candidates"),
    ],
    ids=["chosen", "within 10 %", "slower", "finals", "broke the budget", "broke a guard late", "not a finalist", "not timed", "not tried"],
)  # fmt: skip
def test_whether_advice_held(advised, winner, held, why):
    found = judge_advice(LINE, [ORIGINAL, advised, *([winner] if winner else [])], winner or advised, ORIGINAL.candidate.name)
    assert found[0] is held
    assert why in found[1]


def test_where_a_trained_model_won_advice_is_judged_among_the_others():
    """Advice is for what needs no training."""
    won = outcome("int8 static", "openvino", speed=9.0, ratio=9.0)
    won.candidate = dataclasses.replace(won.candidate, recipe=TRAINED[0])
    better = f"{won.candidate.name} is better"
    advised = outcome("int8 static", "openvino", "bfloat16", 3.0, 3.0, better)
    held, why = judge_advice(LINE, [ORIGINAL, advised, won], won, ORIGINAL.candidate.name)
    assert held
    assert "was advised and chosen (of what needs no training" in why
    faster = outcome("graph", "openvino", speed=4.0, ratio=4.0, reason=better)
    held, why = judge_advice(LINE, [ORIGINAL, advised, faster, won], won, ORIGINAL.candidate.name)
    assert not held
    assert "takes 1.33 × the time of graph" in why


def test_advice_that_promised_nothing_holds_where_nothing_is_better():
    line = dataclasses.replace(LINE, recipe="graph", candidate="graph · onnxruntime · 2T", gain=(1.0, 1.2))
    assert judge_advice(line, [ORIGINAL], ORIGINAL, ORIGINAL.candidate.name)[0]
    assert not judge_advice(LINE, [ORIGINAL], ORIGINAL, ORIGINAL.candidate.name)[0]


def test_a_model_that_can_not_be_looked_at_does_not_end_a_search(monkeypatch, digits_cnn):
    from hasten.advise import held as module
    from hasten.doors.onnx import load_onnx
    from hasten.measure.record import Records
    from hasten.search.budget import Budget
    from hasten.search.run import Run

    def broken(*arguments):
        raise RuntimeError("no such thing")

    run = Run(load_onnx(digits_cnn), None, Budget(), Target(1), None, Records())
    before = Timing(1e-3, {}, 0.1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(module, "known_facts", broken)
        module.predict(run, before)
    details = module.advice_details(run, [ORIGINAL], ORIGINAL)
    assert details == {"lines": [], "held": None, "why": "the model could not be looked at: RuntimeError: no such thing"}

    again = Run(load_onnx(digits_cnn), None, Budget(), Target(1), None, Records())
    module.predict(again, before)
    details = module.advice_details(again, [ORIGINAL], ORIGINAL)
    assert details["lines"] and all("bf16" not in line["candidate"] and line["recipe"] == "graph" for line in details["lines"])
    assert all("MODEL" in line["command"] for line in details["lines"])
