"""The engine for C users: installed, compiled against with nothing but its header and library, as docs/native.md shows."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT = ROOT / "build" / "native"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What `cmake --install` puts where; skipped where `make native` did not run, never in CI."""
    cmake = shutil.which("cmake")
    if not cmake or not (BUILT / "libhasten.so").exists():
        why = f"no cmake, or no {BUILT}/libhasten.so: `make native` builds it"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([cmake, "--install", BUILT, "--component", "c", "--prefix", place], check=True, capture_output=True)
    return place


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_the_program_in_the_docs(installed, tmp_path, kind):
    (program,) = re.findall(r"^```c\n(.*?)^```", (ROOT / "docs" / "native.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "digits.c").write_text(program)
    (library,) = installed.glob("lib*/libhasten.so")
    link = ["-L", library.parent, "-lhasten", f"-Wl,-rpath,{library.parent}"]
    if kind == "static":
        link = [library.with_suffix(".a"), "-lstdc++", "-lpthread", "-lm"]
    compile_ = ["cc", "-std=c99", "-Wall", "-Werror", "-I", installed / "include", tmp_path / "digits.c", *link, "-o", tmp_path / "digits"]
    subprocess.run(compile_, check=True)
    ran = subprocess.run([tmp_path / "digits", tmp_path / "no.plan"], capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.strip()


def test_the_library_offers_the_interface_and_nothing_else(installed):
    (library,) = installed.glob("lib*/libhasten.so")
    listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    declared = set(re.findall(r"HASTEN_API [^(]*?(hasten_\w+)\(", (installed / "include" / "hasten.h").read_text()))
    assert {line.split()[-1] for line in listed.splitlines()} == declared
