"""Every file in examples/ runs to its end on small data, with searches that measure little, and says what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from hasten.search.result import Result

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
QUICKLY = """
import runpy, sys
from tests.search.quick import few_candidates, quicken
quicken()
few_candidates()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

PYTHON = {
    "keras_cnn": ("accuracy", True, [r"against Keras itself: (\{'keras'|None)", r"accuracy 0\.9\d+ on 900 digits"]),
    "pytorch_cnn": ("accuracy", True, [r"against torch itself: (\{'torch'|None)", r"accuracy 0\.9\d+"]),
    "text_classifier": ("accuracy", True, [r" · (onnxruntime|openvino)"]),
    "tabular_mlp": ("auc", True, [r"p99 +[\d.]+ µs", r"(keeps|misses) the deadline; "]),
    "detector": ("same_boxes", False, [r"same_boxes 1\.0000 on \d+ validation samples"]),
    "no_labels": ("agreement", False, [r"no labels: fidelity to the original is judged, by agreement"]),
}
NEEDS_DATA = ("text_classifier", "detector")
SMALL = {"OMP_NUM_THREADS": "1", "SAMPLES": "40"}
"""One thread is enough for what trains here; the detector takes so few pictures."""


def run(arguments, place, **more) -> subprocess.CompletedProcess:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "KERAS_BACKEND": "torch", "TRANSFORMERS_OFFLINE": "1"} | more
    return subprocess.run(arguments, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_the_case_study_goes_down_the_whole_road(tmp_path):
    """In one epoch each, and again: what is done is not done twice."""
    command = [sys.executable, "-c", QUICKLY, str(EXAMPLES / "handwritten_digits" / "study.py"), "out", "--epochs", "1"]
    done = run(command, tmp_path, **SMALL)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 13
    assert all("µs" in row for row in rows[4:])
    assert (tmp_path / "out" / "study.svg").read_text().startswith("<svg")
    again = run(command, tmp_path, **SMALL)
    assert again.returncode == 0, again.stderr
    assert "weights, left" in done.stdout
    assert "weights, left" not in again.stdout


def test_every_example_is_run_here_and_short_and_named_in_the_docs():
    files = sorted(f.name for f in EXAMPLES.iterdir() if f.is_file())
    assert files == sorted([*(f"{name}.py" for name in PYTHON), "ci_gate.sh"])
    page = (ROOT / "docs" / "examples.md").read_text()
    for file in files:
        assert len((EXAMPLES / file).read_text().splitlines()) < 40, file
        assert f"| `{file}` |" in page


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_example(name, tmp_path, request):
    data = {"HASTEN_DATA": str(request.getfixturevalue("shared_data"))} if name in NEEDS_DATA else {}
    metric, labels, says = PYTHON[name]
    done = run([sys.executable, "-c", QUICKLY, str(EXAMPLES / f"{name}.py")], tmp_path, **SMALL, **data)
    assert done.returncode == 0, done.stderr
    for pattern in says:
        assert re.search(pattern, done.stdout), done.stdout
    result = Result.load(tmp_path / f"{name}.hasten")
    assert (result.manifest["judged"]["metric"], result.manifest["judged"]["labels"]) == (metric, labels)
    assert result.best.name in done.stdout


@pytest.fixture
def path(tmp_path, monkeypatch):
    """PATH with a `hasten` of this interpreter that measures little."""
    command = tmp_path / "bin" / "hasten"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom tests.search.quick import quicken\nfrom hasten.cli import main\nquicken()\nmain()\n")
    command.chmod(0o755)
    return f"{command.parent}{os.pathsep}{os.environ['PATH']}"


def test_the_gate_for_ci(tmp_path, path, digits, digits_cnn):
    gate = EXAMPLES / "ci_gate.sh"
    kept = run([gate, digits_cnn, digits_cnn, digits], tmp_path, PATH=path)
    assert kept.returncode == 0, kept.stderr
    assert re.search("gate: (kept|not decided)", kept.stdout)  # two of the same: the noise of few rounds may leave it open

    proto = onnx.load(digits_cnn)
    last = next(i for i in proto.graph.initializer if i.name == proto.graph.node[-1].input[1])
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), last.name))
    onnx.save(proto, tmp_path / "worse.onnx")
    broken = run([gate, digits_cnn, "worse.onnx", digits], tmp_path, PATH=path)
    assert (broken.returncode, "gate: broken" in broken.stdout) == (6, True)

    unreadable = run([gate, digits_cnn, "none.onnx", digits], tmp_path, PATH=path)
    assert (unreadable.returncode, "could not compare them (exit code 2)" in unreadable.stdout) == (2, True)
