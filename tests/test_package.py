"""The package: what importing it costs, what it offers, and the script that it writes into every folder."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hasten
from hasten import run_template

HEAVY = ("torch", "onnxruntime", "openvino", "onnx_ir", "onnxscript", "keras", "altair", "vl_convert", "jinja2")


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that the code loads in a fresh interpreter."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit as e:\n    assert not e.code, e.code\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    ["import hasten", "from hasten import cli", *(f"from hasten.cli import main; main([{a!r}])" for a in ("--help", "--version"))],
)
def test_a_quick_start_loads_no_heavy_library(code):
    assert loaded_by(code) == set()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_worker_loads_its_runtime_alone(runtime, digits_cnn):
    """A search starts more than a hundred workers."""
    opened = f"open_session({runtime!r}, Path({str(digits_cnn)!r}), Target(1))"
    code = f"from hasten.measure.worker import *; {opened}"
    assert loaded_by(code) == {runtime}


def test_a_heavy_library_would_be_seen():
    assert loaded_by("import hasten; hasten.Model") == {"onnx_ir"}


@pytest.mark.parametrize("first", ["hasten", "hasten.run_template"])
def test_onnxruntime_tells_its_maker_nothing(digits_cnn, tmp_path, first):
    """Its telemetry keeps an identifier in the temporary folder and a queue in the cache: neither may appear."""
    script = f"import importlib; importlib.import_module({first!r}); import onnxruntime as o; o.InferenceSession({str(digits_cnn)!r})"
    kept = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", script], check=True, env={**kept, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)})
    assert [p.name for p in tmp_path.rglob("*")] == []


def test_every_public_name_is_there_and_no_other():
    assert hasten.__all__ == sorted(set(hasten.__all__))
    for name in hasten.__all__:
        assert getattr(hasten, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'hasten' has no attribute 'optimise'"):
        _ = hasten.optimise
    # What a type checker sees is what is imported at run time.
    block = next(n for n in ast.parse(Path(hasten.__file__).read_text()).body if isinstance(n, ast.If))
    assert {a.name: i.module for i in block.body for a in i.names} == hasten._WHERE
    assert set(hasten._WHERE) | {"__version__"} == set(hasten.__all__)


def test_the_version_is_the_installed_one():
    assert hasten.__version__ == importlib.metadata.version("hasten")


def test_run_template_is_python_that_needs_numpy_and_a_runtime_alone():
    """Valid for the oldest Python of the runtimes; a runtime is imported when it runs, hasten only for torch and the native engine."""
    tree = ast.parse(Path(run_template.__file__).read_text(), feature_version=(3, 10))
    load = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "load")
    branch = next(n for n in load.body if isinstance(n, ast.If) and "'torch'" in ast.unparse(n.test) and "'native'" in ast.unparse(n.test))
    assert imports(ast.walk(branch)) == {"hasten"}
    load.body.remove(branch)
    anywhere, first = imports(ast.walk(tree)), imports(tree.body)
    assert anywhere - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "openvino"}
    assert first - set(sys.stdlib_module_names) == {"numpy"}


def imports(nodes) -> set[str]:
    """Top-level names of the modules that these nodes import."""
    nodes = list(nodes)
    plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {m.split(".")[0] for m in plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}}
