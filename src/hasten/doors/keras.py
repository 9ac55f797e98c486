"""The Keras door: a Keras 3 model or a `.keras` file becomes a Model. The work is done in a process of its own (`keras_process`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.doors import Loaded, Origin
from hasten.doors.onnx import load_onnx
from hasten.errors import BadInput, OutOfResources, Unsupported
from hasten.voice import voice

TIME_LIMIT = 900


def load_keras(source: Any, shapes: Mapping[str, int] | None, workdir: Path) -> Loaded:
    """Export with Keras' torch backend, whatever backend the model was made with, and compare with Keras' own prediction.

    Raises BadInput for a file that can't be read, Unsupported naming the layer for what can't be carried: recurrent layers, Lambda.
    """
    path = workdir / "origin.keras"
    if isinstance(source, Path):
        if not source.is_file() or source.stat().st_size == 0:
            raise BadInput(f"{source} does not exist or is empty; expected a Keras model file")
        path = workdir / f"origin{source.suffix}"
        path.write_bytes(source.read_bytes())
    else:
        source.save(path)
    target = workdir / "origin.onnx"
    environment = {**os.environ, "KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "3"}
    voice().say(f"keras: exporting in a process of its own, usually 10 to 30 s, at most {TIME_LIMIT // 60} min")
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "hasten.doors.keras_process", str(path), str(target)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise OutOfResources(f"the Keras export took more than {TIME_LIMIT} s; export the model to ONNX yourself and give that") from e
    lines = done.stdout.strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError) as e:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unsupported(f"the Keras export ended with exit code {done.returncode}: {last[:300]}") from e
    if "bad_input" in answer:
        raise BadInput(f"{source if isinstance(source, Path) else 'the model'}: {answer['bad_input'].replace(str(path), 'the file')}")
    if "unsupported" in answer:
        raise Unsupported(answer["unsupported"])
    (workdir / "origin.names").write_text("\n".join([*answer["inputs"], "", *answer["outputs"]]))
    return Loaded(load_onnx(target, shapes), Origin("keras", path), tuple(answer["notes"]))
