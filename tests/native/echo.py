"""The binding on an engine that only echoes (native/tests/echo_engine.cpp), as `make native` builds it."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "native" / "echo"


def echo_module() -> ModuleType:
    """`hasten._native` with that engine in it; skipped where it is not built, never in CI."""
    built = next(FOLDER.glob("_native.*"), None)
    if built is None:
        why = f"no {FOLDER}: `make native` builds it"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    spec = importlib.util.spec_from_file_location("_native", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
