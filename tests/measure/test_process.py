"""Workers: a crash, a hang or a full memory is an answer with a reason."""

import numpy as np
import pytest

from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.process import Subject, Worker, WorkerFailed
from hasten.measure.record import Record, Records
from hasten.runtimes import Target
from tests.conftest import mlp_model

X = {"x": np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)}


@pytest.fixture
def subject(tmp_path):
    mlp_model().save(tmp_path / "m.onnx")
    return Subject("onnxruntime", tmp_path / "m.onnx", Target(1, 2))


def test_a_worker_runs_batches_and_pads_the_last(subject):
    with Worker(subject) as one, Worker(Subject("openvino", subject.path, subject.target)) as other:
        assert other.batch == 2
        a, b = one.run(X, 2)["y"], other.run(X, 99)["y"]
    assert a.shape == (5, 4)
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_worker_times_rounds_and_calls(subject):
    timed = judge.time_once(subject, {"x": X["x"][:2]}, percentile=90.0)
    assert isinstance(timed, Timing)
    assert 0 < timed.seconds < 1
    assert set(timed.percentiles) == {"50", "90", "95", "99"}
    assert timed.peak_memory > 10 << 20


def test_too_much_memory_is_a_failure_with_the_numbers(subject):
    tight = Subject(subject.runtime, subject.path, Target(1, memory_limit=20 << 20))
    with pytest.raises(WorkerFailed, match=r"out of memory: .* MiB used, 20 MiB allowed"):
        Worker(tight)


def test_a_crash_is_a_failure(subject):
    worker = Worker(subject)
    worker._process.kill()
    with pytest.raises(WorkerFailed, match="crashed: the worker was killed by signal 9"):
        worker.run(X, 1)
    worker.close()


def test_a_hang_is_a_failure(subject):
    import os
    import signal

    worker = Worker(subject, call_limit=0.3)
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerFailed, match="timed out"):
        worker.run(X, 1)
    worker.close()


def test_a_model_that_does_not_load_names_no_folder(tmp_path):
    (tmp_path / "secret_name.onnx").write_bytes(b"nonsense")
    failure = judge.time_once(Subject("onnxruntime", tmp_path / "secret_name.onnx", Target(1)), X)
    assert isinstance(failure, Failure)
    assert "can't load the model" in failure.reason
    assert str(tmp_path) not in failure.reason
    assert "secret_name" not in failure.reason


def test_wrong_input_is_a_failure(subject):
    failure = judge.time_once(subject, {"x": np.zeros((1, 9), np.float32)})
    assert isinstance(failure, Failure)
    assert "INVALID_ARGUMENT" in failure.reason


def test_a_round_rotates_its_order(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(judge, "time_once", lambda s, f, q: seen.append(s) or Failure("x"))
    for turn in range(4):
        judge.duel_round({"a": "a", "b": "b", "c": "c"}, X, turn)
    assert len({tuple(seen[i : i + 3]) for i in range(0, 12, 3)}) == 4


def test_records_survive_half_a_line(tmp_path):
    path = tmp_path / "records.jsonl"
    records = Records(path)
    for i in range(3):
        records.add(Record(f"k{i}", "kind", "subject", "method", {"value": i}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Records(path)
    assert [r.key for r in again] == ["k0", "k1"]
    again.add(Record("k2", "kind", "subject", "method", {"value": 2}))
    assert path.read_bytes() == whole
