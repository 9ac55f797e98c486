"""RAPL from a fake folder, wrap-around included; and the estimate, which says that it is one."""

import numpy as np
import pytest

from hasten.errors import BadInput
from hasten.measure import energy as measuring
from hasten.measure import rapl
from hasten.measure.energy import ESTIMATED, MEASURED, energy
from hasten.measure.process import Subject, Worker
from hasten.runtimes import Target

RANGE = 262_143_328_850


def zone(root, name, kind, stands):
    place = root / name
    place.mkdir(parents=True)
    for file, value in (("name", kind), ("energy_uj", stands), ("max_energy_range_uj", RANGE)):
        (place / file).write_text(f"{value}\n")
    return place


@pytest.fixture
def counters(tmp_path):
    """Two processors, the memory of one, and what must not be counted twice."""
    return {
        "first": zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        "cores": zone(tmp_path, "intel-rapl:0:0", "core", 5),
        "memory": zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000),
        "second": zone(tmp_path, "intel-rapl:1", "package-1", RANGE - 500_000),
        "all": zone(tmp_path, "intel-rapl:2", "psys", 7),
    }


def test_packages_and_memory_are_summed_and_a_counter_wraps_around(tmp_path, counters):
    found = rapl.zones(tmp_path)
    assert found == [counters[n] for n in ("first", "memory", "second")]
    before = rapl.microjoules(found)
    (counters["first"] / "energy_uj").write_text("4000000")  # 3 J
    (counters["memory"] / "energy_uj").write_text("2250000")  # 0.25 J
    (counters["second"] / "energy_uj").write_text("1000000")  # past its range: 0.5 J + 1 J
    (counters["cores"] / "energy_uj").write_text("999999999")
    assert rapl.joules(found, before, rapl.microjoules(found)) == pytest.approx(4.75)


def test_what_cannot_be_read_is_not_there(tmp_path, counters):
    assert rapl.zones(tmp_path / "nowhere") == []
    (counters["first"] / "energy_uj").unlink()
    (counters["second"] / "energy_uj").write_text("")
    assert rapl.zones(tmp_path) == [], "memory alone is not the energy of a call"


def test_calls_are_counted_and_their_energy_read_around_them(tmp_path, counters):
    file, done = counters["first"] / "energy_uj", []

    def call():
        done.append(file.write_text(str(int(file.read_text()) + 20_000)))

    found = rapl.spend(call, 0.02, tmp_path)
    assert found["calls"] == len(done) > 1
    assert found["joules"] == pytest.approx(0.02 * len(done))
    assert found["seconds"] >= 0.02
    assert found["cpu_seconds"] >= 0
    assert rapl.spend(call, 0.0, tmp_path / "nowhere") | {"seconds": 0, "cpu_seconds": 0} == {
        "calls": 1, "seconds": 0, "cpu_seconds": 0, "joules": None,
    }  # fmt: skip


@pytest.fixture
def subject(mlp, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    monkeypatch.setattr(measuring, "SECONDS", 0.01)
    mlp.save(tmp_path / "model.onnx")
    return Subject("onnxruntime", tmp_path / "model.onnx", Target(1))


FEEDS = {"x": np.zeros((1, 8), np.float32)}


def answers(monkeypatch, subject, **values):
    """What workers answer, in turn: of the rounds' first subject and of the other."""
    turns = {key: iter(v) for key, v in values.items()}
    monkeypatch.setattr(
        Worker, "energy", lambda *a: {"calls": 100, "seconds": 1.0, "joules": None} | {k: next(v) for k, v in turns.items()}
    )
    return {"original": subject, "chosen": subject}


def test_an_estimate_is_the_cpu_time_by_the_watts_and_says_so(subject, monkeypatch):
    monkeypatch.setattr(rapl, "zones", list)
    # The order alternates: original, chosen, chosen, original.
    both = answers(monkeypatch, subject, cpu_seconds=[0.5, 0.25, 0.35, 0.7])
    found = energy(both, FEEDS, watts_per_core=10)
    assert [(e.how, e.watts_per_core) for e in found.values()] == [(ESTIMATED, 10)] * 2
    assert [e.cpu_seconds for e in found.values()] == pytest.approx([0.006, 0.003])
    assert [e.joules for e in found.values()] == pytest.approx([0.06, 0.03])
    assert found["original"].ratio is None
    assert found["chosen"].ratio.estimate == pytest.approx(2)
    assert found["chosen"].method.startswith("estimated: CPU time of a call") and "10 W a core" in found["chosen"].method


def test_where_the_counters_can_be_read_it_is_measured(subject, monkeypatch):
    monkeypatch.setattr(rapl, "zones", lambda: ["a counter"])
    both = answers(monkeypatch, subject, cpu_seconds=[1.0] * 4, joules=[4.0, 2.0, 2.0, 4.0])
    found = energy(both, FEEDS)["chosen"]
    assert (found.how, found.watts_per_core, found.joules) == (MEASURED, None, pytest.approx(0.02))
    assert found.method.startswith("measured: RAPL counters")


def test_a_counter_that_did_not_move_gives_no_ratio(subject, monkeypatch):
    monkeypatch.setattr(rapl, "zones", lambda: ["a counter"])
    both = answers(monkeypatch, subject, cpu_seconds=[1.0] * 4, joules=[4.0, 0.0, 2.0, 4.0])
    assert energy(both, FEEDS)["chosen"].ratio is None


def test_a_real_worker_answers(subject):
    with Worker(subject) as worker:
        found = worker.energy(FEEDS, 0.02)
    assert found["calls"] > 1
    assert found["cpu_seconds"] > 0
    assert found["joules"] is None or found["joules"] >= 0
    assert energy({"one": subject}, FEEDS)["one"].joules > 0


@pytest.mark.parametrize("watts", [0, -1, float("nan")])
def test_watts_that_make_no_sense(subject, watts):
    with pytest.raises(BadInput, match=r"--watts-per-core is .*expected a number above 0"):
        energy({"one": subject}, FEEDS, watts)
