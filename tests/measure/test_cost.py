"""Cost: the price formula, preparation from records, and packages with size and licence."""

from importlib import metadata

import pytest

from hasten.errors import BadInput
from hasten.measure.cost import packages, preparation, price_per_million
from hasten.measure.record import Record


def test_the_price_of_a_million():
    # A millisecond a call of one: 1000 s for a million, at 3.60 an hour 1.00.
    assert price_per_million(1e-3, 1, 3.6) == pytest.approx(1.0)
    assert price_per_million(1e-3, 4, 3.6) == pytest.approx(0.25)
    assert price_per_million(2e-3, 1, 0.34) == pytest.approx(0.34 * 2000 / 3600)
    for price in (-0.34, 0.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match=r"--price-per-hour is .*expected a number above 0, such as 0.34"):
            price_per_million(1e-3, 1, price)


def test_preparation_is_read_from_the_records():
    records = [
        Record("built:a", "built", "a", "", {"seconds": 1.5, "bytes": 3}),
        Record("built:b", "built", "b", "", {"failed": "no"}),
        Record("screened:a", "screened", "a", "", {"seconds": 9.0}),
    ]
    assert preparation(records) == {"a": 1.5}


def test_packages_have_size_and_licence_and_numpy_is_not_among_them():
    found = {p.name: p for p in packages("onnxruntime")}
    assert next(iter(found)) == "onnxruntime"
    assert "numpy" not in found
    assert "protobuf" in found, "what it requires"
    ours = found["onnxruntime"]
    assert ours.version == metadata.version("onnxruntime")
    assert 10e6 < ours.bytes < 1e9
    assert ours.licence.startswith("MIT")
    assert all(p.bytes > 0 and p.licence for p in found.values())
    assert packages("null") == ()
