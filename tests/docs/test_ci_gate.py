"""The workflow that users copy: it parses, and its commands do in a shell what its comments say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from hasten.cli import VERBS

FILE = Path(__file__).resolve().parents[2] / "docs" / "ci" / "hasten-gate.yml"
WORKFLOW = yaml.safe_load(FILE.read_text())
STEPS = {s["name"]: s["run"] for s in WORKFLOW["jobs"]["gate"]["steps"] if "run" in s}
GATE, CLAIMS = "Candidate against baseline", "The optimised folder is what it claims"


@pytest.fixture(scope="module")
def repository(digits_cnn, digits, tmp_path_factory):
    """A user's repository: two models, data, a folder that `hasten optimize` wrote; and `hasten` on the path."""
    place = tmp_path_factory.mktemp("repository")
    shutil.copy(digits_cnn, place / "baseline.onnx")
    shutil.copy(digits_cnn, place / "candidate.onnx")
    shutil.copy(digits, place / "data.npz")
    command = [sys.executable, "-m", "tests.search.quick", "baseline.onnx", "data.npz", "out", "int8 static"]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, cwd=place, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])})
    (place / "bin").mkdir()
    script = place / "bin" / "hasten"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{root / "src"}" exec "{sys.executable}" -m hasten "$@"\n')
    script.chmod(0o755)
    return place


def step(repository, name, **env):
    """Run a step as GitHub does, `bash -e`, with the workflow's environment; few rounds, and a gate that noise can't break."""
    own = {**WORKFLOW["env"], "ROUNDS": "3", "MAX_SLOWDOWN": "1000", **env}
    path = f"{repository / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", STEPS[name]],
        cwd=repository,
        env={**os.environ, **own, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_file_is_a_workflow():
    assert set(STEPS) == {"Install", GATE, CLAIMS}
    assert WORKFLOW[True]["pull_request"]["paths"]  # YAML reads `on` as true
    assert all(isinstance(v, str) for v in WORKFLOW["env"].values())
    verbs = {verb for _, verb, _ in VERBS}
    used = re.findall(r"^\s*hasten (\S+)", "\n".join(STEPS.values()), re.MULTILINE)
    assert used == ["compare", "verify"] and set(used) <= verbs
    for code in ("0", "6", "7"):
        assert re.search(rf"^#   {code}  \w", FILE.read_text(), re.MULTILINE)


def test_a_candidate_that_is_as_good_passes(repository):
    done = step(repository, GATE, MAX_DROP="0.05")
    assert done.returncode == 0, done.stderr
    assert "gate for accuracy: kept" in done.stdout
    assert "gate for speed: kept" in done.stdout


def test_a_candidate_that_is_worse_fails_with_6(repository):
    """The bias of the class scores says 0 whatever the picture shows."""
    proto = onnx.load(repository / "baseline.onnx")
    bias = next(i for i in proto.graph.initializer if list(i.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.eye(10, dtype=np.float32)[0] * 1e4, bias.name))
    onnx.save(proto, repository / "worse.onnx")
    done = step(repository, GATE, CANDIDATE="worse.onnx")
    assert done.returncode == 6, done.stderr
    assert "the gate for accuracy is broken" in done.stderr


def test_what_is_not_decided_is_a_warning(repository):
    done = step(repository, GATE, MAX_DROP="0.0001")
    assert done.returncode == 0, done.stderr
    assert "::warning title=hasten::the gate can't be decided" in done.stdout


def test_bad_input_is_no_pass(repository):
    assert step(repository, GATE, CANDIDATE="none.onnx").returncode == 2


def test_the_folder_is_verified_and_a_changed_one_fails(repository):
    done = step(repository, CLAIMS)
    assert done.returncode == 0, done.stderr
    assert "not checked" in done.stdout or "claims no gain" in done.stdout
    script = repository / "out" / "run.py"
    kept = script.read_text()
    script.write_text("print('mine')")
    try:
        assert step(repository, CLAIMS).returncode == 6
    finally:
        script.write_text(kept)
