"""simplify --dynamic: what is idle goes within the budget; what the judge does not bear out is undone and named."""

import json

import numpy as np
import pytest

from hasten import check, cli, dynamic, plan, simplify
from hasten.dynamic import within_budget
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
    found = within_budget(model, model, task, DropIdle(), Budget(max_drop=0.01))
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
    found = within_budget(model, model, Task((x, label)).bind(model), DropIdle(), Budget(max_drop=0.9))
    assert {f.remedy.channel for f in found.applied} == {0, 1, *WRONG} and not found.undone
    assert found.judged[1].after < 0.5


def test_after_too_many_undone_those_that_save_less_are_left_out(case, monkeypatch):
    x, label, model = case
    monkeypatch.setattr(dynamic, "MOST_UNDONE", 1)
    found = within_budget(model, model, Task((x, label)).bind(model), DropIdle(), Budget())
    assert {f.remedy.channel for f in found.applied} == {0, 1}
    assert found.undone[1][1] == "1 findings that save more had to be undone"


def test_what_breaks_the_budget_on_test_alone_leaves_everything(case):
    """Validation data that never wakes units 2 and 5, and a test split that does."""
    x, label, model = case
    quiet = x[label == 0]
    task = Task((quiet, label[label == 0]), test=(x, label)).bind(model)
    found = within_budget(model, model, task, DropIdle(), Budget())
    assert not found.applied and found.model is model and len(found.undone) == 4
    assert found.notes[-1].startswith("nothing was left out: accuracy on test falls from 1.0000")


def test_without_labels_agreement_with_the_original_is_judged(case):
    x, _, model = case
    found = within_budget(model, model, Task(x).bind(model), DropIdle(), Budget(min_agreement=0.99))
    assert {f.remedy.channel for f, _ in found.undone} == set(WRONG)
    assert found.judged[0].metric == "agreement" and found.judged[0].allowed == pytest.approx(0.01)


def test_thin_evidence_is_said(case):
    x, label, model = case
    few = np.r_[np.flatnonzero(label == 0)[:30], np.flatnonzero(label > 0)[:30]]
    found = within_budget(model, model, Task((x[few], label[few])).bind(model), DropIdle(), Budget(max_drop=0.05))
    assert found.notes[0].startswith("the evidence is thin: 12 samples were seen") and "up to 25% of all samples" in found.notes[0]


def test_what_makes_it_slower_is_not_done(case, monkeypatch):
    x, label, model = case
    found = within_budget(model, model, Task((x, label)).bind(model), DropIdle(), Budget())
    for speed, stays in ((0.8, False), (1.2, True)):
        monkeypatch.setattr(simplify, "speeds_beside", lambda *given, speed=speed: ({"onnxruntime": [1.0, speed]}, 0.03))
        made = dynamic.simplified(found, simplify.passes(), None, True, model, Target(1), {})
        assert (made.model is not model) is stays is bool(made.applied)
        assert made.speed == {"onnxruntime": speed}
        assert any("slower in onnxruntime (× 0.80)" in note for note in made.notes) is not stays


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
