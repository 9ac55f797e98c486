"""The engine's own tests in C++, on plans made here: arguments, damaged and hostile files, threads, forks, at each level of instructions."""

import os
import subprocess
from pathlib import Path

import pytest

from hasten.runtimes import native
from tests.native import plans

PROGRAM = Path(__file__).resolve().parents[2] / "build" / "native" / "engine_test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not (native.available() and PROGRAM.exists()):
        if os.environ.get("CI"):
            pytest.fail("the native engine and its tests are not built: CI must have them; make native")
        pytest.skip("the native engine and its tests are not built: make native")
    place = tmp_path_factory.mktemp("plans")
    plans.write(place)
    return place


LEVELS = ("avx512bf16", "avx2", "scalar")
PARTS = [(part, level) for part in ("arguments", "damage", "crafted", "hostile", "threads", "fork") for level in LEVELS]


@pytest.mark.parametrize("part, level", [p for p in PARTS if p != ("threads", "scalar")])  # which takes more than a minute
def test_the_engine(part, level, folder):
    done = subprocess.run(
        [PROGRAM, part, folder], capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"HASTEN_ISA": level}
    )
    assert done.returncode == 0, done.stdout + done.stderr
