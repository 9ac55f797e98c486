"""Plans that nobody lowered: fields of real ones changed and the checksum mended. The engine refuses them or runs them, and goes nowhere else.

In a process of its own, under the address sanitizer where `make sanitize` has built one.
"""

import functools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import lower
from hasten.lower import plan
from tests.lower.quantized import random_net
from tests.native.mended import mended, sections

BUILD = Path(__file__).resolve().parents[2] / "build"
PROGRAM = next((p for p in (BUILD / "sanitize" / "engine_test", BUILD / "native" / "engine_test") if p.exists()), None)
pytestmark = pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="the native engine's tests are not built: make native")

EXTREMES = [
    0,
    1,
    2,
    63,
    64,
    255,
    256,
    1 << 16,
    1 << 23,
    (1 << 30) - 1,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    0x7F800000,
    0x7FC00000,
]
VALUE = st.sampled_from(EXTREMES) | st.integers(0, (1 << 32) - 1)
SECTION = st.sampled_from(["tensor", "op", "port", "header", "data"])
CHANGES = st.lists(st.tuples(SECTION, st.integers(0, 999), st.integers(0, 999), VALUE), max_size=6)


@functools.cache
def made(seed, requantize="float"):
    model, _ = random_net(seed)
    return None if lower.unsupported(model, requantize) else lower.lower(model, requantize).to_bytes()


def engine(data, folder):
    path = folder / "a.plan"
    path.write_bytes(data)
    return subprocess.run([PROGRAM, "plan", path], capture_output=True, text=True, errors="replace", timeout=60, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


def test_a_plan_as_lowered_runs_and_a_damaged_one_is_refused(folder):
    data = made(0)
    assert engine(data, folder).stdout.startswith("plan: it ran\n")
    assert "checksum" in engine(data[:-1] + bytes([data[-1] ^ 1]), folder).stdout
    assert "truncated" in engine(data[:-1], folder).stdout


@given(st.integers(0, 19), st.sampled_from(["float", "fixed"]), CHANGES)
@settings(max_examples=150, deadline=None)
def test_whatever_a_plan_holds_the_engine_goes_nowhere_else(folder, seed, requantize, changes):
    data = made(seed, requantize)
    if data is None:
        return
    done = engine(mended(data, changes), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("plan: ")


def test_mended_changes_the_field_that_was_named():
    data = made(0)
    changed = mended(data, [("tensor", 1, 3, 77)])
    assert plan.TENSOR.unpack_from(changed, sections(data)["tensor"].begin + plan.TENSOR.size)[3] == 77
    assert mended(data, []) == data
