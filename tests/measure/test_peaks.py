"""peaks: measured once, kept, measured anew where the file is broken; and one probe of each kind for real."""

import dataclasses
import json
import math

import pytest

from hasten.measure import peaks as module
from hasten.measure.judge import Failure
from hasten.measure.machine import machine
from hasten.measure.peaks import CHAIN, OPERATIONS, PROBES, SMALL_BYTES, Peaks, cache_file, cache_folder, keep, peaks, seconds_of
from tests.conftest import PEAKS

FAST = {"float32": 0.01, "int8": 0.002, "memory": 0.005, "cache": 2e-5, "call": 5e-6, "node": 5e-5}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


class Fake:
    """A measurer that counts."""

    def __init__(self, **seconds):
        self.seconds, self.asked = FAST | seconds, []

    def __call__(self, probe, threads):
        self.asked.append(probe.field)
        return self.seconds.get(probe.field, 1e-3)


def test_peaks_are_measured_once_and_kept(empty):
    fake = Fake()
    found = peaks(fake)
    assert isinstance(found, Peaks)
    assert found.float32 == OPERATIONS / 0.01
    assert found.int8 == pytest.approx(5 * found.float32)
    assert found.cache == 2 * SMALL_BYTES / 2e-5
    assert found.call == 5e-6
    assert found.node == pytest.approx((5e-5 - 5e-6) / (CHAIN - 1))
    assert set(FAST) <= set(fake.asked) and len(fake.asked) == len(set(fake.asked))
    again = Fake()
    assert (peaks(again), again.asked) == (found, [])
    assert peaks(again, anew=True) == found
    assert again.asked == fake.asked


@pytest.mark.parametrize(
    "content",
    ["", '{"float32": 1', "[]", "{}", json.dumps(dataclasses.asdict(PEAKS) | {"int8": -1}), json.dumps(dataclasses.asdict(PEAKS) | {"call": "x"}),
     json.dumps(dataclasses.asdict(PEAKS) | {"memory": None}), json.dumps(dataclasses.asdict(PEAKS) | {"more": 1}), "\0\1"],
)  # fmt: skip
def test_a_broken_cache_file_is_measured_anew_and_mended(empty, content):
    cache_file().parent.mkdir()
    cache_file().write_text(content)
    fake = Fake()
    found = peaks(fake)
    assert fake.asked
    assert peaks(silent := Fake()) == found
    assert not silent.asked


def test_the_file_belongs_to_the_machine_the_cores_and_the_versions(empty, monkeypatch):
    here = cache_file()
    assert here.parent == cache_folder() == empty / "hasten"
    names = {here}
    monkeypatch.setattr(module, "versions", lambda: {"onnxruntime": "0"})
    names.add(cache_file())
    monkeypatch.setattr(module, "cores", lambda: 99)
    names.add(cache_file())
    monkeypatch.setattr(module, "machine", lambda: dataclasses.replace(machine(), cpu="another"))
    names.add(cache_file())
    assert len(names) == 4


def test_nothing_of_the_user_is_kept(empty):
    peaks(Fake())
    assert set(json.loads(cache_file().read_text())) == {f.name for f in dataclasses.fields(Peaks)}


def test_a_cache_that_cannot_be_written_is_said_and_peaks_come_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "hasten").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    monkeypatch.setattr(module, "voice", lambda: type("V", (), {"say": lambda s, line: said.append(line), "step": lambda *a: None})())
    assert isinstance(peaks(Fake()), Peaks)
    assert any("could not be kept" in line for line in said)


def test_a_probe_that_fails(empty):
    """One of onnxruntime's stops; without one of OpenVINO's the field is None."""
    failed = peaks(Fake(int8=Failure("killed")))
    assert failed == Failure("killed")
    assert not cache_file().exists()
    found = peaks(Fake(openvino_int8=Failure("no such hint")))
    assert isinstance(found, Peaks)
    assert found.openvino_int8 is None
    assert peaks(Fake()) == found


def test_a_relative_cache_home_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder().is_absolute()


@pytest.mark.parametrize("field", ["int8", "cache", "node", "openvino_int8"])
def test_a_real_probe_gives_a_sane_time(field, monkeypatch):
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.002)
    if field.startswith("openvino"):
        pytest.importorskip("openvino")
    seconds = seconds_of(next(p for p in PROBES if p.field == field), 1)
    assert isinstance(seconds, float), seconds
    assert math.isfinite(seconds) and 0 < seconds < 60


def test_keep_and_read_are_inverse(empty):
    keep(PEAKS)
    assert peaks(Fake()) == PEAKS
