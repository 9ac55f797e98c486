"""What is packed: everything that lies in src, the native engine where it can be compiled, and nothing else."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


def build(hook: str, out: Path, settings: dict[str, str] | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call one of the build backend's functions as pip does, in a process of its own: nothing is downloaded or installed."""
    script = f"import scikit_build_core.build as b; b.{hook}({str(out)!r}, {settings or {}!r})"
    env = {k: v for k, v in os.environ.items() if k != "HASTEN_NATIVE"} | variables
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)


def packed(out: Path) -> set[str]:
    """The names in the only wheel there, metadata aside."""
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return {n for n in file.namelist() if ".dist-info/" not in n}


def tracked(*places: str) -> set[str]:
    """The files that git would keep, relative to the repository."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *places], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: it isn't known what should be packed")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sources() -> set[str]:
    return {name.removeprefix("src/") for name in tracked("src")}


@pytest.mark.parametrize("variables", [NO_COMPILER, {"HASTEN_NATIVE": "off"}], ids=["no compiler", "not wanted"])
def test_without_a_compiler_the_package_is_pure_python(tmp_path, sources, variables):
    done = build("build_wheel", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert packed(tmp_path) == sources
    look = "import hasten, importlib.util as u; print(hasten.__file__, u.find_spec('hasten._native'))"
    script = f"import sys; sys.path.insert(0, {str(wheel)!r}); {look}"
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert seen.stdout.split() == [str(wheel / "hasten" / "__init__.py"), "None"]


def test_where_the_engine_is_required_a_failure_is_one(tmp_path):
    done = build("build_wheel", tmp_path, **NO_COMPILER, HASTEN_NATIVE="required")
    assert done.returncode and "CMake configuration failed" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_with_a_compiler_the_wheel_has_the_engine_and_nothing_more(tmp_path, sources):
    """The build folder is kept: what did not change is not compiled again."""
    done = build("build_wheel", tmp_path, {"build-dir": str(ROOT / "build" / "wheel")}, HASTEN_NATIVE="required")
    assert done.returncode == 0, done.stdout + done.stderr
    (engine,) = packed(tmp_path) - sources
    assert engine.startswith("hasten/_native.") and engine.endswith(".so")
    assert sources <= packed(tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extract(engine, tmp_path)
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'hasten')!r}); import _native; print(_native.abi(), _native.isa())"
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert seen.stdout.split()[0] == "2"


def test_an_editable_installation_leads_to_src_and_gives_way_to_pythonpath(tmp_path):
    """Who works in several checkouts with one environment must get the one that PYTHONPATH names."""
    done = build("build_editable", tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    place, other = tmp_path / "site", tmp_path / "other"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place)
    (other / "hasten").mkdir(parents=True)
    (other / "hasten" / "__init__.py").touch()
    script = f"import site; site.addsitedir({str(place)!r}); import hasten, hasten.version; print(hasten.__file__)"
    for path, expected in (("", ROOT / "src"), (str(other), other)):
        (other / "hasten" / "version.py").touch()
        # -I would hide PYTHONPATH; -S hides the environment's own editable installation.
        seen = subprocess.run(
            [sys.executable, "-S", "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
        )
        assert seen.stdout.strip() == str(expected / "hasten" / "__init__.py")


def test_the_source_distribution_has_what_git_has(tmp_path):
    done = build("build_sdist", tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert names == tracked() | {"PKG-INFO"}
