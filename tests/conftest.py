"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and models: HASTEN_DATA, else ../shared/data beside the repository; skipped where absent, never in CI."""
    here = Path(__file__).resolve().parent.parent
    place = Path(os.environ.get("HASTEN_DATA") or here.parent / "shared" / "data")
    if not place.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no real data at {place}: CI must have it; set HASTEN_DATA")
        pytest.skip(f"no real data at {place}: set HASTEN_DATA to the folder that holds mnist/, cifar10/ and models/")
    return place
