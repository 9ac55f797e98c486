"""profiles: the table, what overrides it, and what is printed."""

import dataclasses

import pytest

from hasten import profiles
from hasten.errors import BadInput
from hasten.profiles import PROFILES, apply, spelled
from hasten.search.budget import Budget
from hasten.search.guard import Guard

NAMES = [p.name for p in PROFILES]


def test_the_uses_that_the_command_line_offers():
    assert NAMES == ["realtime", "server", "mobile", "microcontroller", "batch", "medical"]


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_a_budget_and_says_each_value(name):
    known = profiles.profile(name)
    fields = {f.name for f in dataclasses.fields(Budget)}
    assert set(known.settings) <= fields
    budget = Budget(**apply(name, {}))
    assert budget.purpose == name
    line = spelled(name, {})[0]
    assert line.startswith(f"for {name} (")
    for field in known.settings:
        assert f"{field} " in line


def test_what_each_profile_means():
    made = {name: Budget(**apply(name, {})) for name in NAMES}
    assert (made["realtime"].objective, made["realtime"].percentile, made["realtime"].use_batch) == ("latency", 99.0, 1)
    assert made["realtime"].at_the_tail and not made["server"].at_the_tail
    assert made["server"].objective == "throughput" and 8 <= made["server"].use_batch <= 32
    assert made["mobile"].objective == "size" and made["mobile"].use_threads <= 2
    assert (made["microcontroller"].recipes, made["microcontroller"].threads) == (("int8 static",), 1)
    assert made["microcontroller"].objective == "flash" and made["microcontroller"].as_c and not made["mobile"].as_c
    assert "not on the target" in spelled("microcontroller", {})[1]
    assert made["batch"].objective == "throughput" and made["batch"].use_batch >= 32
    assert made["medical"].strict and made["medical"].guards == (Guard(None),)


def test_what_is_given_counts_more_and_is_said():
    given = {"objective": "size", "percentile": 95.0}
    assert apply("realtime", given) == {"objective": "size", "percentile": 95.0, "batch": 1, "purpose": "realtime"}
    line = spelled("realtime", given)[0]
    assert "objective size (given; the profile says latency)" in line
    assert "percentile 95 (given; the profile says 99)" in line
    assert "batch 1" in line and "batch 1 (given" not in line
    assert apply(None, given) == given


def test_a_profile_that_is_none():
    with pytest.raises(BadInput, match="there is no profile 'fridge'; use one of realtime, server, mobile"):
        apply("fridge", {})
