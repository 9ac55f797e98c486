"""simplify --dynamic: what is idle goes within the budget; what the judge does not bear out is undone and named."""

import json

import numpy as np
import pytest

from hasten import check, cli, dynamic, plan, simplify
from hasten.dynamic import Clock
from hasten.plan import Plan
from hasten.runtimes import Target
from hasten.search.budget import Budget
from hasten.shrink.drop_idle import DropIdle
from hasten.task import Task
from tests.conftest import model_of

SAMPLES = 1000
WRONG = (2, 5)
"""Hidden units that calibration never sees at work, and the judge does."""


def planted(calibrated: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, object]:
    """(x, labels, model): x (N, 8) → 6 hidden units → 3 classes. Unit i is at work where x_i > 0; the class is told by units 2, 5 and a bias.

    x_0 and x_1 are never above 0; x_2 and x_5 are, but not in the calibrated samples.
    """
    x = -np.abs(rng.standard_normal((SAMPLES, 8))).astype(np.float32)
    x[:, [3, 4]] = rng.standard_normal((SAMPLES, 2))
    label = rng.integers(0, 3, SAMPLES)
    label[calibrated] = 0
    x[label == 1, 2] = 3
    x[label == 2, 5] = 3
    w2 = np.zeros((3, 6))
    w2[1, 2], w2[2, 5], w2[:, :2], w2[:, 3:5] = 1, 1, 0.5, 0.01
    model = model_of(
        """g (float[N, 8] x) => (float[N, 3] y) {
            h = MatMul (x, w1)
            a = Relu (h)
            y = Gemm <transB = 1> (a, w2, b2)
        }""",
        {"w1": np.eye(8)[:, :6], "w2": w2, "b2": np.array([1.0, 0.0, 0.0])},
    )
    return x, label, model


def within_budget(model, task, settings, budget, clock=None):
    return dynamic.within_budget(model, model, task, settings, budget, lambda made: made, clock)


@pytest.fixture(scope="module")
def case():
    calibrated = np.sort(np.random.default_rng(0).permutation(SAMPLES)[:200])
    return planted(calibrated, np.random.default_rng(1))


def test_the_planted_split_is_the_one_that_calibrates(case):
    x, label, model = case
    task = Task((x, label)).bind(model)
    assert set(task.calibrate.labels) == {0} and set(task.validate.labels) == {0, 1, 2}


def test_a_finding_that_the_judge_does_not_bear_out_is_undone_and_named(case):
    x, label, model = case
    task = Task((x, label)).bind(model)
    found = within_budget(model, task, DropIdle(), Budget(max_drop=0.01))
    assert {f.remedy.channel for f in found.applied} == {0, 1}
    assert {f.remedy.channel for f, _ in found.undone} == set(WRONG)
    assert all(
        why.startswith("accuracy on validate falls from 1.0000 to 0.") and "a drop of 0.01 is allowed" in why for _, why in found.undone
    )
    assert [j.split for j in found.judged] == ["validate", "test"] and found.judged[1].after == 1.0
    assert not found.notes and found.samples == 200
    check.same(model, found.model, check.FLOAT32, feeds=[{"x": x[:50]}])
    again, _ = plan.run(Plan.from_json(found.plan.to_json()), model, None)
    assert again.to_bytes() == found.model.to_bytes()
    assert json.dumps(found.to_json())


def test_with_a_wide_budget_the_findings_stay(case):
    x, label, model = case
    found = within_budget(model, Task((x, label)).bind(model), DropIdle(), Budget(max_drop=0.9))
    assert {f.remedy.channel for f in found.applied} == {0, 1, *WRONG} and not found.undone
    assert found.judged[1].after < 0.5


def test_after_too_many_undone_those_that_save_less_are_left_out(case, monkeypatch):
    x, label, model = case
    monkeypatch.setattr(dynamic, "MOST_UNDONE", 1)
    found = within_budget(model, Task((x, label)).bind(model), DropIdle(), Budget())
    assert {f.remedy.channel for f in found.applied} == {0, 1}
    assert found.undone[1][1] == "1 findings that save more had to be undone"


def test_what_breaks_the_budget_on_test_alone_leaves_everything(case):
    """Validation data that never wakes units 2 and 5, and a test split that does."""
    x, label, model = case
    quiet = x[label == 0]
    task = Task((quiet, label[label == 0]), test=(x, label)).bind(model)
    found = within_budget(model, task, DropIdle(), Budget())
    assert not found.applied and found.model is model and len(found.undone) == 4
    assert all(why.startswith("accuracy on test falls from 1.0000") for _, why in found.undone)


def test_without_labels_agreement_with_the_original_is_judged(case):
    x, _, model = case
    found = within_budget(model, Task(x).bind(model), DropIdle(), Budget(min_agreement=0.99))
    assert {f.remedy.channel for f, _ in found.undone} == set(WRONG)
    assert found.judged[0].metric == "agreement" and found.judged[0].allowed == pytest.approx(0.01)


