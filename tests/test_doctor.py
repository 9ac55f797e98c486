"""doctor: what is there, what is missing and how to add it, and a self-test that can fail."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest

import hasten
from hasten import doctor as module
from hasten.doctor import EXTRAS, Diagnosis, Engine, Finding, diagnose, native_engine, self_test
from hasten.measure import judge
from hasten.measure.judge import Failure, Timing
from hasten.measure.machine import machine
from hasten.measure.process import WorkerFailed
from hasten.report.look import show_diagnosis


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(judge, "ROUND_SECONDS", 0.002)
    monkeypatch.setattr(judge, "CALLS_SECONDS", 0.002)
    monkeypatch.setattr(module, "RUNTIMES", ("onnxruntime",))


def test_a_healthy_machine(capsys):
    found = diagnose()
    assert found.failed == ()
    assert [t.passed for t in found.tests] == [True, True, None]
    assert found.noise >= 0
    assert found.peaks_measured  # the tests' own cache has them
    assert {p.name for p in found.packages} == {name for name, *_ in EXTRAS}
    assert next(p for p in found.packages if p.name == "onnxruntime").version
    assert json.loads(json.dumps(found.to_json()))["machine"]["cpu"] == machine().cpu
    show_diagnosis(found)
    out = capsys.readouterr().out
    assert machine().cpu in out and "self-test, onnxruntime: passed" in out


def test_what_is_missing_comes_with_the_command_that_adds_it(monkeypatch, capsys):
    real = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else real(name, *a))
    package = {name: module._version(name) for name in ("openvino", "onnxruntime")}
    assert package["openvino"] is None and package["onnxruntime"]
    packages = tuple(module.Package(n, None, about, add) for n, _, about, add in EXTRAS)
    show_diagnosis(
        Diagnosis(machine(), 4, 1 << 30, {"avx2": "wide"}, packages, None, Engine(None, None, "gone"), "somewhere", False, (), None)
    )
    out = capsys.readouterr().out
    assert (
        "missing" in out and "pip install 'hasten[openvino]'" in out and "none: apt-get install g++" in out and "native engine: gone" in out
    )


@pytest.mark.parametrize(
    ("compiler", "says"), [("g++", "not built: make native"), (None, "not built, for want of a C++ compiler: apt-get install g++")]
)
def test_an_engine_that_is_absent_comes_with_the_command_that_adds_it(monkeypatch, compiler, says):
    monkeypatch.delattr("hasten._native", raising=False)
    monkeypatch.setitem(sys.modules, "hasten._native", None)
    found = native_engine(compiler)
    assert (found.isa, found.abi) == (None, None)
    assert found.missing.startswith(says) and "pip install" in found.missing


def test_an_engine_that_is_there_gives_its_level(monkeypatch, capsys):
    engine = types.ModuleType("hasten._native")
    engine.isa, engine.abi = lambda: "avx2", lambda: 1
    monkeypatch.setitem(sys.modules, "hasten._native", engine)
    monkeypatch.setattr("hasten._native", engine, raising=False)
    assert native_engine(None) == Engine("avx2", 1, "")
    show_diagnosis(dataclasses.replace(diagnose(), engine=native_engine(None)))
    assert "native engine: avx2 kernels, interface version 1" in capsys.readouterr().out


def test_an_engine_that_can_not_be_loaded_says_why(monkeypatch, tmp_path):
    """One built for another Python, or with a library that is not here."""
    (tmp_path / "_native.so").write_bytes(b"no library")
    monkeypatch.delitem(sys.modules, "hasten._native", raising=False)
    monkeypatch.delattr("hasten._native", raising=False)
    monkeypatch.setattr(hasten, "__path__", [str(tmp_path)])
    assert "can't be loaded" in native_engine("g++").missing


@pytest.mark.parametrize("break_", ["wrong", "not finite", "crash"])
def test_a_runtime_that_computes_wrong_fails(monkeypatch, break_):
    real = judge.predict

    def predict(subject, split, output, batch):
        found = real(subject, split, output, batch)
        if subject.path.stem != "int8":
            return found
        if break_ == "crash":
            raise WorkerFailed("crashed: the worker was killed by signal 4")
        return -found if break_ == "wrong" else np.full_like(found, np.nan)

    monkeypatch.setattr(judge, "predict", predict)
    tests, _ = self_test()
    assert next(t for t in tests if t.name == "onnxruntime").passed is False
    failed = dataclasses.replace(diagnose(), tests=tests).failed
    assert failed and failed[0].startswith("onnxruntime: ")


def test_a_float_result_beyond_rounding_fails():
    expected = np.eye(4, dtype=np.float32)
    right = module._compared("openvino", expected, {"float": expected, "int8": expected})
    wrong = module._compared("openvino", expected, {"float": expected * 1.01, "int8": expected})
    assert (right.passed, wrong.passed) == (True, False)


def test_timing_that_fails_is_a_failed_test_and_noise_is_the_difference(monkeypatch):
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: Failure("timed out"))
    tests, noise = self_test()
    assert (noise, tests[-1]) == (None, Finding("timing", False, "timed out"))
    turns = iter((1e-3, 1.1e-3))
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: Timing(next(turns), {}, 0.1, 1))
    tests, noise = self_test()
    assert noise == pytest.approx(0.1)
    assert tests[-1].passed is None and "differ by 10.0%" in tests[-1].seen
