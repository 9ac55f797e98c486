"""Corruptions: type, shape, seed, meaning; a model that is fragile by construction is found fragile; what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest

from hasten.data.source import Arrays
from hasten.errors import BadInput
from hasten.measure import robustness as measuring
from hasten.measure.contestant import enter
from hasten.measure.robustness import CORRUPTIONS, LEAST, SAMPLES, Corrupted, _some, applicable, robustness, sample
from hasten.measure.spread import FEATURES, PICTURE, TOKENS, spreads
from hasten.model import Port
from hasten.report.extras import robustness_words
from hasten.runtimes import Target
from hasten.task import Task
from hasten.voice import Told, speaking
from tests.conftest import model_of

RNG = np.random.default_rng(0)
ROWS = {c.name: c for c in CORRUPTIONS}


def pictures(dtype=np.float32, last=False):
    x = (RNG.random((40, 3, 32, 24)) * 200 + RNG.random((40, 1, 1, 1)) * 55).astype(dtype)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x


INPUTS = {
    "NCHW": {"x": pictures()},
    "NHWC": {"x": pictures(last=True)},
    "bytes": {"x": pictures(np.uint8, last=True)},
    "half": {"x": pictures(np.float16)},
    "features": {"x": RNG.standard_normal((40, 9)).astype(np.float32)},
    "series": {"x": RNG.standard_normal((40, 5, 9)).astype(np.float32)},
    "tokens": {
        "ids": np.where(np.arange(8) < 6, np.concatenate([np.full((40, 1), 101), RNG.integers(5, 900, (40, 7))], 1), 2),
        "attention_mask": np.broadcast_to((np.arange(8) < 6).astype(np.int64), (40, 8)).copy(),
        "segments": RNG.integers(0, 2, (40, 8)),
        "positions": np.broadcast_to(np.arange(8), (40, 8)).copy(),
    },
}


def ports(feeds):
    return [Port(name, str(v.dtype), ("N", *v.shape[1:])) for name, v in feeds.items()]


def corrupted(feeds, name, strength, seed=0):
    return Corrupted(Arrays(feeds), ROWS[name], strength, spreads(ports(feeds), feeds), seed)


CASES = [(i, c.name) for i, feeds in INPUTS.items() for c in applicable(spreads(ports(feeds), feeds), ports(feeds))]


def test_each_kind_of_input_has_its_corruptions():
    numbers = {"gaussian noise", "feature dropout", "out of range"}
    picture = {"gaussian noise", "blur", "contrast", "brightness", "occlusion", "out of range"}
    expected = {
        "NCHW": picture,
        "NHWC": picture,
        "half": picture,
        "bytes": picture - {"out of range"},
        "features": numbers,
        "series": numbers,
        "tokens": {"token dropout"},
    }
    assert {i: {name for j, name in CASES if j == i} for i in INPUTS} == expected
    assert all(len(c.strengths) == 5 and list(c.strengths) == sorted(set(c.strengths)) for c in CORRUPTIONS)


@pytest.mark.parametrize(("inputs", "name"), CASES)
def test_a_corruption_keeps_type_and_shape_is_seeded_by_sample_and_grows(inputs, name):
    feeds, all_of_them = INPUTS[inputs], np.arange(40)
    sizes = []
    for strength in ROWS[name].strengths:
        once, again = (corrupted(feeds, name, strength).take(all_of_them) for _ in range(2))
        assert once.keys() == feeds.keys()
        for key, values in once.items():
            assert (values.dtype, values.shape) == (feeds[key].dtype, feeds[key].shape)
            assert np.isfinite(values.astype(float)).all()
            np.testing.assert_array_equal(values, again[key])
            # A sample's corruption does not depend on what is taken with it.
            np.testing.assert_array_equal(corrupted(feeds, name, strength).take(np.array([7, 3]))[key], values[[7, 3]])
        sizes.append(sum(np.abs(v.astype(float) - feeds[k]).mean() for k, v in once.items()))
    assert sizes[0] > 0
    assert sizes == sorted(sizes)
    if name in ("gaussian noise", "occlusion", "token dropout", "feature dropout"):
        first, other = (corrupted(feeds, name, ROWS[name].strengths[-1], seed).take(all_of_them) for seed in (0, 1))
        assert any((first[k] != other[k]).any() for k in feeds)


def test_nchw_and_nhwc_are_the_same_pictures():
    x = pictures()
    for name in ("blur", "contrast", "brightness", "occlusion", "out of range"):
        one = corrupted({"x": x}, name, ROWS[name].strengths[2]).take(np.arange(40))["x"]
        other = corrupted({"x": np.moveaxis(x, 1, -1)}, name, ROWS[name].strengths[2]).take(np.arange(40))["x"]
        np.testing.assert_allclose(np.moveaxis(other, -1, 1), one, rtol=1e-5, atol=1e-3)


def test_strengths_mean_the_same_for_every_preprocessing():
    """The corruption of (x − mean) / std is the corruption of x, then (x − mean) / std."""
    x = pictures()
    for corruption in applicable(spreads(ports({"x": x}), {"x": x}), ports({"x": x})):
        plain, scaled = (corrupted({"x": v}, corruption.name, corruption.strengths[3]).take(np.arange(40))["x"] for v in (x, (x - 50) / 70))
        np.testing.assert_allclose(scaled, (plain - 50) / 70, atol=1e-4)


def test_what_corruptions_do():
    x = pictures()
    low, high = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.min, np.max))
    flat = np.ones_like(x) * 7
    np.testing.assert_allclose(corrupted({"x": flat}, "blur", 0.4).take(np.arange(40))["x"], flat, rtol=1e-5)  # weights sum to 1
    for name in ("gaussian noise", "brightness"):
        values = corrupted({"x": x}, name, 1.0).take(np.arange(40))["x"]
        assert (values >= low).all() and (values <= high).all()
    hidden = corrupted({"x": x}, "occlusion", 0.25).take(np.arange(40))["x"] != x
    assert hidden.mean() == pytest.approx(0.25, abs=0.01)
    middle = (low + high) / 2
    np.testing.assert_allclose(corrupted({"x": x}, "out of range", 2.0).take(np.arange(40))["x"] - middle, 2 * (x - middle), atol=1e-3)
    faded = corrupted({"x": x}, "contrast", 0.75).take(np.arange(40))["x"]
    np.testing.assert_allclose(faded.std((2, 3)), x.std((2, 3)) / 4, rtol=1e-4)
    np.testing.assert_allclose(faded.mean((2, 3)), x.mean((2, 3)), rtol=1e-5)


def test_tokens_are_dropped_and_mask_start_segments_and_positions_stay():
    feeds = INPUTS["tokens"]
    dropped = corrupted(feeds, "token dropout", 0.4).take(np.arange(40))
    for name in ("attention_mask", "segments", "positions"):
        np.testing.assert_array_equal(dropped[name], feeds[name])
    changed = dropped["ids"] != feeds["ids"]
    assert not changed[:, 0].any() and not changed[:, 6:].any()
    assert changed[:, 1:6].mean() == pytest.approx(0.4, abs=0.1)
    assert set(dropped["ids"][changed]) == {2}, "the id that the mask hides"


def test_kinds():
    found = {i: {k: s.kind for k, s in spreads(ports(f), f).items()} for i, f in INPUTS.items()}
    assert found["NHWC"] == {"x": PICTURE} and found["series"] == {"x": FEATURES} and found["tokens"] == {"ids": TOKENS}
    assert spreads(ports(INPUTS["NHWC"]), INPUTS["NHWC"])["x"].plane == (0, 1)
    odd = {"x": np.zeros((4, 1, 49, 10), np.float32)}
    assert spreads(ports(odd), odd)["x"].plane == (1, 2)


# --- two models


SOLID = """solid (float[N, 6] x) => (float[N, 3] y) {
    y = MatMul (x, w)
}"""
FRAGILE = """fragile (float[N, 6] x) => (float[N, 3] y) {
    z = MatMul (x, w)
    a = Abs (x)
    m = ReduceMax <keepdims = 1> (a, axis)
    over = Sub (m, limit)
    beyond = Relu (over)
    push = MatMul (beyond, first)
    y = Add (z, push)
}"""
X = np.clip(RNG.standard_normal((400, 6)), -2, 2).astype(np.float32)
W = RNG.standard_normal((6, 3)).astype(np.float32)
Y = (X @ W).argmax(1)
SOLID = model_of(SOLID, {"w": W})
FRAGILE = model_of(FRAGILE, {"w": W, "axis": np.array([1]), "limit": np.array([2.0]), "first": np.array([[1e4, 0.0, 0.0]])})
"""Right within the range of the data, and class 0 for whatever lies beyond."""


def both(tmp_path, first, second, data, **more):
    sides = [enter(m, tmp_path, target=Target(1)) for m in (first, second)]
    return robustness(sides[0].subject, sides[1].subject, Task(data).bind(sides[0].model), sides[0].model.inputs, **more)


def test_a_fragile_model_is_found_fragile_and_where(tmp_path):
    found = both(tmp_path, SOLID, FRAGILE, (X, Y))
    assert (found.clean_before, found.clean_after) == (1.0, 1.0)
    assert (found.samples, found.available) == (192, 192)
    assert [v.corruption for v in found.levels] == [n for n in ("gaussian noise", "feature dropout", "out of range") for _ in range(5)]
    beyond = [v for v in found.levels if v.corruption == "out of range"]
    assert all(v.before == 1.0 for v in beyond)
    zero = np.mean(Y == 0)
    assert beyond[-1].after == pytest.approx(zero, abs=0.1)
    assert beyond[-1].flips == pytest.approx(192 * (1 - zero), abs=20)
    assert beyond[-1].excess.low > 0.3
    assert beyond[-1].difference.estimate == pytest.approx(beyond[-1].after - beyond[-1].before)
    assert beyond[-1].excess.estimate == pytest.approx(-beyond[-1].difference.estimate)
    dropout = [v for v in found.levels if v.corruption == "feature dropout"]
    assert all(v.excess.estimate == 0 and v.flips == 0 and v.excess.low < 0 < v.excess.high for v in dropout), "and where not"
    assert found.worst.corruption in ("out of range", "gaussian noise")
    assert found.bound > found.worst.excess.estimate > 0.3
    assert f"more than {found.worst.excess.estimate:.4f} accuracy beyond what it costs the first" in found.words
    json.dumps(found.to_json())


def test_the_same_model_loses_nothing_beyond_itself_and_a_rerun_gives_the_same_numbers(tmp_path):
    found = both(tmp_path, SOLID, SOLID, (X, Y), samples=50)
    assert found.samples == 50
    assert all(v.flips == 0 and v.excess.estimate == 0 and v.before == v.after for v in found.levels)
    assert found.words.startswith("no corruption costs the second model more than it costs the first; ")
    assert both(tmp_path, SOLID, SOLID, (X, Y), samples=50) == found
    assert both(tmp_path, SOLID, SOLID, (X, Y), samples=50, seed=1) != found


def test_where_time_is_short_fewer_samples_are_drawn_and_it_is_said(tmp_path, monkeypatch):
    whole = both(tmp_path, SOLID, SOLID, (X, Y))
    assert (whole.samples, whole.limited) == (192, "")
    monkeypatch.setattr(measuring, "SECONDS", 1e-3)
    heard = []
    with speaking(Told(heard.append)):
        found = both(tmp_path, SOLID, SOLID, (X, Y))
    assert (found.samples, found.available) == (LEAST, 192)
    assert re.fullmatch(
        r"20 samples, because 192 would take about \d+ s and 0 s are allowed \(--robust-samples for another number\)", found.limited
    )
    assert heard == [f"robustness: {found.limited}"]
    assert robustness_words(found.to_json()).endswith(f"; {found.limited}")
    assert found.levels[0].excess.high > 2 * whole.levels[0].excess.high, "the intervals are those of the fewer samples"
    asked = both(tmp_path, SOLID, SOLID, (X, Y), samples=60)
    assert (asked.samples, asked.limited) == (60, "")


def test_fewer_samples_are_drawn_at_random_with_their_labels():
    """And not the first ones: data is often sorted by class."""
    clean = sample(Task((X, Y)).bind(SOLID), None, 0)[1]
    few = _some(clean, 20, 0)
    assert (np.diff(few.indices) > 0).all() and few.indices.max() > 100
    np.testing.assert_array_equal(few.labels, clean.labels[few.indices])


def test_without_labels_the_first_model_is_the_teacher_and_metrics_of_the_whole_set_work(tmp_path, monkeypatch):
    found = both(tmp_path, SOLID, FRAGILE, X, samples=60)
    assert (found.metric, found.clean_before, found.clean_after) == ("agreement", 1.0, 1.0)
    assert found.levels[0].before < 1, "noise moves some answers of the first itself"
    monkeypatch.setattr("hasten.measure.statistics.RESAMPLES", 50)
    sides = [enter(m, tmp_path, target=Target(1)) for m in (SOLID, FRAGILE)]
    task = Task((X, Y), metric="f1").bind(sides[0].model)
    found = robustness(sides[0].subject, sides[1].subject, task, sides[0].model.inputs, 100)
    assert found.bound is None
    assert found.worst.excess.low > 0.2


def test_an_excess_that_is_lower_is_better_has_the_right_sign(tmp_path):
    sides = [enter(m, tmp_path, target=Target(1)) for m in (SOLID, FRAGILE)]
    task = Task((X, X @ W), metric="mae").bind(sides[0].model)
    found = robustness(sides[0].subject, sides[1].subject, task, sides[0].model.inputs, 100)
    assert found.worst.excess.estimate > 100, "an error that grows is a cost"


def test_samples_are_limited_by_number_and_size():
    small = Task((X, Y)).bind(SOLID)
    assert len(sample(small, None, 0)[1]) == 192
    assert len(sample(small, 20, 0)[1]) == 20
    one, other = sample(small, 20, 0)[1], sample(small, 20, 1)[1]
    assert (one.samples.take(one.indices)["x"] != other.samples.take(other.indices)["x"]).any()
    np.testing.assert_array_equal((one.samples.take(one.indices)["x"] @ W).argmax(1), one.labels)
    large = dataclasses.replace(small, test=dataclasses.replace(small.test, samples=Arrays({"x": np.zeros((400, 300_000), np.float32)})))
    assert len(sample(large, None, 0)[1]) == 24_000_000 // 300_000 < SAMPLES


def test_inputs_that_no_corruption_applies_to_are_refused(tmp_path):
    masks = model_of("m (int64[N, 4] mask) => (float[N, 4] y) { y = Cast <to = 1> (mask) }")
    with pytest.raises(BadInput, match=r"--robust: no corruption applies to the inputs mask \(int64, rank 2\); expected pictures"):
        both(tmp_path, masks, masks, RNG.integers(0, 2, (40, 4)))
