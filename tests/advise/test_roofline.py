"""roofline: places and bounds beside numbers worked out by hand."""

import dataclasses

import pytest

from hasten.advise.roofline import COMPUTE, MEMORY, OVERHEAD, roofline
from hasten.facts import Facts, Row, facts
from tests.conftest import PEAKS, mlp_model

ROUND = dataclasses.replace(PEAKS, float32=2e9, int8=8e9, memory=1e9, cache=1e10, call=1e-6, node=1e-7, last_level_cache=1 << 20)
"""A nanosecond a multiply-accumulate and a byte; int8 is four times as fast, the cache ten times."""


def a_row(name="layer", op="Conv", macs=1000, weight_bytes=0, activation_bytes=0, bits=32):
    return Row(name, op, (1,), macs, weight_bytes, activation_bytes, bits)


def of(*rows):
    weights, macs = sum(r.weight_bytes for r in rows), sum(r.macs or 0 for r in rows)
    return Facts(rows, {}, weights // 4, weights, macs, sum(r.activation_bytes or 0 for r in rows), 0)


def test_a_layer_is_bound_by_what_takes_longer():
    found = roofline(of(a_row("a", macs=100_000), a_row("b", macs=1000, weight_bytes=2 << 20)), ROUND)
    assert not found.cached
    a, b = found.layers
    assert (a.compute, a.memory, a.roof, a.bound) == (pytest.approx(1e-4), 0, pytest.approx(1e-4), COMPUTE)
    assert (b.compute, b.memory, b.bound) == (pytest.approx(1e-6), pytest.approx((2 << 20) / 1e9), MEMORY)
    assert found.whole.roof == pytest.approx(a.roof + b.roof)
    assert found.whole.bound == MEMORY
    assert found.overhead == pytest.approx(1e-6 + 2 * 1e-7)


def test_what_fits_into_the_cache_moves_at_its_speed():
    found = roofline(of(a_row(macs=0, weight_bytes=100_000, activation_bytes=50_000)), ROUND)
    assert found.cached
    assert found.whole.memory == pytest.approx(150_000 / 1e10)
    unknown = roofline(of(a_row(macs=0, weight_bytes=100_000)), dataclasses.replace(ROUND, last_level_cache=None))
    assert not unknown.cached


def test_eight_bits_have_a_peak_of_their_own():
    wide, narrow = (roofline(of(a_row(bits=bits)), ROUND).whole.compute for bits in (32, 8))
    assert wide == pytest.approx(4 * narrow)


def test_the_share_of_the_peak_is_the_roof_over_the_time():
    found = roofline(of(a_row("a", macs=100_000)), ROUND, latency=4e-4, layers={"a": 2e-4})
    assert found.layers[0].reached == pytest.approx(0.5)
    assert found.whole.reached == pytest.approx(0.25)
    assert found.whole.seconds == 4e-4


def test_little_work_is_bound_by_overhead_and_merged_nodes_cost_nothing():
    model = mlp_model(inputs=2, hidden=4, outputs=2)
    found = roofline(facts(model), ROUND)
    assert found.whole.bound == OVERHEAD
    assert [p.op for p in found.layers] == ["Gemm", "Gemm"]
    assert roofline(facts(model), ROUND, executed=7).overhead == pytest.approx(1e-6 + 7e-7)