def test_thin_evidence_is_said(case):
    x, label, model = case
    few = np.r_[np.flatnonzero(label == 0)[:30], np.flatnonzero(label > 0)[:30]]
    found = within_budget(model, Task((x[few], label[few])).bind(model), DropIdle(), Budget(max_drop=0.05))
    assert found.notes[0].startswith("the evidence is thin: 12 samples were seen") and "up to 25% of all samples" in found.notes[0]


@pytest.mark.parametrize("speeds, applied", [
    ([[1.2]], {0, 1}),
    ([[0.8], [0.8]], set()),
])  # fmt: skip
def test_what_makes_it_slower_is_not_done(speeds, applied, case, monkeypatch):
    """The clock says how fast the model is with all findings, then with those of each layer."""
    x, label, model = case
    told = iter(speeds)
    monkeypatch.setattr(simplify, "speeds_beside", lambda *given: ({"onnxruntime": [1.0, *next(told)]}, 0.03))
    found = within_budget(model, Task((x, label)).bind(model), DropIdle(), Budget(), Clock(Target(1), {}))
    assert {f.remedy.channel for f in found.applied} == applied and (found.model is not model) is bool(applied)
    assert found.speed == ({"onnxruntime": 1.2} if applied else {})
    assert any("slower in onnxruntime (× 0.80)" in why for _, why in found.undone) is not bool(applied)


def test_the_layer_whose_findings_cost_time_keeps_its_channels(monkeypatch):
    rng = np.random.default_rng(2)
    one, two = np.r_[-99.0, np.full(5, 9.0)], np.r_[np.full(5, 9.0), -99.0]
    model = model_of(
        """g (float[N, 8] x) => (float[N, 3] y) {
            h = Gemm (x, w1, b1)
            a = Relu (h)
            i = Gemm (a, w2, b2)
            b = Relu (i)
            y = Gemm (b, w3)
        }""",
        {"w1": rng.standard_normal((8, 6)), "b1": one, "w2": rng.standard_normal((6, 6)) / 9, "b2": two, "w3": rng.standard_normal((6, 3))},
    )
    told = iter([[0.8], [0.9, 1.1], [1.1]])
    monkeypatch.setattr(simplify, "speeds_beside", lambda *given: ({"onnxruntime": [1.0, *next(told)]}, 0.03))
    x = rng.standard_normal((SAMPLES, 8)).astype(np.float32)
    found = within_budget(model, Task(x).bind(model), DropIdle(), Budget(), Clock(Target(1), {}))
    kinds = [f for f in found.applied if f.kind == "dead channel"]
    ((slow, why),) = ((f, why) for f, why in found.undone if f.kind == "dead channel")
    assert len(kinds) == 1 and kinds[0].node != slow.node and why.endswith("(× 0.90)")


# --- the verb


@pytest.fixture
def files(case, tmp_path):
    x, label, model = case
    model.save(tmp_path / "a.onnx")
    np.savez(tmp_path / "data.npz", x=x, y=label)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return end.value.code, shown.out, shown.err


def test_the_verb_says_what_it_found_what_it_undid_and_on_what_grounds(files, capsys):
    out = files / "b.onnx"
    given = ("simplify", str(files / "a.onnx"), "--data", str(files / "data.npz"), "--dynamic", "--no-timing")
    code, shown, _ = run(capsys, *given, "-q", "-o", str(out))
    assert code == 0 and out.exists()
    assert "channels 0, 1 of w1[1]" in " ".join(shown.split())
    assert "2 findings, each so in all of 200 samples: otherwise in at most 1.5% of such samples" in shown
    assert "undone: dead channel at" in shown and "channel 5 of w1[1] is always 0 behind Relu: accuracy on validate falls" in shown
    assert "of test: 1.0000 → 1.0000" in shown
    code, shown, _ = run(capsys, *given, "--json")
    found = json.loads(shown)["dynamic"]
    assert len(found["applied"]) == len(found["undone"]) == 2 and found["applied"][0]["samples"] == 200
    assert found["applied"][0]["otherwise_at_most"] == 0.015 and "remedy" not in found["applied"][0]


@pytest.mark.parametrize("arguments, says", [
    (("--dynamic",), "--dynamic came without --data, and only data shows what never changes"),
    (("--data", "DATA", "--max-drop", "0.1"), "--max-drop came without --dynamic, and nothing would be judged"),
    (("--data", "DATA", "--dynamic", "--max-drop", "-1"), "max_drop is -1.0, expected a number of at least 0"),
])  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_written(arguments, says, files, capsys):
    given = [str(files / "data.npz") if a == "DATA" else a for a in arguments]
    code, shown, err = run(capsys, "simplify", str(files / "a.onnx"), "-o", str(files / "b.onnx"), *given)
    assert code == 2 and says in err and not shown and not (files / "b.onnx").exists()
